"""Whose turn an alert is, when it is pushed, and what happens when nobody looks (feature level 3).

An alert belongs to the teacher of its classroom's roster with the fewest open alerts (ties: lowest
id). A change that deserves a push is one, unless the alert is muted (acknowledged, snoozed, or a
teacher acted) or the teacher's budget for the minute is used up: then the alert waits, and is
pushed (PUSHED) as soon as it may, if it is still open. Escalations are pushes to the second
teacher, and take from that budget.

`alert.acknowledge_timeout` after its first push, or after the end of a mute, an alert that is still
OPEN becomes ESCALATED: it goes to the next teacher by the same rule too, where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.agenda import Agenda
from gaia_grpc.state.alert_record import MUTED, NO_PLACE, NO_PUSH, AlertRecord
from gaia_grpc.state.alert_store import AlertStore, Change
from gaia_grpc.state.classrooms import ClassroomTable
from gaia_grpc.state.context import Context
from gaia_grpc.state.push_budget import Owner, PushBudgets, Rank
from gaia_grpc.state.snapshot import Part

CARE_TIMER: Final = "alert_care"
PUSH_TIMER: Final = "alert_push"


class AlertCare:
    """Teachers in turn, pushes and escalation of all alerts of students."""

    def __init__(
        self, context: Context, store: AlertStore, classrooms: ClassroomTable, agenda: Agenda
    ) -> None:
        self._context = context
        self._store = store
        self._classrooms = classrooms
        self._agenda = agenda
        self._budgets = PushBudgets(1)
        self._turns: dict[int, tuple[str, tuple[str, ...]]] = {}
        """Of each open alert: its timeline and the teachers that it counts for."""
        self._open_counts: dict[tuple[str, str], int] = {}
        store.listener = self._changed
        agenda.register(CARE_TIMER, self._care_due)
        agenda.register(PUSH_TIMER, self._push_due)
        self.parts: Sequence[Part] = (self._budgets.section(self.settings_changed),)
        self.read_settings()

    def read_settings(self) -> None:
        """Limits as they are now."""
        settings = self._context.settings
        self._timeout_ms = settings.milliseconds("alert.acknowledge_timeout")
        self._mute_ms = settings.milliseconds("alert.acknowledged_mute")
        self._budgets.most = settings.integer("alert.push_budget")

    def settings_changed(self) -> None:
        """What is due is set again, as where a snapshot was loaded."""
        self.read_settings()
        self._store.tell_all()
        for owner in self._budgets.owners():
            self._set_push_due(owner)

    # --- what happens to an alert

    def begin(self, alert: alert_pb2.Alert) -> None:
        """A new alert gets its teacher."""
        alert.teacher_id = self._next_teacher(alert)

    def tell(
        self, record: AlertRecord, alert: alert_pb2.Alert, change: Change, *, notify: bool
    ) -> None:
        """Stores a change; a push, where it deserves one and may be one now."""
        if not notify:
            self._store.emit(record, alert, change, push_wait=record.push_wait)
            return
        push_wait = self._take(alert)
        if push_wait == NO_PUSH:
            _mark_pushed(alert, self._store.clock_ms(alert.timeline_id))
        self._store.emit(record, alert, change, pushed=push_wait == NO_PUSH, push_wait=push_wait)

    def push(self, record: AlertRecord, alert: alert_pb2.Alert) -> None:
        """Nothing else changed, but it deserves a push now."""
        push_wait = self._take(alert)
        if push_wait == NO_PUSH:
            self._push(record, alert)
        else:
            self._store.hold_push(record, alert, push_wait)

    def acknowledge(self, record: AlertRecord, teacher_id: str) -> alert_pb2.Alert:
        """A teacher saw it: muted for a while. The same teacher again changes nothing."""
        alert = record.message()
        clock_ms = self._store.clock_ms(alert.timeline_id)
        again = alert.acknowledged_by == teacher_id and clock_ms < alert.muted_until_ms
        if not again or alert.state != alert_pb2.ALERT_STATE_ACKNOWLEDGED:
            self.seen(alert, teacher_id)
            self._store.emit(record, alert, alert_pb2.ALERT_CHANGE_ACKNOWLEDGED)
        return alert

    def seen(self, alert: alert_pb2.Alert, teacher_id: str) -> None:
        """Marks it as acknowledged and muted; an event follows."""
        clock_ms = self._store.clock_ms(alert.timeline_id)
        alert.state = alert_pb2.ALERT_STATE_ACKNOWLEDGED
        alert.acknowledged_by = teacher_id
        alert.muted_until_ms = clock_ms + self._mute_ms

    def snooze(self, record: AlertRecord, length_ms: int) -> alert_pb2.Alert:
        """Muted for a time; after it, an alert that is still open comes back."""
        alert = record.message()
        alert.muted_until_ms = self._store.clock_ms(alert.timeline_id) + length_ms
        wanted = alert.pushed or record.push_wait != NO_PUSH
        self._store.emit(
            record,
            alert,
            alert_pb2.ALERT_CHANGE_SNOOZED,
            push_wait=MUTED if wanted else NO_PUSH,
        )
        return alert

    def end_timeline(self, timeline_id: str) -> None:
        """A timeline is forgotten: its alerts are closed by now."""
        self._budgets.forget_timeline(timeline_id)

    # --- pushes

    def _take(self, alert: alert_pb2.Alert) -> int:
        """Takes a place of the budget, where it may be pushed now; returns what holds it back."""
        now_ms = self._store.clock_ms(alert.timeline_id)
        if alert.muted_until_ms > now_ms:
            return MUTED
        owner = _owner(alert)
        if owner is None:
            return NO_PUSH
        taken = self._budgets.take(owner, now_ms)
        self._set_push_due(owner)
        return NO_PUSH if taken else NO_PLACE

    def _push(self, record: AlertRecord, alert: alert_pb2.Alert) -> None:
        _mark_pushed(alert, self._store.clock_ms(alert.timeline_id))
        self._store.emit(record, alert, alert_pb2.ALERT_CHANGE_PUSHED, pushed=True)

    def _push_due(self, timeline_id: str, key: int | str, now_ms: int) -> None:
        owner: Owner = (timeline_id, str(key))
        while (number := self._budgets.take_next(owner, now_ms)) is not None:
            record = self._store.records[number]
            self._push(record, record.message())
        self._set_push_due(owner)

    def _set_push_due(self, owner: Owner) -> None:
        self._agenda.set(owner[0], PUSH_TIMER, owner[1], self._budgets.due_ms(owner))

    # --- time

    def _care_due(self, timeline_id: str, key: int | str, now_ms: int) -> None:
        record = self._store.records[int(key)]
        alert = record.message()
        escalate_ms = self._escalate_ms(alert)
        if escalate_ms is not None and escalate_ms <= now_ms:
            alert.state = alert_pb2.ALERT_STATE_ESCALATED
            alert.escalated_to = self._next_teacher(alert)
            alert.escalated_at_ms = escalate_ms
            self.tell(record, alert, alert_pb2.ALERT_CHANGE_ESCALATED, notify=True)
        elif record.push_wait == MUTED and alert.muted_until_ms <= now_ms:
            self.push(record, alert)

    def _escalate_ms(self, alert: alert_pb2.Alert) -> int | None:
        if (
            alert.state != alert_pb2.ALERT_STATE_OPEN
            or not alert.pushed_at_ms
            or not self._timeout_ms
        ):
            return None
        return max(alert.pushed_at_ms, alert.muted_until_ms) + self._timeout_ms

    def _changed(self, record: AlertRecord, alert: alert_pb2.Alert | None) -> None:
        """Whose turn it is, what is due and what waits, after a change."""
        number = record.number
        turn = self._turns.pop(number, None)
        if turn is not None:
            self._count(turn, -1)
        left = self._budgets.leave(number)
        if left is not None:
            self._set_push_due(left)
        if alert is None or not record.is_open or alert.kind == alert_pb2.ALERT_KIND_OPERATIONAL:
            if turn is not None:
                self._agenda.set(turn[0], CARE_TIMER, number, None)
            return
        timeline_id = alert.timeline_id
        teachers = (alert.teacher_id, alert.escalated_to)
        turn = self._turns[number] = (timeline_id, tuple([each for each in teachers if each]))
        self._count(turn, 1)
        due = [self._escalate_ms(alert)]
        if record.push_wait == MUTED:
            due.append(alert.muted_until_ms)
        elif record.push_wait == NO_PLACE:
            self._wait(number, alert)
        times = [each for each in due if each is not None]
        self._agenda.set(timeline_id, CARE_TIMER, number, min(times) if times else None)

    def _wait(self, number: int, alert: alert_pb2.Alert) -> None:
        owner = _owner(alert)
        if owner is None:
            return
        rank: Rank = (-alert.severity, -alert.confidence, number)
        self._budgets.wait(number, owner, rank)
        self._set_push_due(owner)

    def _count(self, turn: tuple[str, tuple[str, ...]], change: int) -> None:
        for teacher_id in turn[1]:
            place = (turn[0], teacher_id)
            count = self._open_counts.get(place, 0) + change
            if count:
                self._open_counts[place] = count
            else:
                del self._open_counts[place]

    def _next_teacher(self, alert: alert_pb2.Alert) -> str:
        """Of those of its classroom who do not have it yet, the one with the fewest open alerts."""
        best = ""
        fewest = 0
        for teacher_id in self._classrooms.teachers_of(alert.classroom_id):
            if teacher_id in (alert.teacher_id, alert.escalated_to):
                continue
            count = self._open_counts.get((alert.timeline_id, teacher_id), 0)
            if not best or count < fewest:
                best, fewest = teacher_id, count
        return best


def _owner(alert: alert_pb2.Alert) -> Owner | None:
    """Whose budget a push takes from; an alert that belongs to no one has none."""
    teacher_id = alert.escalated_to or alert.teacher_id
    if teacher_id:
        return alert.timeline_id, f"teacher/{teacher_id}"
    if alert.classroom_id:
        return alert.timeline_id, f"classroom/{alert.classroom_id}"
    return None


def _mark_pushed(alert: alert_pb2.Alert, now_ms: int) -> None:
    alert.pushed = True
    alert.pushed_at_ms = alert.pushed_at_ms or now_ms
