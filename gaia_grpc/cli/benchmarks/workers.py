"""Workers that share a queue, and clients that share locks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile

PAYLOAD = b"x" * 100
COUNTS = (1, 10, 100)
AHEAD = 4
"""Tasks that are kept pending for each worker."""
WAIT_S = 1.0
SECONDS = 4.0


@dataclass(slots=True)
class _Run:
    """What the workers of one run have done."""

    until_s: float = 0.0
    claims: list[float] = field(default_factory=list)
    cycles: list[float] = field(default_factory=list)
    enqueued: int = 0


async def workers(bed: Bed) -> list[Figure]:
    """1, 10 and 100 workers, each with a session of its own, in one client process."""
    figures: list[Figure] = []
    for count in COUNTS:
        figures += await _workers(bed, count)
    return figures


async def _workers(bed: Bed, count: int) -> list[Figure]:
    task_type = bed.name("workers")
    names = [bed.name("worker") for _ in range(count)]
    answers = [await bed.client.sessions.register(name, provider="bench") for name in names]
    run = _Run()
    took_s = 0.0

    async def work() -> int:
        nonlocal took_s
        begin_s = time.perf_counter()
        run.until_s = begin_s + bed.seconds(SECONDS)
        async with asyncio.TaskGroup() as group:
            group.create_task(_feed(bed, run, task_type, AHEAD * count))
            for answer in answers:
                group.create_task(_work(bed, run, answer.session.session_id, task_type))
        took_s = time.perf_counter() - begin_s
        return len(run.cycles)

    cost = await bed.cost(work)
    named = f"{count} worker{'s' if count > 1 else ''}"
    how = (
        "3 peers, fsync, 1 client process; each worker claims one task a call and completes it, "
        f"tasks are enqueued in batches, {AHEAD} a worker ahead"
    )
    return [
        Figure(
            f"task cycles a second, {named}",
            len(run.cycles) / took_s,
            "/s",
            f"{how}; a worker's cycle p50 {quantile(run.cycles, 50) * 1e3:.1f}, "
            f"p99 {quantile(run.cycles, 99) * 1e3:.1f} ms",
            guide=1_000.0,
            higher_is_better=True,
            samples=len(run.cycles),
            operations=cost.operations,
            peer_cpu_us=cost.peer_cpu_us,
            client_cpu_us=cost.client_cpu_us,
            log_bytes=cost.log_bytes,
            peak_peer_mb=cost.peak_peer_mb,
        ),
        Figure(
            f"claim, p99, {named}",
            quantile(run.claims, 99) * 1e3,
            "ms",
            f"{how}; all workers claim at the same time",
            samples=len(run.claims),
            p50=quantile(run.claims, 50) * 1e3,
        ),
    ]


async def _feed(bed: Bed, run: _Run, task_type: str, ahead: int) -> None:
    """Keeps the queue from running dry."""
    while time.perf_counter() < run.until_s:
        missing = ahead + len(run.cycles) - run.enqueued
        if missing < (ahead + 1) // 2:
            await asyncio.sleep(0.001)
            continue
        await bed.client.tasks.enqueue_batch([task_type] * missing)
        run.enqueued += missing


async def _work(bed: Bed, run: _Run, session_id: str, task_type: str) -> None:
    while time.perf_counter() < run.until_s:
        begin_s = time.perf_counter()
        claimed = await bed.client.tasks.claim(session_id, wait=WAIT_S, task_types=[task_type])
        now_s = time.perf_counter()
        for task in claimed.tasks:
            run.claims.append(now_s - begin_s)
            await bed.client.tasks.complete(task, b"done")
            run.cycles.append(time.perf_counter() - begin_s)


async def locks(bed: Bed) -> list[Figure]:
    """Take a free lock and give it back, one call at a time."""
    acquired: list[float] = []
    released: list[float] = []
    names = [bed.name("lock") for _ in range(10)]

    async def work() -> int:
        for number in range(bed.scaled(400)):
            begin_s = time.perf_counter()
            answer = await bed.client.locks.acquire(names[number % len(names)], owner="bench")
            acquired.append(time.perf_counter() - begin_s)
            begin_s = time.perf_counter()
            await bed.client.locks.release(answer.lock)
            released.append(time.perf_counter() - begin_s)
        return len(acquired)

    cost = await bed.cost(work)
    how = "3 peers, fsync, 1 client, one call at a time, 10 names, nobody else wants them"
    return [
        Figure(
            f"{name} a lock, p99, idle",
            quantile(durations, 99) * 1e3,
            "ms",
            how,
            first=10.0,
            samples=len(durations),
            p50=quantile(durations, 50) * 1e3,
            operations=cost.operations if name == "acquire" else 0,
            peer_cpu_us=cost.peer_cpu_us,
            client_cpu_us=cost.client_cpu_us,
            log_bytes=cost.log_bytes,
            peak_peer_mb=cost.peak_peer_mb,
        )
        for name, durations in (("acquire", acquired), ("release", released))
    ]
