"""From what patterns and the model find to alerts: when one opens, rises, falls and ends.

One episode is one stretch of one group of patterns of one student in one app, and has one alert.
Its alert is as severe as the worst that the group found; more evidence never lowers it. Two groups
at once: the most severe alert becomes mixed_struggle, one severity higher.

The model's machine (struggle_machine.py) is one for each student in each app. Where a pattern's
alert is open it follows that one, which is as severe as the worse of both; else it opens one of its
own, in the group `struggle`. After an episode of the same student and app ended, the model opens
none for `alert.cooldown`, except what is more severe. A pattern's alert does not end while the
model holds it at MEDIUM or above. All but the errors group: from feature level 3 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.agenda import Agenda
from gaia_grpc.state.alert_care import AlertCare
from gaia_grpc.state.alert_model import AnyEstimate, ModelLooks
from gaia_grpc.state.alert_record import AlertRecord
from gaia_grpc.state.alert_store import LIFE_LEVEL, AlertStore, Change
from gaia_grpc.state.alert_text import is_pushed
from gaia_grpc.state.channels import ERROR_TYPES
from gaia_grpc.state.context import Context
from gaia_grpc.state.episodes import Episode, EpisodeKey, Episodes, next_tick
from gaia_grpc.state.pattern_rules import (
    EXCESSIVE_CORRECTIONS,
    GROUPS,
    MIXED_STRUGGLE,
    REPEATED_CORRECTIONS,
    STRUGGLE_GROUP,
    Touched,
    find,
    read_limits,
    span_of,
)
from gaia_grpc.state.patterns import Finding, assess
from gaia_grpc.state.snapshot import Part, records_section
from gaia_grpc.state.struggle import Estimate
from gaia_grpc.state.timelines import Key, Timeline
from gaia_grpc.state.windows import StudentWindow

TIMER: Final = "alert"
MEDIUM: Final = int(alert_pb2.SEVERITY_MEDIUM)
CRITICAL: Final = int(alert_pb2.SEVERITY_CRITICAL)
MAY_PUSH: Final = (alert_pb2.ALERT_CHANGE_OPENED, alert_pb2.ALERT_CHANGE_SEVERITY_RAISED)


class AlertEpisodes:
    """All episodes with the alerts that tell of them."""

    def __init__(
        self,
        context: Context,
        store: AlertStore,
        care: AlertCare,
        agenda: Agenda,
        model: ModelLooks,
    ) -> None:
        self._context = context
        self._store = store
        self._care = care
        self._agenda = agenda
        self._model = model
        model.follower = self._follow
        self._episodes = Episodes()
        agenda.register(TIMER, self._due)
        self.parts: Sequence[Part] = (
            records_section("episode", self._episodes.frozen, self._load_episode),
        )
        self.read_settings()

    def settings_changed(self) -> None:
        """Limits hold from now on; what is due is set again."""
        self.read_settings()
        for episode in self._episodes.all():
            self._schedule_next(episode)

    def read_settings(self) -> None:
        """Limits as they are now."""
        settings = self._context.settings
        self._limits = read_limits(settings)
        self._exit_after_ms = settings.milliseconds("alert.exit_after")
        self._cooldown_ms = settings.milliseconds("alert.cooldown")

    # --- what metrics and time do

    def observe(
        self, timeline: Timeline, key: Key, window: StudentWindow, touched: Touched
    ) -> None:
        """Metrics of these types and times came into a window."""
        if self._context.feature_level < LIFE_LEVEL:
            span = span_of(touched, ERROR_TYPES)
            finding = assess(window, *span, self._limits.errors) if span else None
            if finding is not None:
                self._found(timeline, key, window, finding)
            return
        findings = find(window, touched, self._limits)
        worse = [self._found(timeline, key, window, each) for each in findings]
        if any(worse):
            self._mix(timeline, key, window)
        self._model.look(timeline, key, window)

    def end_timeline(self, timeline: Timeline) -> None:
        """A timeline is forgotten: nothing more can end its episodes."""
        timeline_id = timeline.timeline_id
        for episode in self._episodes.all():
            if episode.key[0] == timeline_id:
                if episode.is_open:
                    self._close(episode, timeline.clock_ms)
                self._episodes.remove(episode)

    def resolve(self, record: AlertRecord, teacher_id: str, note: str) -> None:
        """A teacher closes it; the quiet time begins."""
        episode = self._episodes.by_number(record.number)
        at_ms = self._store.clock_ms(episode.key[0])
        self._close(episode, at_ms, teacher_id=teacher_id, note=note)
        self._schedule_next(episode)

    def forget_student(self, student_id: str) -> None:
        """Removes a student's episodes; the alerts are for the store to remove."""
        for episode in self._episodes.all():
            if episode.key[1] == student_id:
                self._forget(episode)

    def _due(self, timeline_id: str, key: int | str, now_ms: int) -> None:
        del timeline_id
        episode = self._episodes.by_number(int(key))
        if not episode.is_open:
            if episode.forget_ms(self._cooldown_ms) <= now_ms:
                self._forget(episode)
                return
        elif not self._held(episode):
            exit_ms = episode.exit_ms(self._exit_after_ms)
            if exit_ms <= now_ms:
                self._close(episode, exit_ms)
        self._schedule_next(episode)

    def _schedule_next(self, episode: Episode) -> None:
        self._episodes.frozen.changing(episode.number)
        if not episode.is_open:
            episode.due_ms = episode.forget_ms(self._cooldown_ms)
        else:
            episode.due_ms = episode.exit_ms(self._exit_after_ms)
            if self._held(episode):
                soon_ms = next_tick(self._store.clock_ms(episode.key[0]) + 1)
                episode.due_ms = max(episode.due_ms, soon_ms)
        self._set_timer(episode)

    def _set_timer(self, episode: Episode) -> None:
        # The model's own episode ends when its machine says so.
        waits = episode.is_open and episode.key[3] == STRUGGLE_GROUP
        due_ms = None if waits else episode.due_ms
        self._agenda.set(episode.key[0], TIMER, episode.number, due_ms)

    # --- patterns

    def _found(self, timeline: Timeline, key: Key, window: StudentWindow, finding: Finding) -> bool:
        """One group found something; whether an alert opened, or its pattern got more severe."""
        episode_key = (timeline.timeline_id, *key, finding.group)
        episode = self._episodes.get(episode_key)
        if episode is not None and not episode.is_open:
            over_ms = episode.closed_ms + self._cooldown_ms
            if timeline.clock_ms < over_ms and finding.severity <= episode.severity:
                return False
            self._forget(episode)
            episode = None
        if episode is None:
            alert = self._new_alert(timeline, key, window, finding.at_ms)
            alert.pattern = finding.pattern
            alert.severity = alert_pb2.Severity.ValueType(finding.severity)
            estimate = self._estimate(timeline, key, window, finding)
            self._model.describe(alert, [finding], estimate, self._limits.window_ms)
            self._open(episode_key, alert, finding.severity, timeline, finding.hold_until_ms)
            return True
        self._episodes.frozen.changing(episode.number)
        episode.hold_until_ms = max(episode.hold_until_ms, finding.hold_until_ms)
        if finding.severity > episode.severity:
            episode.severity = finding.severity
            record = self._store.records[episode.number]
            severity = max(self._own(episode), record.severity)
            if severity > record.severity:
                estimate = self._estimate(timeline, key, window, finding)
                self._rewrite(record, episode, [finding], estimate, severity)
            return True
        if finding.pattern == EXCESSIVE_CORRECTIONS and not episode.mixed:
            # The one pattern that is worse than another one of the same severity.
            record = self._store.records[episode.number]
            if record.message().pattern == REPEATED_CORRECTIONS:
                estimate = self._estimate(timeline, key, window, finding)
                self._rewrite(record, episode, [finding], estimate, record.severity)
        return False

    def _mix(self, timeline: Timeline, key: Key, window: StudentWindow) -> None:
        """Two groups at once: the worse of them stands one severity higher, whichever came first
        and whichever rose first."""
        standing = self._episodes.open_among(timeline.timeline_id, key, GROUPS)
        if len(standing) < 2:
            return
        worst = min(standing, key=lambda each: (-each.severity, each.number))
        wanted = min(worst.severity + 1, CRITICAL)
        if any(each.mixed and self._own(each) >= wanted for each in standing):
            return
        self._episodes.frozen.changing(worst.number)
        worst.mixed = True
        record = self._store.records[worst.number]
        found = self._standing(timeline, key, window, worst)
        estimate = self._model.estimate(window, key[1], timeline.clock_ms)
        self._rewrite(record, worst, found, estimate, max(wanted, record.severity))

    def _standing(
        self, timeline: Timeline, key: Key, window: StudentWindow, first: Episode
    ) -> list[Finding]:
        """What the patterns with open alerts find by now, that of one episode first."""
        now_ms = self._store.clock_ms(timeline.timeline_id)
        from_ms = now_ms - self._limits.window_ms + 1
        touched = [(name, from_ms, now_ms) for name in sorted(window.series)]
        standing = self._episodes.open_among(timeline.timeline_id, key, GROUPS)
        groups = {each.key[3] for each in standing}
        found = [each for each in find(window, touched, self._limits) if each.group in groups]
        return sorted(found, key=lambda each: each.group != first.key[3])

    def _own(self, episode: Episode) -> int:
        """What the pattern itself says; the model's own episodes have none."""
        if episode.key[3] == STRUGGLE_GROUP:
            return 0
        return min(episode.severity + episode.mixed, CRITICAL)

    # --- the model

    def _target(self, timeline_id: str, key: Key) -> Episode | None:
        """The open episode that the model's machine follows."""
        own = self._episodes.get((timeline_id, *key, STRUGGLE_GROUP))
        if own is not None and own.is_open:
            return own
        standing = self._episodes.open_among(timeline_id, key, GROUPS)
        records = self._store.records
        standing.sort(key=lambda each: (-records[each.number].severity, each.number))
        return standing[0] if standing else None

    def _held(self, episode: Episode) -> bool:
        """Whether the model keeps a pattern's alert open."""
        timeline_id, student_id, app_name, _ = episode.key
        key = (student_id, app_name)
        if self._model.severity(timeline_id, key) < MEDIUM:
            return False
        return self._target(timeline_id, key) is episode

    def _follow(
        self,
        timeline: Timeline,
        key: Key,
        window: StudentWindow | None,
        estimate: Estimate | None,
        severity: int,
    ) -> None:
        """Brings the alerts of a student in an app to where the machine stands; 0 is no episode.
        Without a window there is nothing left to look at."""
        timeline_id = timeline.timeline_id
        target = self._target(timeline_id, key)
        if target is None:
            if severity and window is not None and not self._is_quiet(timeline, key, severity):
                at_ms = self._store.clock_ms(timeline_id)
                alert = self._new_alert(timeline, key, window, at_ms)
                alert.pattern = STRUGGLE_GROUP
                alert.severity = alert_pb2.Severity.ValueType(severity)
                if estimate is not None:
                    self._model.describe(alert, [], estimate, self._limits.window_ms)
                self._open((timeline_id, *key, STRUGGLE_GROUP), alert, severity, timeline, at_ms)
            return
        if not severity and target.key[3] == STRUGGLE_GROUP:
            self._close(target, self._store.clock_ms(timeline_id))
            self._schedule_next(target)
            return
        record = self._store.records[target.number]
        wanted = max(self._own(target), severity)
        if wanted != record.severity:
            findings = []
            if window is not None and target.key[3] != STRUGGLE_GROUP:
                findings = self._standing(timeline, key, window, target)
            self._rewrite(record, target, findings, estimate, wanted)
        elif severity >= MEDIUM and record.state == alert_pb2.ALERT_STATE_OPEN:
            alert = record.message()
            if not alert.pushed and not record.push_wait:
                self._care.push(record, alert)

    def _is_quiet(self, timeline: Timeline, key: Key, severity: int) -> bool:
        """Whether an episode of any group ended a short time ago and was as severe."""
        after_ms = self._store.clock_ms(timeline.timeline_id) - self._cooldown_ms
        groups = (*GROUPS, STRUGGLE_GROUP)
        return severity <= self._episodes.ended_after(timeline.timeline_id, key, groups, after_ms)

    # --- records

    def _estimate(
        self, timeline: Timeline, key: Key, window: StudentWindow, finding: Finding
    ) -> AnyEstimate:
        # A device's clock may be ahead of its sent_at_ms by a little: the finding counts.
        return self._model.estimate(window, key[1], max(timeline.clock_ms, finding.at_ms))

    def _new_alert(
        self, timeline: Timeline, key: Key, window: StudentWindow, at_ms: int
    ) -> alert_pb2.Alert:
        return alert_pb2.Alert(
            classroom_id=window.classroom_id,
            student_id=key[0],
            app_name=key[1],
            timeline_id=timeline.timeline_id,
            detected_at_ms=at_ms,
        )

    def _open(
        self,
        key: EpisodeKey,
        alert: alert_pb2.Alert,
        severity: int,
        timeline: Timeline,
        hold_until_ms: int,
    ) -> None:
        former = self._episodes.get(key)
        if former is not None:
            self._forget(former)
        if self._context.feature_level >= LIFE_LEVEL:
            self._care.begin(alert)
        record = self._store.new(alert)
        episode = Episode(record.number, key, severity, timeline.clock_ms, hold_until_ms)
        self._episodes.add(episode)
        self._schedule_next(episode)
        self._emit(record, episode, alert, alert_pb2.ALERT_CHANGE_OPENED)

    def _rewrite(
        self,
        record: AlertRecord,
        episode: Episode,
        findings: Sequence[Finding],
        estimate: AnyEstimate | None,
        severity: int,
    ) -> None:
        """The alert is as severe as that now, and says why."""
        alert = record.message()
        change: Change = alert_pb2.ALERT_CHANGE_UPDATED
        if severity != record.severity:
            change = alert_pb2.ALERT_CHANGE_SEVERITY_LOWERED
            if severity > record.severity:
                change = alert_pb2.ALERT_CHANGE_SEVERITY_RAISED
        alert.severity = alert_pb2.Severity.ValueType(severity)
        if findings and findings[0].group == episode.key[3]:
            alert.pattern = findings[0].pattern
        if episode.mixed:
            alert.pattern = MIXED_STRUGGLE
        if estimate is not None:
            self._model.describe(alert, findings, estimate, self._limits.window_ms)
        self._emit(record, episode, alert, change)

    def _emit(
        self, record: AlertRecord, episode: Episode, alert: alert_pb2.Alert, change: Change
    ) -> None:
        if self._context.feature_level < LIFE_LEVEL:
            alert.pushed = alert.pushed or is_pushed(alert.severity, alert.confidence)
            self._store.emit(record, alert, change)
            return
        if alert.severity > episode.peak:
            self._episodes.frozen.changing(episode.number)
            episode.peak = alert.severity
        if episode.key[3] == STRUGGLE_GROUP and alert.severity > episode.severity:
            episode.severity = alert.severity
        model_says = self._model.severity(episode.key[0], (episode.key[1], episode.key[2]))
        notify = change in MAY_PUSH and (
            is_pushed(alert.severity, alert.confidence) or model_says >= MEDIUM
        )
        self._care.tell(record, alert, change, notify=notify)

    def _close(self, episode: Episode, at_ms: int, teacher_id: str = "", note: str = "") -> None:
        self._episodes.frozen.changing(episode.number)
        episode.closed_ms = at_ms
        record = self._store.records[episode.number]
        alert = record.message()
        alert.state = alert_pb2.ALERT_STATE_RESOLVED
        alert.resolved_at_ms = at_ms
        alert.resolved_by = teacher_id
        alert.resolution_note = note
        self._store.emit(record, alert, alert_pb2.ALERT_CHANGE_RESOLVED)

    def _forget(self, episode: Episode) -> None:
        self._agenda.set(episode.key[0], TIMER, episode.number, None)
        self._episodes.remove(episode)

    def _load_episode(self, data: bytes) -> None:
        # Its due time is state: what prolongs an episode leaves it as it is.
        episode = self._episodes.load(data)
        # In its quiet time an episode may outlive the record of its alert.
        if episode.number > self._store.last_number or (
            episode.is_open and episode.number not in self._store.records
        ):
            raise ValueError(f"the episode {episode.number} has no alert")
        self._set_timer(episode)
