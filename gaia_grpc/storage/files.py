"""The few file operations that snapshots need, in one directory, and what their errors mean.

`SystemFiles` is the production side; `memory_files.MemoryFiles` the twin that loses what was not
synced. Both raise `OSError`; `translate_os_error` says what that means for a peer.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

from gaia_grpc.errors import StorageError, StorageFailedError, StorageFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
"""macOS: plain fsync stops at the drive's cache there."""


def translate_os_error(error: OSError, where: str, doing: str) -> StorageError:
    """No space, over a quota or a file size limit is `StorageFullError`; the rest ends the peer."""
    if error.errno in _FULL:
        return StorageFullError(f"{where}: no space left while {doing}")
    return StorageFailedError(f"{where}: {doing} failed: {error.strerror or error}")


def sync_descriptor(descriptor: int) -> None:
    """All the way to the medium; raises `OSError`."""
    if _FULL_SYNC is not None:
        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        os.fsync(descriptor)


class File(Protocol):
    """An open file; it stays readable after its name is gone."""

    @property
    def size_bytes(self) -> int:
        """Its size now."""
        ...

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Up to `size_bytes`; fewer only at the end of the file."""
        ...

    def write(self, offset_bytes: int, data: bytes) -> None:
        """All of it or an `OSError`, after which any part of it may be there."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cuts the file."""
        ...

    def sync(self) -> None:
        """Content and size are durable afterwards; the name is not."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Files(Protocol):
    """One flat directory."""

    @property
    def where(self) -> str:
        """How messages call it."""
        ...

    def names(self) -> list[str]:
        """Sorted."""
        ...

    def create(self, name: str) -> File:
        """A new empty file; one of that name is replaced."""
        ...

    def open(self, name: str, *, writable: bool = False) -> File:
        """An existing one; raises `FileNotFoundError`."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Replaces `new`; durable after `sync_names`."""
        ...

    def remove(self, name: str) -> None:
        """Durable after `sync_names`; a name that is gone is no error."""
        ...

    def sync_names(self) -> None:
        """Makes created, renamed and removed names durable."""
        ...


class SystemFile:
    """A `File` of the operating system."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def size_bytes(self) -> int:
        """Its size now."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Loops, since one call may return less."""
        parts = []
        while size_bytes > 0:
            part = os.pread(self._descriptor, size_bytes, offset_bytes)
            if not part:
                break
            parts.append(part)
            offset_bytes += len(part)
            size_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Loops: a nearly full disk takes a part and refuses the rest in the next call."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset_bytes)
            offset_bytes += written
            view = view[written:]

    def truncate(self, size_bytes: int) -> None:
        """Cuts the file."""
        os.ftruncate(self._descriptor, size_bytes)

    def sync(self) -> None:
        """Content and size."""
        sync_descriptor(self._descriptor)

    def __del__(self) -> None:
        # Whoever waited for the handle may be gone before a thread has made it.
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SystemFiles:
    """`Files` in a directory that exists."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def where(self) -> str:
        """The path."""
        return str(self._path)

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(os.listdir(self._path))

    def create(self, name: str) -> SystemFile:
        """Mode 0600: a snapshot holds everything that the cluster knows."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return SystemFile(os.open(self._path / name, flags, 0o600))

    def open(self, name: str, *, writable: bool = False) -> SystemFile:
        """Raises `FileNotFoundError`."""
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        return SystemFile(os.open(self._path / name, flags))

    def rename(self, old: str, new: str) -> None:
        """Atomic."""
        os.replace(self._path / old, self._path / new)

    def remove(self, name: str) -> None:
        """A name that is gone is no error."""
        (self._path / name).unlink(missing_ok=True)

    def sync_names(self) -> None:
        """fsync of the directory."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
