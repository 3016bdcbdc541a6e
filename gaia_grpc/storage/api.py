"""The storage seam: what the driver needs of a disk, and nothing more.

`SqliteLog` is the production side, `MemoryLog` the twin that can crash, tear and fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gaia_grpc.raft.types import Entry, EntryId, Index, Restored, SnapshotMeta, WriteBatch


class LogStorage(Protocol):
    """A durable log with its hard state. All calls block; `write` runs on the writer thread."""

    def load(self) -> Restored:
        """Reads everything; raises `StorageDamagedError` where a row can't be trusted."""
        ...

    def write(self, batches: Sequence[WriteBatch]) -> None:
        """Makes the batches durable in order, in one transaction; returns after the fsync.

        Raises `StorageFullError` (nothing was written, the peer may go on refusing writes) or
        `StorageFailedError` (the process must end: after a failed fsync nothing is known).
        """
        ...

    def read_entries(self, first: Index, count: int) -> tuple[Entry, ...]:
        """Up to `count` entries from `first` on, checked against their CRC."""
        ...

    def compact(self, base: EntryId) -> None:
        """Entries up to `base` are no longer needed: a snapshot at or after it is durable.

        Only notes it: `maintain` removes them, some at a time, so a restart may find more.
        """
        ...

    def clean(self) -> None:
        """What was removed must not be left in the files: someone's data was deleted.

        Only notes it: `maintain` does it, once all that was compacted is removed.
        """
        ...

    @property
    def needs_maintenance(self) -> bool:
        """True while `maintain` has compacted rows to remove or space to give back.

        Worth more calls while nothing is to be written; a full disk leaves it True.
        """
        ...

    def maintain(self) -> None:
        """Housekeeping that may take milliseconds; best called (on the writer thread) after the
        completion of a write was handed on. Raises like `write`.
        """
        ...

    def close(self) -> None:
        """Closes the files; writes after it raise."""
        ...


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One complete snapshot file. `size_bytes` and `sha256` are those of its content."""

    meta: SnapshotMeta
    size_bytes: int
    sha256: bytes


class SnapshotWriter(Protocol):
    """A snapshot that is being made; nothing is visible before `commit`. Blocks; one thread."""

    def write(self, data: bytes) -> None:
        """Adds content; raises `StorageFullError` (give it up: `abort`) or `StorageFailedError`."""
        ...

    def commit(self) -> SnapshotInfo:
        """Syncs the file, renames it to its final name, syncs the directory."""
        ...

    def abort(self) -> None:
        """Removes what was written; idempotent, and nothing after `commit`."""
        ...


class SnapshotReader(Protocol):
    """A complete snapshot that stays readable until `close`, even where a newer one replaces it."""

    @property
    def info(self) -> SnapshotInfo:
        """What it is."""
        ...

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` of the content from `offset_bytes` on."""
        ...

    def close(self) -> None:
        """Gives the file free; idempotent."""
        ...


class IncomingSnapshot(Protocol):
    """A snapshot that arrives in chunks, kept aside. Blocks; one thread at a time."""

    @property
    def stored_size_bytes(self) -> int:
        """How far the content has come; what an interrupted transfer goes on from."""
        ...

    def append(self, data: bytes) -> None:
        """Adds the content at `stored_size_bytes`; raises like `SnapshotWriter.write`."""
        ...

    def finish(self) -> None:
        """Checks size and digest and syncs; the snapshot may be promoted then.

        Raises `StorageDamagedError` where they differ: what was stored is dropped.
        """
        ...

    def close(self) -> None:
        """Keeps what is there for a later attempt; idempotent."""
        ...


class SnapshotStore(Protocol):
    """Snapshot files: written aside, synced, renamed, their directory synced, with a SHA-256.

    All calls block. At most one incoming snapshot is kept: another `meta` drops it.
    """

    def latest(self) -> SnapshotInfo | None:
        """The newest complete snapshot, its digest checked when the store was opened."""
        ...

    def create(self, meta: SnapshotMeta) -> SnapshotWriter:
        """Begins a snapshot of this peer's own state; raises like `SnapshotWriter.write`."""
        ...

    def open(self, meta: SnapshotMeta) -> SnapshotReader:
        """Opens a complete one; raises `StorageDamagedError`, `NotFoundError` where it is gone."""
        ...

    def incoming(self, meta: SnapshotMeta, size_bytes: int, sha256: bytes) -> IncomingSnapshot:
        """Begins a transfer, or goes on with an interrupted one of the same snapshot.

        Shuts out one that is still open. Raises like `SnapshotWriter.write`.
        """
        ...

    def promote(self, meta: SnapshotMeta) -> None:
        """Makes a finished incoming snapshot the current one; called by `LogStorage.write`."""
        ...

    def drop_older(self, meta: SnapshotMeta) -> None:
        """Removes complete snapshots before `meta`; called once the log no longer needs them."""
        ...
