"""What a deep queue costs: time of a claim, memory, snapshot, and a start from it."""

from __future__ import annotations

import asyncio
import time

from gaia.task.v1 import task_pb2

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile, resident_bytes
from gaia_grpc.cli.benchmarks.snapshots import restart_follower, take_snapshot

PAYLOAD = b"x" * 100
BATCH = 1_000
SHALLOW = 1_000
PENDING = 100_000
MILLION = 1_000_000
CLAIMS = 300
IN_FLIGHT = 2
"""Batches that are enqueued at a time: the next is on its way while one is applied."""
TASK_TYPES = tuple(f"bench.depth-{number}" for number in range(5))
AFFINITIES = ("", "math", "writing")


async def pending(bed: Bed) -> list[Figure]:
    """100,000 pending tasks."""
    return await _deep(bed, bed.scaled(PENDING))


async def million(bed: Bed) -> list[Figure]:
    """1,000,000 pending tasks; takes some minutes."""
    return await _deep(bed, bed.scaled(MILLION))


async def _deep(bed: Bed, count: int) -> list[Figure]:
    await bed.client.cluster.update_settings({"task.max_pending": str(2 * MILLION)})
    before = [resident_bytes(pid) for pid in bed.pids]
    await _fill(bed, 0, min(SHALLOW, count))
    shallow = await _claims(bed)
    begin_s = time.perf_counter()
    await _fill(bed, min(SHALLOW, count), count)
    filled_s = time.perf_counter() - begin_s
    grown = [resident_bytes(pid) - then for pid, then in zip(bed.pids, before, strict=True)]
    largest = max(range(len(grown)), key=grown.__getitem__)
    log = await bed.kept_log_bytes(bed.cluster.node_ids[largest]) / count
    deep = await _claims(bed)
    named = f"{count:,} pending tasks"
    how = f"3 peers, fsync, {named}"
    return [
        _claim_figure(f"claim, p99, {SHALLOW:,} pending tasks", shallow),
        _claim_figure(f"claim, p99, {named}", deep),
        Figure(
            f"claim with {named}, beside that with {SHALLOW:,}",
            quantile(deep, 50) / quantile(shallow, 50),
            "x",
            "the two p50 above, divided",
            first=2.0,
            samples=len(deep),
        ),
        Figure(
            f"tasks enqueued a second up to {named}",
            (count - min(SHALLOW, count)) / filled_s,
            "/s",
            f"3 peers, fsync, batches of {BATCH:,}, {IN_FLIGHT} in flight, 100-byte payload",
            higher_is_better=True,
            samples=count,
        ),
        *_memory_figures(how, count, grown[largest] / count - len(PAYLOAD), log),
        *await _snapshot_figures(bed, how, count),
    ]


def _memory_figures(how: str, count: int, memory: float, log: float) -> list[Figure]:
    return [
        Figure(
            f"memory a pending task, beside its payload, of {count:,}",
            memory,
            "B",
            f"{how}; growth of the largest peer's resident set, what it keeps of the log included",
            first=1_500.0,
            samples=count,
        ),
        Figure(
            f"memory a pending task without the log, of {count:,}",
            memory - log,
            "B",
            f"the same without the {log:.0f} B a task of log entries that it keeps",
            first=700.0,
            samples=count,
        ),
    ]


async def _snapshot_figures(bed: Bed, how: str, count: int) -> list[Figure]:
    named = f"{count:,} pending tasks"
    leader = await bed.cluster.aio.leader()
    begin_s = time.perf_counter()
    taken = await take_snapshot(bed, leader)
    taken_s = time.perf_counter() - begin_s
    restart_s = await restart_follower(bed)
    return [
        Figure(f"snapshot of {named}", taken_s, "s", f"{how}; of the leader, written and synced"),
        Figure(
            f"bytes a task in the snapshot of {count:,}",
            taken.size_bytes / count,
            "B",
            f"{how}; the whole file of {taken.size_bytes:,} bytes, divided by the tasks",
        ),
        Figure(
            f"restart from the snapshot of {named}",
            restart_s,
            "s",
            f"{how}; a follower, from its start until it has applied what was committed",
        ),
    ]


def _claim_figure(name: str, durations: list[float]) -> Figure:
    return Figure(
        name,
        quantile(durations, 99) * 1e3,
        "ms",
        "3 peers, fsync, 1 client, one call at a time; each claim is released again",
        samples=len(durations),
        p50=quantile(durations, 50) * 1e3,
    )


async def _fill(bed: Bed, begin: int, end: int) -> None:
    """Enqueues the tasks with these numbers: mixed types, affinities and priorities."""
    starts = iter(range(begin, end, BATCH))

    async def enqueue() -> None:
        for start in starts:
            await bed.client.tasks.enqueue_batch(
                task_pb2.NewTask(
                    task_type=TASK_TYPES[number % len(TASK_TYPES)],
                    affinity=AFFINITIES[number % len(AFFINITIES)],
                    priority=number % 7,
                    payload=PAYLOAD,
                )
                for number in range(start, min(start + BATCH, end))
            )

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(enqueue())


async def _claims(bed: Bed) -> list[float]:
    """Seconds of each claim of one task, of any type."""
    answer = await bed.client.sessions.register(
        bed.name("worker"), specialty="math", max_concurrent_tasks=2, provider="bench"
    )
    durations: list[float] = []
    for _ in range(bed.scaled(CLAIMS)):
        begin_s = time.perf_counter()
        claimed = await bed.client.tasks.claim(answer.session.session_id)
        durations.append(time.perf_counter() - begin_s)
        for task in claimed.tasks:
            await bed.client.tasks.release(task)
    return durations
