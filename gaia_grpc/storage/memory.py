"""The in-memory twin of the durable log: a disk that forgets what was not synced, tears and fails.

`write` does what `SqliteLog.write` does. A simulation uses its two halves, `stage` and `sync`, to
let time pass and faults happen in between; `crash` then decides what became of the staged part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from gaia_grpc.errors import StorageDamagedError, StorageFailedError, StorageFullError, invariant
from gaia_grpc.raft.types import Entry, HardState, Index, Restored, SnapshotMeta, WriteBatch


class MemoryLog:
    """A `LogStorage`. One object outlives the crashes of its peer, as a disk does."""

    def __init__(self, restored: Restored | None = None) -> None:
        start = restored or Restored(HardState(), ())
        self._hard_state = start.hard_state
        self._entries: list[Entry] = list(start.entries)
        self._snapshot: SnapshotMeta | None = start.snapshot
        self._base = 0 if start.snapshot is None else int(start.snapshot.index)
        self._staged: deque[tuple[WriteBatch, ...]] = deque()
        self._damaged: list[Index] = []
        self._full = False
        self.failing = False
        self._closed = False
        self.syncs = 0

    # --- LogStorage ----------------------------------------------------------------------------

    def load(self) -> Restored:
        """What is on disk; raises `StorageDamagedError` after `damage`."""
        if self._damaged:
            raise StorageDamagedError(f"entry {self._damaged[0]} fails its check")
        return Restored(self._hard_state, tuple(self._entries), self._snapshot)

    def write(self, batches: Sequence[WriteBatch]) -> None:
        """Stages and syncs; raises `StorageFullError` or `StorageFailedError` when told to."""
        self.stage(batches)
        self.sync()

    def read_entries(self, first: Index, count: int) -> tuple[Entry, ...]:
        """Up to `count` durable entries; raises `StorageDamagedError` for a damaged one."""
        start = max(first - self._base - 1, 0)
        found = tuple(self._entries[start : start + count])
        for entry in found:
            if entry.index in self._damaged:
                raise StorageDamagedError(f"entry {entry.index} fails its check")
        return found

    def maintain(self) -> None:
        """Memory needs no housekeeping."""

    def close(self) -> None:
        """Writes after it raise."""
        self._closed = True

    # --- a disk in slow motion -----------------------------------------------------------------

    def stage(self, batches: Sequence[WriteBatch]) -> None:
        """Begins one transaction: not durable before `sync`."""
        if self._closed or self.failing:
            raise StorageFailedError("the disk has failed" if self.failing else "closed")
        if self._full:
            raise StorageFullError("no space left")
        self._staged.append(tuple(batches))

    def sync(self) -> None:
        """Makes everything that is staged durable, in order."""
        if self.failing:
            raise StorageFailedError("fsync failed")
        while self._staged:
            self._apply(self._staged.popleft())
        self.syncs += 1

    def sync_one(self) -> tuple[WriteBatch, ...]:
        """Makes the oldest staged transaction durable and returns it."""
        if self.failing:
            raise StorageFailedError("fsync failed")
        batches = self._staged.popleft()
        self._apply(batches)
        self.syncs += 1
        return batches

    @property
    def staged(self) -> int:
        """Transactions that a crash may lose."""
        return len(self._staged)

    # --- faults ----------------------------------------------------------------------------------

    def crash(self, draw: Callable[[int, int], int] | None = None) -> int:
        """The power goes; returns how many staged transactions survived.

        Without `draw(low, high)` all that was not synced is lost. With it a drawn number of them
        had reached the disk anyway, in order. The next one may be torn: its checksums fail, so
        recovery drops all of it, like a write that never began.
        """
        survived = 0 if draw is None else draw(0, len(self._staged))
        for _ in range(survived):
            self._apply(self._staged.popleft())
        self._staged.clear()
        self.failing = self._full = self._closed = False
        return survived

    def set_full(self, full: bool) -> None:
        """While full, a write raises `StorageFullError` and leaves nothing behind."""
        self._full = full

    def fail(self) -> None:
        """From now on writes and syncs raise `StorageFailedError` (EIO), until a crash."""
        self.failing = True

    def damage(self, index: Index) -> None:
        """One durable entry no longer passes its check."""
        invariant(self._base < index <= self._base + len(self._entries), "nothing is stored there")
        self._damaged.append(index)

    # --- inside ----------------------------------------------------------------------------------

    def _apply(self, batches: Sequence[WriteBatch]) -> None:
        for batch in batches:
            if batch.hard_state is not None:
                self._hard_state = batch.hard_state
            if batch.entries:
                keep = batch.entries[0].index - self._base - 1
                invariant(0 <= keep <= len(self._entries), "a write leaves a gap in the log")
                self._entries[keep:] = batch.entries
