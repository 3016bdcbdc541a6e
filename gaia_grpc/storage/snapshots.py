"""Snapshot files of one peer, in a directory of their own.

    snapshot-INDEX-TERM.gaia     complete: synced before it got this name
    incoming-INDEX-TERM.part     arrives from another peer; survives restarts, so that it can go on
    making-INDEX-TERM.tmp        is being made; removed at the next open

Whether a complete one counts is decided by the log (`choose_snapshot`), never by its being here: a
crash may come between the rename and the transaction that installs it. A complete one that fails
its check stops the start and is not touched (NATS #7556 is what happens otherwise).

Files are synced every few megabytes on the way, so that the last sync is short: a long one would
hold up the journal of the log on the same disk.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gaia_grpc.errors import (
    NotFoundError,
    StorageDamagedError,
    StorageError,
    StorageFailedError,
    invariant,
)
from gaia_grpc.raft.types import EntryId, Index, SnapshotMeta, Term
from gaia_grpc.storage.api import SnapshotInfo
from gaia_grpc.storage.files import File, Files, translate_os_error
from gaia_grpc.storage.snapshot_file import (
    BLOCK_BYTES,
    BlockWriter,
    Layout,
    check_file,
    damaged_file,
    layout_for,
    pack_header,
    read_block,
    read_header,
    resume,
)

SYNC_EVERY_BYTES = 4 * 1024 * 1024
_COMPLETE = re.compile(r"^snapshot-(\d{20})-(\d{20})\.gaia$")
_T = TypeVar("_T")


def choose_snapshot(
    snapshots: Iterable[SnapshotMeta],
    base: EntryId,
    term_at: Callable[[Index], Term | None],
) -> SnapshotMeta | None:
    """The newest snapshot that the log vouches for; pure.

    It counts where it stands for the base or for an entry of the log: with another term there, or
    beyond the last entry, it was received and never installed (the log behind it is not its own).
    """
    chosen: SnapshotMeta | None = None
    for meta in snapshots:
        if meta.index < base.index or (chosen is not None and meta.index < chosen.index):
            continue
        term = base.term if meta.index == base.index else term_at(meta.index)
        if term == meta.term:
            chosen = meta
    return chosen


class FileSnapshotStore:
    """`SnapshotStore` over `Files`. Its own calls may come from any thread."""

    def __init__(
        self, files: Files, *, block_bytes: int = BLOCK_BYTES, read_only: bool = False
    ) -> None:
        """Reads and checks every complete snapshot.

        Raises `StorageDamagedError` (nothing was changed) or `StorageFailedError`.
        """
        self._files = files
        self._block_bytes = block_bytes
        self._lock = threading.RLock()
        self._failed: StorageError | None = None
        self._complete: dict[SnapshotMeta, SnapshotInfo] = {}
        self._finished: dict[SnapshotMeta, SnapshotInfo] = {}
        self._incoming: _Incoming | None = None
        with self.guard("reading the snapshots"):
            for name in files.names():
                if _COMPLETE.match(name):
                    info = self._check(name)
                    self._complete[info.meta] = info
            if not read_only:
                self._sweep()

    # --- what is there ---------------------------------------------------------------------------

    def complete(self) -> tuple[SnapshotInfo, ...]:
        """All complete snapshots, oldest first, whether they count or not."""
        return tuple(sorted(self._complete.values(), key=_age))

    def latest(self) -> SnapshotInfo | None:
        """The newest complete snapshot."""
        # Without the lock, which is held over syncs: a loop may ask.
        return max(tuple(self._complete.values()), key=_age, default=None)

    def open(self, meta: SnapshotMeta) -> _Reader:
        """See `SnapshotStore.open`."""
        where = self._where(_complete_name(meta))
        with self._lock, self.guard("opening a snapshot"):
            if meta not in self._complete:
                raise NotFoundError(f"no snapshot at entry {meta.index}")
            try:
                file = self._files.open(_complete_name(meta))
            except FileNotFoundError as error:
                raise damaged_file(where, "it is gone") from error
        try:
            with self.guard("opening a snapshot"):
                info, layout = read_header(file, where)
            if info != self._complete.get(meta, info):
                raise damaged_file(where, "its header has changed")
        except BaseException:
            file.close()
            raise
        return _Reader(self, file, info, layout, where)

    # --- the own state ---------------------------------------------------------------------------

    def create(self, meta: SnapshotMeta) -> _Writer:
        """See `SnapshotStore.create`."""
        with self.guard("beginning a snapshot"):
            return _Writer(self, self._files, meta, self._block_bytes)

    # --- from another peer -----------------------------------------------------------------------

    def incoming(self, meta: SnapshotMeta, size_bytes: int, sha256: bytes) -> _Incoming:
        """See `SnapshotStore.incoming`; a transfer that is still open is shut out."""
        info = SnapshotInfo(meta, size_bytes, sha256)
        with self._lock, self.guard("beginning a transfer"):
            if self._incoming is not None:
                self._incoming.close()
            newest = self.latest()
            # A finished one may be on its way into the log: it goes when it is behind.
            for other in [each for each in self._finished if each != meta]:
                if newest is not None and other.index <= newest.meta.index:
                    self._finished.pop(other)
            self._finished.pop(meta, None)
            keep = {_incoming_name(each) for each in (*self._finished, meta)}
            self._remove(
                name for name in self._files.names() if _is_incoming(name) and name not in keep
            )
            self._incoming = _Incoming(self, self._files, info, self._block_bytes)
            return self._incoming

    def promote(self, meta: SnapshotMeta) -> None:
        """See `SnapshotStore.promote`; once more is no change, since a full disk repeats writes."""
        with self._lock, self.guard("installing a snapshot"):
            if meta in self._complete:
                return
            invariant(meta in self._finished, f"snapshot {meta.index} was not received")
            self._files.rename(_incoming_name(meta), _complete_name(meta))
            self._sync_names()
            self._complete[meta] = self._finished.pop(meta)

    # --- giving space back -----------------------------------------------------------------------

    def drop_older(self, meta: SnapshotMeta) -> None:
        """See `SnapshotStore.drop_older`; also finished transfers that came too late."""
        self._drop(lambda each: each.index < meta.index)
        with self._lock, self.guard("removing a snapshot"):
            for late in [each for each in self._finished if each.index <= meta.index]:
                self._finished.pop(late)
                self._remove([_incoming_name(late)])

    def drop_newer(self, meta: SnapshotMeta | None) -> None:
        """At the start: removes what was never installed; with None, no snapshot counts."""
        self._drop(lambda each: meta is None or (each.index >= meta.index and each != meta))

    def _drop(self, unwanted: Callable[[SnapshotMeta], bool]) -> None:
        with self._lock, self.guard("removing a snapshot"):
            gone = [meta for meta in self._complete if unwanted(meta)]
            self._remove(_complete_name(meta) for meta in gone)
            for meta in gone:
                del self._complete[meta]

    # --- inside ----------------------------------------------------------------------------------

    @contextmanager
    def guard(self, doing: str) -> Iterator[None]:
        """Maps `OSError`; after a failure that leaves the disk in doubt nothing works any more."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except OSError as error:
            translated = translate_os_error(error, self._files.where, doing)
            if isinstance(translated, StorageFailedError):
                self._failed = translated
            raise translated from error

    def added(self, info: SnapshotInfo) -> None:
        """Renames what was made to its final name; called within `guard`."""
        with self._lock:
            self._files.rename(_making_name(info.meta), _complete_name(info.meta))
            self._sync_names()
            self._complete[info.meta] = info

    def received(self, incoming: _Incoming, info: SnapshotInfo) -> None:
        """A transfer is whole and synced."""
        with self._lock:
            self._finished[info.meta] = info
            if self._incoming is incoming:
                self._incoming = None

    def _sync_names(self) -> None:
        try:
            self._files.sync_names()
        except OSError as error:
            # Not even "no space" may be tried again here: the next sync would lie.
            where = self._files.where
            self._failed = StorageFailedError(f"{where}: syncing the directory failed: {error}")
            raise self._failed from error

    def _check(self, name: str) -> SnapshotInfo:
        file = self._files.open(name)
        try:
            info = check_file(file, self._where(name))
        finally:
            file.close()
        if _complete_name(info.meta) != name:
            raise damaged_file(self._where(name), "it is another snapshot than its name says")
        return info

    def _sweep(self) -> None:
        """Removes what an interrupted run left; of transfers the newest may still go on."""
        names = self._files.names()
        stale = [name for name in names if name.startswith("making-") and name.endswith(".tmp")]
        self._remove(stale + [name for name in names if _is_incoming(name)][:-1])

    def _remove(self, names: Iterable[str]) -> None:
        removed = False
        for name in names:
            self._files.remove(name)
            removed = True
        if removed:
            self._sync_names()

    def _where(self, name: str) -> str:
        return f"{self._files.where}/{name}"


class _Writer:
    """`SnapshotWriter`."""

    def __init__(
        self, store: FileSnapshotStore, files: Files, meta: SnapshotMeta, block_bytes: int
    ) -> None:
        self._store = store
        self._files = files
        self._meta = meta
        self._name = _making_name(meta)
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
        invariant(self._open, "the snapshot is ended")
        with self._store.guard("writing a snapshot"):
            self._blocks.append(data)
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= SYNC_EVERY_BYTES:
                self._file.sync()
                self._unsynced_bytes = 0

    def commit(self) -> SnapshotInfo:
        """See `SnapshotWriter.commit`."""
        invariant(self._open, "the snapshot is ended")
        with self._store.guard("completing a snapshot"):
            self._blocks.flush()
            info = SnapshotInfo(self._meta, self._blocks.size_bytes, self._blocks.sha256)
            self._file.write(0, pack_header(info, self._block_bytes))
            self._file.sync()
            self._store.added(info)
            self._open = False
            self._file.close()
        return info

    def abort(self) -> None:
        """See `SnapshotWriter.abort`; a name that can't be removed goes at the next open."""
        if not self._open:
            return
        self._open = False
        self._file.close()
        with self._store.guard("giving a snapshot up"):
            self._files.remove(self._name)


class _Reader:
    """`SnapshotReader`; every read is checked against the blocks it touches."""

    def __init__(
        self, store: FileSnapshotStore, file: File, info: SnapshotInfo, layout: Layout, where: str
    ) -> None:
        self._store = store
        self._file = file
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
        with self._store.guard("reading a snapshot"):
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
        self._file.close()


class _Incoming:
    """`IncomingSnapshot`."""

    def __init__(
        self, store: FileSnapshotStore, files: Files, info: SnapshotInfo, block_bytes: int
    ) -> None:
        self._store = store
        self._files = files
        self._info = info
        self._name = _incoming_name(info.meta)
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
        self._store.received(self, self._info)

    def close(self) -> None:
        """See `IncomingSnapshot.close`."""
        if not self._open:
            return
        self._open = False
        try:
            with self._store.guard("keeping a transfer"):
                self._blocks.flush()
        except StorageError:
            pass  # what is there has its checks; the next attempt goes on where they hold
        finally:
            self._file.close()

    @contextmanager
    def _giving_up(self, doing: str) -> Iterator[None]:
        # Half a block may be on disk and all of it in the digest: only a fresh look helps.
        try:
            with self._store.guard(doing):
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
        with self._store.guard("dropping a transfer"):
            self._files.remove(self._name)
        raise StorageDamagedError(f"{self._where}: {what}; what was received is dropped")


def _age(info: SnapshotInfo) -> tuple[Index, Term]:
    return info.meta.index, info.meta.term


def _complete_name(meta: SnapshotMeta) -> str:
    return f"snapshot-{meta.index:020d}-{meta.term:020d}.gaia"


def _incoming_name(meta: SnapshotMeta) -> str:
    return f"incoming-{meta.index:020d}-{meta.term:020d}.part"


def _making_name(meta: SnapshotMeta) -> str:
    return f"making-{meta.index:020d}-{meta.term:020d}.tmp"


def _is_incoming(name: str) -> bool:
    return name.startswith("incoming-") and name.endswith(".part")
