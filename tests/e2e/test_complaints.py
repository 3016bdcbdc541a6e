"""What users of other task queues complain of most, by number, on real peers and workers.

Complaint 4, a paused worker, is in test_workers.py; the SDK's part of 1, 2, 4, 5 and 8 in
tests/client.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial

import grpc
import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client, Job, Worker
from gaia_grpc.errors import StaleClaimError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.injured import CLIENTS, InjuredCluster
from tests.e2e.support import SHORT_TIMES, eventually, live_session, program, report

PENDING = task_pb2.TASK_STATE_PENDING
CLAIMED = task_pb2.TASK_STATE_CLAIMED
COMPLETED = task_pb2.TASK_STATE_COMPLETED
FAILED = task_pb2.TASK_STATE_FAILED
EVENT = task_pb2.TaskEventKind
GRACE_S = 4.0
"""Beyond what was configured: a machine that is busy, and the next look at the clock."""
CLAIM_S = 2.0
FAILED_S = 2.0
"""Of SHORT_TIMES."""


@pytest.fixture
async def client(short_cluster: Cluster) -> AsyncIterator[Client]:
    async with short_cluster.client() as client:
        yield client


@pytest.fixture
async def long_claims(client: Client) -> AsyncIterator[None]:
    """Claims outlast their sessions by far: only the end of a session can give a task back."""
    await client.cluster.update_settings({"task.claim_timeout": "60s"})
    yield
    await client.cluster.update_settings({"task.claim_timeout": SHORT_TIMES["task.claim_timeout"]})


async def task_of(client: Client, task_id: str) -> task_pb2.Task:
    return (await client.tasks.get(task_id)).task


async def is_in(client: Client, task_id: str, state: task_pb2.TaskState.ValueType) -> bool:
    return (await task_of(client, task_id)).state == state


def kinds_of(task: task_pb2.Task) -> list[task_pb2.TaskEventKind.ValueType]:
    return [event.kind for event in task.history]


async def holder_of(client: Client, task_ids: Sequence[str], worker: str) -> bool:
    """Whether the worker of this name holds one of the tasks."""
    sessions = {s.session_id: s.name async for s in client.sessions.list()}
    tasks = [await task_of(client, task_id) for task_id in task_ids]
    return any(sessions.get(task.claimed_by) == worker for task in tasks)


async def test_complaint_1_a_job_longer_than_its_claim_runs_once(client: Client) -> None:
    """And a delayed task holds no claim that could run out while it waits."""
    runs: Counter[str] = Counter()
    worker = Worker(client, name="long-jobs", concurrency=2)

    @worker.task("longer")
    async def longer(job: Job) -> bytes:
        runs[job.task_id] += 1
        await asyncio.sleep(1.7 * CLAIM_S)
        return b"done"

    async with worker:
        ids = [
            (await client.tasks.enqueue("longer", delay=delay)).task.task_id
            for delay in (0.0, 1.2 * CLAIM_S)
        ]
        for task_id in ids:
            await eventually(partial(is_in, client, task_id, COMPLETED), "it is done", 20)
    assert runs == Counter(ids)
    for task_id in ids:
        found = await task_of(client, task_id)
        assert (found.retry_count, kinds_of(found).count(EVENT.TASK_EVENT_KIND_CLAIMED)) == (0, 1)


@pytest.mark.usefixtures("long_claims")
async def test_complaint_2_a_task_of_a_killed_worker_is_not_running_for_ever(
    short_cluster: Cluster, client: Client
) -> None:
    targets = ",".join(short_cluster.addresses)
    ids = [(await client.tasks.enqueue("grade", b"12")).task.task_id for _ in range(4)]
    async with program("worker_process.py", targets, "killed") as killed:
        await eventually(lambda: holder_of(client, ids, "killed"), "the worker holds a task")
        async for task in client.tasks.list(state=CLAIMED):
            assert task.HasField("claim_expire_time"), "held without an end"
        killed.kill()
        began = time.monotonic()

        async def none_is_held() -> bool:
            return not [one async for one in client.tasks.list(task_type="grade", state=CLAIMED)]

        await eventually(none_is_held, "its tasks are given back", FAILED_S + GRACE_S)
        report(f"given back {time.monotonic() - began:.2f} s after the kill")
    async with live_session(client, "heir", capacity=4) as heir:
        left = set(ids)
        while left:
            claimed = await client.tasks.claim(
                heir.session_id, max_tasks=4, wait=5, task_types=["grade"]
            )
            for task in claimed.tasks:
                await client.tasks.complete(task)
                left.discard(task.task_id)


async def test_complaint_3_an_expiry_does_not_overwrite_a_finished_task(client: Client) -> None:
    """Completions race the end of their claims; what was accepted stays, whoever came first."""
    claim_s = 0.4
    await client.cluster.update_settings({"task.claim_timeout": f"{claim_s:g}s"})
    draw = random.Random(3)
    count = 60
    accepted: dict[str, bytes] = {}

    async def complete_about_in_time(task: task_pb2.Task) -> None:
        await asyncio.sleep(claim_s + draw.uniform(-0.15, 0.1))
        result = f"{task.claim_token}".encode()
        try:
            await client.tasks.complete(task, result)
        except StaleClaimError:
            return
        accepted[task.task_id] = result

    async with live_session(client, "racing", capacity=count) as session:
        await client.tasks.enqueue_batch(["race"] * count)
        tasks = (
            await client.tasks.claim(session.session_id, max_tasks=count, task_types=["race"])
        ).tasks
        await asyncio.gather(*(complete_about_in_time(task) for task in tasks))

        async def none_is_held() -> bool:
            return not [one async for one in client.tasks.list(task_type="race", state=CLAIMED)]

        await eventually(none_is_held, "every claim has ended")
    await client.cluster.update_settings({"task.claim_timeout": SHORT_TIMES["task.claim_timeout"]})
    report(f"{len(accepted)} of {count} came in time")
    assert 0 < len(accepted) < count, "no race: nothing is shown"
    for task in [await task_of(client, task.task_id) for task in tasks]:
        if task.task_id in accepted:
            assert (task.state, task.result) == (COMPLETED, accepted[task.task_id])
            assert kinds_of(task)[-1] == EVENT.TASK_EVENT_KIND_COMPLETED
        else:
            assert task.state != COMPLETED
            assert EVENT.TASK_EVENT_KIND_CLAIM_EXPIRED in kinds_of(task)
        if task.state != COMPLETED:
            await client.tasks.cancel(task.task_id)


async def test_complaint_5_a_task_whose_claim_was_not_delivered_is_delivered_again() -> None:
    """The answer of the claim is lost on its way; the same request gets the same task."""
    async with InjuredCluster(3) as cluster, cluster.client() as client:
        session = (await client.sessions.register("deaf", max_concurrent_tasks=5)).session
        first = (await client.tasks.enqueue("delivered")).task.task_id
        await client.tasks.enqueue("delivered")
        leader = await cluster.aio.leader()
        request = task_pb2.ClaimTasksRequest(
            session_id=session.session_id, task_types=["delivered"], request_id="claim-once"
        )
        identity = (("gaia-client", "deaf"),)
        way = cluster.client_addresses[leader]
        lossy = client.peer(way).tasks
        await lossy.GetQueueStats(task_pb2.GetQueueStatsRequest(), timeout=5)
        cluster.lose_replies(leader)
        with pytest.raises(grpc.aio.AioRpcError):
            await lossy.ClaimTasks(request, timeout=1, metadata=identity)
        assert cluster.network.traffic(leader, CLIENTS).discarded_bytes
        assert (await task_of(client, first)).claimed_by == session.session_id
        cluster.heal_clients(leader)
        await cluster.aio.kill(leader)
        other = client.peer(cluster.address(await cluster.aio.leader())).tasks
        for _ in range(2):
            [task] = (await other.ClaimTasks(request, timeout=5, metadata=identity)).tasks
            assert task.task_id == first
        assert (await client.tasks.complete(task)).task.state == COMPLETED
        assert (await client.tasks.stats()).claims_total == 1


@pytest.mark.usefixtures("long_claims")
async def test_complaint_6_a_task_that_kills_its_workers_is_a_dead_letter(
    short_cluster: Cluster, client: Client
) -> None:
    """Attempts are counted when they begin, by the task and not by the worker that died of it."""
    targets = ",".join(short_cluster.addresses)
    task_id = (await client.tasks.enqueue("poison", max_retries=1)).task.task_id
    for attempt in range(2):
        async with program("crash_process.py", targets, f"victim-{attempt}") as victim:
            async with asyncio.timeout(20):
                assert await victim.wait() == 66
        await eventually(partial(_has_failed, client, task_id, attempt + 1), "counted", 10)
    async with program("crash_process.py", targets, "survivor") as survivor:
        dead = await task_of(client, task_id)
        assert (dead.state, dead.retry_count) == (FAILED, 2)
        assert kinds_of(dead)[-1] == EVENT.TASK_EVENT_KIND_DEAD_LETTERED
        assert kinds_of(dead).count(EVENT.TASK_EVENT_KIND_CLAIMED) == 2

        async def is_registered() -> bool:
            return "survivor" in [session.name async for session in client.sessions.list()]

        await eventually(is_registered, "the next worker is there")
        assert survivor.returncode is None


async def _has_failed(client: Client, task_id: str, times: int) -> bool:
    return (await task_of(client, task_id)).retry_count == times


async def test_complaint_7_each_way_to_lose_an_attempt_is_counted_once_and_told(
    client: Client,
) -> None:
    """Failure, expiry and a lost session count; a release does not. Dead with none left, never
    before."""
    task_id = (await client.tasks.enqueue("counted", max_retries=2)).task.task_id

    async def claim(session: session_pb2.Session) -> task_pb2.Task:
        [task] = (
            await client.tasks.claim(session.session_id, wait=8, task_types=["counted"])
        ).tasks
        return task

    async with live_session(client, "counting") as session:
        await client.tasks.release(await claim(session))
        assert (await task_of(client, task_id)).retry_count == 0
        assert (await client.tasks.fail(await claim(session), "boom")).task.retry_count == 1
        await claim(session)  # and forgets it
        await eventually(lambda: _has_failed(client, task_id, 2), "the claim ran out", 8)
        assert (await task_of(client, task_id)).state != FAILED, "one attempt is left"
    silent = (await client.sessions.register("silent")).session
    await eventually(lambda: is_in(client, task_id, PENDING), "the backoff is over")
    await claim(silent)
    await eventually(lambda: is_in(client, task_id, FAILED), "the session failed", 8)
    dead = await task_of(client, task_id)
    assert dead.retry_count == 3
    told = [kind for kind in kinds_of(dead) if kind not in UNCOUNTED]
    assert told == [
        EVENT.TASK_EVENT_KIND_RELEASED,
        EVENT.TASK_EVENT_KIND_ATTEMPT_FAILED,
        EVENT.TASK_EVENT_KIND_CLAIM_EXPIRED,
        EVENT.TASK_EVENT_KIND_SESSION_LOST,
        EVENT.TASK_EVENT_KIND_DEAD_LETTERED,
    ]


UNCOUNTED = (
    EVENT.TASK_EVENT_KIND_ENQUEUED,
    EVENT.TASK_EVENT_KIND_CLAIMED,
    EVENT.TASK_EVENT_KIND_AVAILABLE,
)


@pytest.mark.usefixtures("long_claims")
async def test_complaint_8_tasks_that_nobody_knows_block_no_others(client: Client) -> None:
    """More of them than fit a page, all held by a session that fails: all come back, and a worker
    of another type neither takes nor discards them."""
    count = 1_500
    hoarder = (await client.sessions.register("hoarder", max_concurrent_tasks=1_000)).session
    second = (await client.sessions.register("hoarder-2", max_concurrent_tasks=1_000)).session
    for first in range(0, count, 500):
        await client.tasks.enqueue_batch(f"alien-{n % 50}" for n in range(first, first + 500))
    held = 0
    for session in (hoarder, second):
        held += len((await client.tasks.claim(session.session_id, max_tasks=1_000)).tasks)
    assert held == count
    began = time.monotonic()

    async def none_is_held() -> bool:
        return (await client.tasks.stats()).claimed == 0

    await eventually(none_is_held, "all are given back", FAILED_S + GRACE_S)
    report(f"{count} claims ended after {time.monotonic() - began:.2f} s")
    worker = Worker(client, name="knows-one", concurrency=4)

    @worker.task("known")
    async def known(job: Job) -> bytes:
        return b"done"

    async with worker:
        ids = [(await client.tasks.enqueue("known", priority=-9)).task.task_id for _ in range(5)]
        for task_id in ids:
            await eventually(partial(is_in, client, task_id, COMPLETED), "it is done")
    stats = await client.tasks.stats()
    assert stats.pending + stats.scheduled >= count


@pytest.mark.usefixtures("long_claims")
async def test_complaint_9_what_a_crash_left_is_found_though_the_leader_died_too(
    short_cluster: Cluster, client: Client
) -> None:
    targets = ",".join(short_cluster.addresses)
    task_id = (await client.tasks.enqueue("grade", b"12")).task.task_id
    async with (
        program("worker_process.py", targets, "crashed") as crashed,
        live_session(client, "rescuer") as rescuer,
    ):
        await eventually(lambda: holder_of(client, [task_id], "crashed"), "it works on the task")
        leader = await short_cluster.aio.leader()
        crashed.kill()
        await short_cluster.aio.kill(leader)
        began = time.monotonic()
        claimed = await client.tasks.claim(rescuer.session_id, wait=15, task_types=["grade"])
        [rescued] = claimed.tasks
        report(f"claimed by another {time.monotonic() - began:.2f} s after both died")
        assert rescued.task_id == task_id
        await client.tasks.complete(rescued, b"rescued")
    assert (await task_of(client, task_id)).result == b"rescued"
    await short_cluster.aio.heal()
    await short_cluster.aio.assert_equal_logs_and_hashes()
