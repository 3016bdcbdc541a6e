"""What is over and not packed yet, out of the rolling window's own metrics and gap marks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from gaia_grpc.state.history_codec import PastWindow
from gaia_grpc.state.history_store import TimelineHistory
from gaia_grpc.state.series import Series
from gaia_grpc.state.windows import StudentWindow


def raw_windows(
    past: TimelineHistory, window: StudentWindow, through_ms: int
) -> Iterator[PastWindow]:
    """Past windows of what is not packed yet, `t <= through_ms`, oldest first; late data is none of
    it. Their figures are those that packing would give."""
    if window.packed_through_ms is None:
        return
    position_ms = max(window.packed_through_ms, past.floor_ms)
    while True:
        times = [ms for each in window.series.values() for ms in _after(each, position_ms)]
        gap_ms = window.omissions.next_after(position_ms)
        if gap_ms is not None:
            times.append(gap_ms)
        next_ms = min(times, default=None)
        if next_ms is None or next_ms > through_ms:
            return
        start_ms, end_ms = past.grid.bounds(next_ms)
        found = PastWindow(start_ms, end_ms)
        for metric_type in sorted(window.series):
            series = window.series[metric_type]
            first, last = series.range(position_ms, min(end_ms, through_ms))
            if first < last:
                found.add_series(metric_type, series, first, last, ranked=True)
        for metric_type, count in window.omissions.counts(position_ms, min(end_ms, through_ms)):
            found.of(metric_type).omitted += count
        yield found
        position_ms = end_ms


def _after(series: Series, position_ms: int) -> Sequence[int]:
    """The first time after a position, if there is one."""
    at = bisect_right(series.times, position_ms)
    return series.times[at : at + 1]
