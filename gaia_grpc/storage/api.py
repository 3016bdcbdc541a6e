"""The storage seam: what the driver needs of a disk, and nothing more.

`SqliteLog` is the production side, `MemoryLog` the twin that can crash, tear and fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from gaia_grpc.raft.types import Entry, Index, Restored, SnapshotMeta, WriteBatch


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

    def maintain(self) -> None:
        """Housekeeping that may take milliseconds; best called (on the writer thread) after the
        completion of a write was handed on. Raises like `write`.
        """
        ...

    def close(self) -> None:
        """Closes the files; writes after it raise."""
        ...


class SnapshotStore(Protocol):
    """Snapshot files: written aside, synced, renamed, their directory synced, with a SHA-256.

    All calls block and run on the writer thread.
    """

    def latest(self) -> SnapshotMeta | None:
        """The newest complete snapshot; raises `StorageDamagedError` where its digest differs."""
        ...

    def save(self, meta: SnapshotMeta, chunks: Iterable[bytes]) -> None:
        """Makes a snapshot durable under its final name, then drops older ones."""
        ...

    def read(self, meta: SnapshotMeta) -> Iterator[bytes]:
        """The chunks of a snapshot, for restoring or for sending to a peer."""
        ...
