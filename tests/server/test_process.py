"""`gaia serve` as a process: READY, SIGTERM, and one line for what it does not start with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT_S = 30.0
DEBUG = ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE")
"""With them asyncio reports slow steps on stderr, which is not what is tested here."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve_arguments(root: Path, client_port: int, *more: str) -> list[str]:
    peer = f"127.0.0.1:{free_port()}"
    return [
        *(sys.executable, "-m", "gaia_grpc", "serve", "--node-id", "n1", "--bootstrap"),
        *("--listen", f"127.0.0.1:{client_port}", "--peer-listen", peer),
        *("--peer", f"n1={peer}", "--data-dir", str(root / "n1")),
        *more,
    ]


@contextmanager
def process(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True, env={key: value for key, value in os.environ.items() if key not in DEBUG},
    )  # fmt: skip
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


@pytest.mark.e2e
def test_a_peer_reports_ready_and_ends_on_sigterm(tmp_path: Path) -> None:
    port = free_port()
    with process(serve_arguments(tmp_path, port)) as peer:
        assert peer.stderr is not None
        lines = []
        for line in peer.stderr:
            lines.append(line)
            if "READY" in line:
                break
        assert f"client=127.0.0.1:{port} " in lines[-1]
        peer.send_signal(signal.SIGTERM)
        output, rest = peer.communicate(timeout=TIMEOUT_S)
        assert (peer.returncode, output) == (0, "")
        assert "stopped" in rest
        assert "Traceback" not in "".join(lines) + rest


@pytest.mark.e2e
def test_a_second_peer_on_a_used_port_says_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with process(serve_arguments(tmp_path, port)) as peer:
            output, errors = peer.communicate(timeout=TIMEOUT_S)
    assert (peer.returncode, output) == (1, "")
    assert errors == f"error: the client address 127.0.0.1:{port} is in use or can't be bound\n"


@pytest.mark.e2e
def test_a_wrong_setting_says_one_line(tmp_path: Path) -> None:
    arguments = serve_arguments(tmp_path, free_port(), "--set", "no.such=1")
    with process(arguments) as peer:
        output, errors = peer.communicate(timeout=TIMEOUT_S)
    assert (peer.returncode, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: --set ")
    assert not (tmp_path / "n1").exists()
