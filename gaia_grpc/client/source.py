"""A source: one installation of an app, its numbering, and what it still has to deliver."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client.clock import Clock

Key = tuple[int, int]
"""(source_epoch, sequence): grows from batch to batch of a source."""


class Owner(Protocol):
    """Who counts what becomes of a batch's metrics; called on the loop."""

    def attempted(self, metrics: int) -> None:
        """The batch is sent for the first time."""

    def settled(self, message: metrics_pb2.MetricBatch, result: metrics_pb2.BatchResult) -> None:
        """The final outcome; called once."""

    def parked(self, metrics: int) -> None:
        """The batch is on disk only."""

    def loaded(self, metrics: int) -> None:
        """The batch is in memory again."""

    def unsaved(self, metrics: int) -> None:
        """The batch is in memory only; less than 0: it was, and has its outcome."""

    def lost(self, metrics: int) -> None:
        """The batch could not be written, or not be read again, and is nowhere."""


@dataclass(slots=True)
class SealedBatch:
    """A batch that changes no more, but for its stamp."""

    message: metrics_pb2.MetricBatch
    owner: Owner
    clock: Clock
    was_attempted: bool = False
    alone: bool = False
    """Sent in a call of its own, since a call that held it was refused as a whole."""

    @property
    def key(self) -> Key:
        """Its place in the source."""
        return self.message.source_epoch, self.message.sequence

    def stamp(self, outgoing: metrics_pb2.MetricBatch) -> None:
        """Sets `sent_at_ms` for an attempt.

        On a timeline it is that timeline's clock: a retry that stamped it anew would drive the
        clock ahead of other students' metrics which are still on their way.
        """
        if not self.message.timeline_id:
            outgoing.sent_at_ms = self.clock()


class Spooling(Protocol):
    """The batches of a source on disk; see `spool.Spool`."""

    @property
    def full(self) -> bool:
        """Whether there is no room for more; asked by any thread."""

    @property
    def backlog(self) -> int:
        """Batches that are on disk only."""

    def keep(self, batch: SealedBatch, *, in_memory: bool) -> None:
        """Writes the batch; where it is not in memory, `load` brings it back in its turn."""

    def done(self, key: Key) -> None:
        """Everything up to `key` has its outcome."""

    async def load(self) -> list[SealedBatch]:
        """The next batches of the backlog, in order; may be none."""

    async def close(self) -> None:
        """Writes what is left and lets other processes have the directory."""


@dataclass(slots=True)
class Source:
    """One sender: its identity, its numbering and what it still has to deliver, in order."""

    source_id: str
    source_epoch: int
    spool: Spooling | None = None
    max_queued: int = 10_000
    """Metrics beyond which further batches stay on disk only, where there is a spool."""
    next_sequence: int = 1
    queue: deque[SealedBatch] = field(default_factory=deque)
    queued: int = 0
    """Metrics in `queue`."""
    in_flight: int = 0
    """How many batches at the head of `queue` are in a call."""
    not_before: float = 0.0
    """Loop time before which nothing of it is sent, after a failure."""
    loading: bool = False

    def add(self, batch: SealedBatch) -> None:
        """Numbers the batch and puts it at the end, in memory or on disk."""
        message = batch.message
        message.source_id = self.source_id
        message.source_epoch = self.source_epoch
        message.sequence = self.next_sequence
        self.next_sequence += 1
        if self.spool is None:
            self.push(batch)
            return
        # Behind a backlog everything goes to disk, or it would overtake what is there.
        in_memory = not (self.spool.backlog or self.loading or self.queued >= self.max_queued)
        self.spool.keep(batch, in_memory=in_memory)
        if in_memory:
            self.push(batch)

    def push(self, batch: SealedBatch) -> None:
        """Puts a numbered batch at the end of the queue in memory."""
        self.queue.append(batch)
        self.queued += len(batch.message.metrics)

    def pop(self) -> SealedBatch:
        """Takes the first batch away, whose outcome is known."""
        batch = self.queue.popleft()
        self.queued -= len(batch.message.metrics)
        if self.spool is not None:
            self.spool.done(batch.key)
        return batch

    def withdraw(self, owner: Owner) -> None:
        """Takes away the batches of `owner` that are not in a call."""
        batches = list(self.queue)
        kept = [
            batch
            for place, batch in enumerate(batches)
            if place < self.in_flight or batch.owner is not owner
        ]
        self.queue = deque(kept)
        self.queued = sum(len(batch.message.metrics) for batch in kept)

    @property
    def wants_load(self) -> bool:
        """Whether the queue has room for batches that are on disk."""
        return (
            self.spool is not None
            and self.spool.backlog > 0
            and not self.loading
            and self.queued <= self.max_queued // 2
        )
