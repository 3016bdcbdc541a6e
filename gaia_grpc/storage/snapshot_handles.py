"""What a snapshot store hands out: a file that is made, one that is read, one that arrives.

Each has a lock, although one thread at a time uses it: whoever gives a handle up may do so while a
call of it is still running in another thread, and a descriptor that is closed then may already be
another file's.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gaia_grpc.errors import StorageDamagedError, StorageError, StorageFailedError, invariant
from gaia_grpc.raft.types import SnapshotMeta
from gaia_grpc.storage.api import SnapshotInfo
from gaia_grpc.storage.files import File, Files, translate_os_error
from gaia_grpc.storage.snapshot_file import (
    BlockWriter,
    Layout,
    layout_for,
    pack_header,
    read_block,
    resume,
)

SYNC_EVERY_BYTES = 4 * 1024 * 1024


class Guard:
    """Maps the errors of one directory; after one that leaves the disk in doubt nothing works."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._failed: StorageError | None = None

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Raises `StorageFullError` or `StorageFailedError` for an `OSError`."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except OSError as error:
            translated = translate_os_error(error, self._where, doing)
            if isinstance(translated, StorageFailedError):
                self._failed = translated
            raise translated from error

    def sync_names(self, files: Files) -> None:
        """Not even "no space" may be tried again here: the next sync would lie."""
        try:
            files.sync_names()
        except OSError as error:
            what = error.strerror or error
            failed = StorageFailedError(f"{self._where}: syncing the directory failed: {what}")
            self._failed = failed
            raise failed from error


class Writer:
    """`SnapshotWriter`."""

    def __init__(
        self,
        guard: Guard,
        files: Files,
        name: str,
        meta: SnapshotMeta,
        block_bytes: int,
        added: Callable[[SnapshotInfo], None],
    ) -> None:
        self._guard = guard
        self._lock = threading.RLock()
        self._files = files
        self._name = name
        self._meta = meta
        self._added = added
        self._block_bytes = block_bytes
        self._open = True
        self._unsynced_bytes = 0
        self._file = files.create(self._name)
        try:
            layout = layout_for(meta, block_bytes)
            self._file.write(0, bytes(layout.header_bytes))
        except OSError:
            self.abort()
            raise
        self._blocks = BlockWriter(self._file, layout, hashlib.sha256(), 0)

    def write(self, data: bytes) -> None:
        """See `SnapshotWriter.write`."""
        with self._lock, self._guard.during("writing a snapshot"):
            invariant(self._open, "the snapshot is ended")
            self._blocks.append(data)
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= SYNC_EVERY_BYTES:
                self._file.sync()
                self._unsynced_bytes = 0

    def commit(self) -> SnapshotInfo:
        """See `SnapshotWriter.commit`."""
        with self._lock, self._guard.during("completing a snapshot"):
            invariant(self._open, "the snapshot is ended")
            self._blocks.flush()
            info = SnapshotInfo(self._meta, self._blocks.size_bytes, self._blocks.sha256)
            self._file.write(0, pack_header(info, self._block_bytes))
            self._file.sync()
            self._added(info)
            self._open = False
            self._file.close()
        return info

    def abort(self) -> None:
        """See `SnapshotWriter.abort`; a name that can't be removed goes at the next open."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._file.close()
            with self._guard.during("giving a snapshot up"):
                self._files.remove(self._name)


class Reader:
    """`SnapshotReader`; every read is checked against the blocks it touches."""

    def __init__(
        self, guard: Guard, file: File, info: SnapshotInfo, layout: Layout, where: str
    ) -> None:
        self._guard = guard
        self._lock = threading.RLock()
        self._file = file
        self._open = True
        self._info = info
        self._layout = layout
        self._where = where

    @property
    def info(self) -> SnapshotInfo:
        """What it is."""
        return self._info

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Raises `StorageDamagedError`, or `StorageFailedError` where the disk can't be read."""
        invariant(offset_bytes >= 0 and size_bytes >= 0, "a range is not negative")
        end = min(offset_bytes + size_bytes, self._info.size_bytes)
        if offset_bytes >= end:
            return b""
        block = self._layout.block_bytes
        first = offset_bytes // block
        with self._lock, self._guard.during("reading a snapshot"):
            invariant(self._open, "the snapshot is closed")
            data = b"".join(
                read_block(
                    self._file, self._layout, number,
                    min(block, self._info.size_bytes - number * block), self._where,
                )
                for number in range(first, -(-end // block))
            )  # fmt: skip
        return data[offset_bytes - first * block : end - first * block]

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._open = False
            self._file.close()


class Incoming:
    """`IncomingSnapshot`."""

    def __init__(
        self,
        guard: Guard,
        files: Files,
        name: str,
        info: SnapshotInfo,
        block_bytes: int,
        received: Callable[[SnapshotInfo], None],
    ) -> None:
        self._guard = guard
        self._lock = threading.RLock()
        self._files = files
        self._name = name
        self._info = info
        self._received = received
        self._where = f"{files.where}/{self._name}"
        self._open = True
        self._unsynced_bytes = 0
        self._block_bytes = block_bytes
        self._file, self._blocks = self._begin()

    def _begin(self) -> tuple[File, BlockWriter]:
        meta = self._info.meta
        header = pack_header(self._info, self._block_bytes)
        try:
            file = self._files.open(self._name, writable=True)
        except FileNotFoundError:
            file = None
        if file is not None:
            try:
                if file.read(0, len(header)) == header:
                    blocks = resume(file, meta, self._block_bytes, self._where)
                    if blocks.size_bytes <= self._info.size_bytes:
                        return file, blocks
            except BaseException:
                file.close()
                raise
            file.close()
        file = self._files.create(self._name)
        try:
            file.write(0, header)
        except OSError:
            file.close()
            raise
        layout = layout_for(meta, self._block_bytes)
        return file, BlockWriter(file, layout, hashlib.sha256(), 0)

    @property
    def stored_size_bytes(self) -> int:
        """See `IncomingSnapshot.stored_size_bytes`."""
        return self._blocks.size_bytes

    def append(self, data: bytes) -> None:
        """Raises `StorageDamagedError` where the transfer was shut out or is too long, too."""
        with self._lock:
            self._check_open()
            if self.stored_size_bytes + len(data) > self._info.size_bytes:
                self._drop("it is longer than announced")
            with self._giving_up("receiving a snapshot"):
                self._blocks.append(data)
                self._unsynced_bytes += len(data)
                if self._unsynced_bytes >= SYNC_EVERY_BYTES:
                    self._file.sync()
                    self._unsynced_bytes = 0

    def finish(self) -> None:
        """See `IncomingSnapshot.finish`."""
        with self._lock:
            self._check_open()
            if self.stored_size_bytes != self._info.size_bytes:
                self._drop(f"{self.stored_size_bytes} of {self._info.size_bytes} bytes came")
            if self._blocks.sha256 != self._info.sha256:
                self._drop("its digest is wrong")
            with self._giving_up("completing a transfer"):
                self._blocks.flush()
                self._file.sync()
            self._open = False
            self._file.close()
        self._received(self._info)

    def close(self) -> None:
        """See `IncomingSnapshot.close`."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            try:
                with self._guard.during("keeping a transfer"):
                    self._blocks.flush()
            except StorageError:
                pass  # what is there has its checks; the next attempt goes on where they hold
            finally:
                self._file.close()

    @contextmanager
    def _giving_up(self, doing: str) -> Iterator[None]:
        # Half a block may be on disk and all of it in the digest: only a fresh look helps.
        try:
            with self._guard.during(doing):
                yield
        except StorageError:
            self._open = False
            self._file.close()
            raise

    def _check_open(self) -> None:
        if not self._open:
            raise StorageDamagedError(f"{self._where}: the transfer has ended")

    def _drop(self, what: str) -> None:
        self._open = False
        self._file.close()
        with self._guard.during("dropping a transfer"):
            self._files.remove(self._name)
        raise StorageDamagedError(f"{self._where}: {what}; what was received is dropped")
