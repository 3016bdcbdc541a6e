"""The task queue."""

from __future__ import annotations

import asyncio
import time

from gaia.task.v1 import task_pb2

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile

PAYLOAD = b"x" * 100
BATCH = 500
IN_FLIGHT = 64


async def _session(bed: Bed, max_concurrent: int = 1_000) -> str:
    answer = await bed.client.sessions.register(
        bed.name("worker"), max_concurrent_tasks=max_concurrent, provider="bench"
    )
    return answer.session.session_id


async def idle(bed: Bed) -> list[Figure]:
    """Enqueue and claim, one call at a time on an idle cluster."""
    task_type = bed.name("idle")
    session_id = await _session(bed)
    enqueues: list[float] = []
    claims: list[float] = []
    # The session may have failed for want of heartbeats before the last round: keep it short.
    for _ in range(bed.scaled(400)):
        begin_s = time.perf_counter()
        await bed.client.tasks.enqueue(task_type, PAYLOAD)
        enqueues.append(time.perf_counter() - begin_s)
        begin_s = time.perf_counter()
        claimed = await bed.client.tasks.claim(session_id, task_types=[task_type])
        claims.append(time.perf_counter() - begin_s)
        for task in claimed.tasks:
            await bed.client.tasks.complete(task)
    how = "3 peers, fsync, 1 client, one call at a time, 100-byte payload"
    return [
        Figure(
            f"{name}, p99, idle",
            quantile(values, 99) * 1e3,
            "ms",
            how,
            guide=guide,
            first=guide,
            samples=len(values),
            p50=quantile(values, 50) * 1e3,
        )
        for name, values, guide in (("enqueue", enqueues, 10.0), ("claim", claims, 5.0))
    ]


async def _cycle(bed: Bed, session_id: str, task_type: str) -> None:
    await bed.client.tasks.enqueue(task_type, PAYLOAD)
    claimed = await bed.client.tasks.claim(session_id, task_types=[task_type])
    for task in claimed.tasks:
        await bed.client.tasks.complete(task, b"done")


async def single(bed: Bed) -> list[Figure]:
    """Whole cycles by one client, one call at a time."""
    return [await _cycles(bed, 1, "1 client, one call at a time", guide=1_000.0, first=150.0)]


async def in_flight(bed: Bed) -> list[Figure]:
    """Whole cycles with many calls in flight."""
    how = f"1 client, {IN_FLIGHT} cycles in flight"
    return [await _cycles(bed, IN_FLIGHT, how, guide=1_000.0, first=None)]


async def _cycles(bed: Bed, clients: int, how: str, *, guide: float, first: float | None) -> Figure:
    task_type = bed.name("cycle")
    session_id = await _session(bed)
    took_s = 0.0
    done = 0

    async def work() -> int:
        nonlocal took_s, done
        begin_s = time.perf_counter()
        until_s = begin_s + bed.seconds(4.0)

        async def one() -> None:
            nonlocal done
            while time.perf_counter() < until_s:
                await _cycle(bed, session_id, task_type)
                done += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one())
        took_s = time.perf_counter() - begin_s
        return done

    cost = await bed.cost(work)
    return Figure(
        f"task cycles a second, {how}",
        done / took_s,
        "/s",
        "3 peers, fsync; enqueue, claim and complete are a call each",
        guide=guide,
        first=first,
        higher_is_better=True,
        samples=done,
        operations=cost.operations,
        peer_cpu_us=cost.peer_cpu_us,
        client_cpu_us=cost.client_cpu_us,
        log_bytes=cost.log_bytes,
        peak_peer_mb=cost.peak_peer_mb,
    )


async def batched(bed: Bed) -> list[Figure]:
    """Whole cycles in batches."""
    task_type = bed.name("batch")
    session_id = await _session(bed)
    batch = 20 if bed.quick else BATCH
    tasks = [task_pb2.NewTask(task_type=task_type, payload=PAYLOAD) for _ in range(batch)]
    took_s = 0.0
    done = 0

    async def work() -> int:
        nonlocal took_s, done
        begin_s = time.perf_counter()
        until_s = begin_s + bed.seconds(4.0)
        while time.perf_counter() < until_s:
            await bed.client.tasks.enqueue_batch(tasks)
            claimed = await bed.client.tasks.claim(
                session_id, max_tasks=batch, task_types=[task_type]
            )
            answer = await bed.client.tasks.complete_batch(
                session_id,
                [
                    task_pb2.Completion(
                        task_id=task.task_id, claim_token=task.claim_token, result=b"done"
                    )
                    for task in claimed.tasks
                ],
            )
            done += sum(outcome.completed for outcome in answer.outcomes)
        took_s = time.perf_counter() - begin_s
        return done

    cost = await bed.cost(work)
    return [
        Figure(
            f"task cycles a second, batches of {batch}",
            done / took_s,
            "/s",
            "3 peers, fsync, 1 client, one call at a time",
            guide=1_000.0,
            first=5_000.0,
            higher_is_better=True,
            samples=done,
            operations=cost.operations,
            peer_cpu_us=cost.peer_cpu_us,
            client_cpu_us=cost.client_cpu_us,
            log_bytes=cost.log_bytes,
            peak_peer_mb=cost.peak_peer_mb,
        )
    ]
