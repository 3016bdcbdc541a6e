"""What changed last in a table: a bounded log of changes by log index, which watches read.

It is no state: nothing that apply decides looks at it, and it is in no snapshot. A snapshot would
carry what only watchers of before it could use, and they can as well be sent the full picture.
So a machine that comes out of a snapshot knows no changes before it (`floor`), and whoever stands
further back starts again. Entries and their order follow from the log alone: a place means the same
on every peer.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import Generic, NamedTuple, TypeVar

from gaia_grpc.state.context import Context

KEPT = 32_768
"""Changes: some 8 MiB, and several seconds of the busiest queue."""
TRIM_AT_LEAST = 1_024

Mark = TypeVar("Mark")
"""What filters may ask for and what may change; None where the record is not there."""
Stub = TypeVar("Stub")
"""What is left to tell of a removed record."""


class Change(NamedTuple, Generic[Mark, Stub]):
    """All that one entry of the log did to one record."""

    log_index: int
    number: int
    before: Mark | None
    after: Mark | None
    stub: Stub | None


class ChangeLog(Generic[Mark, Stub]):
    """The last changes of one table's records, in the order of the log."""

    def __init__(self, context: Context, kept: int = KEPT) -> None:
        self.floor = 0
        """All changes of later entries are here."""
        self._context = context
        self._kept = kept
        # The fields of `Change`: a plain tuple is made in a third of the time, and most are never
        # looked at.
        self._entries: list[tuple[int, int, Mark | None, Mark | None, Stub | None]] = []
        self._dropped = 0
        """Entries at the front of the list that count no more."""
        self._offset = 0
        """Position of the list's first entry since the start."""
        self._latest: dict[int, int] = {}
        """Record -> position of its last change."""

    def __len__(self) -> int:
        """How many changes are kept."""
        return len(self._entries) - self._dropped

    def note(
        self, number: int, before: Mark | None, after: Mark | None, stub: Stub | None = None
    ) -> None:
        """The entry in hand changed a record; several changes by one entry are one."""
        index, entries, offset = self._context.index, self._entries, self._offset
        position = self._latest.get(number)
        if position is not None:
            known = entries[position - offset]
            if known[0] == index:
                entries[position - offset] = (index, number, known[2], after, stub)
                return
        self._latest[number] = offset + len(entries)
        entries.append((index, number, before, after, stub))
        if len(entries) - self._dropped > self._kept:
            self._drop_oldest()

    def restored(self) -> None:
        """The records came out of a snapshot."""
        self.floor = self._context.index

    @property
    def end(self) -> int:
        """The position behind the last change."""
        return self._offset + len(self._entries)

    def position_after(self, index: int) -> int:
        """The position of the first change by an entry after `index`."""
        place = bisect_right(self._entries, index, lo=self._dropped, key=itemgetter(0))
        return self._offset + place

    def at(self, position: int) -> Change[Mark, Stub]:
        """The change at a position that is kept."""
        return Change._make(self._entries[position - self._offset])

    def is_latest(self, position: int) -> bool:
        """Whether the record was not changed since."""
        return self._latest[self.at(position).number] == position

    def stub_of(self, number: int) -> Stub | None:
        """What is left of a removed record, as long as its removal is kept."""
        position = self._latest.get(number)
        return None if position is None else self.at(position).stub

    def _drop_oldest(self) -> None:
        log_index, number, *_ = self._entries[self._dropped]
        self.floor = log_index
        if self._latest[number] == self._offset + self._dropped:
            del self._latest[number]
        self._dropped += 1
        if self._dropped >= max(TRIM_AT_LEAST, len(self._entries) >> 4):
            del self._entries[: self._dropped]
            self._offset += self._dropped
            self._dropped = 0
