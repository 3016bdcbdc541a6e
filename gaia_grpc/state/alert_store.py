"""The records of alerts with the log of their events: every change of an alert goes through here.

A record is kept as long as it is open or one of its events is retained. Who else keeps something of
open alerts (whose turn each is) hears of each change; what he keeps is a function of the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state import topics
from gaia_grpc.state.agenda import Agenda
from gaia_grpc.state.alert_log import AlertLog, EventRecord, ScopeIndex, scope_of
from gaia_grpc.state.alert_record import NO_PUSH, AlertRecord, decode_alert, encode_alert
from gaia_grpc.state.context import Context
from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.refusal import FAILED_PRECONDITION, invalid, not_found, refused
from gaia_grpc.state.snapshot import Frozen, Part, records_section
from gaia_grpc.state.timelines import LIVE, Timelines

ID_PREFIX: Final = "alert-"
LIFE_LEVEL: Final = 3
"""The feature level that has pattern groups, pushes, teachers in turn and operational alerts."""

Change: TypeAlias = alert_pb2.AlertChange.ValueType
Listener: TypeAlias = Callable[[AlertRecord, alert_pb2.Alert | None], None]
"""Gets a record and the alert after a change; None: it is removed."""


class AlertStore:
    """Alerts by number, their order by scope, and the log."""

    def __init__(
        self,
        context: Context,
        timelines: Timelines,
        agenda: Agenda,
        teachers_of: Callable[[str], Sequence[str]],
    ) -> None:
        self._context = context
        self._timelines = timelines
        self._agenda = agenda
        self._teachers_of = teachers_of
        self.records: dict[int, AlertRecord] = {}
        self.index = ScopeIndex()
        self.log = AlertLog()
        self.last_number = 0
        self.listener: Listener = _nobody
        self._retained = 0
        self._frozen = Frozen(self.records, lambda _, record: encode_alert(record, self.log))
        self.read_settings()

    def read_settings(self) -> None:
        """How many events are retained."""
        self._retained = self._context.settings.integer("alert.retained_events")

    def sections(self) -> tuple[Part, Part]:
        """The events; the records, behind the counters."""
        return self.log.section(), records_section("alert", self._frozen, self._load)

    # --- reading

    def get(self, number: int) -> AlertRecord | None:
        """The record with a number, where it is kept."""
        return self.records.get(number)

    def existing(self, alert_id: str) -> AlertRecord:
        """The record of an id. Raises `Refused` (NOT_FOUND)."""
        digits = alert_id.removeprefix(ID_PREFIX)
        known = digits.isascii() and digits.isdigit() and len(digits) <= 18
        record = self.records.get(int(digits)) if known else None
        if record is None or alert_id != f"{ID_PREFIX}{record.number}":
            raise not_found("alert", alert_id)
        return record

    def existing_open(self, alert_id: str, teacher_id: str) -> AlertRecord:
        """The open record that a teacher names. Raises `Refused`."""
        if not teacher_id:
            raise invalid("teacher_id", "teacher_id is empty")
        record = self.existing(alert_id)
        if not record.is_open:
            raise refused(FAILED_PRECONDITION, "ALERT_RESOLVED", f"{alert_id} is resolved")
        return record

    def clock_ms(self, timeline_id: str) -> int:
        """The time on a timeline; log time where it is not known any more."""
        timeline = self._timelines.get(timeline_id)
        if timeline_id == LIVE or timeline is None:
            return self._context.now_ms
        running_ms = self._agenda.running_ms(timeline_id)
        return timeline.clock_ms if running_ms is None else running_ms

    def all_open(self) -> Iterator[AlertRecord]:
        """Open alerts in the order of their numbers."""
        for record in self.records.values():
            if record.is_open:
                yield record

    # --- changes

    def new(self, alert: alert_pb2.Alert) -> AlertRecord:
        """A record with the next number; `emit` follows."""
        self.last_number += 1
        self._frozen.changing(self.last_number)
        record = AlertRecord(self.last_number, alert.student_id)
        self.records[record.number] = record
        self.index.append(scope_of(alert), alert.classroom_id, record.number)
        alert.alert_id = f"{ID_PREFIX}{record.number}"
        alert.state = alert_pb2.ALERT_STATE_OPEN
        alert.create_time.CopyFrom(timestamp(self._context.now_ms))
        return record

    def emit(
        self,
        record: AlertRecord,
        alert: alert_pb2.Alert,
        change: Change,
        *,
        pushed: bool = False,
        push_wait: int = NO_PUSH,
    ) -> None:
        """Stores the alert and the event of its change, and what holds back its push from now."""
        self._frozen.changing(record.number)
        record.last_sequence = alert.last_sequence = self.log.newest + 1
        record.severity = alert.severity
        record.state = alert.state
        record.push_wait = push_wait if record.is_open else NO_PUSH
        record.body = self._append(record.number, alert, change, pushed)
        self.listener(record, alert)

    def hold_push(self, record: AlertRecord, alert: alert_pb2.Alert, push_wait: int) -> None:
        """Its push is held back by something else now; nothing that a reader could see."""
        self._frozen.changing(record.number)
        record.push_wait = push_wait
        self.listener(record, alert)

    def _append(self, number: int, alert: alert_pb2.Alert, change: Change, pushed: bool) -> bytes:
        """Adds an event with the alert as it is after it; returns the alert's bytes."""
        body = alert.SerializeToString(deterministic=True)
        self.log.append(
            EventRecord(
                sequence=alert.last_sequence,
                change=change,
                applied_index=self._context.index,
                alert_number=number,
                timeline_id=scope_of(alert),
                classroom_id=alert.classroom_id,
                student_id=alert.student_id,
                severity=alert.severity,
                body=body,
                pushed=pushed,
            )
        )
        self._context.touch(topics.ALERTS)
        if alert.classroom_id:
            self._context.touch(topics.classroom_alerts(alert.classroom_id))
            for teacher_id in self._teachers_of(alert.classroom_id):
                self._context.touch(topics.teacher_alerts(teacher_id))
        self.drop_events()
        return body

    def drop_events(self) -> None:
        """Forgets events beyond those that are retained, and ended alerts with their last one."""
        for event in self.log.drop_beyond(self._retained):
            record = self.records.get(event.alert_number)
            if (
                record is not None
                and record.last_sequence == event.sequence
                and record.state == alert_pb2.ALERT_STATE_RESOLVED
            ):
                self._frozen.changing(event.alert_number)
                del self.records[event.alert_number]
                self.index.discard(event.timeline_id, event.classroom_id, record.number)

    def forget_student(self, student_id: str) -> tuple[int, int]:
        """Removes a student's alerts and empties their events; returns how many events and alerts.
        Each alert gets one more event, which names nobody.

        Looks at all alerts, and at the events of their classrooms: some 10 ms for 100,000.
        """
        numbers = [
            number for number, record in self.records.items() if record.student_id == student_id
        ]
        alerts = [self.records[number].message() for number in numbers]
        scopes = sorted({(alert.timeline_id, alert.classroom_id) for alert in alerts})
        events = sum([self.log.erase(student_id, scope) for scope in scopes])
        for number, alert in zip(numbers, alerts, strict=True):
            self._frozen.changing(number)
            record = self.records.pop(number)
            self.listener(record, None)
            self.index.discard(scope_of(alert), alert.classroom_id, number)
        # Only now: a new event may push out old ones, and with them the records of theirs.
        for number, alert in zip(numbers, alerts, strict=True):
            self._tell_erased(number, alert)
        return events, len(numbers)

    def _tell_erased(self, number: int, alert: alert_pb2.Alert) -> None:
        """An event that makes boards drop the alert; it reads as resolved where it is not known."""
        left = alert_pb2.Alert(
            alert_id=alert.alert_id,
            classroom_id=alert.classroom_id,
            timeline_id=alert.timeline_id,
            severity=alert.severity,
            state=alert_pb2.ALERT_STATE_RESOLVED,
            resolved_at_ms=self.clock_ms(alert.timeline_id),
            last_sequence=self.log.newest + 1,
        )
        self._append(number, left, alert_pb2.ALERT_CHANGE_ERASED, False)

    # --- snapshots

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.AlertRecord.FromString(data)
        if stored.number <= next(reversed(self.records), 0) or stored.number > self.last_number:
            raise ValueError(f"alert {stored.number} is out of order")
        record, timeline_id, classroom_id = decode_alert(stored, self.log)
        self.records[record.number] = record
        self.index.append(timeline_id, classroom_id, record.number)

    def tell_all(self) -> None:
        """Tells the listener of every open alert again."""
        for record in self.all_open():
            self.listener(record, record.message())


def _nobody(record: AlertRecord, alert: alert_pb2.Alert | None) -> None:
    """Until someone listens."""
    del record, alert
