"""Disks that are slow, fail, are full, or changed a byte; each for one peer.

Slow and failing syncs come from strace, attached to the running peer: the kernel's own call is
delayed, or returns EIO. A small disk is a tmpfs in a namespace of its own, so it needs no root.
Both need Linux and may be forbidden: ask `strace_missing` and `small_disk_missing` first.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from gaia_grpc.errors import ConfigError
from gaia_grpc.testing.guard import GUARD

ATTACH_TIMEOUT_S = 10.0
POLL_S = 0.02
SYNC_CALLS = "fsync,fdatasync"
NAMESPACE = ("--user", "--map-root-user", "--mount")


def strace_missing() -> str | None:
    """Why no sync can be injured here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(
        ["strace", "-qq", "-o", os.devnull, "-e", "trace=none", "true"],
        capture_output=True,
        timeout=ATTACH_TIMEOUT_S,
        check=False,
    )
    return None if done.returncode == 0 else "strace may not trace processes here"


def small_disk_missing() -> str | None:
    """Why no small disk can be made here; None where it can."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "unshare and nsenter are not installed"
    done = subprocess.run(
        ["unshare", *NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        timeout=ATTACH_TIMEOUT_S,
        check=False,
    )
    return None if done.returncode == 0 else "namespaces may not be made here"


class SyncFault:
    """strace on one process: every fsync and fdatasync is delayed, or fails."""

    def __init__(self, pid: int, log: Path, *, delay_s: float = 0.0, error: str = "") -> None:
        """Attaches; raises `TimeoutError` where strace does not get hold of the process.

        Args:
            pid: the process; all of its threads are meant.
            log: strace's report of each injured call.
            delay_s: how much later each call begins.
            error: name of the error that each call returns instead of being made, as in EIO.
        """
        fault = f"error={error}" if error else f"delay_enter={round(delay_s * 1e6)}"
        self._log = log
        log.unlink(missing_ok=True)
        command = ["strace", "-f", "-o", str(log), "-e", f"trace={SYNC_CALLS}"]
        command += ["-e", f"inject={SYNC_CALLS}:{fault}", "-p", str(pid)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        GUARD.watch(self._process.pid)
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while _tracer(pid) != self._process.pid:
            if time.monotonic() >= deadline or self._process.poll() is not None:
                self.stop()
                raise TimeoutError(f"strace did not attach to {pid}")
            time.sleep(POLL_S)

    @property
    def injured_calls(self) -> int:
        """Calls that were delayed or failed so far, one that is still held up included."""
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return 0
        return text.count("sync(")

    def stop(self) -> None:
        """Lets the process go; idempotent."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(ATTACH_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(ATTACH_TIMEOUT_S)
        GUARD.forget(self._process.pid)


def _tracer(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(
        next(line for line in status.splitlines() if line.startswith("TracerPid")).split()[1]
    )


class SmallDisk:
    """A tmpfs at `path`, seen only by processes that start with `prefix`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.size_bytes = size_bytes
        options = f"size={size_bytes},mode=0700"
        mount = f'mount -t tmpfs -o {options} tmpfs "$0" && echo ready && exec sleep infinity'
        self._holder = subprocess.Popen(
            ["unshare", *NAMESPACE, "sh", "-c", mount, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        GUARD.watch(self._holder.pid)
        if self._holder.stdout is None or self._holder.stdout.readline() != b"ready\n":
            self.close()
            raise ConfigError(f"{path}: no tmpfs could be mounted")

    @property
    def prefix(self) -> tuple[str, ...]:
        """What the command line of a process begins with that is to see the disk."""
        target = str(self._holder.pid)
        return ("nsenter", "--preserve-credentials", "--user", "--mount", "--target", target, "--")

    @property
    def outside(self) -> Path:
        """The disk's content for processes that are not in the namespace."""
        return Path(f"/proc/{self._holder.pid}/root{self._path.resolve()}")

    @property
    def free_bytes(self) -> int:
        """Space that is left."""
        found = os.statvfs(self.outside)
        return found.f_bavail * found.f_frsize

    def fill(self) -> int:
        """Takes all the space that is left; returns how much it was."""
        filled = 0
        with (self.outside / "ballast").open("ab", buffering=0) as ballast:
            for size_bytes in (1 << 16, 1 << 12):
                while True:
                    try:
                        filled += ballast.write(bytes(size_bytes)) or 0
                    except OSError:
                        break
        return filled

    def free(self) -> None:
        """Gives the space back."""
        (self.outside / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the namespace, and with it the disk once no process uses it; idempotent."""
        if self._holder.poll() is None:
            self._holder.kill()
        self._holder.wait(ATTACH_TIMEOUT_S)
        if self._holder.stdout is not None:
            self._holder.stdout.close()
        GUARD.forget(self._holder.pid)


class FlippedBytes:
    """Some bytes of a file, each with other bits than it had; `restore` puts them back."""

    def __init__(self, path: Path, count: int, draw: random.Random) -> None:
        self.path = path
        data = bytearray(path.read_bytes())
        if not data:
            raise ConfigError(f"{path} is empty")
        self._before = bytes(data)
        self.offsets = sorted({draw.randrange(len(data)) for _ in range(count)})
        for offset in self.offsets:
            data[offset] ^= draw.randrange(1, 256)
        self._after = bytes(data)
        path.write_bytes(data)

    @property
    def untouched_since(self) -> bool:
        """Whether the file still is as it was left: nobody repaired it or wrote on."""
        return self.path.exists() and self.path.read_bytes() == self._after

    def restore(self) -> None:
        """The bytes as they were; only for a file that nobody wrote to since."""
        if not self.untouched_since:
            raise ConfigError(f"{self.path} was written to since its bytes were flipped")
        self.path.write_bytes(self._before)
