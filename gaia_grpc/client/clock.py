"""The clocks that stamp metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Gives milliseconds since 1970, or those of a simulated time."""

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Where there is one, the clock that goes on while a laptop sleeps: the class goes on too."""


def wall_clock_ms() -> int:
    """Milliseconds since 1970 by this machine's clock."""
    return time.time_ns() // 1_000_000


class SteadyClock:
    """The wall clock as it was when this was made, moved on by a clock that nobody sets.

    The cluster places a live metric by its age, `sent_at_ms` minus `event_time_ms`. A wall clock
    that is set between the two (a tablet that finds its time server) would make a metric of this
    second an hour old, or one that has not happened yet.
    """

    def __init__(
        self,
        wall_clock_ms: Clock = wall_clock_ms,
        elapsed_ns: Callable[[], int] = lambda: time.clock_gettime_ns(_BOOT_CLOCK),
    ) -> None:
        """Reads both clocks once."""
        self._elapsed_ns = elapsed_ns
        self._offset_ns = wall_clock_ms() * 1_000_000 - elapsed_ns()

    def __call__(self) -> int:
        """Milliseconds since 1970."""
        return (self._elapsed_ns() + self._offset_ns) // 1_000_000
