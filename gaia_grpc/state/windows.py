"""Rolling windows, exact: `window_end - window < t <= window_end`, whatever the order of arrival.

A `Series` holds the metrics of one type as two parallel columns, sorted by time: 16 bytes a metric.
What comes in order is appended in bulk; what comes late is inserted where it belongs; what is too
old for any question is cut off from the front once it is worth the move, so that both cost a
constant a metric. A question finds its range by two bisections and works on whole slices, so no
running total exists that could drift or that expiry would have to correct, and a question about a
later end changes nothing.

Values are whole micro-units: sums are exact integers, and every figure that is no integer is one
division of integers (correctly rounded, so equal on every machine) or one `isqrt`.

Context-free: times come as arguments. `RETAINED_WINDOWS` windows are kept, because `at_ms` may ask
for the window that ended one window ago.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from operator import mul
from typing import Final

from gaia_grpc.state.level import Level
from gaia_grpc.state.omissions import Omissions
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.rolling import RollingSum
from gaia_grpc.state.series import Series

RETAINED_WINDOWS: Final = 2
ROOT_BITS: Final = 128
"""Bits under the root: half of them are more than a double has."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One metric type in one window; values as in `gaia.metrics.v1.MetricAggregate`."""

    metric_type: str
    count: int
    sum: float
    mean: float
    min: float
    max: float
    stddev: float
    p50: float
    p95: float
    p99: float
    first_time_ms: int
    last_time_ms: int
    omitted_count: int = 0


def nearest_rank(ascending: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` of the values do not exceed."""
    return ascending[-(-percent * len(ascending) // 100) - 1]


def standard_deviation(count: int, total: int, squares: int) -> float:
    """Population standard deviation in units, from micro-unit sums.

    sqrt(n * sum(x^2) - sum(x)^2) / n, with the radicand scaled by an even power of two so that the
    integer root has more bits than a double: no cancellation, no libm.
    """
    radicand = count * squares - total * total
    shift = max(0, (ROOT_BITS - radicand.bit_length()) // 2)
    return isqrt(radicand << (2 * shift)) / ((count * MICRO) << shift)


def summarize(metric_type: str, series: Series, start_ms: int, end_ms: int) -> Summary | None:
    """The figures of `start_ms < t <= end_ms`; None where nothing is in it."""
    first, last = series.range(start_ms, end_ms)
    if first == last:
        return None
    ascending = sorted(series.values[first:last])
    count = last - first
    total = sum(ascending)
    return Summary(
        metric_type=metric_type,
        count=count,
        sum=total / MICRO,
        mean=total / (count * MICRO),
        min=ascending[0] / MICRO,
        max=ascending[-1] / MICRO,
        stddev=standard_deviation(count, total, sum(map(mul, ascending, ascending))),
        p50=nearest_rank(ascending, 50) / MICRO,
        p95=nearest_rank(ascending, 95) / MICRO,
        p99=nearest_rank(ascending, 99) / MICRO,
        first_time_ms=series.times[first],
        last_time_ms=series.times[last - 1],
    )


def only_omitted(metric_type: str, count: int) -> Summary:
    """The figures of a type of which nothing came."""
    return Summary(
        metric_type=metric_type,
        count=0,
        sum=0.0,
        mean=0.0,
        min=0.0,
        max=0.0,
        stddev=0.0,
        p50=0.0,
        p95=0.0,
        p99=0.0,
        first_time_ms=0,
        last_time_ms=0,
        omitted_count=count,
    )


class StudentWindow:
    """All that is known of one student in one app on one timeline."""

    __slots__ = (
        "_cached",
        "_cached_from_ms",
        "_cached_span_ms",
        "_cached_until_ms",
        "accepted_total",
        "classroom_id",
        "encoded",
        "key",
        "late_total",
        "level",
        "omissions",
        "packed_through_ms",
        "rolling",
        "series",
        "snapshot",
        "swept_ms",
        "timeline_id",
        "touched_ms",
        "version",
    )

    def __init__(self, timeline_id: str = "", key: tuple[str, str] = ("", "")) -> None:
        self.timeline_id = timeline_id
        self.key = key
        """(student_id, app_name)."""
        self.snapshot = 0
        self.classroom_id = ""
        self.series: dict[str, Series] = {}
        self.accepted_total = 0
        self.late_total = 0
        self.omissions = Omissions()
        self.version = 0
        """Index of the last log entry that changed the window: grows with every change."""
        self.touched_ms = 0
        """Log time of the last batch."""
        self.swept_ms = 0
        self.packed_through_ms: int | None = None
        """Metrics up to here are in the packed history; None where that has not begun."""
        self.encoded: tuple[tuple[Summary, ...], bytes] | None = None
        """The last summaries that were asked for, and how their asker encoded them."""
        self.rolling: dict[tuple[str, int, int], RollingSum] = {}
        """Sums that move on with the clock, by (metric type, total, length): features.py."""
        self.level: Level | None = None
        """What the detector remembers of this student in this app; None before the first look."""
        self._cached: tuple[Summary, ...] | None = None
        self._cached_from_ms = 0
        self._cached_until_ms = 0
        self._cached_span_ms = 0

    def copy(self) -> StudentWindow:
        """For a snapshot; what was asked for is not part of it."""
        copied = StudentWindow(self.timeline_id, self.key)
        copied.classroom_id = self.classroom_id
        copied.series = {name: series.copy() for name, series in self.series.items()}
        copied.accepted_total = self.accepted_total
        copied.late_total = self.late_total
        copied.omissions = self.omissions.copy()
        copied.version = self.version
        copied.touched_ms = self.touched_ms
        copied.swept_ms = self.swept_ms
        copied.packed_through_ms = self.packed_through_ms
        copied.level = self.level.copy() if self.level is not None else None
        return copied

    def add(self, metric_type: str, times: list[int], values: array[int], cut_ms: int) -> None:
        """Adds one column; what is at or before `cut_ms` may be forgotten."""
        self._cached = None
        series = self.series.get(metric_type)
        if series is None:
            series = self.series[metric_type] = Series()
        series.cut(cut_ms)
        series.extend(times, values)
        for (name, _, _), rolling in self.rolling.items():
            if name == metric_type:
                rolling.came(times, values)
        self.accepted_total += len(times)

    def omit(self, metric_type: str, time_ms: int, count: int, reason: int, late_ms: int) -> None:
        """Adds one gap mark; `late_ms` is the time up to which it would be late."""
        self._cached = None
        packed_ms = self.packed_through_ms
        # What is packed is in the past already, and the rest goes there later.
        if packed_ms is None or packed_ms <= late_ms:
            self.omissions.add(metric_type, time_ms, count, reason, late_ms)
        elif time_ms > packed_ms:
            self.omissions.add(metric_type, time_ms, count, reason, packed_ms)
        else:
            self.omissions.add(metric_type, time_ms, count, reason, late_ms, packed_ms)

    def sweep(self, cut_ms: int, every_ms: int) -> None:
        """Forgets whole types that nothing is left of; at most once in `every_ms` of `cut_ms`."""
        if cut_ms - self.swept_ms < every_ms:
            return
        self.swept_ms = cut_ms
        for metric_type in list(self.series):
            series = self.series[metric_type]
            series.cut(cut_ms)
            if not series.times:
                del self.series[metric_type]
                for key in [key for key in self.rolling if key[0] == metric_type]:
                    del self.rolling[key]
        self.omissions.cut(cut_ms)

    def summaries(self, window_end_ms: int, window_ms: int) -> tuple[Summary, ...]:
        """The figures of every type in the window, sorted by type; one of which nothing but gap
        marks is there has a count of 0, and so has the empty type.

        The answer holds until the next metric comes into the window or leaves it, so it is kept
        for that stretch of time: a quiet window costs nothing however often it is asked for.
        """
        if (
            self._cached is not None
            and self._cached_from_ms <= window_end_ms < self._cached_until_ms
            and self._cached_span_ms == window_ms
        ):
            return self._cached
        start_ms = window_end_ms - window_ms
        found: list[Summary] = []
        changes_ms: list[int] = []
        for metric_type in sorted(self.series):
            series = self.series[metric_type]
            summary = summarize(metric_type, series, start_ms, window_end_ms)
            if summary is not None:
                found.append(summary)
                changes_ms.append(summary.first_time_ms + window_ms)
            after = bisect_right(series.times, window_end_ms)
            if after < len(series.times):
                changes_ms.append(series.times[after])
        if self.omissions.by_type:
            found = self._with_omissions(found, start_ms, window_end_ms)
            for end_ms in (start_ms, window_end_ms):
                next_ms = self.omissions.next_after(end_ms)
                if next_ms is not None:
                    changes_ms.append(next_ms + (window_ms if next_ms <= window_end_ms else 0))
        self._cached = tuple(found)
        self._cached_from_ms = window_end_ms
        self._cached_until_ms = min(changes_ms, default=1 << 63)
        self._cached_span_ms = window_ms
        return self._cached

    def _with_omissions(
        self, summaries: list[Summary], start_ms: int, end_ms: int
    ) -> list[Summary]:
        by_type = {summary.metric_type: summary for summary in summaries}
        for metric_type, count in self.omissions.counts(start_ms, end_ms):
            known = by_type.get(metric_type)
            by_type[metric_type] = (
                only_omitted(metric_type, count)
                if known is None
                else replace(known, omitted_count=count)
            )
        return [by_type[metric_type] for metric_type in sorted(by_type)]
