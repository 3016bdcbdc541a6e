"""Items that are dropped after a time, in the order in which they came, so many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from gaia_grpc.state.context import Context

Item = TypeVar("Item")

STEP_MS = 1_000
"""Sweeps happen on whole seconds of log time: a timer an item would make log entries of its own."""

ITEMS_PER_SWEEP = 1_000


class Sweep(Generic[Item]):
    """A queue with an expiry time an item. Where a later item expires earlier (the setting was
    shortened meanwhile) it still waits for those before it.

    When it is due next is state, and no function of the queue: items may be dropped before their
    time, and a sweep that was cut short goes on a second later.
    """

    __slots__ = ("_context", "_drop", "_due_ms", "_kind", "_queue")

    def __init__(self, context: Context, kind: str, drop: Callable[[Item], None]) -> None:
        self._context = context
        self._kind = kind
        self._drop = drop
        self._queue: deque[tuple[int, Item]] = deque()
        self._due_ms = 0
        context.timers.register(kind, self._due)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, expire_ms: int, item: Item) -> None:
        """Drops `item` in the first sweep after `expire_ms`, within about a second."""
        self._queue.append((expire_ms, item))
        if not self._due_ms:
            self._set()

    @property
    def due_ms(self) -> int:
        """When it looks at the queue next; 0 where it does not."""
        return self._due_ms

    def items(self) -> list[tuple[int, Item]]:
        """A copy of the queue: (expire_ms, item), the next to go first."""
        return list(self._queue)

    def restore(self, items: Iterable[tuple[int, Item]]) -> None:
        """Adds to the queue without setting the time; `set_due` does that."""
        self._queue.extend(items)

    def set_due(self, due_ms: int) -> None:
        """Sets the time as it was; 0 sets none."""
        self._due_ms = due_ms
        if due_ms:
            self._context.timers.schedule(due_ms, self._kind, 0)

    def first(self) -> tuple[int, Item] | None:
        """(expire_ms, item) of the next to go; None where there is none."""
        return self._queue[0] if self._queue else None

    def keep(self, wanted: Callable[[Item], bool]) -> None:
        """Takes out the others without dropping them; the time stays as it is set."""
        self._queue = deque(entry for entry in self._queue if wanted(entry[1]))

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
        self._due_ms = 0
        if self._queue:
            # Later than now, so that a sweep cut short goes on in another apply.
            later_ms = max(self._queue[0][0], self._context.now_ms + 1)
            self.set_due(-(-later_ms // STEP_MS) * STEP_MS)
