"""One peer as a child process: `python -m gaia_grpc serve ...`, never a fork of this one."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import gaia.common.v1.common_pb2

import gaia_grpc
from gaia_grpc.errors import ConfigError
from gaia_grpc.testing.guard import GUARD

PORT_RANGE = (20_000, 32_000)
"""Below the range from which the kernel draws ports of outgoing connections, so that a peer finds
its port free again when it is restarted."""
LOG_TAIL_BYTES = 8_192
PROGRAM = ("-m", "gaia_grpc")
"""What Python runs as `gaia`."""


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens at this moment."""
    draw = random.SystemRandom()  # a test may have seeded the shared one
    found: list[int] = []
    while len(found) < count:
        port = draw.randrange(*PORT_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def peer_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without GAIA_* variables, able to import the same packages."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GAIA_")}
    stubs = Path(gaia.common.v1.common_pb2.__file__).resolve().parents[3]
    package = Path(gaia_grpc.__file__).resolve().parents[1]
    paths = [str(package), str(stubs), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["GRPC_VERBOSITY"] = "NONE"
    environment.update(extra or {})
    return environment


class PeerProcess:
    """Where one peer lives, and the process that runs it now, if any."""

    def __init__(self, node_id: str, root: Path, ports: tuple[int, int]) -> None:
        self.node_id = node_id
        self.address = f"127.0.0.1:{ports[0]}"
        """For clients."""
        self.peer_address = f"127.0.0.1:{ports[1]}"
        self.data_dir = root / node_id
        self.log_path = root / f"{node_id}.log"
        self.paused = False
        self.prefix: tuple[str, ...] = ()
        """What the command line begins with, as where the peer runs in a namespace."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    @property
    def answering(self) -> bool:
        """Whether the process is there and not paused."""
        return self.running and not self.paused

    @property
    def pid(self) -> int:
        """Process id; `ConfigError` where it does not run."""
        if self._process is None:
            raise ConfigError(f"{self.node_id} does not run")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of the latest process, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def spawn(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """Starts the process; its output is appended to the log file."""
        if self.running:
            raise ConfigError(f"{self.node_id} runs already")
        command = [*self.prefix, sys.executable, *program, "serve", "--node-id", self.node_id]
        command += ["--listen", self.address, "--peer-listen", self.peer_address]
        command += ["--data-dir", str(self.data_dir), *arguments]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        GUARD.watch(self._process.pid)
        self.paused = False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; nothing where the process has ended."""
        if self._process is not None:
            self._process.send_signal(number)
            if number in (signal.SIGSTOP, signal.SIGCONT):
                self.paused = number == signal.SIGSTOP

    def wait(self, timeout: float) -> int:
        """Waits for the end of the process; `TimeoutError` where it lives on."""
        if self._process is None:
            raise ConfigError(f"{self.node_id} was never started")
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.node_id} did not end within {timeout:g} s") from error
        GUARD.forget(self._process.pid)
        self.paused = False
        return code

    def kill(self) -> None:
        """SIGKILL, and waits until the kernel has taken the process away."""
        if self.running:
            self.send(signal.SIGKILL)
            self.wait(10)

    def log(self) -> str:
        """Everything that the peer wrote, over all its processes."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def log_tail(self) -> str:
        """The end of the log, for a failed test."""
        return self.log()[-LOG_TAIL_BYTES:]
