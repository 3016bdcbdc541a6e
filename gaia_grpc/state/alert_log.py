"""All alert events in one order: sequence numbers from 1 up without gaps, given in apply.

An event holds the alert as it was, serialized once; the record of the alert and its newest event
share those bytes. Beside the order of all there is one per timeline and one per classroom, so a
subscriber's question costs what its own classroom produced. How far one question looks is bounded,
and the answer says how far that was, so a quiet subscriber goes on from there.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state.refusal import unimplemented
from gaia_grpc.state.snapshot import Section

SCANNED_AT_MOST: Final = 10_000
TRIM_AT_LEAST: Final = 64
EVENTS_PER_RECORD: Final = 16
"""In a snapshot: some 30 us."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One change of one alert; `body` is the serialized Alert after it, empty once the student's
    data was deleted: the sequence stays, and nobody gets it any more."""

    sequence: int
    change: int
    applied_index: int
    alert_number: int
    timeline_id: str
    classroom_id: str
    student_id: str
    severity: int
    body: bytes

    def message(self) -> alert_pb2.AlertEvent:
        """The event as the contract has it."""
        event = alert_pb2.AlertEvent(
            sequence=self.sequence,
            change=alert_pb2.AlertChange.ValueType(self.change),
            applied_index=self.applied_index,
        )
        event.alert.MergeFromString(self.body)
        return event


@dataclass(frozen=True, slots=True)
class Selection:
    """What to select; empty texts and 0 match all, but the timeline is always one."""

    timeline_id: str = ""
    classroom_id: str = ""
    student_id: str = ""
    min_severity: int = 0

    def matches(self, student_id: str, severity: int) -> bool:
        """Whether a record of the timeline and classroom is wanted."""
        return severity >= self.min_severity and self.student_id in ("", student_id)


def select_by(wanted: alert_pb2.AlertFilter) -> Selection:
    """The selection of a filter; by teacher, of whom a roster knows the classrooms, comes later."""
    if wanted.teacher_id:
        raise unimplemented("filter.teacher_id")
    return Selection(
        timeline_id=wanted.timeline_id,
        classroom_id=wanted.classroom_id,
        student_id=wanted.student_id,
        min_severity=wanted.min_severity,
    )


Scope: TypeAlias = tuple[str, str]
"""(timeline_id, classroom_id), with an empty classroom for the whole timeline."""


def scopes(timeline_id: str, classroom_id: str) -> Iterator[Scope]:
    """The orders that a record stands in."""
    yield timeline_id, ""
    if classroom_id:
        yield timeline_id, classroom_id


class ScopeIndex:
    """Ascending numbers per scope; numbers leave from the front or from the middle."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[Scope, array[int]] = {}

    def append(self, timeline_id: str, classroom_id: str, number: int) -> None:
        """Adds the highest number so far."""
        for scope in scopes(timeline_id, classroom_id):
            numbers = self._numbers.get(scope)
            if numbers is None:
                numbers = self._numbers[scope] = array("q")
            numbers.append(number)

    def trim(self, timeline_id: str, classroom_id: str, below: int) -> None:
        """Numbers below are gone; cut off when it is worth the move."""
        for scope in scopes(timeline_id, classroom_id):
            numbers = self._numbers.get(scope)
            if numbers is None:
                continue
            gone = bisect_right(numbers, below - 1)
            if gone == len(numbers):
                del self._numbers[scope]
            elif gone >= max(TRIM_AT_LEAST, len(numbers) >> 4):
                del numbers[:gone]

    def discard(self, timeline_id: str, classroom_id: str, number: int) -> None:
        """Takes one number out of the middle."""
        for scope in scopes(timeline_id, classroom_id):
            numbers = self._numbers[scope]
            del numbers[bisect_right(numbers, number) - 1]
            if not numbers:
                del self._numbers[scope]

    def numbers(self, selection: Selection) -> array[int]:
        """The smallest order that holds all of a selection; not to be changed."""
        scope = (selection.timeline_id, selection.classroom_id)
        return self._numbers.get(scope, _NOTHING)


_NOTHING: Final = array("q")


class AlertLog:
    """The retained events and their orders."""

    __slots__ = ("_erased", "_events", "_frozen_next", "_frozen_through", "_gone", "_index",
                 "_kept", "frozen_oldest", "newest")  # fmt: skip

    def __init__(self) -> None:
        self._events: list[EventRecord] = []
        self._gone = 0
        """Events at the front of the list that are forgotten and not cut off yet."""
        self._index = ScopeIndex()
        self.newest = 0
        """Sequence of the newest event; 0 before the first."""
        self.frozen_oldest = 0
        """Sequence of the oldest event in the snapshot under way."""
        self._frozen_next = 0
        self._frozen_through = 0
        """A snapshot still needs these sequences, as they were: the oldest go, some are erased."""
        self._kept: deque[EventRecord] = deque()
        """Those among them that are gone from the list: the first ones."""
        self._erased: dict[int, EventRecord] = {}
        """What those among them were that were erased."""

    def __len__(self) -> int:
        return len(self._events) - self._gone

    @property
    def oldest(self) -> int:
        """Sequence of the oldest retained event; the next one's where none is."""
        return self.newest - len(self) + 1

    def get(self, sequence: int) -> EventRecord | None:
        """The event, where it is retained."""
        if not self.oldest <= sequence <= self.newest:
            return None
        return self._events[self._gone + sequence - self.oldest]

    def append(self, event: EventRecord) -> None:
        """Adds the event with the next sequence."""
        self.newest = event.sequence
        self._events.append(event)
        self._index.append(event.timeline_id, event.classroom_id, event.sequence)

    def drop_beyond(self, retained: int) -> list[EventRecord]:
        """Forgets the oldest events until no more than `retained` are left; returns them."""
        dropped = self._events[self._gone : max(len(self._events) - retained, self._gone)]
        for event in dropped:
            if self._frozen_next <= event.sequence <= self._frozen_through:
                self._kept.append(event)
            self._index.trim(event.timeline_id, event.classroom_id, event.sequence + 1)
        self._gone += len(dropped)
        if self._gone >= max(TRIM_AT_LEAST, len(self._events) >> 4):
            del self._events[: self._gone]
            self._gone = 0
        return dropped

    def erase(self, student_id: str, scope: Scope) -> int:
        """Empties all events of a student in a timeline and classroom; returns how many."""
        count = 0
        for sequence in self._index.numbers(Selection(*scope)):
            event = self.get(sequence)
            if event is None or event.student_id != student_id:
                continue
            if self._frozen_next <= sequence <= self._frozen_through:
                self._erased.setdefault(sequence, event)
            self._events[self._gone + sequence - self.oldest] = replace(
                event, student_id="", body=b""
            )
            count += 1
        return count

    def select(
        self, selection: Selection, after_sequence: int, limit: int
    ) -> tuple[list[EventRecord], int]:
        """Up to `limit` matching events after a sequence, and the sequence looked through."""
        sequences = self._index.numbers(selection)
        start = bisect_right(sequences, max(after_sequence, self.oldest - 1))
        found: list[EventRecord] = []
        for at in range(start, len(sequences)):
            if len(found) >= limit or at - start >= SCANNED_AT_MOST:
                return found, sequences[at] - 1
            event = self._events[self._gone + sequences[at] - self.oldest]
            if event.body and selection.matches(event.student_id, event.severity):
                found.append(event)
        return found, max(self.newest, after_sequence)

    # --- snapshots

    def section(self) -> Section:
        """The events in their order, some in each record; one record also where there is none."""
        return Section("alert_events", self._freeze, self._load, thaw=self._thaw)

    def _freeze(self) -> Iterator[bytes]:
        self._kept = deque()
        self._erased = {}
        self.frozen_oldest = self._frozen_next = self.oldest
        self._frozen_through = self.newest
        return self._walk()

    def _thaw(self) -> None:
        self._kept = deque()
        self._erased = {}
        self._frozen_next = self._frozen_through = 0

    def _walk(self) -> Iterator[bytes]:
        last = False
        while not last:
            stored = metrics_record_pb2.AlertEventRecords(first_sequence=self._frozen_next)
            end = min(self._frozen_next + EVENTS_PER_RECORD, self._frozen_through + 1)
            for sequence in range(self._frozen_next, end):
                if self._kept:
                    event = self._kept.popleft()
                else:
                    event = self._events[self._gone + sequence - self.oldest]
                stored.events.append(_encode(self._erased.pop(sequence, event)))
            self._frozen_next = end
            last = end > self._frozen_through
            yield stored.SerializeToString(deterministic=True)

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.AlertEventRecords.FromString(data)
        if not self._events:
            self.newest = stored.first_sequence - 1
        if stored.first_sequence != self.newest + 1 or self.newest < 0:
            raise ValueError(f"alert event {stored.first_sequence} follows {self.newest}")
        for sequence, event in enumerate(stored.events, start=stored.first_sequence):
            self.append(_decode(sequence, event))


def _encode(event: EventRecord) -> metrics_record_pb2.AlertEventRecord:
    return metrics_record_pb2.AlertEventRecord(
        change=event.change,
        applied_index=event.applied_index,
        alert_number=event.alert_number,
        timeline_id=event.timeline_id,
        classroom_id=event.classroom_id,
        student_id=event.student_id,
        severity=event.severity,
        alert=event.body,
    )


def _decode(sequence: int, stored: metrics_record_pb2.AlertEventRecord) -> EventRecord:
    return EventRecord(
        sequence=sequence,
        change=stored.change,
        applied_index=stored.applied_index,
        alert_number=stored.alert_number,
        timeline_id=stored.timeline_id,
        classroom_id=stored.classroom_id,
        student_id=stored.student_id,
        severity=stored.severity,
        body=stored.alert,
    )
