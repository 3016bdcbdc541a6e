"""The embedded Raft as a log for service tests: one peer with its disk, on a clock set by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import query_pb2

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.node.api import Applied, LogEntrySummary, NodeStatus, ReadConsistency
from gaia_grpc.node.clock import MAX_ADVANCE_MS
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.state.machine import StateMachine
from tests.support.fake_node import START_MS
from tests.support.handled_log import HandledLog
from tests.support.local_cluster import LocalCluster, engine_of, running, until

ALONE = ConsensusConfig(
    tick_ms=2,
    heartbeat_interval_ms=4,
    election_timeout_min_ms=10,
    election_timeout_max_ms=20,
)
"""Nobody's vote is waited for."""
READ_TIMEOUT_S = 5.0


class HandClock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_ms = 0

    def monotonic_ns(self) -> int:
        """See `Clock`."""
        return self.now_ms * 1_000_000

    def wall_ms(self) -> int:
        """See `Clock`."""
        return START_MS + self.now_ms


class EmbeddedNode(HandledLog):
    """A `NodeDriver` in the hands of a test."""

    def __init__(self, driver: NodeDriver, clock: HandClock) -> None:
        super().__init__()
        self.driver = driver
        self._clock = clock
        self._began_ms = self.machine.elapsed_ms - clock.now_ms

    @property
    def machine(self) -> StateMachine:
        """See `HandledLog`."""
        return engine_of(self.driver).applier.machine

    async def let_pass(self, milliseconds: int) -> None:
        """See `HandledLog`. In steps that a leader takes for time in which it led."""
        until_ms = self._clock.now_ms + milliseconds
        query = query_pb2.Query(get_settings=cluster_pb2.GetSettingsRequest()).SerializeToString()
        while self._clock.now_ms < until_ms:
            self._clock.now_ms = min(self._clock.now_ms + MAX_ADVANCE_MS, until_ms)
            # For a linearizable read the leader looks at its clock.
            await self._read(query, ReadConsistency.LINEARIZABLE, READ_TIMEOUT_S)
        now_ms = self._began_ms + self._clock.now_ms

        def nothing_is_due() -> bool:
            due_ms = self.machine.next_due_ms()
            return due_ms is None or due_ms > now_ms

        await until(nothing_is_due)

    def topic_version(self, topic: str) -> int:
        """See `HandledLog`."""
        return self.driver.topic_version(topic)

    async def log_entries(self, first: int, count: int) -> tuple[LogEntrySummary, ...]:
        """See `HandledLog`."""
        return await self.driver.log_entries(first, count)

    async def _propose(self, command: bytes, timeout_s: float) -> Applied:
        return await self.driver.propose(command, timeout_s=timeout_s)

    async def _read(self, query: bytes, consistency: ReadConsistency, timeout_s: float) -> bytes:
        return await self.driver.read(query, consistency=consistency, timeout_s=timeout_s)

    async def _wait_topic(self, topic: str, version: int, timeout_s: float) -> int:
        return await self.driver.wait_topic(topic, version, timeout_s=timeout_s)

    def _status(self, at_index: int) -> NodeStatus:
        return self.driver.status(at_index)

    async def _wait_status(self, timeout_s: float) -> object:
        return await self.driver.wait_status(self.driver.status(), timeout_s=timeout_s)


@asynccontextmanager
async def embedded_node(
    root: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[EmbeddedNode]:
    """One peer that leads itself, and accepts writes."""
    clock = HandClock()
    cluster = LocalCluster(root, ("n1",))
    cluster.consensus = ALONE
    cluster.settings = tuple(sorted((settings or {}).items()))
    cluster.clocks["n1"] = clock
    async with running(cluster):
        await cluster.leader()
        yield EmbeddedNode(cluster.drivers["n1"], clock)
