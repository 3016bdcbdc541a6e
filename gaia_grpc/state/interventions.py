"""What teachers did for students, with how the student did in the window before and after.

The window before is read at once, the one after when it is over: on log time live, else on the
timeline's clock. Both are as long as `metrics.window` was. Beside each other they show what became
of the student, which need not be the effect.

An intervention that names an alert is an acknowledgement too: it was seen, and is muted for
`alert.acknowledged_mute`. At most `alert.max_interventions` are kept; the oldest go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2, metrics_record_pb2, query_pb2

from gaia_grpc.state import page_tokens
from gaia_grpc.state.agenda import Agenda
from gaia_grpc.state.alert_care import AlertCare
from gaia_grpc.state.alert_log import SCANNED_AT_MOST
from gaia_grpc.state.alert_model import ModelLooks
from gaia_grpc.state.alert_record import AlertRecord
from gaia_grpc.state.alert_store import AlertStore
from gaia_grpc.state.channels import CHANNELS, CORRECT, ERROR, PLACES_OF, evidence
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.refusal import invalid, not_found
from gaia_grpc.state.snapshot import FrozenInOrder, Part, records_section
from gaia_grpc.state.timelines import Timelines
from gaia_grpc.state.windows import StudentWindow

ID_PREFIX: Final = "intervention-"
TIMER: Final = "intervention"
KINDS: Final = (
    "help", "encouragement", "feedback", "reassign", "referral", "guidance", "technical_help",
)  # fmt: skip
MAX_NOTE_CHARACTERS: Final = 4_096


@dataclass(slots=True)
class Record:
    """One intervention: what is asked for, and the message."""

    student_id: str
    alert_id: str
    teacher_id: str
    classroom_id: str
    body: bytes

    def message(self) -> alert_pb2.Intervention:
        """As the contract has it, a copy."""
        return alert_pb2.Intervention.FromString(self.body)


class Interventions:
    """Handles RecordIntervention and ListInterventions."""

    def __init__(
        self,
        context: Context,
        timelines: Timelines,
        store: AlertStore,
        care: AlertCare,
        agenda: Agenda,
        model: ModelLooks,
    ) -> None:
        self._context = context
        self._timelines = timelines
        self._store = store
        self._care = care
        self._agenda = agenda
        self._model = model
        self._records: dict[int, Record] = {}
        self.last_number = 0
        self._oldest = 1
        """No kept one has a lower number."""
        self._pending: dict[str, dict[int, None]] = {}
        """By timeline: those whose window after is not over."""
        self._frozen = FrozenInOrder(self._records, _encode)
        agenda.register(TIMER, self._due)
        self.commands: Mapping[str, CommandHandler] = {"record_intervention": self.record}
        self.queries: Mapping[str, QueryHandler] = {"list_interventions": self.list_page}
        self.parts: Sequence[Part] = (records_section("intervention", self._frozen, self._load),)

    def settings_changed(self) -> None:
        """Fewer may be kept now."""
        self._drop()

    # --- commands

    def record(self, body: command_pb2.RecordIntervention) -> command_pb2.CommandResult:
        """Stores what a teacher did."""
        for field, value in (("student_id", body.student_id), ("teacher_id", body.teacher_id)):
            if not value:
                raise invalid(field, f"{field} is empty")
        if body.kind not in KINDS:
            raise invalid("kind", f"kind is none of {', '.join(KINDS)}")
        if len(body.note) > MAX_NOTE_CHARACTERS:
            raise invalid("note", f"note has more than {MAX_NOTE_CHARACTERS} characters")
        record = self._store.existing(body.alert_id) if body.alert_id else None
        alert = record.message() if record is not None else None
        if alert is not None and alert.student_id != body.student_id:
            raise invalid("student_id", f"{body.alert_id} is about another student")
        found = alert_pb2.Intervention(
            alert_id=body.alert_id,
            student_id=body.student_id,
            teacher_id=body.teacher_id,
            kind=body.kind,
            note=body.note,
            create_time=timestamp(self._context.now_ms),
            app_name=alert.app_name if alert is not None else body.app_name,
            timeline_id=alert.timeline_id if alert is not None else body.timeline_id,
            classroom_id=alert.classroom_id if alert is not None else "",
        )
        self._look_before(found)
        number = self.last_number = self.last_number + 1
        found.intervention_id = f"{ID_PREFIX}{number}"
        self._keep(number, found)
        self._set_due(number, found)
        self._drop()
        if record is not None and alert is not None:
            self._tell(record, alert, body.teacher_id)
        return command_pb2.CommandResult(intervention=found)

    def _tell(self, record: AlertRecord, alert: alert_pb2.Alert, teacher_id: str) -> None:
        alert.interventions += 1
        if record.is_open:
            self._care.seen(alert, teacher_id)
        self._store.emit(record, alert, alert_pb2.ALERT_CHANGE_INTERVENTION)

    def _look_before(self, found: alert_pb2.Intervention) -> None:
        timeline = self._timelines.get(found.timeline_id)
        if timeline is None:
            if not found.alert_id:
                raise not_found("timeline", found.timeline_id)
            return
        window = timeline.windows.get((found.student_id, found.app_name))
        if window is None:
            return
        found.classroom_id = found.classroom_id or window.classroom_id
        end_ms = self._store.clock_ms(found.timeline_id)
        length_ms = self._context.settings.milliseconds("metrics.window")
        self._look(found.before, window, found.app_name, end_ms, length_ms)

    def _look(
        self,
        into: alert_pb2.InterventionWindow,
        window: StudentWindow,
        app_name: str,
        end_ms: int,
        length_ms: int,
    ) -> None:
        sums = _sums(window, end_ms - length_ms, end_ms)
        into.start_ms, into.end_ms = end_ms - length_ms, end_ms
        into.errors = sums[ERROR] / MICRO
        into.decisions = (sums[ERROR] + sums[CORRECT]) / MICRO
        into.hints = sums["hint"] / MICRO
        into.corrections = sums["backspace"] / MICRO
        into.confidence = self._model.estimate(window, app_name, end_ms).confidence

    def _keep(self, number: int, found: alert_pb2.Intervention) -> None:
        self._frozen.changing(number)
        self._records[number] = Record(
            found.student_id,
            found.alert_id,
            found.teacher_id,
            found.classroom_id,
            found.SerializeToString(deterministic=True),
        )

    def _drop(self) -> None:
        most = self._context.settings.integer("alert.max_interventions")
        while len(self._records) > most:
            self._remove(self._oldest)
            self._oldest += 1

    def _remove(self, number: int) -> None:
        record = self._records.get(number)
        if record is None:
            return
        self._frozen.changing(number)
        del self._records[number]
        self._set_over(record.message().timeline_id, number)

    def forget_student(self, student_id: str) -> int:
        """Removes a student's interventions; returns how many."""
        numbers = [
            number for number, record in self._records.items() if record.student_id == student_id
        ]
        for number in numbers:
            self._remove(number)
        return len(numbers)

    # --- time

    def _set_due(self, number: int, found: alert_pb2.Intervention) -> None:
        if found.HasField("before") and not found.HasField("after"):
            due_ms = 2 * found.before.end_ms - found.before.start_ms
            self._agenda.set(found.timeline_id, TIMER, number, due_ms)
            self._pending.setdefault(found.timeline_id, {})[number] = None

    def _set_over(self, timeline_id: str, number: int) -> None:
        self._agenda.set(timeline_id, TIMER, number, None)
        pending = self._pending.get(timeline_id)
        if pending is not None and pending.pop(number, 0) is None and not pending:
            del self._pending[timeline_id]

    def end_timeline(self, timeline_id: str) -> None:
        """A timeline is forgotten: nothing more comes in the windows after."""
        for number in sorted(self._pending.get(timeline_id, ())):
            self._due(timeline_id, number, 0)

    def _due(self, timeline_id: str, key: int | str, now_ms: int) -> None:
        del now_ms
        record = self._records[int(key)]
        found = record.message()
        timeline = self._timelines.get(timeline_id)
        window = None
        if timeline is not None:
            window = timeline.windows.get((found.student_id, found.app_name))
        length_ms = found.before.end_ms - found.before.start_ms
        end_ms = found.before.end_ms + length_ms
        if window is None:
            # Idle for so long that it is forgotten: nothing came.
            found.after.start_ms, found.after.end_ms = found.before.end_ms, end_ms
        else:
            self._look(found.after, window, found.app_name, end_ms, length_ms)
        self._keep(int(key), found)
        self._set_over(timeline_id, int(key))

    # --- queries

    def list_page(
        self, body: alert_pb2.ListInterventionsRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """Newest first; a page that had to look far may be short and still name a next one."""
        del now_ms
        size = page_tokens.page_size(body.page_size)
        token = page_tokens.decode(body, body.page_token)
        last = int(token) if token else self.last_number + 1
        answer = alert_pb2.ListInterventionsResponse()
        for scanned, number in enumerate(self._below(last)):
            if len(answer.interventions) >= size or scanned >= SCANNED_AT_MOST:
                answer.next_page_token = page_tokens.encode(body, str(last))
                break
            last = number
            record = self._records.get(number)
            if record is not None and _matches(record, body):
                answer.interventions.append(record.message())
        return query_pb2.QueryResult(list_interventions=answer)

    def _below(self, number: int) -> Iterator[int]:
        yield from range(min(number, self.last_number + 1) - 1, self._oldest - 1, -1)

    # --- snapshots

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.InterventionRecord.FromString(data)
        known = next(reversed(self._records), 0)
        if not known < stored.number <= self.last_number:
            raise ValueError(f"the intervention {stored.number} is out of order")
        found = alert_pb2.Intervention.FromString(stored.intervention)
        self._keep(stored.number, found)
        self._set_due(stored.number, found)


def _matches(record: Record, body: alert_pb2.ListInterventionsRequest) -> bool:
    return (
        body.student_id in ("", record.student_id)
        and body.alert_id in ("", record.alert_id)
        and body.teacher_id in ("", record.teacher_id)
        and body.classroom_id in ("", record.classroom_id)
    )


def _sums(window: StudentWindow, start_ms: int, end_ms: int) -> dict[str, int]:
    """By channel, what came in `start_ms < t <= end_ms`, in millionths."""
    sums = dict.fromkeys(CHANNELS, 0)
    for metric_type, places in PLACES_OF.items():
        series = window.series.get(metric_type)
        if series is None:
            continue
        first, last = series.range(start_ms, end_ms)
        values = series.values[first:last]
        for place in places:
            sums[CHANNELS[place]] += sum(evidence(metric_type, place, values))
    return sums


def _encode(number: int, record: Record) -> bytes:
    return metrics_record_pb2.InterventionRecord(
        number=number, intervention=record.body
    ).SerializeToString(deterministic=True)
