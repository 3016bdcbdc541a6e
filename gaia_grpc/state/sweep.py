"""Items that are dropped after a time, in the order in which they came, so many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from gaia_grpc.state.context import Context

Item = TypeVar("Item")

STEP_MS = 1_000
"""Sweeps happen on whole seconds of log time: a timer an item would make log entries of its own."""

ITEMS_PER_SWEEP = 1_000


class Sweep(Generic[Item]):
    """A queue with an expiry time an item. Where a later item expires earlier (the setting was
    shortened meanwhile) it still waits for those before it."""

    __slots__ = ("_context", "_drop", "_is_set", "_kind", "_queue")

    def __init__(self, context: Context, kind: str, drop: Callable[[Item], None]) -> None:
        self._context = context
        self._kind = kind
        self._drop = drop
        self._queue: deque[tuple[int, Item]] = deque()
        self._is_set = False
        context.timers.register(kind, self._due)

    def add(self, expire_ms: int, item: Item) -> None:
        """Drops `item` in the first sweep after `expire_ms`, within about a second."""
        self._queue.append((expire_ms, item))
        if not self._is_set:
            self._set()

    def drop_oldest(self) -> None:
        """Drops the oldest item now."""
        self._drop(self._queue.popleft()[1])

    def _due(self, key: int | str) -> None:
        del key
        for _ in range(ITEMS_PER_SWEEP):
            if not self._queue or self._queue[0][0] > self._context.now_ms:
                break
            self.drop_oldest()
        self._set()

    def _set(self) -> None:
        self._is_set = bool(self._queue)
        if self._queue:
            # Later than now, so that a sweep cut short goes on in another apply.
            later_ms = max(self._queue[0][0], self._context.now_ms + 1)
            due_ms = -(-later_ms // STEP_MS) * STEP_MS
            self._context.timers.schedule(due_ms, self._kind, 0)
