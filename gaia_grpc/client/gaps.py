"""Gap marks: what was measured and will never be sent, so that a window can say what it lacks.

One mark a metric type, reason and second, with the time of its last measurement. Memory is bounded:
with too many marks the seconds are made longer, twice as long each time, and at last the types are
no longer told apart. So counts stay exact and only their places become coarser.
"""

from __future__ import annotations

from collections.abc import Iterable

from gaia.metrics.v1 import metrics_pb2

MAX_BATCH_MARKS = 100
"""As many as a batch may hold."""
MAX_MARKS = 1_000
FIRST_WIDTH_MS = 1_000
UNTYPED_WIDTH_MS = 3_600_000
"""From this width on the types are merged, then the stretches grow further."""
UNKNOWN_TYPE = ""

BUFFER_FULL = metrics_pb2.OMISSION_REASON_BUFFER_FULL
REFUSED = metrics_pb2.OMISSION_REASON_REFUSED

_Place = tuple[int, str, int]
"""(number of the stretch of time, metric type, reason)."""


class GapLedger:
    """The marks that no batch has taken along yet; not safe for threads by itself."""

    def __init__(self, max_marks: int = MAX_MARKS) -> None:
        self._max_marks = max_marks
        self._width_ms = FIRST_WIDTH_MS
        self._typed = True
        self._marks: dict[_Place, tuple[int, int]] = {}
        """(count, time of the last) by place."""

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, metric_type: str, at_ms: int, reason: int, count: int = 1) -> None:
        """Notes `count` measurements that will never be sent, the last of them at `at_ms`."""
        place = (at_ms // self._width_ms, metric_type if self._typed else UNKNOWN_TYPE, reason)
        before, last_ms = self._marks.get(place, (0, at_ms))
        self._marks[place] = (before + count, max(last_ms, at_ms))
        while len(self._marks) > self._max_marks:
            self._coarsen()

    def add_omissions(self, omissions: Iterable[metrics_pb2.Omission]) -> None:
        """Takes marks back, of a batch that was never stored."""
        for mark in omissions:
            self.add(mark.metric_type, mark.event_time_ms, mark.reason, mark.count)

    def take(self, most: int = MAX_BATCH_MARKS) -> list[metrics_pb2.Omission]:
        """Removes and returns the oldest marks."""
        taken: list[metrics_pb2.Omission] = []
        for place in sorted(self._marks)[:most]:
            count, last_ms = self._marks.pop(place)
            _, metric_type, reason = place
            mark = metrics_pb2.Omission(metric_type=metric_type, count=count, event_time_ms=last_ms)
            mark.reason = reason  # type: ignore[assignment]  # the stubs want the enum's own type
            taken.append(mark)
        if not self._marks:
            self._width_ms, self._typed = FIRST_WIDTH_MS, True
        return taken

    def _coarsen(self) -> None:
        """Merges marks that are near each other."""
        if self._width_ms < UNTYPED_WIDTH_MS or not self._typed:
            self._width_ms *= 2
        else:
            self._typed = False
        marks, self._marks = self._marks, {}
        for (_, metric_type, reason), (count, last_ms) in marks.items():
            kept = metric_type if self._typed else UNKNOWN_TYPE
            place = (last_ms // self._width_ms, kept, reason)
            before, before_ms = self._marks.get(place, (0, last_ms))
            self._marks[place] = (before + count, max(before_ms, last_ms))
