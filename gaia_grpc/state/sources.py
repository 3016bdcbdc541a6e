"""Which batches were applied: deduplication by (source_id, source_epoch, sequence).

Of each epoch the high-water mark and the last 1,024 sequences (`metrics.dedup_sequences`, as it was
when the epoch began) are kept, in a ring of 16 bytes each: 12 bytes of the content digest and the
two counts that a repeat is answered with. Sequences may come in any order; one inside the kept
range that was not seen is new, one below it may have been counted and is refused as OUT_OF_RANGE,
never taken for a success.

An epoch below the newest of its source is served from its own record while that is kept. Without a
record it may be one that was dropped, so it is refused.

Bounded: epochs a source, sources, and both by log time without a batch (`due`, oldest first).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state.copies import Copies
from gaia_grpc.state.snapshot import Section

KEPT_EPOCHS: Final = 4
MAX_SOURCES: Final = 200_000
IDLE_AFTER_MS: Final = 3_600_000
"""Far more than the 5 minutes for which a sender repeats a batch."""
EVICTED_AT_ONCE: Final = 64
PIECE_BYTES: Final = 65_536
"""Of slots, in one record of a snapshot: some 20 us."""

_SLOT_BYTES: Final = 16
_DIGEST_BYTES: Final = 12
_ABSENT: Final = b"\xff" * _SLOT_BYTES
"""No batch counts 65,535 accepted and 65,535 late metrics: it has at most 10,000."""


class Admission(Enum):
    """What a batch is to its source."""

    NEW = "new"
    DUPLICATE = "duplicate"
    OTHER_CONTENT = "other content"
    TOO_OLD = "too old"
    TABLE_FULL = "table full"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The admission, and for a duplicate the counts of its first time."""

    admission: Admission
    accepted_count: int = 0
    late_count: int = 0


NEW: Final = Verdict(Admission.NEW)
OTHER_CONTENT: Final = Verdict(Admission.OTHER_CONTENT)
TOO_OLD: Final = Verdict(Admission.TOO_OLD)
TABLE_FULL: Final = Verdict(Admission.TABLE_FULL)


class EpochRecord:
    """The applied sequences of one epoch."""

    __slots__ = ("high_water", "kept", "slots")

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.high_water = 0
        self.slots = bytearray()
        """Slot s % kept belongs to sequence s of (high_water - kept, high_water]; grows as used."""

    def find(self, sequence: int, digest: bytes) -> Verdict:
        """What `sequence` with this content is."""
        if sequence > self.high_water:
            return NEW
        if sequence <= self.high_water - self.kept:
            return TOO_OLD
        at = sequence % self.kept * _SLOT_BYTES
        slot = self.slots[at : at + _SLOT_BYTES]
        if not slot or slot == _ABSENT:
            return NEW
        if slot[:_DIGEST_BYTES] != digest[:_DIGEST_BYTES]:
            return OTHER_CONTENT
        return Verdict(
            Admission.DUPLICATE,
            accepted_count=int.from_bytes(slot[12:14], "little"),
            late_count=int.from_bytes(slot[14:16], "little"),
        )

    def record(self, sequence: int, digest: bytes, accepted_count: int, late_count: int) -> None:
        """Keeps a batch that `find` called NEW."""
        if sequence > self.high_water:
            # The slots of those that were jumped over still hold sequences `kept` earlier.
            self._clear(max(self.high_water + 1, sequence - self.kept + 1), sequence)
            self.high_water = sequence
        slot = (
            digest[:_DIGEST_BYTES].ljust(_DIGEST_BYTES, b"\0")
            + accepted_count.to_bytes(2, "little")
            + late_count.to_bytes(2, "little")
        )
        at = sequence % self.kept * _SLOT_BYTES
        missing = at + _SLOT_BYTES - len(self.slots)
        if missing > 0:
            self.slots += _ABSENT * (missing // _SLOT_BYTES)
        self.slots[at : at + _SLOT_BYTES] = slot

    def _clear(self, first: int, end: int) -> None:
        """Empties the slots of `first <= sequence < end`, fewer than are kept: as at most two runs
        of the ring, since a client chooses how far it jumps, a thousand times in one command."""
        start = first % self.kept
        stop = start + end - first
        used = len(self.slots) // _SLOT_BYTES
        for low, high in ((start, min(stop, self.kept)), (0, stop - self.kept)):
            count = min(high, used) - low
            if count > 0:
                at = low * _SLOT_BYTES
                self.slots[at : at + count * _SLOT_BYTES] = _ABSENT * count


class SourceRecord:
    """The epochs of one source, ascending, and when its last batch came."""

    __slots__ = ("epochs", "snapshot", "source_id", "touched_ms")

    def __init__(self, source_id: str) -> None:
        self.source_id = source_id
        self.epochs: dict[int, EpochRecord] = {}
        self.touched_ms = 0
        self.snapshot = 0

    def copy(self) -> SourceRecord:
        """For a snapshot."""
        copied = SourceRecord(self.source_id)
        copied.touched_ms = self.touched_ms
        for epoch, known in self.epochs.items():
            twin = copied.epochs[epoch] = EpochRecord(known.kept)
            twin.high_water = known.high_water
            twin.slots = known.slots[:]
        return copied


class Sources:
    """All senders. `admit` decides and changes nothing; `record` keeps what was applied."""

    __slots__ = ("_copies", "_due", "_loading", "_records")

    def __init__(self) -> None:
        self._records: dict[str, SourceRecord] = {}
        self._copies: Copies[SourceRecord] = Copies(SourceRecord.copy, encode_source)
        self._loading: SourceRecord | None = None
        self._due: list[tuple[int, str]] = []
        """Heap of (no later than its idle time, source): moved on when it comes to the top."""

    def __len__(self) -> int:
        return len(self._records)

    def admit(self, source_id: str, epoch: int, sequence: int, digest: bytes) -> Verdict:
        """What this batch is."""
        record = self._records.get(source_id)
        if record is None:
            return NEW if len(self._records) < MAX_SOURCES else TABLE_FULL
        known = record.epochs.get(epoch)
        if known is not None:
            return known.find(sequence, digest)
        return NEW if epoch > max(record.epochs) else TOO_OLD

    def record(
        self,
        source_id: str,
        epoch: int,
        sequence: int,
        digest: bytes,
        *,
        accepted_count: int,
        late_count: int,
        now_ms: int,
        kept: int,
    ) -> None:
        """Keeps a batch that `admit` called NEW; a new epoch remembers `kept` sequences."""
        record = self._records.get(source_id)
        if record is None:
            record = self._records[source_id] = SourceRecord(source_id)
            self._copies.added(record)
            heapq.heappush(self._due, (now_ms + IDLE_AFTER_MS, source_id))
        else:
            self._copies.changing(record)
        record.touched_ms = now_ms
        known = record.epochs.get(epoch)
        if known is None:
            known = record.epochs[epoch] = EpochRecord(kept)
            if len(record.epochs) > KEPT_EPOCHS:
                del record.epochs[min(record.epochs)]
        known.record(sequence, digest, accepted_count, late_count)

    def evict_idle(self, now_ms: int) -> int:
        """Forgets up to 64 sources that were silent for an hour, the longest silent first.

        The heap's times are lower bounds; one that is too low is put back with the true one, also
        where that has come too: else those that go when more than 64 are due would not be a
        function of the records alone, and a restored peer would keep others.
        """
        evicted = 0
        while evicted < EVICTED_AT_ONCE and self._due and self._due[0][0] <= now_ms:
            bound_ms, source_id = self._due[0]
            due_ms = self._records[source_id].touched_ms + IDLE_AFTER_MS
            if due_ms > bound_ms:
                heapq.heapreplace(self._due, (due_ms, source_id))
                continue
            heapq.heappop(self._due)
            del self._records[source_id]
            evicted += 1
        return evicted

    # --- snapshots

    def section(self) -> Section:
        """The sources in the order in which they came."""
        return Section(
            "source",
            lambda: self._copies.freeze(self._records.values()),
            self._load,
            thaw=self._copies.thaw,
            loaded=self._loaded,
        )

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.SourceRecord.FromString(data)
        if not stored.further_piece:
            if stored.source_id in self._records:
                raise ValueError(f"the source {stored.source_id} is there twice")
            self._loading = self._records[stored.source_id] = SourceRecord(stored.source_id)
            self._loading.touched_ms = stored.touched_ms
        if self._loading is None or not stored.epochs:
            raise ValueError("a piece of no source")
        for epoch in stored.epochs:
            _load_epoch(self._loading, epoch)

    def _loaded(self) -> None:
        self._loading = None
        # Sorted, which is a heap.
        self._due = sorted(
            (record.touched_ms + IDLE_AFTER_MS, record.source_id)
            for record in self._records.values()
        )


def encode_source(record: SourceRecord) -> Iterator[bytes]:
    """A source as `SourceRecord` messages: one, or more where a lot is remembered."""
    stored = metrics_record_pb2.SourceRecord(
        source_id=record.source_id, touched_ms=record.touched_ms
    )
    room = PIECE_BYTES
    for epoch in sorted(record.epochs):
        known = record.epochs[epoch]
        first = 0
        while True:
            if not room:
                yield stored.SerializeToString(deterministic=True)
                stored = metrics_record_pb2.SourceRecord(further_piece=True)
                room = PIECE_BYTES
            slots = bytes(known.slots[first : first + room])
            stored.epochs.add(
                epoch=epoch, kept=known.kept, high_water=known.high_water, slots=slots
            )
            first += len(slots)
            room -= len(slots)
            if first == len(known.slots):
                break
    yield stored.SerializeToString(deterministic=True)


def _load_epoch(record: SourceRecord, stored: metrics_record_pb2.EpochRecord) -> None:
    known = record.epochs.get(stored.epoch)
    if known is None:
        if stored.kept < 1 or (record.epochs and stored.epoch < max(record.epochs)):
            raise ValueError("an epoch out of order, or that remembers nothing")
        known = record.epochs[stored.epoch] = EpochRecord(stored.kept)
        known.high_water = stored.high_water
    known.slots += stored.slots
    if len(known.slots) % _SLOT_BYTES or len(known.slots) > known.kept * _SLOT_BYTES:
        raise ValueError(f"{len(known.slots)} bytes are no slots of {known.kept} sequences")
