"""The command line itself: names, help, errors, exit codes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from gaia_grpc import __version__
from gaia_grpc.cli.main import app, main

NAMES = [  # the names of the design
    "up",
    "serve",
    "web",
    "demo",
    "replay",
    "status",
    "sessions",
    "tasks",
    "metrics",
    "alerts",
    "locks",
    "classrooms",
    "settings",
    "call",
    "bench",
    "peers", "backup", "restore",  # added since
]  # fmt: skip


@pytest.fixture
def refused_address() -> Iterator[str]:
    """An address at which nobody listens, kept taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_name_of_the_design_is_there() -> None:
    command = typer.main.get_command(app)
    assert sorted(getattr(command, "commands")) == sorted(NAMES)  # noqa: B009  # not on Command


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["tasks", "--help"]])
def test_help_does_not_load_grpc(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from gaia_grpc.cli.main import main\n"
        f"code = main({arguments!r})\n"
        "sys.exit(code or (3 if 'grpc' in sys.modules or 'rich' in sys.modules else 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: gaia" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nonsense"], 2, "No such command"),
        (["demo", "--students", "many"], 2, "--students"),
        (["status", "--cluster", "nowhere"], 2, "'nowhere' is not HOST:PORT"),
        (["status", "--cluster", " , "], 2, "at least one HOST:PORT"),
        (["call", "--cluster", "h:1", "A/B", "{"], 1, "no peer answers"),
        (["nonsense"], 2, "try 'gaia --help'"),
        (["tasks", "nonsense"], 2, "try 'gaia tasks --help'"),
        (["tasks", "enqueue", "grade", "essay"], 2, "goes to --payload"),
        (["status", "--cluster", "127.0.0.1:70000"], 2, "port 70000"),
        (["settings", "set", "retry"], 2, "'retry' is not KEY=VALUE"),
        (["up", "--set", "a=1", "--set", "a=2"], 2, "a is given twice"),
        (["up", "--peers", "0"], 2, "--peers must be odd, 1 to 99"),
        (["up", "--peers", "2"], 2, "--peers must be odd"),
        (["up", "--base-port", "80"], 2, "--base-port must be"),
        (["replay", "x.csv", "--format", "xml"], 2, "--format must be one of"),
        (["replay", "no/such/file.csv", "--format", "csv"], 2, "no/such/file.csv: No such file"),
        (["bench", "--only", "nothing"], 2, "no case nothing"),
        (["serve"], 2, "--node-id (or GAIA_NODE_ID) is missing"),
        (["sessions", "list", "--health", "fine"], 2, "healthy, degraded or failed"),
        (["tasks", "list", "--state", "odd"], 2, "'odd' is none of pending, scheduled"),
        (["classrooms", "forget-student", "ana"], 2, "can't be undone: say --yes"),
        (["web"], 1, "the web pages are not there yet"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAIA_CLUSTER", raising=False)
    found, out, err = run(capsys, *arguments)
    assert found == code
    assert not (tmp_path / ".gaia").exists()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert out == ""


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys)
    assert shown == run(capsys, "--help") == run(capsys, "-h")
    code, out, err = shown
    assert (code, err) == (0, "")
    assert all(f"\n  {name} " in out for name in NAMES)


def test_h_is_help_for_every_command_and_noun(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["demo"], ["tasks"], ["tasks", "list"]):
        assert run(capsys, *arguments, "-h") == run(capsys, *arguments, "--help")
    assert "enqueue" in run(capsys, "tasks", "-h")[1]


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"gaia {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["call", "TaskService/GetQueueStats"],
        ["call"],
        ["tasks"],
        ["tasks", "enqueue", "grade"],
        ["sessions", "score"],
        ["metrics", "list", "5b"],
        ["metrics", "watch", "5b"],
        ["alerts"],
        ["alerts", "watch"],
        ["settings"],
        ["demo"],
    ],
)
def test_no_peer_that_answers_is_one_line(
    capsys: pytest.CaptureFixture[str], refused_address: str, arguments: list[str]
) -> None:
    code, out, err = run(capsys, *arguments, "--cluster", refused_address)
    assert code == 1
    assert err == f"error: no peer answers at {refused_address}; `gaia up` starts a local cluster\n"
    assert out == ""


def test_a_used_port_is_told_before_any_peer_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        base = min(port, 60_000)
        if base != port:
            pytest.skip("the kernel chose a port beyond what --base-port takes")
        data_dir = tmp_path / "data"
        code, _, err = run(capsys, "up", "--base-port", str(port), "--data-dir", str(data_dir))
    assert code == 1
    assert f"127.0.0.1:{port} of peer n1 is in use" in err
    assert not data_dir.exists()


def test_a_directory_of_another_cluster_size_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number in range(1, 6):
        (tmp_path / f"n{number}").mkdir()
    code, _, err = run(capsys, "up", "--data-dir", str(tmp_path))
    assert code == 2
    assert "holds a cluster of 5 peers: use --peers 5" in err


def test_what_a_failed_founding_left_behind_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number in (1, 2):
        (tmp_path / f"n{number}").mkdir()
    code, _, err = run(capsys, "up", "--data-dir", str(tmp_path))
    assert code == 2
    assert "holds 2 peers, which is no whole cluster: choose another" in err


def test_the_output_may_be_cut_off_by_its_reader() -> None:
    done = subprocess.run(
        f"{sys.executable} -m gaia_grpc --help | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
