"""What ever happened in the queue, counted."""

from __future__ import annotations

from gaia.command.v1 import snapshot_pb2

NAMES = ("enqueued", "claims", "completed", "failed_attempts", "dead_letters", "purged")


class TaskTotals:
    """Numbers that only grow. The last three count from the feature level on that has them."""

    __slots__ = NAMES

    def __init__(self) -> None:
        self.enqueued = 0
        self.claims = 0
        self.completed = 0
        self.failed_attempts = 0
        self.dead_letters = 0
        self.purged = 0

    def by_field(self) -> dict[str, int]:
        """By the names that a record and an answer have for them."""
        return {f"{name}_total": getattr(self, name) for name in NAMES}

    def restore(self, counters: snapshot_pb2.TaskCounters) -> None:
        """As they are in a record."""
        for name in NAMES:
            setattr(self, name, getattr(counters, f"{name}_total"))
