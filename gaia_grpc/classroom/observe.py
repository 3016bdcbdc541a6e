"""What a running class shows of itself, and the figures at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.client import Client

MONITOR_INTERVAL_S = 0.2
STATUS_TIMEOUT_S = 1.0


@dataclass(slots=True)
class Progress:
    """The state of a class while it runs; read by whoever shows it."""

    length_ms: int
    metrics_planned: int
    tasks_planned: int
    phase: str = "starting"
    class_ms: int = 0
    metrics_recorded: int = 0
    metrics_acknowledged: int = 0
    tasks_enqueued: int = 0
    tasks_completed: int = 0
    leader: str = ""
    term: int = 0
    peers_up: int = 0
    peers: int = 0
    failovers: int = 0
    events: list[str] = field(default_factory=list)
    """What happened, oldest first: alerts, elections, peers that went away."""

    def tell(self, text: str) -> None:
        """Adds one line, with the time in class."""
        seconds = self.class_ms // 1_000
        self.events.append(f"{seconds // 60}:{seconds % 60:02d}  {text}")


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Nearest-rank quantiles of a sample, in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    def text(self) -> str:
        """For people; `-` where nothing was measured."""
        if not self.count:
            return "-"
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms ({self.count} measured)"


def quantiles(seconds: Sequence[float]) -> Quantiles:
    """Quantiles of durations in seconds; zeros where there are none."""
    if not seconds:
        return Quantiles(0, 0.0, 0.0, 0.0)
    ordered = sorted(seconds)

    def rank_ms(percent: int) -> float:
        place = max(0, -(-percent * len(ordered) // 100) - 1)
        return ordered[place] * 1_000.0

    return Quantiles(len(ordered), rank_ms(50), rank_ms(99), ordered[-1] * 1_000.0)


class LeaderMonitor:
    """Watches who leads while the class runs, and counts how often that changed."""

    def __init__(self, client: Client, progress: Progress) -> None:
        self._client = client
        self._progress = progress
        self._seen: tuple[int, str] | None = None
        self._down: set[str] = set()

    async def run(self) -> None:
        """Looks every MONITOR_INTERVAL_S until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(MONITOR_INTERVAL_S)

    async def look(self) -> None:
        """Asks every peer once."""
        answers = await self._client.cluster.statuses(timeout=STATUS_TIMEOUT_S)
        progress = self._progress
        progress.peers = len(answers)
        living = [
            answer
            for answer in answers.values()
            if isinstance(answer, cluster_pb2.GetStatusResponse)
        ]
        progress.peers_up = len(living)
        for address in sorted(answers):
            down = isinstance(answers[address], Exception)
            if down and address not in self._down:
                self._down.add(address)
                progress.tell(f"peer {address} is down")
            elif not down and address in self._down:
                self._down.discard(address)
                progress.tell(f"peer {address} is back")
        leaders = [
            answer
            for answer in living
            if answer.role == cluster_pb2.PEER_ROLE_LEADER and answer.writable
        ]
        if not leaders:
            progress.leader = ""
            return
        leader = max(leaders, key=lambda answer: answer.term)
        now = (leader.term, leader.node_id)
        if self._seen is not None and now != self._seen:
            progress.failovers += 1
            progress.tell(f"{leader.node_id} leads now, term {leader.term}")
        self._seen = now
        progress.leader, progress.term = leader.node_id, leader.term
