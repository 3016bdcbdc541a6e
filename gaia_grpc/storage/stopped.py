"""Reads the data directory of a peer that does not run, without changing a byte of it.

For a backup when the peer can't start or must not: after a loss of quorum, its snapshot and the
entries behind it may be the only copy left. SQLite can't recover a journal without writing, so it
works on a copy of the log; snapshots are read where they are.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gaia_grpc.errors import StartupError, StorageError
from gaia_grpc.raft.types import Restored
from gaia_grpc.storage.database import Database
from gaia_grpc.storage.directory import (
    DATABASE_NAME,
    LOCK_NAME,
    MARK_NAME,
    SNAPSHOTS_NAME,
    Identity,
    read_identity,
)
from gaia_grpc.storage.files import SystemFiles
from gaia_grpc.storage.memory_files import MemoryFiles
from gaia_grpc.storage.snapshots import FileSnapshotStore
from gaia_grpc.storage.sqlite_log import SqliteLog
from gaia_grpc.storage.wal_check import Mark


@dataclass(frozen=True, slots=True)
class StoppedDirectory:
    """What a stopped peer knows. Open `restored.snapshot` in `snapshots` to read its content."""

    identity: Identity
    restored: Restored
    snapshots: FileSnapshotStore


@contextmanager
def read_stopped(path: Path) -> Iterator[StoppedDirectory]:
    """Holds the directory's lock meanwhile, so the peer can't start.

    Raises `StartupError` (no data directory, in use) or `StorageDamagedError`.
    """
    with ExitStack() as stack:
        stack.callback(os.close, _lock(path))
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gaia-read-")))
        try:
            for name in (DATABASE_NAME, f"{DATABASE_NAME}-wal", MARK_NAME):
                if (path / name).exists():
                    shutil.copyfile(path / name, copy / name)
            mark = Mark(copy / MARK_NAME)
        except OSError as error:
            raise StartupError(f"{path}: can't be read: {error}") from error
        stack.callback(mark.close, sync=False)
        try:
            database = Database(copy / DATABASE_NAME)
            stack.callback(database.abandon)
            identity = read_identity(database, path)
            folder = path / SNAPSHOTS_NAME
            files = SystemFiles(folder) if folder.is_dir() else MemoryFiles()
            snapshots = FileSnapshotStore(files, read_only=True)
            restored = SqliteLog(database, mark, snapshots).load()
        except StorageError as error:
            raise type(error)(error.message.replace(str(copy), str(path))) from error
        yield StoppedDirectory(identity, restored, snapshots)


def _lock(path: Path) -> int:
    """The lock that a running peer holds; its content (a pid) stays as it is."""
    if not (path / DATABASE_NAME).is_file():
        raise StartupError(f"{path}: no data directory of a peer")
    try:
        lock = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StartupError(f"{path}: can't be read: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StartupError(f"{path}: in use by another process, stop the peer first") from error
    return lock
