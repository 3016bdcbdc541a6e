"""Cleans up after a test run whose own process is gone, however it went.

One small helper process per test process reads pids and directories from a pipe. The end of the
pipe means that the owner has died, also by SIGKILL, and what it still had is killed and removed.
PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the child ends, and executor
threads end with their loop.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
kept = set()
for line in sys.stdin:
    (kept.add if line[0] == "+" else kept.discard)(line[1:].rstrip("\\n"))
for pid in kept:
    if pid.isdigit():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
directories = [path for path in kept if not path.isdigit()]
if directories:
    import shutil, time
    time.sleep(0.2)
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)
"""


class Guard:
    """The helper process of this process; starts with the first pid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[str] | None = None

    def watch(self, what: int | Path) -> None:
        """Kills a pid, removes a directory, when this process ends before `forget`."""
        self._tell(f"+{what}\n")

    def forget(self, what: int | Path) -> None:
        """It is gone; a reaped pid may belong to another process soon."""
        self._tell(f"-{what}\n")

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
