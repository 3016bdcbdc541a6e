"""Into which past window a time belongs: time is cut at multiples of metrics.window, without gaps.

Where the setting changes, the piece that is under way ends at the clock's time then, and the next
one ends at the next multiple of the new length. So every time belongs to exactly one piece,
whatever the setting was and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_CHANGES: Final = 32
"""Of the length that are remembered."""
AT_ALL_TIMES: Final = -(1 << 62)


class Grid:
    """The lengths of windows over time. `from_ms[0]` means nothing: the first holds before too."""

    __slots__ = ("from_ms", "window_ms")

    def __init__(self, from_ms: Sequence[int] = (), window_ms: Sequence[int] = ()) -> None:
        self.from_ms = list(from_ms)
        self.window_ms = list(window_ms)

    def use(self, window_ms: int, clock_ms: int) -> int | None:
        """Windows are so long from the clock's time on.

        Returns up to where time is no longer cut as it was, where too many changes are known.
        """
        if not self.window_ms:
            self.from_ms, self.window_ms = [AT_ALL_TIMES], [window_ms]
        elif self.from_ms[-1] >= clock_ms:
            self.window_ms[-1] = window_ms
        else:
            self.from_ms.append(clock_ms)
            self.window_ms.append(window_ms)
            if len(self.from_ms) > MAX_CHANGES:
                del self.from_ms[0], self.window_ms[0]
                return self.from_ms[0]
        return None

    @property
    def newest_ms(self) -> int:
        """The length that holds now; 0 where none is set."""
        return self.window_ms[-1] if self.window_ms else 0

    def bounds(self, time_ms: int) -> tuple[int, int]:
        """(start, end) of the window that holds a time: start < time <= end."""
        at = len(self.from_ms) - 1
        while at > 0 and self.from_ms[at] >= time_ms:
            at -= 1
        length_ms = self.window_ms[at]
        start_ms = (time_ms - 1) // length_ms * length_ms
        end_ms = start_ms + length_ms
        if at + 1 < len(self.from_ms):
            end_ms = min(end_ms, self.from_ms[at + 1])
        if self.from_ms[at] < time_ms:
            start_ms = max(start_ms, self.from_ms[at])
        return start_ms, end_ms
