"""The `gaia` command. Commands import grpc and the SDK when they run, so that help is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from gaia_grpc import __version__
from gaia_grpc.cli import (
    alerts,
    backup,
    bench,
    call,
    classrooms,
    demo,
    later,
    locks,
    metrics,
    peers,
    replay,
    serve,
    sessions,
    settings,
    status,
    tasks,
    up,
)
from gaia_grpc.errors import ConfigError, GaiaError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="gaia",
    help="GAIA: a classroom's replicated backend. `gaia demo` shows it at work.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gaia {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """GAIA: a classroom's replicated backend. `gaia demo` shows it at work."""


app.command("up")(up.up)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("replay")(replay.replay)
app.command("status")(status.status)
app.add_typer(sessions.app, name="sessions")
app.add_typer(tasks.app, name="tasks")
app.add_typer(metrics.app, name="metrics")
app.add_typer(alerts.app, name="alerts")
app.add_typer(settings.app, name="settings")
app.add_typer(peers.app, name="peers")
app.add_typer(locks.app, name="locks")
app.add_typer(classrooms.app, name="classrooms")
app.command("web")(later.web)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("call")(call.call)
app.command("bench")(bench.bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Errors are one line on stderr, never a trace.

    Without arguments it shows the help.
    """
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # The C core of grpc reports connections that break, which is no news to who kills peers.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        outcome = app(args=given, prog_name="gaia", standalone_mode=False)
    except typer.TyperException as error:
        return _complain(_usage_text(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except ExceptionGroup as group:
        return _explain(_first(group))
    except Exception as error:
        return _explain(error)
    return outcome if isinstance(outcome, int) else 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of several that tasks of one command failed with."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _explain(error: BaseException) -> int:
    """Prints an expected error as one line; anything else is a bug and keeps its trace."""
    match error:
        case ConfigError():
            return _complain(error.message, EXIT_USAGE)
        case GaiaError():
            return _complain(error.message, EXIT_FAILURE)
        case BrokenPipeError():
            # Whoever read our output has seen enough; nothing more may be flushed into it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_FAILURE
        case OSError() | TimeoutError():
            return _complain(_system_text(error), EXIT_FAILURE)
        case _:
            raise error


def _usage_text(error: typer.TyperException) -> str:
    """What is wrong with the arguments, and where to read about them."""
    text = error.format_message().strip().removesuffix(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    path: str = context.command_path
    if "unexpected extra argument" in text and path == "gaia tasks enqueue":
        text += "; the input of the task goes to --payload, in quotes"
    return f"{text}; try '{path} --help'"


def _system_text(error: OSError) -> str:
    """What the system says, without its number and with the file first."""
    if error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return error.strerror or str(error) or "timed out"


def _complain(message: str, code: int) -> int:
    """One line: of a longer message its first and its last, which names the cause."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    text = lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1]}" if lines else "failed"
    print(f"error: {text}", file=sys.stderr)
    return code
