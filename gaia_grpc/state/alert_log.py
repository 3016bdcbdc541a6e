"""All alert events in one order: sequence numbers from 1 up without gaps, given in apply.

An event holds the alert as it was, serialized once; the record of the alert and its newest event
share those bytes. Beside the order of all there is one per timeline and one per classroom, so a
subscriber's question costs what its own classroom produced. How far one question looks is bounded,
and the answer says how far that was, so a quiet subscriber goes on from there.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from typing import Final, TypeAlias

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import metrics_record_pb2

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
    pushed: bool = False

    def message(self) -> alert_pb2.AlertEvent:
        """The event as the contract has it."""
        event = alert_pb2.AlertEvent(
            sequence=self.sequence,
            change=alert_pb2.AlertChange.ValueType(self.change),
            applied_index=self.applied_index,
            pushed=self.pushed,
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
    classroom_ids: tuple[str, ...] | None = None
    """Only of these; None matches all."""

    def matches(self, student_id: str, severity: int) -> bool:
        """Whether a record of the timeline and classrooms is wanted."""
        return severity >= self.min_severity and self.student_id in ("", student_id)


def scope_of(alert: alert_pb2.Alert) -> str:
    """The timeline in whose orders an alert stands; operational ones have orders of their own."""
    if alert.kind == alert_pb2.ALERT_KIND_OPERATIONAL:
        return OPERATIONAL
    return alert.timeline_id


def select_by(
    wanted: alert_pb2.AlertFilter, classrooms_of: Callable[[str], Sequence[str]]
) -> Selection:
    """The selection of a filter; `classrooms_of` says what a teacher's classrooms are by now."""
    classroom_id = wanted.classroom_id
    classroom_ids: tuple[str, ...] | None = None
    if wanted.teacher_id:
        classroom_ids = tuple(classrooms_of(wanted.teacher_id))
        if classroom_id:
            classroom_ids = tuple([each for each in classroom_ids if each == classroom_id])
    operational = wanted.kind == alert_pb2.ALERT_KIND_OPERATIONAL
    return Selection(
        timeline_id=OPERATIONAL if operational else wanted.timeline_id,
        classroom_id=classroom_id,
        student_id=wanted.student_id,
        min_severity=wanted.min_severity,
        classroom_ids=classroom_ids,
    )


OPERATIONAL: Final = "\n"
"""Takes the timeline's place in the orders of operational alerts; no id can hold it."""

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

    def of(self, scope: Scope) -> array[int]:
        """The order of a scope; not to be changed."""
        return self._numbers.get(scope, _NOTHING)

    def after(self, selection: Selection, number: int) -> Iterator[int]:
        """Numbers above one, ascending."""
        orders = self._orders(selection)
        if len(orders) == 1:
            return _ascending(orders[0], number)
        return merge(*[_ascending(order, number) for order in orders])

    def below(self, selection: Selection, number: int) -> Iterator[int]:
        """Numbers below one, descending."""
        orders = self._orders(selection)
        if len(orders) == 1:
            return _descending(orders[0], number)
        return merge(*[_descending(order, number) for order in orders], reverse=True)

    def _orders(self, selection: Selection) -> list[array[int]]:
        """The orders that together hold all of a selection: one, or one for each classroom."""
        wanted = selection.classroom_ids
        if wanted is None:
            wanted = (selection.classroom_id,)
        found = [self._numbers.get((selection.timeline_id, each)) for each in wanted]
        return [order for order in found if order is not None]


def _ascending(order: array[int], number: int) -> Iterator[int]:
    for at in range(bisect_right(order, number), len(order)):
        yield order[at]


def _descending(order: array[int], number: int) -> Iterator[int]:
    for at in range(bisect_left(order, number) - 1, -1, -1):
        yield order[at]


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
        for sequence in self._index.of(scope):
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
        found: list[EventRecord] = []
        following = self._index.after(selection, max(after_sequence, self.oldest - 1))
        for scanned, sequence in enumerate(following):
            if len(found) >= limit or scanned >= SCANNED_AT_MOST:
                return found, sequence - 1
            event = self._events[self._gone + sequence - self.oldest]
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
        pushed=event.pushed,
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
        pushed=stored.pushed,
    )
