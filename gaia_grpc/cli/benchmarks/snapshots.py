"""What a snapshot of a large state costs those who write meanwhile, and who starts from it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile

TASKS = 100_000
BATCH = 1_000
TIMEOUT_S = 120.0
TASK_TYPE = "bench.snapshot"


async def snapshot(bed: Bed) -> list[Figure]:
    """100,000 pending tasks; the leader takes a snapshot while a client goes on writing."""
    count = bed.scaled(TASKS)
    for _ in range(0, count, BATCH):
        await bed.client.tasks.enqueue_batch([TASK_TYPE] * min(BATCH, count))
    idle = await _writes(bed, until=asyncio.create_task(asyncio.sleep(bed.seconds(2.0))))
    leader = await bed.cluster.aio.leader()
    begin_s = time.perf_counter()
    taking = asyncio.create_task(take_snapshot(bed, leader))
    busy = await _writes(bed, until=taking)
    took_s = time.perf_counter() - begin_s
    taken = await taking
    restart_s = await restart_follower(bed)
    how = f"3 peers, fsync, {count:,} pending tasks, 1 client, one call at a time"
    return [
        Figure(
            "longest write while the leader takes a snapshot of 100,000 tasks",
            max(busy) * 1e3,
            "ms",
            f"{how}; without a snapshot p50 {quantile(idle, 50) * 1e3:.1f}, "
            f"worst {max(idle) * 1e3:.1f} ms",
            first=50.0,
            samples=len(busy),
            p50=quantile(busy, 50) * 1e3,
        ),
        Figure("taking that snapshot", took_s * 1e3, "ms", f"{how}; written and synced"),
        Figure(
            "bytes of that snapshot a task",
            taken.size_bytes / count,
            "B",
            "whole file, divided by the tasks",
        ),
        Figure(
            "a follower killed and started again from that snapshot",
            restart_s * 1e3,
            "ms",
            f"{how}; until it has applied what was committed at its start",
        ),
    ]


async def take_snapshot(bed: Bed, node_id: str) -> cluster_pb2.TakeSnapshotResponse:
    """Lets a peer take a snapshot now."""
    stub = bed.client.peer(bed.cluster.address(node_id)).cluster
    return await stub.TakeSnapshot(cluster_pb2.TakeSnapshotRequest(), timeout=TIMEOUT_S)


async def _writes(bed: Bed, until: asyncio.Task[Any]) -> list[float]:
    """Seconds of each write until `until` is done."""
    durations: list[float] = []
    while not until.done():
        begin_s = time.perf_counter()
        await bed.client.tasks.enqueue(TASK_TYPE)
        durations.append(time.perf_counter() - begin_s)
    return durations


async def restart_follower(bed: Bed) -> float:
    """Seconds from the start of a killed follower until it is level with the others."""
    follower = await bed.cluster.aio.follower()
    await take_snapshot(bed, follower)
    await bed.cluster.aio.kill(follower)
    begin_s = time.perf_counter()
    await bed.cluster.aio.restart(follower)
    await bed.cluster.aio.wait_applied_equal(TIMEOUT_S)
    return time.perf_counter() - begin_s
