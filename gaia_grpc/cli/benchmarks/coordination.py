"""Sessions and replication."""

from __future__ import annotations

import asyncio
import time

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile


async def register(bed: Bed) -> list[Figure]:
    """Register a session, one call at a time on an idle cluster."""
    durations: list[float] = []

    async def work() -> int:
        for _ in range(bed.scaled(300)):
            name = bed.name("session")
            begin_s = time.perf_counter()
            await bed.client.sessions.register(name, provider="bench")
            durations.append(time.perf_counter() - begin_s)
        return len(durations)

    cost = await bed.cost(work)
    return [
        Figure(
            "register a session, p99, idle",
            quantile(durations, 99) * 1e3,
            "ms",
            "3 peers, fsync, 1 client, one call at a time",
            guide=100.0,
            first=20.0,
            samples=len(durations),
            p50=quantile(durations, 50) * 1e3,
            operations=cost.operations,
            peer_cpu_us=cost.peer_cpu_us,
            client_cpu_us=cost.client_cpu_us,
            log_bytes=cost.log_bytes,
            peak_peer_mb=cost.peak_peer_mb,
        )
    ]


async def replicate(bed: Bed) -> list[Figure]:
    """From the call of a write until every peer has applied it."""
    durations: list[float] = []
    for _ in range(bed.scaled(150)):
        begin_s = time.perf_counter()
        answer = await bed.client.tasks.enqueue("bench.replicate")
        await asyncio.gather(
            *(_applied(bed, address, answer.applied_index) for address in bed.cluster.addresses)
        )
        durations.append(time.perf_counter() - begin_s)
    return [
        Figure(
            "an entry applied on all three peers, p99",
            quantile(durations, 99) * 1e3,
            "ms",
            "3 peers, fsync, from the call to GetStatus of each peer, which adds some ms",
            guide=500.0,
            first=50.0,
            samples=len(durations),
            p50=quantile(durations, 50) * 1e3,
        )
    ]


async def _applied(bed: Bed, address: str, index: int) -> None:
    while True:
        if (await bed.client.cluster.status(address=address)).applied_index >= index:
            return
