"""What became of metrics, in numbers that always add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from gaia.metrics.v1 import metrics_pb2


@dataclass(slots=True)
class MetricsCounters:
    """Metrics by where they are. At every moment

    recorded + recovered
        == pending + spooled + acknowledged + late + rejected + sampled + dropped
    """

    recorded: int = 0
    """Calls of `record`."""
    recovered: int = 0
    """Found in the spool when it was opened: recorded by an earlier process."""
    sent: int = 0
    """In batches that were sent at least once; says nothing about their outcome."""
    acknowledged: int = 0
    """Stored in a window."""
    late: int = 0
    """Stored in the history only, because their window had passed."""
    rejected: int = 0
    """Refused by the cluster, alone or with their batch; told to it as gap marks."""
    sampled: int = 0
    """Left out by a peer under pressure, where the school allows it; the window counts them."""
    dropped: int = 0
    """Given up here: the buffer was full (told as gap marks), or closed with no spool to keep
    them. An attempt that was cut short by the close may have arrived."""
    spooled: int = 0
    """On disk only, without an outcome yet; after the close, until the next start."""
    batches: int = 0
    """Batches sealed."""
    duplicates: int = 0
    """Batches of which an earlier attempt had arrived already."""
    pending: int = 0
    """In memory, without an outcome yet."""
    gaps_told: int = 0
    """Missing metrics that the cluster was told of, in batches that it took."""

    @property
    def adds_up(self) -> bool:
        """Whether nothing is counted twice or nowhere: true at every moment."""
        outcomes = self.acknowledged + self.late + self.rejected + self.sampled + self.dropped
        return self.recorded + self.recovered == self.pending + self.spooled + outcomes

    def copy(self) -> Self:
        """The counts of this moment."""
        return type(self)(*(getattr(self, part.name) for part in fields(self)))

    def add(self, other: MetricsCounters) -> None:
        """Adds the counts of `other`."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))

    @classmethod
    def total(cls, parts: Iterable[MetricsCounters]) -> Self:
        """The counts of all `parts` together."""
        total = cls()
        for part in parts:
            total.add(part)
        return total

    def settle(self, metrics: int, result: metrics_pb2.BatchResult) -> None:
        """Counts the outcome of a batch of `metrics` metrics; they are in no other count yet.

        What the answer names neither as late nor as rejected nor as accepted was sampled: a repeat
        is answered with the counts of its first time, also by a peer that samples nothing.
        """
        if result.status == metrics_pb2.BATCH_STATUS_REFUSED:
            self.rejected += metrics
            return
        if result.status == metrics_pb2.BATCH_STATUS_DUPLICATE:
            self.duplicates += 1
        left = metrics
        rejected = min(len(result.rejected), left)
        left -= rejected
        late = min(result.late_count, left)
        left -= late
        accepted = min(result.accepted_count, left)
        self.rejected += rejected
        self.late += late
        self.acknowledged += accepted
        self.sampled += left - accepted
