"""Workers as processes of their own, on real peers: nothing lost, nothing twice; and a script."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from asyncio.subprocess import Process
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import BlockingJob, Client, Job, Worker
from gaia_grpc.errors import StaleClaimError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import eventually, live_session, program, report

pytestmark = pytest.mark.embedded_only

COMPLETED = task_pb2.TASK_EVENT_KIND_COMPLETED
CLAIMED = task_pb2.TASK_EVENT_KIND_CLAIMED

IS_LONG = bool(os.environ.get("GAIA_LONG"))
"""Leaders die for a minute, as `make chaos` has it, and not for a moment."""
WORKERS = 10
KILLS, KILL_EVERY_S = (12, 5.0) if IS_LONG else (3, 4.0)
BATCH = 10
CLAIM_S = 3
"""Longer than any handler takes, so that a claim that ends was abandoned or lost."""


async def ended(process: Process, *, complaints: bool = False) -> str:
    """What it printed, after it ended well and without complaint, unless it has reason to."""
    async with asyncio.timeout(40):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert complaints or not errors, errors.decode()
    return output.decode()


@pytest.mark.timeout(240 if IS_LONG else 150)
async def test_worker_processes_complete_each_task_once_while_leaders_are_killed(
    gaia_cluster: MakeCluster,
) -> None:
    """No task lost, none completed twice, no stale token accepted."""
    times = {"task.claim_timeout": f"{CLAIM_S}s", "task.retry_base": "100ms"}
    cluster: Cluster = await asyncio.to_thread(gaia_cluster, 3, settings=times)
    targets = ",".join(cluster.addresses)
    stopping = asyncio.Event()
    async with cluster.client(timeout=30) as client, AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                program("worker_process.py", targets, f"worker-{number}")
            )
            for number in range(WORKERS)
        ]

        async def are_there() -> bool:
            return len([session async for session in client.sessions.list()]) == WORKERS

        await eventually(are_there, "all workers are registered", 40)
        producing = asyncio.create_task(produce(client, stopping))
        hoarding = asyncio.create_task(hoard(client, stopping))
        gaps = await kill_leaders(cluster, client)
        stopping.set()
        task_ids, refused = await producing, await hoarding

        async def all_completed() -> bool:
            return (await client.tasks.stats()).completed >= len(task_ids)

        await eventually(all_completed, f"{len(task_ids)} are completed", 60)
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        counters = [json.loads(await ended(worker)) for worker in workers]
        stats = await client.tasks.stats()
        assert (stats.enqueued_total, stats.completed_total) == (len(task_ids), len(task_ids))
        await check_tasks(client, task_ids)
        check_counters(counters, len(task_ids))
        assert [session async for session in client.sessions.list()] == []
    await cluster.aio.assert_equal_logs_and_hashes()
    assert refused, "no stale token was ever tried"
    report(
        f"{KILLS} leaders killed, {len(task_ids)} tasks by {WORKERS} processes, each completed "
        f"once; {refused} stale tokens refused, {sum(one['lost'] for one in counters)} attempts "
        f"lost; writes stood still for at most {max(gaps):.2f} s"
    )


async def produce(client: Client, stopping: asyncio.Event) -> list[str]:
    """Enqueues batches until the end; returns the ids of all that was acknowledged."""
    task_ids: list[str] = []
    while not stopping.is_set():
        count = len(task_ids)
        batch = [
            task_pb2.NewTask(task_type="grade", payload=str(number).encode())
            for number in range(count, count + BATCH)
        ]
        task_ids += [task.task_id for task in (await client.tasks.enqueue_batch(batch)).tasks]
        with suppress(TimeoutError):
            async with asyncio.timeout(0.4):
                await stopping.wait()
    return task_ids


async def hoard(client: Client, stopping: asyncio.Event) -> int:
    """Claims, waits until somebody else has the task, and completes it; counts the refusals."""
    refused = 0
    async with live_session(client, "hoarder", capacity=3, every=2) as session:
        while not stopping.is_set():
            claimed = await client.tasks.claim(session.session_id, max_tasks=3, wait=1)
            for task in claimed.tasks:

                async def has_another_holder(task: task_pb2.Task = task) -> bool:
                    return (
                        await client.tasks.get(task.task_id)
                    ).task.claim_token > task.claim_token

                await eventually(has_another_holder, "the task passed on", 30)
                with pytest.raises(StaleClaimError):
                    await client.tasks.complete(task, b"stale")
                refused += 1
        await client.sessions.deregister(session.session_id)
    return refused


async def kill_leaders(cluster: Cluster, client: Client) -> list[float]:
    """Kills leaders at a steady pace; returns how long each time no write was answered."""
    loop = asyncio.get_running_loop()
    gaps = []
    next_at = loop.time()
    for number in range(KILLS):
        next_at += KILL_EVERY_S
        await asyncio.sleep(max(0, next_at - loop.time()))
        leader = await cluster.aio.leader()
        began = loop.time()
        await cluster.aio.kill(leader)
        await client.cluster.update_settings({"lock.lease": f"{number + 10}s"}, timeout=20)
        gaps.append(loop.time() - began)
        await cluster.aio.restart(leader)
    return gaps


async def check_tasks(client: Client, task_ids: list[str]) -> None:
    """Each was completed once, by the last claim that was granted on it."""
    tokens: Counter[int] = Counter()
    for task_id in task_ids:
        task = (await client.tasks.get(task_id)).task
        events = Counter(event.kind for event in task.history)
        assert events[COMPLETED] == 1, task
        assert int(task.result) == task.claim_token, task
        claims = [event.claim_token for event in task.history if event.kind == CLAIMED]
        assert claims == sorted(set(claims)), task
        assert claims[-1] == task.claim_token, task
        tokens[task.claim_token] += 1
    assert set(tokens.values()) == {1}


def check_counters(counters: list[dict[str, Any]], tasks: int) -> None:
    """Sessions outlived every leader, and a task ran twice only where its claim was lost."""
    for one in counters:
        assert one["completed"] > 0
        assert one["registrations"] == 1
        assert one["busy"] == 0
    completed = sum(one["completed"] for one in counters)
    unsure = sum(one["lost"] for one in counters)
    assert tasks - unsure <= completed <= tasks, counters


@pytest.mark.timeout(150)
async def test_complaint_4_a_worker_that_was_paused_completes_nothing_that_passed_on(
    short_cluster: Cluster,
) -> None:
    """It wakes up after its session failed, registers again, and its late results stay with it."""
    targets = ",".join(short_cluster.addresses)
    async with (
        short_cluster.client() as client,
        program("worker_process.py", targets, "paused") as paused,
        program("worker_process.py", targets, "other") as other,
    ):
        batch = [task_pb2.NewTask(task_type="grade", payload=str(n).encode()) for n in range(60)]
        tasks = (await client.tasks.enqueue_batch(batch)).tasks

        async def holds_tasks() -> bool:
            sessions = [session async for session in client.sessions.list()]
            return any(one.name == "paused" and one.claimed_tasks == 4 for one in sessions)

        async def has_failed() -> bool:
            failed = client.sessions.list(health=session_pb2.HEALTH_FAILED)
            return [session.name async for session in failed] == ["paused"]

        async def all_done() -> bool:
            done = client.tasks.list(task_type="grade", state=task_pb2.TASK_STATE_COMPLETED)
            return len([task async for task in done]) == len(batch)

        await eventually(holds_tasks, "the worker holds tasks")
        paused.send_signal(signal.SIGSTOP)
        await eventually(has_failed, "its session failed")
        paused.send_signal(signal.SIGCONT)
        await eventually(all_done, "all are completed", 40)
        for worker in (paused, other):
            worker.send_signal(signal.SIGTERM)
        counters = json.loads((await ended(paused, complaints=True)).splitlines()[-1])
        await ended(other)
        assert counters["registrations"] == 2
        assert counters["lost"] >= 1
        await check_tasks(client, [task.task_id for task in tasks])


async def test_a_script_without_asyncio(cluster3: Cluster) -> None:
    """Tasks, a worker that SIGTERM ends, lists, metrics, alerts, errors; no thread is left."""
    async with program("blocking_script.py", ",".join(cluster3.addresses)) as script:
        printed = await ended(script)
    assert printed.splitlines() == [
        f"results {list(range(0, 40, 2))}",
        "alert for ana",
        "held True True",
        "NOT_FOUND",
        "threads []",
    ]


async def test_a_task_that_is_called_off_interrupts_its_handler_at_once(cluster3: Cluster) -> None:
    """Long before its claim would be renewed (200 s) or the next heartbeat is due (10 s)."""
    async with cluster3.client() as client:
        worker = Worker(client, name="interrupted", concurrency=2)
        started, told = asyncio.Event(), asyncio.Event()
        thread_started, thread_told = threading.Event(), threading.Event()

        @worker.task("long")
        async def long(job: Job) -> bytes:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                told.set()
            return b""

        @worker.task("long-thread")
        def long_thread(job: BlockingJob) -> bytes:
            thread_started.set()
            if job.wait(9):
                thread_told.set()
            return b""

        ids = [
            (await client.tasks.enqueue(task_type)).task.task_id
            for task_type in ("long", "long-thread")
        ]
        async with worker, asyncio.timeout(8):
            await started.wait()
            await asyncio.to_thread(thread_started.wait)
            for task_id in ids:
                await client.tasks.cancel(task_id, "the essay was withdrawn")
            await told.wait()
            assert await asyncio.to_thread(thread_told.wait, 8)
        assert (worker.counters.lost, worker.counters.completed) == (2, 0)
        states = {(await client.tasks.get(task_id)).task.state for task_id in ids}
        assert states == {task_pb2.TASK_STATE_CANCELLED}
