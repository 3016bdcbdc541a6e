"""Pending tasks in claim order: aged priority (higher first), then affinity score, then number.

Every pending task is in four heaps: by (affinity, type), by affinity, by type, and in the one of
all. So the best task for a session is the best of at most three tops for each type that it asks
for, however many tasks wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gaia_grpc.state.affinity import GENERAL
from gaia_grpc.state.lazy_heap import LazyHeap
from gaia_grpc.state.task_record import PENDING, Task

MAX_PRIORITY = 1_000
NUMBER_BITS = 42
"""100 years at 1,000 tasks a second. For the first 200,000 intervals of ageing a key has at most
60 bits and so takes 16 bytes a task less than after that."""
NUMBER_MASK = (1 << NUMBER_BITS) - 1


def order_key(task: Task) -> int:
    """Rank and number in one integer: smaller is claimed earlier. task_age.py says why."""
    return (MAX_PRIORITY - task.priority + task.epoch) << NUMBER_BITS | task.number


class PendingIndex:
    """The heaps over `tasks`, which belongs to the store."""

    __slots__ = ("_heaps", "_tasks")

    def __init__(self, tasks: Mapping[int, Task]) -> None:
        self._tasks = tasks
        self._heaps: dict[tuple[str, str], LazyHeap] = {}
        """By (affinity, type), where empty is any."""

    def __len__(self) -> int:
        """Keys in all heaps, stale ones included: what the index costs."""
        return sum(len(heap) for heap in self._heaps.values())

    def add(self, task: Task) -> None:
        """The task is PENDING now."""
        key = order_key(task)
        for place in _places(task):
            heap = self._heaps.get(place)
            if heap is None:
                heap = self._heaps[place] = LazyHeap()
            heap.add(key)

    def remove(self, task: Task) -> None:
        """The task is not PENDING any more (its state says so already)."""
        for place in _places(task):
            heap = self._heaps[place]
            heap.leave(self._is_live)
            if heap.live == 0:
                del self._heaps[place]

    def best(
        self, specialty: str, task_types: Sequence[str], *, include_unmatched: bool
    ) -> Task | None:
        """The task that a session of this specialty gets next; None where there is none for it."""
        affinities = [specialty, GENERAL]
        if specialty == GENERAL:
            affinities = [GENERAL, ""]
        elif include_unmatched:
            affinities = [specialty, GENERAL, ""]
        best: tuple[int, int, int] | None = None
        for task_type in task_types or ("",):
            # The top of a wider heap may be a task of a narrower one, with a rank that is too low
            # for it. Then it is the top of the narrower heap too and was found there with its own.
            for rank, affinity in enumerate(affinities):
                heap = self._heaps.get((affinity, task_type))
                key = heap.first(self._is_live) if heap is not None else None
                if key is None:
                    continue
                found = (key >> NUMBER_BITS, rank, key & NUMBER_MASK)
                if best is None or found < best:
                    best = found
        return None if best is None else self._tasks[best[2]]

    def _is_live(self, key: int) -> bool:
        task = self._tasks.get(key & NUMBER_MASK)
        # A requeued task has another rank, and its former key may still be in a heap.
        return task is not None and task.state == PENDING and order_key(task) == key


def _places(task: Task) -> tuple[tuple[str, str], ...]:
    affinity, task_type = task.affinity, task.task_type
    return ((affinity, task_type), (affinity, ""), ("", task_type), ("", ""))
