"""Metrics: batches in, each counted once, and windows out.

Live, a metric is placed by its age: log time at apply minus (`sent_at_ms` - event time), so the
device's clock does not matter. On a timeline it is placed where it says, and the timeline's clock
is the highest `sent_at_ms` accepted; what falls due up to there happens before the batch.

What came too late for its window (t <= window_end - window) is counted, and reported in the result;
it goes into its past window (history.py) where that is kept. Cost of a batch: a constant for each
type of metric, and a few list operations a metric, however many students there are.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gaia.command.v1 import command_pb2, query_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.state import page_tokens, topics
from gaia_grpc.state.aggregates import encode_summaries
from gaia_grpc.state.alerts import AlertsTable
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.features import WINDOW_MS as DETECTOR_WINDOW_MS
from gaia_grpc.state.history import HISTORY_LEVEL, Histories
from gaia_grpc.state.history_store import TimelineHistory
from gaia_grpc.state.omissions import OMISSIONS_LEVEL, Mark, marks
from gaia_grpc.state.packing import MAX_TIME_MS, decode_column
from gaia_grpc.state.refusal import NOT_FOUND, OUT_OF_RANGE, invalid, refused
from gaia_grpc.state.snapshot import Part
from gaia_grpc.state.sources import Admission, Sources
from gaia_grpc.state.timelines import Key, Timeline, Timelines
from gaia_grpc.state.windows import RETAINED_WINDOWS, StudentWindow

MAX_BATCH_METRICS: Final = 60_000
"""Beyond what ingress lets through; the counts kept for duplicates hold it."""
MAX_WINDOW_TYPES: Final = 1_000
"""Types of one student in one app: each answer and each update of a watch holds all of them."""
PAGE_METRICS: Final = 2_000
"""A page of windows ends after so many types, short and with a token: some 20 ms."""
KEY_SEPARATOR: Final = "\n"
"""In page tokens; no id can hold it."""

_REASONS: Final = {
    Admission.OTHER_CONTENT: ("ALREADY_EXISTS", "the sequence came before with other content"),
    Admission.TOO_OLD: ("OUT_OF_RANGE", "the sequence is older than those that are remembered"),
    Admission.TABLE_FULL: ("RESOURCE_EXHAUSTED", "too many sources"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One type's metrics: offsets in milliseconds, values in micro-units."""

    metric_type: str
    offsets_ms: array[int]
    values: array[int]


class MetricsTable:
    """Handles PublishMetrics, GetAggregate and ListAggregates."""

    def __init__(
        self, context: Context, timelines: Timelines, alerts: AlertsTable, history: Histories
    ) -> None:
        self._context = context
        self._timelines = timelines
        self._alerts = alerts
        self._history = history
        self._sources = Sources()
        self._read_settings()
        self.commands: Mapping[str, CommandHandler] = {"publish_metrics": self.publish}
        self.queries: Mapping[str, QueryHandler] = {
            "get_aggregate": self.get_aggregate,
            "list_aggregates": self.list_aggregates,
        }
        self.parts: Sequence[Part] = (
            self._sources.section(),
            *timelines.sections(self._read_settings),
        )

    def settings_changed(self) -> None:
        """The length of the window holds from now on; what was forgotten stays so."""
        self._read_settings()

    def _read_settings(self) -> None:
        settings = self._context.settings
        self._window_ms = settings.milliseconds("metrics.window")
        self._kept_sequences = settings.integer("metrics.dedup_sequences")
        # A pattern's window may begin before the oldest metric that can still be accepted.
        errors_ms = settings.milliseconds("alert.errors_window")
        self._retained_ms = max(RETAINED_WINDOWS * self._window_ms, self._window_ms + errors_ms)
        self._timelines.live.keep_for(self._retained_ms)

    # --- commands

    def publish(self, body: command_pb2.PublishMetrics) -> command_pb2.CommandResult:
        """Each batch has a result of its own; a refused one changes nothing."""
        answer = command_pb2.PublishResult()
        self._history.begin_command()
        for batch in body.batches:
            answer.results.append(self._publish_batch(batch))
        now_ms = self._context.now_ms
        self._sources.evict_idle(now_ms)
        self._timelines.evict_idle_windows(now_ms, self._history.evicting)
        for timeline in self._timelines.evict_idle_timelines(now_ms):
            self._alerts.end_timeline(timeline)
            self._history.drop_timeline(timeline.timeline_id)
        return command_pb2.CommandResult(publish=answer)

    def _publish_batch(self, batch: command_pb2.PackedBatch) -> metrics_pb2.BatchResult:
        result = metrics_pb2.BatchResult(
            source_id=batch.source_id,
            source_epoch=batch.source_epoch,
            sequence=batch.sequence,
        )
        if not 0 <= batch.sent_at_ms <= MAX_TIME_MS:
            return _refuse(result, "INVALID_ARGUMENT", "sent_at_ms is no time")
        verdict = self._sources.admit(
            batch.source_id, batch.source_epoch, batch.sequence, batch.content_digest
        )
        if verdict.admission in _REASONS:
            return _refuse(result, *_REASONS[verdict.admission])
        live = not batch.timeline_id
        if live and batch.sent_at_ms:
            result.time_shift_ms = self._context.now_ms - batch.sent_at_ms
        if verdict.admission is Admission.DUPLICATE:
            result.status = metrics_pb2.BATCH_STATUS_DUPLICATE
            result.accepted_count = verdict.accepted_count
            result.late_count = verdict.late_count
            return result
        columns = _decode(batch)
        if columns is None:
            return _refuse(result, "INVALID_ARGUMENT", "the batch's columns are malformed")
        key = (batch.student_id, batch.app_name)
        if not self._timelines.has_room(batch.timeline_id, key):
            return _refuse(result, "RESOURCE_EXHAUSTED", "too many students or timelines")
        gaps: list[Mark] = []
        if batch.omissions and self._context.feature_level >= OMISSIONS_LEVEL:
            known = marks(batch)
            if known is None:
                return _refuse(result, "INVALID_ARGUMENT", "the batch's omissions are malformed")
            gaps = known
        types = {column.metric_type for column in columns} | {gap[0] for gap in gaps}
        if not self._has_room_for_types(batch.timeline_id, key, types):
            return _refuse(result, "RESOURCE_EXHAUSTED", "too many metric types in one window")
        if not self._has_room_for_late(batch, key, columns, gaps):
            return _refuse(result, "RESOURCE_EXHAUSTED", "too much of the past changes at once")
        result.status = metrics_pb2.BATCH_STATUS_ACCEPTED
        if columns or gaps:
            accepted, late, expired = self._store(batch, key, columns, gaps)
            result.accepted_count = accepted
            result.late_count = late
            result.expired_count = expired
        self._sources.record(
            batch.source_id,
            batch.source_epoch,
            batch.sequence,
            batch.content_digest,
            accepted_count=result.accepted_count,
            late_count=result.late_count,
            now_ms=self._context.now_ms,
            kept=self._kept_sequences,
        )
        return result

    def _has_room_for_types(self, timeline_id: str, key: Key, types: set[str]) -> bool:
        """Whether the window would hold no more types than one answer can bring."""
        timeline = self._timelines.get(timeline_id)
        window = timeline.windows.get(key) if timeline is not None else None
        if window is None:
            return len(types) <= MAX_WINDOW_TYPES
        series, gaps = window.series, window.omissions.by_type
        new = sum([name not in series and name not in gaps for name in types])
        return not new or len({*series, *gaps}) + new <= MAX_WINDOW_TYPES

    def _has_room_for_late(
        self,
        batch: command_pb2.PackedBatch,
        key: Key,
        columns: list[Column],
        gaps: list[Mark],
    ) -> bool:
        """Whether the past windows that the batch changes are not more than one command may."""
        if self._context.feature_level < HISTORY_LEVEL:
            return True
        base_ms = batch.sent_at_ms if batch.timeline_id else self._context.now_ms
        offsets_ms = [*(column.offsets_ms for column in columns), [gap[1] for gap in gaps]]
        past = self._history.get(batch.timeline_id)
        return self._history.late_work.takes(past, key, base_ms, offsets_ms)

    def _store(
        self,
        batch: command_pb2.PackedBatch,
        key: Key,
        columns: list[Column],
        gaps: list[Mark],
    ) -> tuple[int, int, int]:
        """Puts the metrics into the window; returns how many are in it, how many were late, and of
        those how many are in no past window either."""
        context = self._context
        timeline = self._timelines.open(batch.timeline_id, context.now_ms)
        base_ms = self._advance(timeline, batch.sent_at_ms)
        known = timeline.windows.get(key)
        moved_from = known.classroom_id if known is not None else ""
        window = self._timelines.place(timeline, key, batch.classroom_id, context.now_ms)
        late_ms = timeline.clock_ms - self._window_ms
        cut_ms = timeline.clock_ms - self._retained_ms
        past = None
        packed_ms = late_ms
        if context.feature_level >= HISTORY_LEVEL:
            count = sum([len(column.values) for column in columns])
            past = self._history.begin_batch(timeline, window, count, len(columns))
            if window.packed_through_ms is not None:
                packed_ms = window.packed_through_ms
            # The detector's window has a length of its own.
            cut_ms = min(cut_ms, packed_ms, timeline.clock_ms - 2 * DETECTOR_WINDOW_MS)
        past_ms = max(late_ms, packed_ms)
        window.sweep(cut_ms, self._window_ms)
        accepted = late = expired = 0
        touched: list[tuple[str, int, int]] = []
        for column in columns:
            times = [base_ms + offset_ms for offset_ms in column.offsets_ms]
            values = column.values
            oldest_ms = min(times)
            if past is not None and oldest_ms <= past_ms:
                old = [pair for pair in zip(times, values, strict=True) if pair[0] <= past_ms]
                expired += self._history.note(past, window, column.metric_type, old, late_ms)
            if oldest_ms <= late_ms:
                kept = [at for at, time_ms in enumerate(times) if time_ms > late_ms]
                late += len(times) - len(kept)
                times = [times[at] for at in kept]
                values = array("q", [values[at] for at in kept])
                if not times:
                    continue
                oldest_ms = min(times)
            accepted += len(times)
            window.add(column.metric_type, times, values, cut_ms)
            touched.append((column.metric_type, oldest_ms, max(times)))
        if past is not None:
            self._omit(past, window, base_ms, late_ms, gaps)
            self._history.end_batch(past, window)
        window.late_total += late
        window.version = context.index
        context.touch(topics.classroom_metrics(timeline.timeline_id, window.classroom_id))
        if moved_from and moved_from != window.classroom_id:
            context.touch(topics.classroom_metrics(timeline.timeline_id, moved_from))
        if touched:
            self._alerts.observe(timeline, key, window, touched)
        return accepted, late, expired

    def _omit(
        self,
        past: TimelineHistory,
        window: StudentWindow,
        base_ms: int,
        late_ms: int,
        gaps: list[Mark],
    ) -> None:
        """Puts gap marks into the window and its past, by the rules of metrics."""
        for metric_type, offset_ms, count, reason in gaps:
            time_ms = base_ms + offset_ms
            late = time_ms <= late_ms
            window.omissions.note(count)
            if not late:
                window.omit(metric_type, time_ms, count, reason, late_ms)
            self._history.omit(past, window, metric_type, time_ms, count, late)

    def _advance(self, timeline: Timeline, sent_at_ms: int) -> int:
        """Moves the timeline's clock on; returns what the batch's offsets are relative to."""
        if timeline.live:
            timeline.clock_ms = self._context.now_ms
            return timeline.clock_ms
        if sent_at_ms > timeline.clock_ms:
            self._alerts.advance_timeline(timeline, sent_at_ms)
            timeline.clock_ms = sent_at_ms
        return sent_at_ms

    def forget_student(self, student_id: str) -> int:
        """Removes a student's windows on every timeline; returns how many.

        Which batches came is still known: none of them is counted again.
        """
        forgotten = self._timelines.forget_student(student_id)
        for window in forgotten:
            self._context.touch(topics.classroom_metrics(window.timeline_id, window.classroom_id))
        return len(forgotten)

    # --- queries

    def get_aggregate(
        self, body: metrics_pb2.GetAggregateRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """The window that ends now or, at most one window length back, at `at_ms`."""
        timeline = self._timelines.get(body.timeline_id)
        window = None
        if timeline is not None:
            window = timeline.windows.get((body.student_id, body.app_name))
        if timeline is None or window is None:
            # The text names nobody: a peer logs it, and a log outlives the student's deletion.
            raise refused(NOT_FOUND, "NOT_FOUND", "no metrics of this student in this app yet")
        end_ms = _clock_ms(timeline, now_ms)
        at_ms = body.at_ms or end_ms
        if at_ms > end_ms:
            raise invalid("at_ms", f"at_ms {at_ms} is after the clock, {end_ms}")
        if at_ms < end_ms - self._window_ms:
            raise refused(
                OUT_OF_RANGE,
                "OUT_OF_RANGE",
                f"at_ms {at_ms} is more than one window before {end_ms}",
                field="at_ms",
            )
        answer = metrics_pb2.GetAggregateResponse()
        self._fill(answer.aggregate, timeline, (body.student_id, body.app_name), window, at_ms)
        return query_pb2.QueryResult(get_aggregate=answer)

    def list_aggregates(
        self, body: metrics_pb2.ListAggregatesRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """The windows of a classroom by student and app; a classroom without any has none."""
        if not body.classroom_id:
            raise invalid("classroom_id", "classroom_id is empty")
        size = page_tokens.page_size(body.page_size)
        token = page_tokens.decode(body, body.page_token)
        after: Key | None = None
        if token:
            student_id, _, app_name = token.partition(KEY_SEPARATOR)
            after = (student_id, app_name)
        answer = metrics_pb2.ListAggregatesResponse()
        timeline = self._timelines.get(body.timeline_id)
        if timeline is not None:
            end_ms = _clock_ms(timeline, now_ms)
            keys, more = timeline.page(body.classroom_id, after, size)
            room = PAGE_METRICS
            for place, key in enumerate(keys):
                if room <= 0:
                    keys, more = keys[:place], True
                    break
                aggregate = answer.aggregates.add()
                self._fill(aggregate, timeline, key, timeline.windows[key], end_ms)
                room -= len(aggregate.metrics)
            if more:
                answer.next_page_token = page_tokens.encode(body, KEY_SEPARATOR.join(keys[-1]))
        return query_pb2.QueryResult(list_aggregates=answer)

    def _fill(
        self,
        aggregate: metrics_pb2.Aggregate,
        timeline: Timeline,
        key: Key,
        window: StudentWindow,
        end_ms: int,
    ) -> None:
        aggregate.student_id, aggregate.app_name = key
        aggregate.window_start_ms = end_ms - self._window_ms
        aggregate.window_end_ms = end_ms
        aggregate.timeline_id = timeline.timeline_id
        aggregate.classroom_id = window.classroom_id
        aggregate.late_total = window.late_total
        aggregate.accepted_total = window.accepted_total
        aggregate.version = window.version
        aggregate.omitted_total = window.omissions.total
        summaries = window.summaries(end_ms, self._window_ms)
        if window.encoded is None or window.encoded[0] is not summaries:
            window.encoded = (summaries, encode_summaries(summaries, self._window_ms))
        aggregate.MergeFromString(window.encoded[1])


def _clock_ms(timeline: Timeline, now_ms: int) -> int:
    return now_ms if timeline.live else timeline.clock_ms


def _refuse(result: metrics_pb2.BatchResult, reason: str, message: str) -> metrics_pb2.BatchResult:
    result.status = metrics_pb2.BATCH_STATUS_REFUSED
    result.reason = reason
    result.message = message
    return result


def _decode(batch: command_pb2.PackedBatch) -> list[Column] | None:
    """The batch's columns; None where they are malformed, which a peer's ingress never makes.

    It is looked at all the same: what apply can't digest would stop every peer at this entry.
    """
    columns: list[Column] = []
    total = 0
    for packed in batch.columns:
        if not packed.time_offsets_ms or len(packed.time_offsets_ms) % 8:
            return None
        if len(packed.time_offsets_ms) != len(packed.values_micro):
            return None
        offsets_ms = decode_column(packed.time_offsets_ms)
        if min(offsets_ms) < -MAX_TIME_MS or max(offsets_ms) > MAX_TIME_MS:
            return None
        total += len(offsets_ms)
        columns.append(Column(packed.metric_type, offsets_ms, decode_column(packed.values_micro)))
    return columns if total <= MAX_BATCH_METRICS else None
