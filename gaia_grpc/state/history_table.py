"""Answers about the past: tumbling windows with their revisions, and what the detector saw.

What is packed and what is not yet are put together, so nobody can tell the two apart. What has
expired by now is left out, whether its bytes are gone already or not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from gaia.command.v1 import query_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.state import detector_inputs, page_tokens
from gaia_grpc.state.channels import CHANNELS
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.history import HISTORY_LEVEL, Histories
from gaia_grpc.state.history_codec import Figures, PastWindow
from gaia_grpc.state.history_grid import AT_ALL_TIMES
from gaia_grpc.state.history_raw import raw_windows
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.refusal import feature_level_too_low, invalid
from gaia_grpc.state.snapshot import Part
from gaia_grpc.state.timelines import Key, Timelines
from gaia_grpc.state.windows import standard_deviation

FOREVER: Final = 1 << 62
SEPARATOR: Final = "\n"
"""In page tokens; no id can hold it."""
PAGE_METRICS: Final = 2_000
"""A page ends after so many types, short and with a token: some 20 ms."""


class HistoryTable:
    """Handles GetHistory and the detector's inputs."""

    def __init__(self, context: Context, timelines: Timelines, histories: Histories) -> None:
        self._context = context
        self._timelines = timelines
        self._histories = histories
        self.commands: Mapping[str, CommandHandler] = {}
        self.queries: Mapping[str, QueryHandler] = {
            "get_history": self.get_history,
            "detector_inputs": self.detector_inputs,
            "list_detector_inputs": self.list_detector_inputs,
        }
        self.parts: Sequence[Part] = histories.sections()

    def settings_changed(self) -> None:
        """How long and how much is kept holds from now on."""
        self._histories.read_settings()

    def get_history(
        self, body: metrics_pb2.GetHistoryRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """Windows that are over, oldest first; a student of whom nothing is kept has none."""
        self._check_level("get_history")
        size = page_tokens.page_size(body.page_size)
        token = page_tokens.decode(body, body.page_token)
        try:
            after_ms = int(token) if token else AT_ALL_TIMES
        except ValueError:
            raise invalid("page_token", "the page_token is not one of this list") from None
        answer = metrics_pb2.GetHistoryResponse()
        key = (body.student_id, body.app_name)
        clock_ms = self._clock_ms(body.timeline_id, now_ms)
        past = self._histories.get(body.timeline_id)
        history = past.keys.get(key) if past is not None else None
        window_ms = self._histories.window_ms
        room = PAGE_METRICS
        start_ms = max(after_ms, body.start_ms or AT_ALL_TIMES)
        for window in self._windows(body.timeline_id, key, clock_ms, start_ms):
            if window.end_ms > clock_ms or window.start_ms >= (body.end_ms or FOREVER):
                break
            if len(answer.windows) == size or room <= 0:
                last_ms = answer.windows[-1].aggregate.window_end_ms
                answer.next_page_token = page_tokens.encode(body, str(last_ms))
                break
            found = answer.windows.add(revision=window.revision)
            closed_ms = window.end_ms + window_ms
            if closed_ms <= clock_ms:
                found.close_time.FromMilliseconds(closed_ms)
            aggregate = found.aggregate
            aggregate.student_id, aggregate.app_name = key
            aggregate.timeline_id = body.timeline_id
            aggregate.classroom_id = self._classroom(body.timeline_id, key) or (
                history.classroom_id if history is not None else ""
            )
            fill(aggregate, window)
            room -= len(aggregate.metrics)
        return query_pb2.QueryResult(get_history=answer)

    def detector_inputs(
        self, body: query_pb2.DetectorInputsQuery, now_ms: int
    ) -> query_pb2.QueryResult:
        """What came in each step of 5 s, also of the window that is not over yet."""
        self._check_level("detector_inputs")
        size = page_tokens.page_size(body.limit)
        answer = query_pb2.DetectorInputsResult()
        clock_ms = self._clock_ms(body.timeline_id, now_ms)
        key = (body.student_id, body.app_name)
        start_ms = body.start_ms or AT_ALL_TIMES
        for window in self._windows(body.timeline_id, key, clock_ms, start_ms):
            if window.start_ms >= (body.end_ms or clock_ms):
                break
            if not window.inputs:
                continue
            if len(answer.windows) == size:
                answer.next_start_ms = answer.windows[-1].end_ms
                break
            found = answer.windows.add(start_ms=window.start_ms, end_ms=window.end_ms)
            for place in sorted(window.inputs):
                column = found.columns.add(channel=CHANNELS[place])
                for step, count, total in detector_inputs.steps(window.inputs[place]):
                    column.steps.append(step)
                    column.counts.append(count)
                    column.sums.append(total)
        return query_pb2.QueryResult(detector_inputs=answer)

    def list_detector_inputs(
        self, body: metrics_pb2.ListDetectorInputsRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """The same of all students of a classroom, by student, app and time."""
        self._check_level("list_detector_inputs")
        if not body.classroom_id:
            raise invalid("classroom_id", "classroom_id is empty")
        size = page_tokens.page_size(body.page_size)
        after: tuple[str, str, int] = ("", "", 0)
        token = page_tokens.decode(body, body.page_token)
        if token:
            try:
                student_id, app_name, end_ms = token.split(SEPARATOR)
                after = (student_id, app_name, int(end_ms))
            except ValueError:
                raise invalid("page_token", "the page_token is not one of this list") from None
        clock_ms = self._clock_ms(body.timeline_id, now_ms)
        answer = metrics_pb2.ListDetectorInputsResponse()
        for key in self._keys(body.timeline_id, body.classroom_id, after[:2]):
            start_ms = max(body.start_ms or AT_ALL_TIMES, after[2] if key == after[:2] else 0)
            for window in self._windows(body.timeline_id, key, clock_ms, start_ms):
                if window.start_ms >= clock_ms:
                    break
                if not window.inputs:
                    continue
                if len(answer.windows) == size:
                    last = answer.windows[-1]
                    place = (last.student_id, last.app_name, str(last.end_ms))
                    answer.next_page_token = page_tokens.encode(body, SEPARATOR.join(place))
                    return query_pb2.QueryResult(list_detector_inputs=answer)
                found = answer.windows.add(
                    student_id=key[0],
                    app_name=key[1],
                    start_ms=window.start_ms,
                    end_ms=window.end_ms,
                )
                for at in sorted(window.inputs):
                    column = found.channels.add(channel=CHANNELS[at])
                    for step, count, total in detector_inputs.steps(window.inputs[at]):
                        column.steps.append(step)
                        column.counts.append(count)
                        column.sums.append(total)
        return query_pb2.QueryResult(list_detector_inputs=answer)

    def _keys(self, timeline_id: str, classroom_id: str, from_key: Key) -> list[Key]:
        """Students in apps whose classroom this was last, from a key on, sorted."""
        found: set[Key] = set()
        timeline = self._timelines.get(timeline_id)
        if timeline is not None:
            found.update(timeline.classrooms.get(classroom_id, ()))
        past = self._histories.get(timeline_id)
        if past is not None:
            windows = timeline.windows if timeline is not None else {}
            found.update(
                key
                for key, history in past.keys.items()
                if history.classroom_id == classroom_id and key not in windows
            )
        return sorted([key for key in found if key >= from_key])

    def _windows(
        self, timeline_id: str, key: Key, clock_ms: int, after_ms: int
    ) -> Iterator[PastWindow]:
        """Windows that end after `after_ms`, packed or not, without what has expired."""
        past = self._histories.get(timeline_id)
        timeline = self._timelines.get(timeline_id)
        if past is None or timeline is None:
            return
        window = timeline.windows.get(key)
        history = past.keys.get(key)
        raw = {}
        if window is not None:
            raw = {found.end_ms: found for found in raw_windows(past, window, clock_ms)}
        ends_ms = set(raw)
        if history is not None:
            ends_ms.update(history.ends_ms[bisect_right(history.ends_ms, after_ms) :])
        for end_ms in sorted(ends_ms):
            if end_ms <= after_ms:
                continue
            at = history.find(end_ms) if history is not None else None
            found = raw.get(end_ms)
            if history is not None and at is not None:
                packed = history.read(at)
                if found is not None:
                    packed.add(found)
                found = packed
            if found is not None:
                past.trim(found, clock_ms, self._histories.retention)
                if found.figures:
                    yield found

    def _check_level(self, name: str) -> None:
        if self._context.feature_level < HISTORY_LEVEL:
            raise feature_level_too_low(name, HISTORY_LEVEL)

    def _clock_ms(self, timeline_id: str, now_ms: int) -> int:
        timeline = self._timelines.get(timeline_id)
        return now_ms if timeline is None or timeline.live else timeline.clock_ms

    def _classroom(self, timeline_id: str, key: Key) -> str:
        timeline = self._timelines.get(timeline_id)
        window = timeline.windows.get(key) if timeline is not None else None
        return window.classroom_id if window is not None else ""


def fill(aggregate: metrics_pb2.Aggregate, window: PastWindow) -> None:
    """The figures of a past window, in units."""
    aggregate.window_start_ms = window.start_ms
    aggregate.window_end_ms = window.end_ms
    counted = omitted = 0
    for metric_type in window.types():
        figures = window.figures[metric_type]
        counted += figures.count
        omitted += figures.omitted
        if metric_type:
            _fill_metric(aggregate.metrics.add(metric_type=metric_type), figures, window)
    aggregate.completeness = counted / (counted + omitted) if omitted else 1.0


def _fill_metric(metric: metrics_pb2.MetricAggregate, figures: Figures, window: PastWindow) -> None:
    count = figures.count
    metric.omitted_count = figures.omitted
    metric.completeness = count / (count + figures.omitted) if figures.omitted else 1.0
    if not count:
        return
    metric.count = count
    metric.sum = figures.total / MICRO
    metric.mean = figures.total / (count * MICRO)
    metric.min = figures.minimum / MICRO
    metric.max = figures.maximum / MICRO
    metric.stddev = standard_deviation(count, figures.total, figures.squares)
    metric.p50 = figures.p50 / MICRO
    metric.p95 = figures.p95 / MICRO
    metric.p99 = figures.p99 / MICRO
    metric.rate_per_second = count * 1_000 / (window.end_ms - window.start_ms)
    metric.first_time_ms = figures.first_ms
    metric.last_time_ms = figures.last_ms
    metric.unranked_count = count - figures.ranked
