"""Ageing: a task gains one level of priority each interval that it waits.

Log time is counted in intervals (`task.ageing_interval`). A task keeps the number of the interval
in which it first could be claimed, its epoch; retries leave it. At any time its priority has grown
by (interval now - epoch), and since the first is the same for all tasks, priority - epoch orders
them: a rank that never changes, so no task moves in the queue while it ages.

The bound: a task of priority p goes before each task of priority q > p that could first be claimed
(q - p + 1) intervals later or more. Their epochs differ by at least q - p + 1 then, so its rank is
the higher one. Tasks of one interval go by their priorities alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gaia.command.v1 import snapshot_pb2

from gaia_grpc.state.context import Context
from gaia_grpc.state.snapshot import Part, Section

AGEING_LEVEL: Final = 3
NEVER_CLAIMABLE: Final = -1
"""The epoch of a task that could not be claimed yet."""


class AgeClock:
    """Numbers the intervals. A change of the setting goes on from the number that it finds."""

    __slots__ = ("_base_epoch", "_base_ms", "_context", "_interval_ms", "_started", "parts")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._base_epoch = 0
        self._base_ms = 0
        self._interval_ms = 0
        self._started = False
        self.parts: Sequence[Part] = (Section("task_age", self._freeze, self._load),)

    def epoch(self) -> int:
        """The interval now; only for apply. 0 below the feature level that has ageing."""
        self.follow()
        return self.epoch_at(self._context.now_ms)

    def epoch_at(self, now_ms: int) -> int:
        """The interval at a log time that is not before the last change."""
        if not self._interval_ms:
            return self._base_epoch
        return self._base_epoch + (now_ms - self._base_ms) // self._interval_ms

    def first_epoch(self) -> int:
        """The epoch of a task that can't be claimed yet.

        Where nothing ages all have the same, also those that are still there when ageing begins.
        """
        return NEVER_CLAIMABLE if self._context.feature_level >= AGEING_LEVEL else 0

    def follow(self) -> None:
        """Counts by the setting as it is now."""
        context = self._context
        if context.feature_level < AGEING_LEVEL:
            return
        interval_ms = context.settings.milliseconds("task.ageing_interval")
        if self._started and interval_ms == self._interval_ms:
            return
        self._base_epoch = self.epoch_at(context.now_ms)
        self._base_ms = context.now_ms
        self._interval_ms = interval_ms
        self._started = True

    def _freeze(self) -> Iterator[bytes]:
        if not self._started:
            return iter(())
        record = snapshot_pb2.TaskAge(
            base_epoch=self._base_epoch, base_ms=self._base_ms, interval_ms=self._interval_ms
        )
        return iter((record.SerializeToString(deterministic=True),))

    def _load(self, record: bytes) -> None:
        age = snapshot_pb2.TaskAge.FromString(record)
        self._base_epoch = age.base_epoch
        self._base_ms = age.base_ms
        self._interval_ms = age.interval_ms
        self._started = True
