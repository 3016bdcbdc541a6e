"""Alerts: what teachers do with them, and how metrics and time reach their episodes.

Everything is decided in apply: when an alert opens, rises and ends, whose turn it is, whether it is
pushed, and the sequence of each event. Metrics come in through `observe` (metrics.py calls it after
each batch), time through the machine's timers (live) and `advance_timeline` (replays).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gaia.command.v1 import command_pb2, metrics_record_pb2

from gaia_grpc.state.agenda import Agenda
from gaia_grpc.state.alert_care import AlertCare
from gaia_grpc.state.alert_episodes import AlertEpisodes
from gaia_grpc.state.alert_model import ModelLooks
from gaia_grpc.state.alert_queries import AlertQueries
from gaia_grpc.state.alert_store import AlertStore
from gaia_grpc.state.classrooms import ClassroomTable
from gaia_grpc.state.context import PEER_LOST, CommandHandler, Context, QueryHandler
from gaia_grpc.state.interventions import Interventions
from gaia_grpc.state.operational_alerts import OperationalAlerts
from gaia_grpc.state.pattern_rules import Touched
from gaia_grpc.state.refusal import invalid
from gaia_grpc.state.snapshot import Part, single_section
from gaia_grpc.state.timelines import Key, Timeline, Timelines
from gaia_grpc.state.windows import StudentWindow

MAX_SNOOZE_MS: Final = 86_400_000


class AlertsTable:
    """Handles what changes alerts by hand; what is read is in alert_queries.py."""

    def __init__(self, context: Context, timelines: Timelines, classrooms: ClassroomTable) -> None:
        self._agenda = Agenda(context)
        self._store = AlertStore(context, timelines, self._agenda, classrooms.teachers_of)
        self._care = AlertCare(context, self._store, classrooms, self._agenda)
        self._model = ModelLooks(context, timelines, self._agenda)
        self._episodes = AlertEpisodes(context, self._store, self._care, self._agenda, self._model)
        self._interventions = Interventions(
            context, timelines, self._store, self._care, self._agenda, self._model
        )
        self._operational = OperationalAlerts(context, self._store, self._agenda)
        self.commands: Mapping[str, CommandHandler] = {
            "acknowledge_alert": self.acknowledge,
            "snooze_alert": self.snooze,
            "resolve_alert": self.resolve,
            **self._interventions.commands,
            **self._operational.commands,
        }
        self.queries: Mapping[str, QueryHandler] = {
            **AlertQueries(
                self._store.records, self._store.index, self._store.log, classrooms.classrooms_of
            ).handlers,
            **self._interventions.queries,
        }
        events, records = self._store.sections()
        self.parts: Sequence[Part] = (
            events,
            single_section(
                "alert_counters",
                self._encode_counters,
                self._load_counters,
                loaded=self._read_settings,
            ),
            records,
            *self._episodes.parts,
            *self._model.parts,
            *self._care.parts,
            *self._interventions.parts,
            *self._operational.parts,
        )

    def settings_changed(self) -> None:
        """Limits hold from now on; what is due is set again."""
        self._store.read_settings()
        self._model.read_settings()
        self._episodes.settings_changed()
        self._care.settings_changed()
        self._interventions.settings_changed()
        self._operational.settings_changed()
        self._store.drop_events()

    def _read_settings(self) -> None:
        self._store.read_settings()
        self._model.read_settings()
        self._episodes.read_settings()

    # --- what metrics and time do

    def observe(
        self, timeline: Timeline, key: Key, window: StudentWindow, touched: Touched
    ) -> None:
        """Metrics of these types and times came into a window."""
        self._episodes.observe(timeline, key, window, touched)

    def advance_timeline(self, timeline: Timeline, to_ms: int) -> None:
        """Everything that falls due on a replayed timeline up to a time, in its order."""
        self._agenda.run(timeline.timeline_id, to_ms)

    def end_timeline(self, timeline: Timeline) -> None:
        """A timeline is forgotten: nothing more can end its episodes."""
        self._episodes.end_timeline(timeline)
        self._model.end_timeline(timeline.timeline_id)
        self._care.end_timeline(timeline.timeline_id)
        self._interventions.end_timeline(timeline.timeline_id)
        self._agenda.forget_timeline(timeline.timeline_id)

    # --- commands

    def acknowledge(self, body: command_pb2.AcknowledgeAlert) -> command_pb2.CommandResult:
        """A teacher saw it: muted for a while. The same teacher again changes nothing."""
        record = self._store.existing_open(body.alert_id, body.teacher_id)
        return command_pb2.CommandResult(alert=self._care.acknowledge(record, body.teacher_id))

    def snooze(self, body: command_pb2.SnoozeAlert) -> command_pb2.CommandResult:
        """A teacher mutes it for a time."""
        if not 0 < body.duration_ms <= MAX_SNOOZE_MS:
            raise invalid("duration", f"duration is not within 1 ms and {MAX_SNOOZE_MS} ms")
        record = self._store.existing_open(body.alert_id, body.teacher_id)
        return command_pb2.CommandResult(alert=self._care.snooze(record, body.duration_ms))

    def resolve(self, body: command_pb2.ResolveAlert) -> command_pb2.CommandResult:
        """A teacher closes it; the quiet time begins."""
        record = self._store.existing_open(body.alert_id, body.teacher_id)
        if not self._operational.resolve(record, body.teacher_id, body.note):
            self._episodes.resolve(record, body.teacher_id, body.note)
        return command_pb2.CommandResult(alert=record.message())

    def lost_peers(self) -> tuple[str, ...]:
        """Members with an open alert that they do not answer, sorted."""
        return self._operational.subjects(PEER_LOST)

    def forget_student(self, student_id: str) -> tuple[int, int]:
        """Removes a student's alerts, episodes and interventions and empties their events; returns
        how many events and alerts."""
        self._episodes.forget_student(student_id)
        self._model.forget_student(student_id)
        self._interventions.forget_student(student_id)
        return self._store.forget_student(student_id)

    # --- snapshots

    def _encode_counters(self) -> bytes:
        counters = metrics_record_pb2.AlertCounters(
            last_number=self._store.last_number,
            last_intervention=self._interventions.last_number,
        )
        return counters.SerializeToString(deterministic=True)

    def _load_counters(self, data: bytes) -> None:
        stored = metrics_record_pb2.AlertCounters.FromString(data)
        self._store.last_number = stored.last_number
        self._interventions.last_number = stored.last_intervention
