"""The `gaia` command. Commands import grpc and the SDK when they run, so that help is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from gaia_grpc.cli import (
    alerts,
    bench,
    call,
    demo,
    later,
    metrics,
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
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
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
app.command("locks")(later.locks)
app.command("classrooms")(later.classrooms)
app.command("web")(later.web)
app.command("call")(call.call)
app.command("bench")(bench.bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Errors are one line on stderr, never a trace."""
    # The C core of grpc reports connections that break, which is no news to who kills peers.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        outcome = app(args=arguments, prog_name="gaia", standalone_mode=False)
    except typer.TyperException as error:
        return _complain(error.format_message(), error.exit_code)
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
            return _complain(str(error) or "timed out", EXIT_FAILURE)
        case _:
            raise error


def _complain(message: str, code: int) -> int:
    """One line: of a longer message its first and its last, which names the cause."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    text = lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1]}" if lines else "failed"
    print(f"error: {text}", file=sys.stderr)
    return code
