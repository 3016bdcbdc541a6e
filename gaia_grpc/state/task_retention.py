"""Finished tasks in the order in which they are dropped.

Those that are kept for `task.retention` end in the order in which they finished. A type with a
retention of its own is in a heap beside them: a short one does not wait behind a long one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gaia_grpc.state.context import Context
from gaia_grpc.state.snapshot import Part, list_section
from gaia_grpc.state.sweep import ITEMS_PER_SWEEP, STEP_MS, Sweep
from gaia_grpc.state.task_snapshot import FinishedItem, decode_finished, encode_finished
from gaia_grpc.state.timers import Timer

Finish: TypeAlias = tuple[int, int]
"""(number, finish_ms)"""

POLICY_TIMER = "task.purge_by_policy"
STALE_AT_LEAST = 1_024


class FinishedTasks:
    """Calls `drop` for each task when its time is over."""

    def __init__(self, context: Context, drop: Callable[[Finish], None]) -> None:
        self._context = context
        self._drop = drop
        self._sweep = Sweep[Finish](context, "task.purge", drop)
        self._heap: list[FinishedItem] = []
        self._policy_due_ms = 0
        self._timer: Timer | None = None
        context.timers.register(POLICY_TIMER, self._due)
        self.parts: Sequence[Part] = (
            list_section(
                "finished_tasks", self._sweep.items, encode_finished, self._load_by_setting
            ),
            list_section(
                "finished_by_policy",
                lambda: sorted(self._heap),
                encode_finished,
                self._load_by_policy,
            ),
        )

    def __len__(self) -> int:
        return len(self._sweep) + len(self._heap)

    def add(self, finish: Finish, retention_ms: int | None) -> None:
        """Drops the task after `retention_ms`, or as the settings say."""
        now_ms = self._context.now_ms
        if retention_ms is None:
            retention_ms = self._context.settings.milliseconds("task.retention")
            self._sweep.add(now_ms + retention_ms, finish)
            return
        heapq.heappush(self._heap, (now_ms + retention_ms, finish))
        self._set(self._heap[0][0])

    def drop_next(self) -> None:
        """Drops the one whose time is over first, now."""
        first = self._sweep.first()
        if first is None or (self._heap and self._heap[0] < first):
            self._drop(heapq.heappop(self._heap)[1])
        else:
            self._sweep.drop_oldest()

    def forget_stale(self, finished: int, is_current: Callable[[Finish], bool]) -> None:
        """Tasks that were requeued leave entries behind: never more than `finished` and some."""
        if len(self) <= 2 * finished + STALE_AT_LEAST:
            return
        # A task may have finished several times at one instant: the first entry drops it.
        seen: set[Finish] = set()

        def wanted(finish: Finish) -> bool:
            if finish in seen or not is_current(finish):
                return False
            seen.add(finish)
            return True

        # In the order in which they are dropped; sorted, so a heap.
        self._heap = [item for item in sorted(self._heap) if wanted(item[1])]
        seen.clear()
        self._sweep.keep(wanted)

    # --- timers: when they are due is state, as in `Sweep`

    @property
    def due_ms(self) -> int:
        """When it looks at what the settings keep; 0 where it does not."""
        return self._sweep.due_ms

    @property
    def policy_due_ms(self) -> int:
        """The same of what policies keep."""
        return self._policy_due_ms

    def set_due(self, due_ms: int, policy_due_ms: int) -> None:
        """Sets both times as they were."""
        self._sweep.set_due(due_ms)
        if policy_due_ms:
            self._set(policy_due_ms)

    def _due(self, key: int | str) -> None:
        del key
        self._timer = None
        self._policy_due_ms = 0
        for _ in range(ITEMS_PER_SWEEP):
            if not self._heap or self._heap[0][0] > self._context.now_ms:
                break
            self._drop(heapq.heappop(self._heap)[1])
        if self._heap:
            # Later than now, so that a sweep cut short goes on in another apply.
            self._set(max(self._heap[0][0], self._context.now_ms + 1))

    def _set(self, expire_ms: int) -> None:
        due_ms = -(-expire_ms // STEP_MS) * STEP_MS
        if self._timer is not None:
            if due_ms >= self._policy_due_ms:
                return
            self._context.timers.cancel(self._timer)
        self._policy_due_ms = due_ms
        self._timer = self._context.timers.schedule(due_ms, POLICY_TIMER, 0)

    def _load_by_setting(self, record: bytes) -> None:
        self._sweep.restore(decode_finished(record))

    def _load_by_policy(self, record: bytes) -> None:
        # Sorted, so a heap.
        self._heap.extend(decode_finished(record))
