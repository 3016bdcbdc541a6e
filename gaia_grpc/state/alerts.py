"""Alerts: the records of episodes, what teachers do with them, and the log of their events.

Everything is decided in apply: when an alert opens, rises and ends, whether it is pushed, and the
sequence of each event. Metrics come in through `observe` (metrics.py calls it after a batch that
holds errors), time through the machine's timers (live) and `advance_timeline` (replays).

A record is kept as long as it is open or one of its events is retained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2, metrics_record_pb2

from gaia_grpc.state import topics
from gaia_grpc.state.alert_log import AlertLog, EventRecord, ScopeIndex
from gaia_grpc.state.alert_queries import AlertQueries
from gaia_grpc.state.alert_record import AlertRecord, decode_alert, encode_alert
from gaia_grpc.state.alert_text import describe
from gaia_grpc.state.context import CommandHandler, Context
from gaia_grpc.state.detector import estimate
from gaia_grpc.state.episodes import Episode, EpisodeKey, Episodes
from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.patterns import ErrorLimits, Finding, assess
from gaia_grpc.state.refusal import FAILED_PRECONDITION, invalid, not_found, refused
from gaia_grpc.state.snapshot import Frozen, Part, records_section, single_section
from gaia_grpc.state.timelines import LIVE, Key, Timeline, Timelines
from gaia_grpc.state.windows import StudentWindow

ERRORS_GROUP: Final = "errors"
ID_PREFIX: Final = "alert-"
TIMER: Final = "alert"


class AlertsTable:
    """Handles AcknowledgeAlert and ResolveAlert; what is read is in alert_queries.py."""

    def __init__(self, context: Context, timelines: Timelines) -> None:
        self._context = context
        self._timelines = timelines
        self._records: dict[int, AlertRecord] = {}
        self._index = ScopeIndex()
        self._log = AlertLog()
        self._episodes = Episodes()
        self._numbers = 0
        self._read_settings()
        context.timers.register(TIMER, self._on_timer)
        self.commands: Mapping[str, CommandHandler] = {
            "acknowledge_alert": self.acknowledge,
            "resolve_alert": self.resolve,
        }
        self.queries = AlertQueries(self._records, self._index, self._log).handlers
        self._frozen = Frozen(self._records, lambda _, record: encode_alert(record, self._log))
        self.parts: Sequence[Part] = (
            self._log.section(),
            single_section(
                "alert_counters",
                self._encode_counters,
                self._load_counters,
                loaded=self._read_settings,
            ),
            records_section("alert", self._frozen, self._load),
            records_section("episode", self._episodes.frozen, self._load_episode),
        )

    def settings_changed(self) -> None:
        """Limits hold from now on; what is due is set again."""
        self._read_settings()
        for episode in self._episodes.all():
            self._schedule_next(episode)
        self._drop_events()

    def _read_settings(self) -> None:
        settings = self._context.settings
        self._window_ms = settings.milliseconds("metrics.window")
        self._limits = ErrorLimits(
            window_ms=settings.milliseconds("alert.errors_window"),
            repeated=settings.integer("alert.repeated_errors"),
            excessive=settings.integer("alert.excessive_errors"),
            streak=settings.integer("alert.critical_streak"),
            lookback_ms=self._window_ms,
        )
        self._exit_after_ms = settings.milliseconds("alert.exit_after")
        self._cooldown_ms = settings.milliseconds("alert.cooldown")
        self._mute_ms = settings.milliseconds("alert.acknowledged_mute")
        self._retained = settings.integer("alert.retained_events")

    # --- what metrics and time do

    def observe(
        self, timeline: Timeline, key: Key, window: StudentWindow, from_ms: int, to_ms: int
    ) -> None:
        """Errors of `from_ms <= t <= to_ms` came into a window."""
        finding = assess(window, from_ms, to_ms, self._limits)
        if finding is None:
            return
        episode_key = (timeline.timeline_id, *key, ERRORS_GROUP)
        episode = self._episodes.get(episode_key)
        if episode is not None and not episode.is_open:
            over_ms = episode.closed_ms + self._cooldown_ms
            if timeline.clock_ms < over_ms and finding.severity <= episode.severity:
                return
            self._forget(episode)
            episode = None
        if episode is None:
            self._open(timeline, episode_key, window, finding)
            return
        self._episodes.frozen.changing(episode.number)
        episode.hold_until_ms = max(episode.hold_until_ms, finding.hold_until_ms)
        if finding.severity > episode.severity:
            episode.severity = finding.severity
            record = self._records[episode.number]
            alert = record.message()
            self._describe(alert, timeline, window, finding)
            self._emit(record, alert, alert_pb2.ALERT_CHANGE_SEVERITY_RAISED)

    def advance_timeline(self, timeline: Timeline, to_ms: int) -> None:
        """Everything that falls due on a replayed timeline up to a time, in its order."""
        while (episode := self._episodes.take_due(timeline.timeline_id, to_ms)) is not None:
            self._look_again(episode, episode.due_ms)

    def end_timeline(self, timeline: Timeline) -> None:
        """A timeline is forgotten: nothing more can end its episodes."""
        timeline_id = timeline.timeline_id
        for episode in self._episodes.all():
            if episode.key[0] == timeline_id:
                if episode.is_open:
                    self._close(episode, timeline.clock_ms)
                self._episodes.remove(episode)
        self._episodes.forget_timeline(timeline_id)

    def _on_timer(self, number: int | str) -> None:
        episode = self._episodes.by_number(int(number))
        episode.timer = None
        self._look_again(episode, self._context.now_ms)

    def _look_again(self, episode: Episode, now_ms: int) -> None:
        if not episode.is_open:
            if episode.forget_ms(self._cooldown_ms) <= now_ms:
                self._forget(episode)
                return
        elif (exit_ms := episode.exit_ms(self._exit_after_ms)) <= now_ms:
            self._close(episode, exit_ms)
        self._schedule_next(episode)

    def _schedule_next(self, episode: Episode) -> None:
        timers = self._context.timers
        self._episodes.frozen.changing(episode.number)
        if episode.timer is not None:
            timers.cancel(episode.timer)
            episode.timer = None
        if episode.is_open:
            episode.due_ms = episode.exit_ms(self._exit_after_ms)
        else:
            episode.due_ms = episode.forget_ms(self._cooldown_ms)
        self._set_timer(episode)

    def _set_timer(self, episode: Episode) -> None:
        if episode.key[0] == LIVE:
            timers = self._context.timers
            episode.timer = timers.schedule(episode.due_ms, TIMER, episode.number)
        else:
            self._episodes.schedule(episode)

    def _open(
        self, timeline: Timeline, key: EpisodeKey, window: StudentWindow, finding: Finding
    ) -> None:
        self._numbers += 1
        self._frozen.changing(self._numbers)
        record = self._records[self._numbers] = AlertRecord(self._numbers, key[1])
        self._index.append(timeline.timeline_id, window.classroom_id, record.number)
        alert = alert_pb2.Alert(
            alert_id=f"{ID_PREFIX}{record.number}",
            classroom_id=window.classroom_id,
            student_id=key[1],
            app_name=key[2],
            timeline_id=timeline.timeline_id,
            state=alert_pb2.ALERT_STATE_OPEN,
            detected_at_ms=finding.at_ms,
            create_time=timestamp(self._context.now_ms),
        )
        self._describe(alert, timeline, window, finding)
        episode = Episode(
            record.number, key, finding.severity, timeline.clock_ms, finding.hold_until_ms
        )
        self._episodes.add(episode)
        self._schedule_next(episode)
        self._emit(record, alert, alert_pb2.ALERT_CHANGE_OPENED)

    def _describe(
        self, alert: alert_pb2.Alert, timeline: Timeline, window: StudentWindow, finding: Finding
    ) -> None:
        # A device's clock may be ahead of its sent_at_ms by a little: the finding counts.
        end_ms = max(timeline.clock_ms, finding.at_ms)
        found = estimate(window, alert.app_name, end_ms, self._window_ms)
        describe(
            alert,
            finding,
            found,
            errors_window_ms=self._limits.window_ms,
            window_ms=self._window_ms,
        )

    def _close(self, episode: Episode, at_ms: int, teacher_id: str = "", note: str = "") -> None:
        self._episodes.frozen.changing(episode.number)
        episode.closed_ms = at_ms
        record = self._records[episode.number]
        alert = record.message()
        alert.state = alert_pb2.ALERT_STATE_RESOLVED
        alert.resolved_at_ms = at_ms
        alert.resolved_by = teacher_id
        alert.resolution_note = note
        self._emit(record, alert, alert_pb2.ALERT_CHANGE_RESOLVED)

    def _forget(self, episode: Episode) -> None:
        if episode.timer is not None:
            self._context.timers.cancel(episode.timer)
        self._episodes.remove(episode)

    def _emit(
        self, record: AlertRecord, alert: alert_pb2.Alert, change: alert_pb2.AlertChange.ValueType
    ) -> None:
        """Stores the alert and the event of its change."""
        self._frozen.changing(record.number)
        record.last_sequence = alert.last_sequence = self._log.newest + 1
        record.severity = alert.severity
        record.state = alert.state
        record.body = self._append(record.number, alert, change)

    def _append(
        self, number: int, alert: alert_pb2.Alert, change: alert_pb2.AlertChange.ValueType
    ) -> bytes:
        """Adds an event with the alert as it is after it; returns the alert's bytes."""
        body = alert.SerializeToString(deterministic=True)
        self._log.append(
            EventRecord(
                sequence=alert.last_sequence,
                change=change,
                applied_index=self._context.index,
                alert_number=number,
                timeline_id=alert.timeline_id,
                classroom_id=alert.classroom_id,
                student_id=alert.student_id,
                severity=alert.severity,
                body=body,
            )
        )
        self._context.touch(topics.ALERTS)
        if alert.classroom_id:
            self._context.touch(topics.classroom_alerts(alert.classroom_id))
        self._drop_events()
        return body

    def _drop_events(self) -> None:
        for event in self._log.drop_beyond(self._retained):
            record = self._records.get(event.alert_number)
            if (
                record is not None
                and record.last_sequence == event.sequence
                and record.state == alert_pb2.ALERT_STATE_RESOLVED
            ):
                self._frozen.changing(event.alert_number)
                del self._records[event.alert_number]
                self._index.discard(event.timeline_id, event.classroom_id, record.number)

    # --- commands

    def acknowledge(self, body: command_pb2.AcknowledgeAlert) -> command_pb2.CommandResult:
        """A teacher saw it: muted for a while. The same teacher again changes nothing."""
        record = self._open_record(body.alert_id, body.teacher_id)
        alert = record.message()
        clock_ms = self._clock_ms(alert.timeline_id)
        again = alert.acknowledged_by == body.teacher_id and clock_ms < alert.muted_until_ms
        if not again:
            alert.state = alert_pb2.ALERT_STATE_ACKNOWLEDGED
            alert.acknowledged_by = body.teacher_id
            alert.muted_until_ms = clock_ms + self._mute_ms
            self._emit(record, alert, alert_pb2.ALERT_CHANGE_ACKNOWLEDGED)
        return command_pb2.CommandResult(alert=alert)

    def resolve(self, body: command_pb2.ResolveAlert) -> command_pb2.CommandResult:
        """A teacher closes it; the quiet time begins."""
        record = self._open_record(body.alert_id, body.teacher_id)
        episode = self._episodes.by_number(record.number)
        at_ms = self._clock_ms(episode.key[0])
        self._close(episode, at_ms, teacher_id=body.teacher_id, note=body.note)
        self._schedule_next(episode)
        return command_pb2.CommandResult(alert=record.message())

    def _open_record(self, alert_id: str, teacher_id: str) -> AlertRecord:
        if not teacher_id:
            raise invalid("teacher_id", "teacher_id is empty")
        digits = alert_id.removeprefix(ID_PREFIX)
        known = digits.isascii() and digits.isdigit() and len(digits) <= 18
        record = self._records.get(int(digits)) if known else None
        if record is None or alert_id != f"{ID_PREFIX}{record.number}":
            raise not_found("alert", alert_id)
        if record.state == alert_pb2.ALERT_STATE_RESOLVED:
            raise refused(FAILED_PRECONDITION, "ALERT_RESOLVED", f"{alert_id} is resolved")
        return record

    def _clock_ms(self, timeline_id: str) -> int:
        timeline = self._timelines.get(timeline_id)
        if timeline_id == LIVE or timeline is None:
            return self._context.now_ms
        return timeline.clock_ms

    def forget_student(self, student_id: str) -> tuple[int, int]:
        """Removes a student's alerts and episodes and empties their events; returns how many events
        and alerts. Each alert gets one more event, which names nobody.

        Looks at all alerts, and at the events of their classrooms: some 10 ms for 100,000.
        """
        for episode in self._episodes.all():
            if episode.key[1] == student_id:
                self._forget(episode)
        numbers = [
            number for number, record in self._records.items() if record.student_id == student_id
        ]
        alerts = [self._records[number].message() for number in numbers]
        scopes = sorted({(alert.timeline_id, alert.classroom_id) for alert in alerts})
        events = sum([self._log.erase(student_id, scope) for scope in scopes])
        for number, alert in zip(numbers, alerts, strict=True):
            self._frozen.changing(number)
            del self._records[number]
            self._index.discard(alert.timeline_id, alert.classroom_id, number)
        # Only now: a new event may push out old ones, and with them the records of theirs.
        for number, alert in zip(numbers, alerts, strict=True):
            self._tell_erased(number, alert)
        return events, len(numbers)

    def _tell_erased(self, number: int, alert: alert_pb2.Alert) -> None:
        """An event that makes boards drop the alert; it reads as resolved where it is not known."""
        sequence = self._log.newest + 1
        left = alert_pb2.Alert(
            alert_id=alert.alert_id,
            classroom_id=alert.classroom_id,
            timeline_id=alert.timeline_id,
            severity=alert.severity,
            state=alert_pb2.ALERT_STATE_RESOLVED,
            resolved_at_ms=self._clock_ms(alert.timeline_id),
            last_sequence=sequence,
        )
        self._append(number, left, alert_pb2.ALERT_CHANGE_ERASED)

    # --- snapshots

    def _encode_counters(self) -> bytes:
        counters = metrics_record_pb2.AlertCounters(last_number=self._numbers)
        return counters.SerializeToString(deterministic=True)

    def _load_counters(self, data: bytes) -> None:
        self._numbers = metrics_record_pb2.AlertCounters.FromString(data).last_number

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.AlertRecord.FromString(data)
        if stored.number <= next(reversed(self._records), 0) or stored.number > self._numbers:
            raise ValueError(f"alert {stored.number} is out of order")
        record, timeline_id, classroom_id = decode_alert(stored, self._log)
        self._records[record.number] = record
        self._index.append(timeline_id, classroom_id, record.number)

    def _load_episode(self, data: bytes) -> None:
        # Its due time is state: what prolongs an episode leaves it as it is.
        episode = self._episodes.load(data)
        # In its quiet time an episode may outlive the record of its alert.
        if episode.number > self._numbers or (
            episode.is_open and episode.number not in self._records
        ):
            raise ValueError(f"the episode {episode.number} has no alert")
        self._set_timer(episode)
