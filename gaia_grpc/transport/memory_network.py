"""The in-memory twin of a network: it moves envelopes between named peers, with faults.

All chance comes from one `random.Random`, and messages due at the same tick arrive in the order in
which they were sent, so a run is a function of its seed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from gaia_grpc.raft.messages import Envelope, SnapshotRequest
from gaia_grpc.raft.types import NodeId


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """Rates from 0 to 1, delays in ticks. Unequal delays reorder by themselves."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_ticks_min: int = 0
    delay_ticks_max: int = 0
    snapshot_loss: float = 0.0
    """Instead of `loss`: of a whole snapshot sent as one message, or of one chunk of a transfer."""
    snapshot_duplicate: float = 0.0
    snapshot_delay_ticks_min: int = 0
    snapshot_delay_ticks_max: int = 0
    """Instead of the other delay: a snapshot takes longer than a message, and is overtaken."""


class MemoryNetwork:
    """Links between named peers: each direction of each pair can be cut on its own."""

    def __init__(self, random: Random, faults: NetworkFaults | None = None) -> None:
        self._random = random
        self.faults = faults or NetworkFaults()
        self.now_ticks = 0
        self.counts: Counter[str] = Counter()
        self._cuts: dict[tuple[NodeId, NodeId], None] = {}
        self._queue: list[tuple[int, int, Envelope]] = []
        self._sent = 0
        self._snapshot_ends: list[tuple[Envelope, bool]] = []

    def cut(self, from_node: NodeId, to_node: NodeId) -> None:
        """Nothing gets from one to the other any more, not even what is under way."""
        self._cuts[(from_node, to_node)] = None

    def isolate(self, node: NodeId, others: Iterable[NodeId]) -> None:
        """Cuts both directions between `node` and the others."""
        for other in others:
            if other != node:
                self.cut(node, other)
                self.cut(other, node)

    def heal(self) -> None:
        """Removes all cuts."""
        self._cuts.clear()

    def connected(self, from_node: NodeId, to_node: NodeId) -> bool:
        """Whether that direction is open."""
        return (from_node, to_node) not in self._cuts

    def send(self, envelope: Envelope) -> None:
        """Takes a message in; it arrives never, once or twice."""
        self.counts["sent"] += 1
        is_snapshot = isinstance(envelope.payload, SnapshotRequest)
        delays = self.draw_delays(is_snapshot=is_snapshot)
        if not delays and is_snapshot:
            self._snapshot_ends.append((envelope, False))
        for delay_ticks in delays:
            self._sent += 1
            heapq.heappush(self._queue, (self.now_ticks + delay_ticks, self._sent, envelope))

    def draw_delays(self, *, is_snapshot: bool) -> list[int]:
        """The delay of each copy of a message, in ticks; none where it is lost."""
        faults = self.faults
        loss, duplicate = faults.loss, faults.duplicate
        delay_ticks_min, delay_ticks_max = faults.delay_ticks_min, faults.delay_ticks_max
        if is_snapshot:
            loss, duplicate = faults.snapshot_loss, faults.snapshot_duplicate
            delay_ticks_min = faults.snapshot_delay_ticks_min
            delay_ticks_max = faults.snapshot_delay_ticks_max
        if loss and self._random.random() < loss:
            self.counts["lost"] += 1
            return []
        copies = 1
        if duplicate and self._random.random() < duplicate:
            self.counts["duplicated"] += 1
            copies = 2
        if delay_ticks_max <= delay_ticks_min:
            return [delay_ticks_min] * copies
        return [self._random.randint(delay_ticks_min, delay_ticks_max) for _ in range(copies)]

    def take_snapshot_ends(self) -> list[tuple[Envelope, bool]]:
        """How the snapshots ended that were sent as one message, and whether they arrived.

        What `InboundHandler.on_snapshot_sent` is to a driver; a duplicate has two ends.
        """
        ends, self._snapshot_ends = self._snapshot_ends, []
        return ends

    def take_due(self) -> list[Envelope]:
        """What arrives by now, over links that are open now."""
        due: list[Envelope] = []
        while self._queue and self._queue[0][0] <= self.now_ticks:
            _, _, envelope = heapq.heappop(self._queue)
            connected = self.connected(envelope.from_node, envelope.to_node)
            if isinstance(envelope.payload, SnapshotRequest):
                self._snapshot_ends.append((envelope, connected))
            if connected:
                due.append(envelope)
            else:
                self.counts["cut"] += 1
        return due

    @property
    def has_due(self) -> bool:
        """Whether `take_due` would return or drop anything."""
        return bool(self._queue) and self._queue[0][0] <= self.now_ticks

    def advance(self, ticks: int = 1) -> None:
        """Lets time pass."""
        self.now_ticks += ticks
