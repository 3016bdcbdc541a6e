"""The in-memory twin of a peer's disk: it forgets what was not synced, tears and fails.

`MemorySnapshotStore` is the production store over `MemoryFiles`, so its crashes are those of the
real code. `MemoryLog.write` does what `SqliteLog.write` does. A simulation uses its two halves,
`stage` and `sync`, to let time pass and faults happen in between; `crash` then decides what became
of the staged part, and of the files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gaia_grpc.errors import (
    StorageDamagedError,
    StorageFailedError,
    StorageFullError,
    invariant,
)
from gaia_grpc.raft.types import (
    Entry,
    EntryId,
    HardState,
    Index,
    Restored,
    SnapshotMeta,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.memory_files import Draw, MemoryFiles
from gaia_grpc.storage.snapshots import FileSnapshotStore, choose_snapshot

SMALL_BLOCK_BYTES = 64
"""So that the snapshots of a simulation have several blocks."""


class MemorySnapshotStore(FileSnapshotStore):
    """A `SnapshotStore` in memory. One object outlives the crashes of its peer."""

    def __init__(self, files: MemoryFiles | None = None) -> None:
        self.files = files or MemoryFiles()
        self.damage: StorageDamagedError | None = None
        super().__init__(self.files, block_bytes=SMALL_BLOCK_BYTES)

    def crash(self, draw: Draw | None = None) -> None:
        """The power goes and comes back; what the check at the start finds is kept in `damage`."""
        self.files.crash(draw)
        self.restart()

    def restart(self) -> None:
        """Reads everything anew, as the next start does."""
        self.damage = None
        try:
            super().__init__(self.files, block_bytes=SMALL_BLOCK_BYTES)
        except StorageDamagedError as error:
            self.damage = error


class MemoryLog:
    """A `LogStorage`. One object outlives the crashes of its peer, as a disk does.

    Without a store it keeps what snapshots stand for and not their content: every snapshot that a
    batch installs, or that `note_snapshot` names, counts as durable.
    """

    def __init__(
        self, restored: Restored | None = None, snapshots: MemorySnapshotStore | None = None
    ) -> None:
        start = restored or Restored(HardState(), ())
        self.snapshots = snapshots
        self._hard_state = start.hard_state
        self._entries: list[Entry] = list(start.entries)
        self._base = start.base
        self._noted: list[SnapshotMeta] = []
        if start.snapshot is not None:
            self._noted.append(start.snapshot)
            if start.base.index == 0 and not (start.entries and start.entries[0].index == 1):
                self._base = EntryId(start.snapshot.term, start.snapshot.index)
        self._target: EntryId | None = None
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
        if self.snapshots is not None and self.snapshots.damage is not None:
            raise self.snapshots.damage
        snapshot = self._chosen()
        if self._base.index > 0 and snapshot is None:
            raise StorageDamagedError(f"the log begins behind entry {self._base.index}")
        return Restored(self._hard_state, tuple(self._entries), snapshot, self._base)

    def write(self, batches: Sequence[WriteBatch]) -> None:
        """Stages and syncs; raises `StorageFullError` or `StorageFailedError` when told to."""
        self.stage(batches)
        self.sync()

    def read_entries(self, first: Index, count: int) -> tuple[Entry, ...]:
        """Up to `count` durable entries; raises `StorageDamagedError` for a damaged one."""
        start = max(first - self._base.index - 1, 0)
        found = tuple(self._entries[start : start + count])
        for entry in found:
            if entry.index in self._damaged:
                raise StorageDamagedError(f"entry {entry.index} fails its check")
        return found

    def compact(self, base: EntryId) -> None:
        """Noted until `maintain`, and forgotten in a crash before it."""
        if base.index <= self._base.index:
            return
        newest = max((meta.index for meta in self._metas()), default=0)
        invariant(newest >= base.index, "no snapshot stands in")
        invariant(base.index <= self._last_index, "the base is beyond the log")
        self._target = base

    def clean(self) -> None:
        """Nothing that was removed is left in memory."""

    @property
    def needs_maintenance(self) -> bool:
        """True until `maintain` moved the base."""
        return self._target is not None and not self._closed

    def maintain(self) -> None:
        """Moves the base where `compact` asked for it; raises like `write`."""
        if self._target is None or self._closed:
            return
        self._check()
        self._drop_before(self._target)
        self._target = None

    def close(self) -> None:
        """Writes after it raise."""
        self._closed = True

    # --- a disk in slow motion -----------------------------------------------------------------

    def stage(self, batches: Sequence[WriteBatch]) -> None:
        """Begins one transaction: not durable before `sync`.

        A snapshot that it installs gets its name here already, as `SqliteLog.write` does it.
        """
        if self._closed:
            raise StorageFailedError("closed")
        self._check()
        for batch in batches:
            if batch.snapshot is not None and self.snapshots is not None:
                self.snapshots.promote(batch.snapshot)
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

    def note_snapshot(self, meta: SnapshotMeta) -> None:
        """Without a store: a snapshot of the own state is durable."""
        invariant(self.snapshots is None, "the store knows its snapshots")
        self._noted.append(meta)

    # --- faults ----------------------------------------------------------------------------------

    def crash(self, draw: Draw | None = None) -> int:
        """The power goes; returns how many staged transactions survived.

        Without `draw(low, high)` all that was not synced is lost. With it a drawn number of them
        had reached the disk anyway, in order. The next one may be torn: its checksums fail, so
        recovery drops all of it, like a write that never began. Snapshots that the log does not
        vouch for are removed, as the next start does.
        """
        survived = 0 if draw is None else draw(0, len(self._staged))
        for _ in range(survived):
            self._apply(self._staged.popleft())
        self._staged.clear()
        self._target = None
        self.failing = self._full = self._closed = False
        if self.snapshots is not None:
            self.snapshots.crash(draw)
            if self.snapshots.damage is None:
                chosen = self._chosen()
                self.snapshots.drop_newer(chosen)
                if chosen is not None:
                    self.snapshots.drop_older(chosen)
        return survived

    def set_full(self, full: bool) -> None:
        """While full, a write raises `StorageFullError` and leaves nothing behind."""
        self._full = full
        if self.snapshots is not None:
            self.snapshots.files.full = full

    def fail(self) -> None:
        """From now on writes and syncs raise `StorageFailedError` (EIO), until a crash."""
        self.failing = True
        if self.snapshots is not None:
            self.snapshots.files.failing = True

    def damage(self, index: Index) -> None:
        """One durable entry no longer passes its check."""
        invariant(self._base.index < index <= self._last_index, "nothing is stored there")
        self._damaged.append(index)

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _last_index(self) -> int:
        return self._base.index + len(self._entries)

    def _check(self) -> None:
        if self.failing:
            raise StorageFailedError("the disk has failed")
        if self._full:
            raise StorageFullError("no space left")

    def _metas(self) -> list[SnapshotMeta]:
        if self.snapshots is None:
            return self._noted
        return [info.meta for info in self.snapshots.complete()]

    def _chosen(self) -> SnapshotMeta | None:
        return choose_snapshot(self._metas(), self._base, self._term_at)

    def _term_at(self, index: Index) -> Term | None:
        position = index - self._base.index - 1
        return self._entries[position].term if 0 <= position < len(self._entries) else None

    def _drop_before(self, base: EntryId) -> None:
        del self._entries[: base.index - self._base.index]
        self._base = base
        self._damaged = [index for index in self._damaged if index > base.index]

    def _apply(self, batches: Sequence[WriteBatch]) -> None:
        for batch in batches:
            if batch.snapshot is not None:
                meta = batch.snapshot
                invariant(meta.index > self._base.index, "a snapshot before the log")
                self._entries.clear()
                self._damaged.clear()
                self._base = EntryId(meta.term, meta.index)
                if self.snapshots is None:
                    self._noted.append(meta)
                if self._target is not None and self._target.index <= meta.index:
                    self._target = None
            if batch.hard_state is not None:
                self._hard_state = batch.hard_state
            if batch.entries:
                keep = batch.entries[0].index - self._base.index - 1
                invariant(0 <= keep <= len(self._entries), "a write leaves a gap in the log")
                self._entries[keep:] = batch.entries
