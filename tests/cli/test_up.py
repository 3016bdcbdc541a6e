"""`gaia up` as a process: founds, tells, stops in order, goes on with its data."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gaia_grpc.testing import free_ports

READY = "ready; Ctrl-C stops the cluster"


def free_base_port() -> int:
    """A port such that the next two and those 100 higher are free too."""
    import socket

    for _ in range(100):
        base = free_ports(1)[0]
        try:
            for port in (*range(base, base + 3), *range(base + 100, base + 103)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    pytest.skip("no free ports")


class Running:
    """A `gaia up` and what it printed so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "gaia_grpc", "up", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
        self.text = ""

    def read_until(self, text: str) -> str:
        """Everything printed up to and with the line that holds `text`."""
        while text not in self.text:
            line = self.process.stdout.readline() if self.process.stdout else ""
            assert line, f"ended without {text!r}: {self.text}"
            self.text += line
        return self.text

    def finish(self) -> int:
        """Exit code, after the rest of the output."""
        rest, _ = self.process.communicate(timeout=30)
        self.text += rest
        return self.process.returncode


@contextmanager
def up(*arguments: str) -> Iterator[Running]:
    running = Running(*arguments)
    try:
        yield running
    finally:
        if running.process.returncode is None:
            running.process.send_signal(signal.SIGTERM)
            running.finish()


def gaia(cluster: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gaia_grpc", *arguments, "--cluster", cluster],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_a_second_run_goes_on_with_the_same_data(tmp_path: Path) -> None:
    base = free_base_port()
    options = ("--base-port", str(base), "--data-dir", str(tmp_path / "data"), "--no-web")
    cluster = ",".join(f"127.0.0.1:{base + place}" for place in range(3))
    with up(*options, "--set", "task.max_retries=7") as first:
        printed = first.read_until(READY)
        assert printed.startswith("starting 3 peers ...\n")
        assert f"export GAIA_CLUSTER={cluster}" in printed
        assert re.search(rf"^n2 .*127.0.0.1:{base + 1} .*127.0.0.1:{base + 101} ", printed, re.M)
        assert printed.count("  leader") == 1
        task_id = gaia(cluster, "tasks", "enqueue", "keep").split()[0]
        assert gaia(cluster, "settings", "get", "task.max_retries") == "7\n"
        logs = {path: path.stat().st_size for path in (tmp_path / "data").glob("n*.log")}
        with up("--base-port", str(free_base_port()), *options[2:]) as other:
            assert other.finish() == 1
        assert other.text.startswith(f"error: a cluster runs in {tmp_path / 'data'}/ already")
        assert {path: path.stat().st_size for path in logs} == logs
        first.process.send_signal(signal.SIGINT)
        assert first.finish() == 0
        assert first.text.endswith("stopped; `gaia up` goes on with the same data\n")
    with up(*options) as second:
        second.read_until(READY)
        assert task_id in gaia(cluster, "tasks", "list", "--type", "keep")
        assert gaia(cluster, "settings", "get", "task.max_retries") == "7\n"


@pytest.mark.e2e
def test_a_killed_peer_is_told_and_started_again_where_asked(tmp_path: Path) -> None:
    base = free_base_port()
    options = ("--base-port", str(base), "--data-dir", str(tmp_path / "data"), "--restart")
    with up(*options) as running:
        printed = running.read_until(READY)
        pid = re.search(r"^n2 .* pid (\d+)", printed, re.M)
        assert pid is not None
        os.kill(int(pid[1]), signal.SIGKILL)
        running.read_until("n2 ended (signal 9)")
        running.read_until("n2 started again, pid ")


@pytest.mark.e2e
def test_how_a_killed_peer_comes_back_and_what_the_lost_majority_means(tmp_path: Path) -> None:
    base = free_base_port()
    with up("--base-port", str(base), "--data-dir", str(tmp_path / "data")) as running:
        printed = running.read_until(READY)
        pids = dict(re.findall(r"^(n\d) .* pid (\d+)", printed, re.M))
        os.kill(int(pids["n2"]), signal.SIGKILL)
        printed = running.read_until("n2 ended (signal 9)")
        assert "bring it back (`gaia up --restart`" in printed
        assert "peers left" not in printed
        os.kill(int(pids["n1"]), signal.SIGKILL)
        running.read_until("1 of 3 peers left, 2 are needed: reads and writes have stopped")


@pytest.mark.e2e
def test_a_peer_that_cannot_start_ends_it_with_one_line(tmp_path: Path) -> None:
    base = free_base_port()
    options = ("--base-port", str(base), "--data-dir", str(tmp_path), "--set", "no.such=1")
    with up(*options) as running:
        assert running.finish() == 1
    lines = [line for line in running.text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "no.such" in lines[0]
    assert "Traceback" not in running.text
