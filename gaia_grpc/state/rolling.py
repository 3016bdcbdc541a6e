"""Sums over the window that ends now, moved on with it: a constant a metric, however dense it is.

A sum is an exact integer and a function of the series alone, so it is no part of a snapshot and
cannot drift: what comes into the window is added, what leaves it is taken off, and a metric that
came late is added if the window holds it. Where the window was not looked at for longer than it is,
or time went back, the sum is made anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gaia_grpc.state.series import Series

Weights: TypeAlias = Callable[["array[int]"], Sequence[int]]
"""What each value counts, in whole numbers."""


class RollingSum:
    """The sum over `start < t <= end` of one series."""

    __slots__ = ("_end_ms", "_start_ms", "_total", "_weights")

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._start_ms = self._end_ms = 0
        self._total = 0

    def over(self, series: Series, start_ms: int, end_ms: int) -> int:
        """The sum of a window that ends now or later than the last one asked for."""
        if start_ms >= self._end_ms or start_ms < self._start_ms or end_ms < self._end_ms:
            self._total = self._sum(series, start_ms, end_ms)
        else:
            if end_ms > self._end_ms:
                self._total += self._sum(series, self._end_ms, end_ms)
            if start_ms > self._start_ms:
                self._total -= self._sum(series, self._start_ms, start_ms)
        self._start_ms, self._end_ms = start_ms, end_ms
        return self._total

    def _sum(self, series: Series, start_ms: int, end_ms: int) -> int:
        first, last = series.range(start_ms, end_ms)
        return sum(self._weights(series.values[first:last])) if first < last else 0

    def came(self, times: Sequence[int], values: array[int]) -> None:
        """Metrics were added to the series."""
        start_ms, end_ms = self._start_ms, self._end_ms
        if not times or min(times) > end_ms:
            return
        inside = array(
            "q",
            [
                value
                for time_ms, value in zip(times, values, strict=True)
                if start_ms < time_ms <= end_ms
            ],
        )
        if inside:
            self._total += sum(self._weights(inside))
