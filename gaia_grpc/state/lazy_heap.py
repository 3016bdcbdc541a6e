"""A heap whose members may leave from the middle: they are dropped when they come to the top."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

COMPACT_AT_LEAST = 64
KEYS_PER_LEAVE: Final = 8
"""Looked at in each step of a compaction. In one go a million keys would take half a second."""
TOPS_PER_LEAVE: Final = 2
"""Stale keys that leave the top each time, so that `first` seldom finds many."""


class LazyHeap:
    """Integers, smallest first. `live` counts the members; the heap may hold stale ones besides.

    A key may leave and come back while its stale twin is still inside: twins are equal, so which of
    them is taken makes no difference.

    Where more than half are stale, the others move to a second heap, some each time that a member
    leaves. They are taken from the end of the first, which stays a heap by that.
    """

    __slots__ = ("_keys", "_moved", "_seen", "live")

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._moved: list[int] = []
        self._seen: set[int] | None = None
        """What has moved; None where nothing moves."""
        self.live = 0

    def __len__(self) -> int:
        return len(self._keys) + len(self._moved)

    def add(self, key: int) -> None:
        """A new member."""
        heapq.heappush(self._keys if self._seen is None else self._moved, key)
        self.live += 1

    def leave(self, is_live: Callable[[int], bool]) -> None:
        """One member is none any more: `is_live` says so of its key from now on."""
        self.live -= 1
        keys = self._keys
        for _ in range(TOPS_PER_LEAVE):
            if not keys or is_live(keys[0]):
                break
            heapq.heappop(keys)
        if self._seen is not None:
            self._move(self._seen, is_live)
        elif len(keys) > 2 * self.live + COMPACT_AT_LEAST:
            self._seen = set()

    def first(self, is_live: Callable[[int], bool]) -> int | None:
        """The smallest member, which stays inside; None where there is none."""
        top = _top(self._keys, is_live)
        if not self._moved:
            return top
        moved = _top(self._moved, is_live)
        if top is None or moved is None:
            return moved if top is None else top
        return min(top, moved)

    def _move(self, seen: set[int], is_live: Callable[[int], bool]) -> None:
        keys = self._keys
        for _ in range(min(KEYS_PER_LEAVE, len(keys))):
            key = keys.pop()
            # Of several twins one moves: the same task may have come and gone a thousand times.
            if key not in seen and is_live(key):
                seen.add(key)
                heapq.heappush(self._moved, key)
        if not keys:
            self._keys, self._moved, self._seen = self._moved, keys, None


def _top(keys: list[int], is_live: Callable[[int], bool]) -> int | None:
    while keys:
        if is_live(keys[0]):
            return keys[0]
        heapq.heappop(keys)
    return None
