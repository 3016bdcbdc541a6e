"""What falls due at a log time: one heap for all tables.

Timers fire only in the apply of AdvanceTime, ordered by (due, kind, key). That order is a function
of the records alone, so a restored peer may set its timers again from its records.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, TypeAlias

Timer: TypeAlias = tuple[int, str, int | str, int]
"""A handle: (due_ms, kind, key, serial). The serial tells a timer from its cancelled twin."""

TimerHandler: TypeAlias = Callable[[int | str], None]
"""Gets the key. Looks at its record again: whether something is due is decided there."""

COMPACT_AT_LEAST = 256
TIMERS_PER_CANCEL: Final = 8
"""Looked at in each step of a compaction: a million in one go would take a quarter of a second."""


class Timers:
    """A heap with lazy deletion. Each (kind, key) should have at most one live timer.

    Where more than half are cancelled, the others move to a second heap, some with each further
    one that is cancelled. They are taken from the end of the first, which stays a heap by that.
    """

    __slots__ = (
        "_cancelled", "_handlers", "_heap", "_moved", "_moving", "_serial", "_spent",
    )  # fmt: skip

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._moved: list[Timer] = []
        self._moving = False
        self._cancelled: set[int] = set()  # only asked for members
        self._handlers: dict[str, TimerHandler] = {}
        self._serial = 0
        self._spent = 0

    def __len__(self) -> int:
        return len(self._heap) + len(self._moved) - len(self._cancelled)

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
        heapq.heappush(self._moved if self._moving else self._heap, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Takes back a timer that has not fired."""
        self._cancelled.add(timer[3])
        # Claims end long before their timers are due: without this the heap would hold ten
        # minutes of them.
        if self._moving:
            self._move()
        elif len(self._cancelled) > COMPACT_AT_LEAST:
            self._moving = len(self._cancelled) * 2 > len(self._heap)

    def live(self) -> list[tuple[int, str, int | str]]:
        """(due_ms, kind, key) of all timers, in the order in which they fire; looks at each."""
        entries = (*self._heap, *self._moved)
        return sorted(entry[:3] for entry in entries if entry[3] not in self._cancelled)

    def next_due_ms(self) -> int | None:
        """The earliest due time; None where nothing waits."""
        heap = self._first_heap()
        return heap[0][0] if heap else None

    def spend(self, timers: int) -> None:
        """Called by the handler of a timer whose work is that of so many besides."""
        self._spent += timers

    def fire_due(self, now_ms: int, limit: int) -> int:
        """Fires up to `limit` timers that are due; returns how many. The rest stay due.

        A timer with more to do than others counts for as many as its handler `spend`s.
        """
        fired = 0
        self._spent = 0
        while fired + self._spent < limit:
            heap = self._first_heap()
            if not heap or heap[0][0] > now_ms:
                break
            timer = heapq.heappop(heap)
            self._handlers[timer[1]](timer[2])
            fired += 1
        return fired

    def _move(self) -> None:
        heap = self._heap
        for _ in range(min(TIMERS_PER_CANCEL, len(heap))):
            timer = heap.pop()
            if timer[3] in self._cancelled:
                self._cancelled.discard(timer[3])
            else:
                heapq.heappush(self._moved, timer)
        if not heap:
            self._heap, self._moved, self._moving = self._moved, heap, False

    def _first_heap(self) -> list[Timer]:
        """The heap with the earliest timer, on top; an empty one where there is none."""
        heap, moved = self._heap, self._moved
        self._drop_cancelled(heap)
        if not moved:
            return heap
        self._drop_cancelled(moved)
        return moved if moved and (not heap or moved[0] < heap[0]) else heap

    def _drop_cancelled(self, heap: list[Timer]) -> None:
        while heap and heap[0][3] in self._cancelled:
            self._cancelled.discard(heapq.heappop(heap)[3])
