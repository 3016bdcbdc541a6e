"""What falls due of alerts, on its timeline's clock: log time live, the timeline's in a replay.

Live, the machine's timers fire in the order (due, kind, key). A replayed timeline keeps a heap of
its own in the same order, which is run up to a time before its clock moves there. Each (timeline,
kind, key) has one entry at most; setting it again replaces it. What is set is a function of records
and settings, so a restored peer sets the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeAlias

from gaia_grpc.state.context import Context
from gaia_grpc.state.timelines import LIVE
from gaia_grpc.state.timers import Timer

DueHandler: TypeAlias = Callable[[str, int | str, int], None]
"""Gets the timeline, the key and the time up to which things are due there."""
Place: TypeAlias = tuple[str, int | str]
"""(kind, key)."""


class Agenda:
    """All entries of all timelines."""

    __slots__ = ("_context", "_due", "_handlers", "_heaps", "_running", "_timers")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handlers: dict[str, DueHandler] = {}
        self._timers: dict[Place, Timer] = {}
        self._due: dict[str, dict[Place, int]] = {}
        self._heaps: dict[str, list[tuple[int, str, int | str]]] = {}
        self._running: tuple[str, int] | None = None

    def running_ms(self, timeline_id: str) -> int | None:
        """The time that a replayed timeline is at while it is run, ahead of its clock."""
        if self._running is None or self._running[0] != timeline_id:
            return None
        return self._running[1]

    def register(self, kind: str, handler: DueHandler) -> None:
        """Names who handles a kind; all keys of a kind have one type."""
        self._handlers[kind] = handler

        def fire(key: int | str) -> None:
            del self._timers[kind, key]
            handler(LIVE, key, self._context.now_ms)

        self._context.timers.register(kind, fire)

    def set(self, timeline_id: str, kind: str, key: int | str, due_ms: int | None) -> None:
        """Calls the kind's handler at that time, and no more at an earlier named one; None: not."""
        place = (kind, key)
        if timeline_id == LIVE:
            timer = self._timers.get(place)
            if timer is not None:
                if timer[0] == due_ms:
                    return
                self._context.timers.cancel(timer)
                del self._timers[place]
            if due_ms is not None:
                self._timers[place] = self._context.timers.schedule(due_ms, kind, key)
            return
        due = self._due.get(timeline_id)
        if due_ms is None:
            if due is not None:
                due.pop(place, None)
            return
        if due is None:
            due = self._due[timeline_id] = {}
        if due.get(place) != due_ms:
            due[place] = due_ms
            heapq.heappush(self._heaps.setdefault(timeline_id, []), (due_ms, kind, key))

    def run(self, timeline_id: str, through_ms: int) -> None:
        """Everything that falls due on a replayed timeline up to a time, in its order."""
        heap = self._heaps.get(timeline_id)
        if not heap:
            return
        due = self._due[timeline_id]
        while heap and heap[0][0] <= through_ms:
            due_ms, kind, key = heapq.heappop(heap)
            if due.get((kind, key)) == due_ms:
                del due[kind, key]
                self._running = (timeline_id, due_ms)
                self._handlers[kind](timeline_id, key, due_ms)
        self._running = None

    def forget_timeline(self, timeline_id: str) -> None:
        """Nothing is due on it any more."""
        self._due.pop(timeline_id, None)
        self._heaps.pop(timeline_id, None)
