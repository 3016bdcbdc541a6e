"""Time: the two clocks of the machine, and log time made from one of them.

Log time (design section 5) is the only time that the state machine sees. It begins at the wall time
of the founding and advances by the leader's monotonic clock, never by more than
`MAX_ADVANCE_MS` a pass. So a suspended machine, a stopped process or a jump of the wall clock
expires nothing: the time in which nobody led does not exist.
"""

from __future__ import annotations

import time
from typing import Protocol

MAX_ADVANCE_MS = 500
MAX_SILENCE_MS = 5_000
MAX_IDLE_SILENCE_MS = 60_000


def entry_needed_ms(written_ms: int, due_ms: int | None) -> int:
    """The log time at which the log needs an entry, if none comes by itself.

    `written_ms` is that of the last entry, `due_ms` when the state machine waits for one. A change
    of leader takes log time back to the last entry. So it is written every `MAX_SILENCE_MS` while
    anything is due later, or what is hours away would never come in a quiet cluster whose leaders
    change (faults B17); and every `MAX_IDLE_SILENCE_MS` otherwise, or windows that have aged out
    would be seen again.
    """
    if due_ms is None:
        return written_ms + MAX_IDLE_SILENCE_MS
    return min(due_ms, written_ms + MAX_SILENCE_MS)


class Clock(Protocol):
    """Where a driver reads time; the twin is set by hand."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since any fixed moment; never goes back."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, for display and founding only."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns()

    def wall_ms(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1_000_000


class LogClock:
    """The log time of a leader; stopped while the peer does not lead."""

    __slots__ = ("_base_ns", "_clock", "_last_ns", "running")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ns = 0
        self._base_ns = 0
        self.running = False

    def start(self, elapsed_ms: int) -> None:
        """Goes on from the log time of the applied log."""
        self._base_ns = elapsed_ms * 1_000_000
        self._last_ns = self._clock.monotonic_ns()
        self.running = True

    def stop(self) -> None:
        """The peer no longer leads."""
        self.running = False

    def advance_ms(self) -> int:
        """Lets time pass since the last call and returns the log time in milliseconds."""
        now_ns = self._clock.monotonic_ns()
        passed_ns = min(now_ns - self._last_ns, MAX_ADVANCE_MS * 1_000_000)
        self._last_ns = now_ns
        self._base_ns += passed_ns
        return self._base_ns // 1_000_000
