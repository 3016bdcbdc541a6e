"""Kills the peers of a test run whose own process is gone, however it went.

One small helper process per test process reads pids from a pipe. The end of the pipe means that the
owner has died, also by SIGKILL, and what it still had is killed. PR_SET_PDEATHSIG would not do: it
fires when the *thread* that started the child ends, and executor threads end with their loop.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
from contextlib import suppress

_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
pids = set()
for line in sys.stdin:
    pid = int(line[1:])
    (pids.add if line[0] == "+" else pids.discard)(pid)
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
"""


class Guard:
    """The helper process of this process; starts with the first pid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[str] | None = None

    def watch(self, pid: int) -> None:
        """Kills `pid` when this process ends before `forget`."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """`pid` was reaped: its number may belong to another process soon."""
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._helper is None:
                self._helper = subprocess.Popen(
                    [sys.executable, "-S", "-E", "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
                atexit.register(self.close)
            if self._helper.stdin is not None:
                with suppress(OSError):  # the helper was killed: nothing is left to tell it
                    self._helper.stdin.write(line)
                    self._helper.stdin.flush()

    def close(self) -> None:
        """Ends the helper, which kills what is still watched."""
        with self._lock:
            helper, self._helper = self._helper, None
        if helper is not None:
            if helper.stdin is not None:
                with suppress(OSError):
                    helper.stdin.close()
            helper.wait(5)


GUARD = Guard()
