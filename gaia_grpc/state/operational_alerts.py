"""Operational alerts: session failed, task dead-lettered, peer lost (feature level 3).

One alert for each thing: a session's name, a type of tasks, a member. What happens again while it
is open is counted; an event (RECURRED) tells the count at most once in 5 s, so a queue that fails
as a whole is one alert with few events. A failed session's alert ends when it registers again or is
forgotten, a lost member's when it answers, dead letters' after `alert.operational_quiet` without
another one. Beyond `MOST_OPEN` of one kind, the rest shares one alert with the subject `*`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2, metrics_record_pb2

from gaia_grpc.state.agenda import Agenda
from gaia_grpc.state.alert_record import AlertRecord
from gaia_grpc.state.alert_store import LIFE_LEVEL, AlertStore
from gaia_grpc.state.context import (
    PEER_LOST,
    SESSION_FAILED,
    TASK_DEAD_LETTERED,
    CommandHandler,
    Context,
)
from gaia_grpc.state.refusal import invalid
from gaia_grpc.state.snapshot import Frozen, Part, records_section
from gaia_grpc.state.timelines import LIVE

TIMER: Final = "alert_operational"
TELL_EVERY_MS: Final = 5_000
MOST_OPEN: Final = 1_000
THE_REST: Final = "*"

_SEVERITIES: Final = {
    SESSION_FAILED: alert_pb2.SEVERITY_MEDIUM,
    TASK_DEAD_LETTERED: alert_pb2.SEVERITY_MEDIUM,
    PEER_LOST: alert_pb2.SEVERITY_HIGH,
}


@dataclass(slots=True)
class Trouble:
    """What an open operational alert is about."""

    number: int
    pattern: str
    subject: str
    occurrences: int = 0
    last_ms: int = 0
    told: int = 0
    """Occurrences by its newest event."""
    told_ms: int = 0


class OperationalAlerts:
    """Open ones; `Context.report` comes here."""

    def __init__(self, context: Context, store: AlertStore, agenda: Agenda) -> None:
        self._context = context
        self._store = store
        self._agenda = agenda
        self._troubles: dict[int, Trouble] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._counts: dict[str, int] = dict.fromkeys(_SEVERITIES, 0)
        self._frozen = Frozen(self._troubles, _encode)
        self.commands: Mapping[str, CommandHandler] = {"report_peer": self.report_peer}
        self.parts: Sequence[Part] = (
            records_section("operational", self._frozen, self._load, loaded=self.settings_changed),
        )
        context.reporter = self.report
        agenda.register(TIMER, self._due)
        self._read_settings()

    def _read_settings(self) -> None:
        self._quiet_ms = self._context.settings.milliseconds("alert.operational_quiet")

    def settings_changed(self) -> None:
        """What is due is set again."""
        self._read_settings()
        for trouble in self._troubles.values():
            self._set_due(trouble)

    def report_peer(self, body: command_pb2.ReportPeer) -> command_pb2.CommandResult:
        """The leader says that a member does not answer, or that it is back."""
        if not body.node_id:
            raise invalid("node_id", "node_id is empty")
        number = self._numbers.get((PEER_LOST, body.node_id))
        # The next leader may say it again: that is no other time.
        if number is None or not body.lost:
            self.report(PEER_LOST, body.node_id, over=not body.lost)
        number = self._numbers.get((PEER_LOST, body.node_id), number)
        record = self._store.get(number) if number is not None else None
        alert = record.message() if record is not None else alert_pb2.Alert()
        return command_pb2.CommandResult(alert=alert)

    def subjects(self, pattern: str) -> tuple[str, ...]:
        """What has an open alert of a pattern, sorted."""
        return tuple(sorted([subject for name, subject in self._numbers if name == pattern]))

    def report(self, pattern: str, subject: str, *, over: bool = False) -> None:
        """Something happened to a thing, or is over."""
        if self._context.feature_level < LIFE_LEVEL:
            return
        number = self._numbers.get((pattern, subject))
        if over:
            if number is not None:
                self._close(self._troubles[number])
            return
        if number is None and self._counts[pattern] >= MOST_OPEN:
            subject = THE_REST
            number = self._numbers.get((pattern, subject))
        if number is None:
            self._open(pattern, subject)
            return
        trouble = self._troubles[number]
        self._frozen.changing(number)
        trouble.occurrences += 1
        trouble.last_ms = self._context.now_ms
        self._set_due(trouble)

    def resolve(self, record: AlertRecord, operator: str, note: str) -> bool:
        """Closes one by hand; False where the alert is not operational."""
        trouble = self._troubles.get(record.number)
        if trouble is None:
            return False
        self._close(trouble, operator, note)
        return True

    def _open(self, pattern: str, subject: str) -> None:
        now_ms = self._context.now_ms
        alert = alert_pb2.Alert(
            kind=alert_pb2.ALERT_KIND_OPERATIONAL,
            pattern=pattern,
            subject=subject,
            severity=_SEVERITIES[pattern],
            detected_at_ms=now_ms,
            occurrences=1,
            explanation=explain(pattern, subject, 1),
            pushed=True,
            pushed_at_ms=now_ms,
        )
        record = self._store.new(alert)
        trouble = Trouble(record.number, pattern, subject, 1, now_ms, 1, now_ms)
        self._frozen.changing(record.number)
        self._add(trouble)
        self._set_due(trouble)
        self._store.emit(record, alert, alert_pb2.ALERT_CHANGE_OPENED, pushed=True)

    def _add(self, trouble: Trouble) -> None:
        self._troubles[trouble.number] = trouble
        self._numbers[trouble.pattern, trouble.subject] = trouble.number
        self._counts[trouble.pattern] += 1

    def _close(self, trouble: Trouble, operator: str = "", note: str = "") -> None:
        self._frozen.changing(trouble.number)
        del self._troubles[trouble.number]
        del self._numbers[trouble.pattern, trouble.subject]
        self._counts[trouble.pattern] -= 1
        self._agenda.set(LIVE, TIMER, trouble.number, None)
        record = self._store.records[trouble.number]
        alert = self._counted(record, trouble)
        alert.state = alert_pb2.ALERT_STATE_RESOLVED
        alert.resolved_at_ms = self._context.now_ms
        alert.resolved_by = operator
        alert.resolution_note = note
        self._store.emit(record, alert, alert_pb2.ALERT_CHANGE_RESOLVED)

    def _counted(self, record: AlertRecord, trouble: Trouble) -> alert_pb2.Alert:
        alert = record.message()
        alert.occurrences = trouble.occurrences
        alert.explanation = explain(trouble.pattern, trouble.subject, trouble.occurrences)
        return alert

    def _due(self, timeline_id: str, key: int | str, now_ms: int) -> None:
        del timeline_id
        trouble = self._troubles[int(key)]
        if self._ends_by_itself(trouble) and trouble.last_ms + self._quiet_ms <= now_ms:
            self._close(trouble)
            return
        if trouble.occurrences > trouble.told and trouble.told_ms + TELL_EVERY_MS <= now_ms:
            self._frozen.changing(trouble.number)
            trouble.told = trouble.occurrences
            trouble.told_ms = now_ms
            record = self._store.records[trouble.number]
            alert = self._counted(record, trouble)
            self._store.emit(record, alert, alert_pb2.ALERT_CHANGE_RECURRED)
        self._set_due(trouble)

    def _set_due(self, trouble: Trouble) -> None:
        due: list[int] = []
        if trouble.occurrences > trouble.told:
            due.append(trouble.told_ms + TELL_EVERY_MS)
        if self._ends_by_itself(trouble):
            due.append(trouble.last_ms + self._quiet_ms)
        self._agenda.set(LIVE, TIMER, trouble.number, min(due) if due else None)

    def _ends_by_itself(self, trouble: Trouble) -> bool:
        return trouble.pattern == TASK_DEAD_LETTERED or trouble.subject == THE_REST

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.OperationalRecord.FromString(data)
        if stored.number not in self._store.records or stored.pattern not in _SEVERITIES:
            raise ValueError(f"no operational alert {stored.number}")
        self._add(
            Trouble(
                stored.number,
                stored.pattern,
                stored.subject,
                stored.occurrences,
                stored.last_ms,
                stored.told,
                stored.told_ms,
            )
        )


def explain(pattern: str, subject: str, occurrences: int) -> str:
    """What happened, in plain words."""
    named = "further ones" if subject == THE_REST else subject
    if pattern == TASK_DEAD_LETTERED:
        return f"{occurrences} task(s) of the type {named} failed for good"
    times = "" if occurrences == 1 else f" ({occurrences} times)"
    if pattern == SESSION_FAILED:
        return f"no heartbeat of the session {named} for session.failed_after{times}"
    return f"the member {named} does not answer the leader{times}"


def _encode(number: int, trouble: Trouble) -> bytes:
    return metrics_record_pb2.OperationalRecord(
        number=number,
        pattern=trouble.pattern,
        subject=trouble.subject,
        occurrences=trouble.occurrences,
        last_ms=trouble.last_ms,
        told=trouble.told,
        told_ms=trouble.told_ms,
    ).SerializeToString(deterministic=True)
