"""What falls due at a log time: one heap for all tables.

Timers fire only in the apply of AdvanceTime, ordered by (due, kind, key). That order is a function
of the records alone, so a restored peer may set its timers again from its records.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeAlias

Timer: TypeAlias = tuple[int, str, int | str, int]
"""A handle: (due_ms, kind, key, serial). The serial tells a timer from its cancelled twin."""

TimerHandler: TypeAlias = Callable[[int | str], None]
"""Gets the key. Looks at its record again: whether something is due is decided there."""

COMPACT_AT_LEAST = 256


class Timers:
    """A heap with lazy deletion. Each (kind, key) should have at most one live timer."""

    __slots__ = ("_cancelled", "_handlers", "_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._cancelled: set[int] = set()  # only asked for members
        self._handlers: dict[str, TimerHandler] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._heap) - len(self._cancelled)

    def register(self, kind: str, handler: TimerHandler) -> None:
        """Names who handles a kind; once a kind, when the tables are built."""
        if kind in self._handlers:
            raise ValueError(f"two handlers for timers of the kind {kind}")
        self._handlers[kind] = handler

    def schedule(self, due_ms: int, kind: str, key: int | str) -> Timer:
        """Fires `kind`'s handler with `key` in the first AdvanceTime at or after `due_ms`.

        All keys of a kind have one type.
        """
        self._serial += 1
        timer = (due_ms, kind, key, self._serial)
        heapq.heappush(self._heap, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Takes back a timer that has not fired."""
        self._cancelled.add(timer[3])
        # Claims end long before their timers are due: without this the heap would hold ten
        # minutes of them.
        if len(self._cancelled) > COMPACT_AT_LEAST and len(self._cancelled) * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[3] not in self._cancelled]
            heapq.heapify(self._heap)
            self._cancelled.clear()

    def next_due_ms(self) -> int | None:
        """The earliest due time; None where nothing waits."""
        self._drop_cancelled()
        return self._heap[0][0] if self._heap else None

    def fire_due(self, now_ms: int, limit: int) -> int:
        """Fires up to `limit` timers that are due; returns how many. The rest stay due."""
        fired = 0
        while fired < limit:
            self._drop_cancelled()
            if not self._heap or self._heap[0][0] > now_ms:
                break
            timer = heapq.heappop(self._heap)
            self._handlers[timer[1]](timer[2])
            fired += 1
        return fired

    def _drop_cancelled(self) -> None:
        while self._heap and self._heap[0][3] in self._cancelled:
            self._cancelled.discard(heapq.heappop(self._heap)[3])
