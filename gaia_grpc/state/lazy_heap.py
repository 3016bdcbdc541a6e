"""A heap whose members may leave from the middle: they are dropped when they come to the top."""

from __future__ import annotations

import heapq
from collections.abc import Callable

COMPACT_AT_LEAST = 64


class LazyHeap:
    """Integers, smallest first. `live` counts the members; the heap may hold stale ones besides.

    A key may leave and come back while its stale twin is still inside: twins are equal, so which of
    them is taken makes no difference.
    """

    __slots__ = ("_keys", "live")

    def __init__(self) -> None:
        self._keys: list[int] = []
        self.live = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: int) -> None:
        """A new member."""
        heapq.heappush(self._keys, key)
        self.live += 1

    def leave(self, is_live: Callable[[int], bool]) -> None:
        """One member is none any more: `is_live` says so of its key from now on."""
        self.live -= 1
        # A rebuild drops at least half of the heap, so its cost is spread over as many calls.
        if len(self._keys) > 2 * self.live + COMPACT_AT_LEAST:
            self._keys = sorted({key for key in self._keys if is_live(key)})

    def first(self, is_live: Callable[[int], bool]) -> int | None:
        """The smallest member, which stays inside; None where there is none."""
        keys = self._keys
        while keys:
            if is_live(keys[0]):
                return keys[0]
            heapq.heappop(keys)
        return None
