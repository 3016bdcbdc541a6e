"""Workers as processes of their own, on real peers: nothing lost, nothing twice; and a script."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import eventually

pytestmark = pytest.mark.embedded_only

HERE = Path(__file__).parent
COMPLETED = task_pb2.TASK_EVENT_KIND_COMPLETED
CLAIMED = task_pb2.TASK_EVENT_KIND_CLAIMED

WORKERS = 4
TASKS = 300
KILLS = 4
KILL_EVERY_S = 5.0


@asynccontextmanager
async def program(name: str, *arguments: str) -> AsyncIterator[Process]:
    """One of the programs beside this file; killed where it outlives the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(HERE / name), *arguments, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: Process) -> str:
    """What it printed, after it ended well and without complaint."""
    async with asyncio.timeout(40):
        output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
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
        await check_tasks(client, [task.task_id for task in tasks])
        check_counters(counters)
        assert [session async for session in client.sessions.list()] == []
    await cluster.aio.assert_equal_logs_and_hashes()


async def all_completed(client: Client) -> bool:
    return (await client.tasks.stats()).completed >= TASKS


async def check_tasks(client: Client, task_ids: list[str]) -> None:
    stats = await client.tasks.stats()
    assert (stats.enqueued_total, stats.completed_total) == (TASKS, TASKS)
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
