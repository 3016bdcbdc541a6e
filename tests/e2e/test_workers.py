"""Workers as processes of their own, on real peers: nothing lost, nothing twice; and a script."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from asyncio.subprocess import Process
from collections import Counter
from typing import Any

import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import BlockingJob, Client, Job, Worker
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import eventually, program

pytestmark = pytest.mark.embedded_only

COMPLETED = task_pb2.TASK_EVENT_KIND_COMPLETED
CLAIMED = task_pb2.TASK_EVENT_KIND_CLAIMED

WORKERS = 4
TASKS = 300
KILLS = 4
KILL_EVERY_S = 5.0


async def ended(process: Process, *, complaints: bool = False) -> str:
    """What it printed, after it ended well and without complaint, unless it has reason to."""
    async with asyncio.timeout(40):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert complaints or not errors, errors.decode()
    return output.decode()


@pytest.mark.timeout(150)
async def test_worker_processes_complete_each_task_once_while_leaders_are_killed(
    gaia_cluster: MakeCluster,
) -> None:
    """No task lost, none completed twice, no stale token accepted."""
    cluster: Cluster = await asyncio.to_thread(gaia_cluster, 3)
    targets = ",".join(cluster.addresses)
    async with cluster.client() as client:
        batch = [task_pb2.NewTask(task_type="grade", payload=str(n).encode()) for n in range(TASKS)]
        tasks = (await client.tasks.enqueue_batch(batch)).tasks
        async with (
            program("worker_process.py", targets, "worker-0") as first,
            program("worker_process.py", targets, "worker-1") as second,
            program("worker_process.py", targets, "worker-2") as third,
            program("worker_process.py", targets, "worker-3") as fourth,
        ):
            for _ in range(KILLS):
                await asyncio.sleep(KILL_EVERY_S)
                leader = await cluster.aio.leader()
                await cluster.aio.kill(leader)
                await cluster.aio.restart(leader)
            await eventually(lambda: all_completed(client), f"{TASKS} are completed", 60)
            workers = (first, second, third, fourth)
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            counters = [json.loads(await ended(worker)) for worker in workers]
        stats = await client.tasks.stats()
        assert (stats.enqueued_total, stats.completed_total) == (TASKS, TASKS)
        await check_tasks(client, [task.task_id for task in tasks])
        check_counters(counters)
        assert [session async for session in client.sessions.list()] == []
    await cluster.aio.assert_equal_logs_and_hashes()


async def all_completed(client: Client) -> bool:
    return (await client.tasks.stats()).completed >= TASKS


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


def check_counters(counters: list[dict[str, Any]]) -> None:
    """Sessions and claims outlived every leader: there was no reason to run anything twice."""
    for one in counters:
        assert one["completed"] > 0
        assert one["registrations"] == 1
        assert one["busy"] == 0
    completed = sum(one["completed"] for one in counters)
    unsure = sum(one["lost"] for one in counters)
    assert TASKS - unsure <= completed <= TASKS, counters


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
