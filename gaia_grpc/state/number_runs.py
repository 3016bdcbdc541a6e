"""Which of many numbers are taken: lists skip what is gone, without sorting or walking all."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

BLOCK_BITS = 10


class NumberRuns:
    """How many records there are in each run of 1,024 numbers. Numbers come in ascending order."""

    __slots__ = ("_blocks", "_counts")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._blocks: list[int] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, number: int) -> None:
        """A new record."""
        block = number >> BLOCK_BITS
        if block not in self._counts:
            if self._blocks and self._counts[self._blocks[-1]] == 0:
                del self._counts[self._blocks.pop()]
            self._counts[block] = 0
            self._blocks.append(block)
        self._counts[block] += 1

    def remove(self, number: int, last_number: int) -> None:
        """The record is gone; `last_number` is the newest that there ever was."""
        block = number >> BLOCK_BITS
        self._counts[block] -= 1
        # The last block may still get records; `add` drops it where it stayed empty.
        if self._counts[block] == 0 and block != last_number >> BLOCK_BITS:
            del self._counts[block]
            del self._blocks[bisect_left(self._blocks, block)]

    def candidates_after(self, number: int) -> Iterator[int]:
        """Higher numbers, ascending: all that are taken, and some that are not."""
        for place in range(
            bisect_left(self._blocks, (number + 1) >> BLOCK_BITS), len(self._blocks)
        ):
            start = self._blocks[place] << BLOCK_BITS
            yield from range(max(start, number + 1), start + (1 << BLOCK_BITS))
