"""The test bed: a fresh three-peer cluster, a client, and what one operation costs."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.cli.benchmarks.figures import cpu_seconds, peak_resident_mb
from gaia_grpc.client import Client
from gaia_grpc.testing.cluster import Cluster

ENOUGH_LOG_ENTRIES = 20_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What the work between `begin` and `end` took, divided by its operations."""

    operations: int
    peer_cpu_us: float
    client_cpu_us: float
    log_bytes: float
    peak_peer_mb: float


@dataclass(slots=True)
class Bed:
    """A running cluster and the SDK's client of it."""

    cluster: Cluster
    client: Client
    quick: bool = False
    """Far smaller, for a test of the cases themselves."""
    names: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def scaled(self, count: int) -> int:
        """How often to do something."""
        return max(2, count // 50) if self.quick else count

    def seconds(self, seconds: float) -> float:
        """How long to do something."""
        return 0.2 if self.quick else seconds

    def name(self, word: str) -> str:
        """A name that was not used before."""
        return f"bench-{word}-{next(self.names)}"

    @property
    def pids(self) -> list[int]:
        """Process ids of the peers."""
        return [self.cluster.peer(node_id).pid for node_id in self.cluster.node_ids]

    async def cost(self, work: Callable[[], Awaitable[int]]) -> Cost:
        """Does `work`, which returns how many operations it did, and weighs it."""
        begin_index = (await self.client.cluster.status()).commit_index
        peer_s = sum(cpu_seconds(pid) for pid in self.pids)
        client_s = time.process_time()
        operations = max(1, await work())
        client_s = time.process_time() - client_s
        peer_s = sum(cpu_seconds(pid) for pid in self.pids) - peer_s
        return Cost(
            operations,
            peer_s / operations * 1e6,
            client_s / operations * 1e6,
            await self._log_bytes(begin_index) / operations,
            peak_resident_mb(self.pids),
        )

    async def _log_bytes(self, after_index: int) -> int:
        """Bytes of the log entries after `after_index`, scaled up from a part of a long log."""
        address = self.client.addresses[0]
        status = await self.client.cluster.status(address=address)
        count = status.commit_index - after_index
        if count <= 0:
            return 0
        stub = self.client.peer(address).cluster
        request = cluster_pb2.ListLogEntriesRequest(
            start_index=after_index + 1, page_size=min(count, 10_000)
        )
        page = await stub.ListLogEntries(request, timeout=30.0)
        size = sum(entry.size_bytes for entry in page.entries)
        return round(size * count / max(1, len(page.entries)))

    async def kept_log_bytes(self, node_id: str) -> int:
        """Bytes of the log entries that a peer keeps in memory."""
        address = self.cluster.address(node_id)
        status = await self.client.cluster.status(address=address)
        stub = self.client.peer(address).cluster
        size_bytes, start = 0, max(1, status.first_log_index)
        while start <= status.last_log_index:
            request = cluster_pb2.ListLogEntriesRequest(start_index=start, page_size=10_000)
            page = await stub.ListLogEntries(request, timeout=30.0)
            if not page.entries:
                break
            size_bytes += sum(entry.size_bytes for entry in page.entries)
            start = page.entries[-1].index + 1
        return size_bytes


@asynccontextmanager
async def make_bed(*, quick: bool) -> AsyncIterator[Bed]:
    """A bed with a cluster of its own, founded for it and removed with it."""
    async with (
        Cluster(3) as cluster,
        Client.connect(cluster.addresses, timeout=30.0) as client,
    ):
        yield Bed(cluster, client, quick)
