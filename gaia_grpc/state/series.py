"""The metrics of one type in the order of time: what windows (windows.py) are made of."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Final

CUT_AT_LEAST: Final = 64
MERGE_FACTOR: Final = 8


class Series:
    """The metrics of one type: `times` ascending in milliseconds, `values` in micro-units.

    Metrics of equal time stand in no meaningful order: nothing may depend on it.
    """

    __slots__ = ("times", "values")

    def __init__(self) -> None:
        self.times = array("q")
        self.values = array("q")

    def copy(self) -> Series:
        """For a snapshot."""
        copied = Series()
        copied.times = self.times[:]
        copied.values = self.values[:]
        return copied

    def extend(self, times: list[int], values: array[int]) -> None:
        """Adds metrics in any order."""
        ordered = sorted(times)
        if ordered != times:
            pairs = sorted(zip(times, values, strict=True))
            values = array("q", [value for _, value in pairs])
        if not self.times or ordered[0] >= self.times[-1]:
            self.times.extend(array("q", ordered))
            self.values.extend(values)
        else:
            self._insert(ordered, values)

    def _insert(self, times: list[int], values: array[int]) -> None:
        """Puts ascending metrics among those that are there.

        One by one where that moves less than it would cost to merge the whole tail.
        """
        first = bisect_right(self.times, times[0])
        if len(times) * MERGE_FACTOR <= len(self.times) - first:
            for time_ms, value in zip(times, values, strict=True):
                place = bisect_right(self.times, time_ms)
                self.times.insert(place, time_ms)
                self.values.insert(place, value)
            return
        tail = list(zip(self.times[first:], self.values[first:], strict=True))
        tail.extend(zip(times, values, strict=True))
        tail.sort()
        del self.times[first:]
        del self.values[first:]
        self.times.extend(array("q", [time_ms for time_ms, _ in tail]))
        self.values.extend(array("q", [value for _, value in tail]))

    def cut(self, through_ms: int) -> None:
        """May forget what is at or before `through_ms`; does it when that is worth the move."""
        if not self.times or self.times[0] > through_ms:
            return
        count = bisect_right(self.times, through_ms)
        if count == len(self.times) or count >= max(CUT_AT_LEAST, len(self.times) >> 4):
            del self.times[:count]
            del self.values[:count]

    def range(self, start_ms: int, end_ms: int) -> tuple[int, int]:
        """Positions (first, past the last) of `start_ms < t <= end_ms`."""
        times = self.times
        if not times or times[0] > end_ms or times[-1] <= start_ms:
            return 0, 0
        first = bisect_right(times, start_ms) if times[0] <= start_ms else 0
        last = bisect_right(times, end_ms, first) if times[-1] > end_ms else len(times)
        return first, last
