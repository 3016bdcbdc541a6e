"""Scenarios T1-T7 of the task queue on real peers. T3 among processes is in
test_concurrent_claims.py, T8 in test_locks.py, and the guide's ten minutes of T5 in
tests/services/test_true_times.py."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client
from gaia_grpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    StaleClaimError,
)
from gaia_grpc.testing import Cluster
from tests.e2e.support import eventually, live_session, report
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs

COMPLETED = task_pb2.TASK_STATE_COMPLETED
FAILED = task_pb2.TASK_STATE_FAILED
PENDING = task_pb2.TASK_STATE_PENDING
SCHEDULED = task_pb2.TASK_STATE_SCHEDULED
CLAIMED = task_pb2.TASK_STATE_CLAIMED
ATTEMPT = task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED
AVAILABLE = task_pb2.TASK_EVENT_KIND_AVAILABLE


@pytest.fixture
def cluster(short_cluster: Served) -> Served:
    return short_cluster


@pytest.fixture
async def client(cluster: Served) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


# --- T1: enqueue and claim -----------------------------------------------------------------------


async def test_task_enqueue_and_claim_of_a_hundred_by_five(cluster: Served, client: Client) -> None:
    """Each is claimed once, and none before one of a higher priority."""
    batch = [
        task_pb2.NewTask(task_type="five", priority=number * 7 % 10, payload=str(number).encode())
        for number in range(100)
    ]
    queued = (await client.tasks.enqueue_batch(batch)).tasks
    claims: list[task_pb2.Task] = []

    async def worker(number: int) -> None:
        async with (
            Client.connect(cluster.addresses[number % 3]) as own,
            live_session(own, f"five-{number}", capacity=100) as session,
        ):
            while tasks := (await own.tasks.claim(session.session_id, task_types=["five"])).tasks:
                claims.extend(tasks)
                await own.tasks.complete(tasks[0])

    await asyncio.gather(*(worker(number) for number in range(5)))
    assert sorted(task.task_id for task in claims) == [task.task_id for task in queued]
    # Tokens are given out in the order of the log.
    claims.sort(key=lambda task: task.claim_token)
    assert len({task.claim_token for task in claims}) == 100
    priorities = [task.priority for task in claims]
    assert priorities == sorted(priorities, reverse=True)


# --- T2: idempotency keys ------------------------------------------------------------------------


@pytest.mark.embedded_only
async def test_task_idempotency_key_is_one_task(cluster: Cluster, client: Client) -> None:
    """At once through all peers, again under the next leader, and after its completion."""

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client.connect(address))
            for address in cluster.addresses
        ]

        def enqueue(key: str) -> list[asyncio.Task[task_pb2.EnqueueTaskResponse]]:
            return [
                asyncio.create_task(
                    clients[number % 3].tasks.enqueue("keyed", b"body", idempotency_key=key)
                )
                for number in range(12)
            ]

        answers = await asyncio.gather(*enqueue("essay-7"))
        [task_id] = {answer.task.task_id for answer in answers}
        assert sum(not answer.existing for answer in answers) == 1
        leader = await cluster.aio.leader()
        under_way = enqueue("essay-8")
        await cluster.aio.kill(leader)
        assert len({answer.task.task_id for answer in await asyncio.gather(*under_way)}) == 1
    again = await client.tasks.enqueue("keyed", b"body", idempotency_key="essay-7")
    assert (again.task.task_id, again.existing) == (task_id, True)
    await cluster.aio.heal()
    assert len([task async for task in client.tasks.list(task_type="keyed")]) == 2

    async with live_session(client, "keyed-worker", capacity=2) as session:
        claimed = await client.tasks.claim(session.session_id, max_tasks=2, task_types=["keyed"])
        assert len(claimed.tasks) == 2
        for task in claimed.tasks:
            await client.tasks.complete(task, b"done")
        assert not (await client.tasks.claim(session.session_id, task_types=["keyed"])).tasks
    again = await client.tasks.enqueue("keyed", b"body", idempotency_key="essay-7")
    assert (again.task.task_id, again.existing) == (task_id, True)
    assert again.task.state == COMPLETED
    assert (await client.tasks.get(task_id)).task.result == b"done"
    for payload, priority in ((b"other", 0), (b"body", 1)):
        with pytest.raises(AlreadyExistsError):
            await client.tasks.enqueue(
                "keyed", payload, priority=priority, idempotency_key="essay-7"
            )


# --- T3: concurrent claims; more in test_concurrent_claims.py ------------------------------------


async def test_task_fifty_tasks_ten_concurrent_claimers_no_double_claim(
    cluster: Served, client: Client
) -> None:
    await client.tasks.enqueue_batch(["crowd"] * 50)
    claims: list[tuple[str, int, str]] = []

    async def claimer(number: int) -> None:
        address = cluster.addresses[number % 3]
        async with (
            Client.connect(address) as own,
            live_session(own, f"crowd-{number}", capacity=5) as session,
        ):
            while True:
                tasks = (
                    await own.tasks.claim(session.session_id, max_tasks=2, task_types=["crowd"])
                ).tasks
                if not tasks:
                    return
                for task in tasks:
                    claims.append((task.task_id, task.claim_token, session.session_id))
                    await own.tasks.complete(task, session.session_id.encode())

    await asyncio.gather(*(claimer(number) for number in range(10)))
    assert Counter(task_id for task_id, _, _ in claims).most_common(1)[0][1] == 1
    assert len(claims) == 50
    assert len({token for _, token, _ in claims}) == 50
    owners = {task_id: owner for task_id, _, owner in claims}
    done = [task async for task in client.tasks.list(task_type="crowd", state=COMPLETED)]
    assert len(done) == 50
    for task in done:
        assert (await client.tasks.get(task.task_id)).task.result.decode() == owners[task.task_id]
    await cluster.aio.assert_equal_logs_and_hashes()


# --- T4: retries ---------------------------------------------------------------------------------


@pytest.mark.embedded_only
async def test_task_retries_come_after_1_2_and_4_seconds_over_a_failover(
    cluster3: Cluster, client3: Client
) -> None:
    """Measured on the wall, and exact in log time; the leader dies while the second one waits."""
    task_id = (await client3.tasks.enqueue("backoff")).task.task_id
    released: list[float] = []
    failed_at = 0.0
    async with live_session(client3, "backoff-worker", every=2) as session:
        for attempt in range(4):
            claimed = await client3.tasks.claim(session.session_id, wait=12, task_types=["backoff"])
            [task] = claimed.tasks
            if attempt:
                released.append(time.monotonic() - failed_at)
            failed_at = time.monotonic()
            failed = (await client3.tasks.fail(task, f"attempt {attempt}")).task
            assert (failed.retry_count, failed.state) == (
                attempt + 1,
                SCHEDULED if attempt < 3 else FAILED,
            )
            if attempt == 1:
                await cluster3.aio.kill(await cluster3.aio.leader())
        assert not (await client3.tasks.claim(session.session_id, task_types=["backoff"])).tasks
    await cluster3.aio.heal()
    report(f"released after {', '.join(f'{gap:.3f}' for gap in released)} s of 1, 2 and 4")
    for gap, backoff in zip(released, (1, 2, 4), strict=True):
        # A change of leaders takes log time back to the last entry, here the failure itself.
        assert backoff <= gap < backoff + 3
    found = (await client3.tasks.get(task_id)).task
    assert found.last_error == "attempt 3"
    failures = [event.time.ToMilliseconds() for event in found.history if event.kind == ATTEMPT]
    available = [event.time.ToMilliseconds() for event in found.history if event.kind == AVAILABLE]
    for before, after, backoff_ms in zip(failures, available, (1_000, 2_000, 4_000), strict=False):
        assert backoff_ms <= after - before < backoff_ms + 500


async def test_task_that_is_out_of_retries_is_kept_and_can_be_tried_again(client: Client) -> None:
    task_id = (await client.tasks.enqueue("flaky", max_retries=1)).task.task_id
    async with live_session(client, "flaky-worker") as session:
        for attempt in range(2):
            [task] = (
                await client.tasks.claim(session.session_id, wait=5, task_types=["flaky"])
            ).tasks
            await client.tasks.fail(task, f"attempt {attempt}")
    dead = (await client.tasks.get(task_id)).task
    assert (dead.state, dead.last_error) == (FAILED, "attempt 1")
    assert (await client.tasks.requeue(task_id)).task.state == PENDING
    await client.tasks.cancel(task_id, "test is over")


# --- T5: claims that end -------------------------------------------------------------------------


async def test_task_claim_expires_and_the_late_completion_is_refused(client: Client) -> None:
    task_id = (await client.tasks.enqueue("slow")).task.task_id
    async with live_session(client, "slow-1") as slow, live_session(client, "quick-1") as quick:
        [first] = (await client.tasks.claim(slow.session_id, task_types=["slow"])).tasks
        [second] = (await client.tasks.claim(quick.session_id, wait=10, task_types=["slow"])).tasks
        assert second.claim_token > first.claim_token
        with pytest.raises(StaleClaimError) as refusal:
            await client.tasks.complete(first, b"late")
        assert refusal.value.instance_reason == "STALE_CLAIM"
        assert quick.session_id in refusal.value.metadata.values()
        await client.tasks.complete(second, b"in time")
        with pytest.raises(StaleClaimError):
            await client.tasks.complete(first, b"later still")
    found = (await client.tasks.get(task_id)).task
    assert (found.result, found.retry_count) == (b"in time", 1)


async def test_task_claim_that_is_extended_is_kept(client: Client) -> None:
    await client.tasks.enqueue("long")
    async with live_session(client, "patient") as session:
        [task] = (await client.tasks.claim(session.session_id, task_types=["long"])).tasks
        for step in range(4):
            await asyncio.sleep(0.7)
            await client.tasks.extend(task, progress=step / 4, checkpoint=b"step")
        assert (await client.tasks.complete(task)).task.state == COMPLETED


# --- T6: order -----------------------------------------------------------------------------------


async def test_task_priority_order_of_a_hundred_is_exact(client: Client) -> None:
    """The guide's cycle of priorities: all of 10, then 5, then 1, each as they came."""
    cycle = (1, 1, 1, 5, 5, 10)
    batch = [
        task_pb2.NewTask(task_type="cycle", priority=cycle[number % 6], payload=b"%d" % number)
        for number in range(100)
    ]
    await client.tasks.enqueue_batch(batch)
    claimed: list[int] = []
    async with live_session(client, "cycle-worker", capacity=100) as session:
        while len(claimed) < 100:
            answer = await client.tasks.claim(
                session.session_id, max_tasks=len(claimed) % 3 + 1, task_types=["cycle"]
            )
            claimed += [int(task.payload) for task in answer.tasks]
    assert claimed == sorted(range(100), key=lambda number: (-cycle[number % 6], number))


async def test_task_claim_order_is_priority_then_affinity_then_age(client: Client) -> None:
    order = [("low", 1, "math"), ("other", 5, ""), ("match", 5, "math"), ("high", 10, "")]
    for name, priority, affinity in order:
        await client.tasks.enqueue("ordered", name.encode(), priority=priority, affinity=affinity)
    async with live_session(client, "math-worker", specialty="math", capacity=4) as session:
        claimed = [
            (await client.tasks.claim(session.session_id, task_types=["ordered"])).tasks[0]
            for _ in range(4)
        ]
    assert [task.payload for task in claimed] == [b"high", b"match", b"other", b"low"]


async def test_task_of_low_priority_waits_no_longer_than_the_bound_of_ageing(
    client: Client,
) -> None:
    """A flood of higher priority never stops, and each claim takes one: the low one is overtaken
    only by what came less than (2 - 0 + 1) intervals after it."""
    interval_ms = 200
    await client.cluster.update_settings({"task.ageing_interval": f"{interval_ms}ms"})
    low = (await client.tasks.enqueue("flood", b"low", priority=0)).task
    came: dict[str, int] = {}
    overtaken_by: list[task_pb2.Task] = []
    async with live_session(client, "flooded") as session, asyncio.timeout(20):
        while True:
            batch = [task_pb2.NewTask(task_type="flood", priority=2)] * 5
            for task in (await client.tasks.enqueue_batch(batch)).tasks:
                came[task.task_id] = task.create_time.ToMilliseconds()
            [claimed] = (await client.tasks.claim(session.session_id, task_types=["flood"])).tasks
            await client.tasks.complete(claimed)
            if claimed.task_id == low.task_id:
                break
            overtaken_by.append(claimed)
    await client.cluster.update_settings({"task.ageing_interval": "60s"})
    latest_ms = max(came[task.task_id] for task in overtaken_by) - low.create_time.ToMilliseconds()
    report(f"overtaken by {len(overtaken_by)} of {len(came)}, the last {latest_ms} ms younger")
    assert len(overtaken_by) < len(came), "no flood: nothing higher was left"
    assert latest_ms < 3 * interval_ms


# --- T7: states ----------------------------------------------------------------------------------


async def test_task_completion_goes_through_its_states_and_no_others(client: Client) -> None:
    """Pending, claimed, completed, with its history; what is not allowed names the state."""
    queued = (await client.tasks.enqueue("states", b"essay", priority=3)).task
    assert queued.state == PENDING
    task_id = queued.task_id

    async def is_refused(call: Awaitable[object]) -> None:
        with pytest.raises(FailedPreconditionError) as refusal:
            await call
        assert refusal.value.instance_reason in ("STALE_CLAIM", "ILLEGAL_TRANSITION"), refusal.value

    async with live_session(client, "states-worker") as session:
        guessed = task_pb2.Task(task_id=task_id, claim_token=1, claimed_by=session.session_id)
        for call in (client.tasks.complete, client.tasks.release, client.tasks.extend):
            await is_refused(call(guessed))
        await is_refused(client.tasks.fail(guessed, "boom"))
        await is_refused(client.tasks.requeue(task_id))
        assert (await client.tasks.get(task_id)).task.state == PENDING

        [task] = (await client.tasks.claim(session.session_id, task_types=["states"])).tasks
        assert (task.task_id, task.payload, task.state) == (task_id, b"essay", CLAIMED)
        assert task.claimed_by == session.session_id
        await is_refused(client.tasks.requeue(task_id))

        done = (await client.tasks.complete(task, b"A")).task
        assert done.state == COMPLETED
        assert (await client.tasks.complete(task, b"A")).task.state == COMPLETED, "told again"
        for call in (client.tasks.release, client.tasks.extend):
            await is_refused(call(task))
        await is_refused(client.tasks.fail(task, "changed my mind"))
        await is_refused(client.tasks.cancel(task_id))
        await is_refused(client.tasks.requeue(task_id))
        await client.tasks.complete(task, b"another result")  # is told that it was completed
    found = (await client.tasks.get(task_id)).task
    assert (found.state, found.result, found.retry_count) == (COMPLETED, b"A", 0)
    assert [event.kind for event in found.history] == [
        task_pb2.TASK_EVENT_KIND_ENQUEUED,
        task_pb2.TASK_EVENT_KIND_CLAIMED,
        task_pb2.TASK_EVENT_KIND_COMPLETED,
    ]


# --- what else a queue does ----------------------------------------------------------------------


async def test_task_enqueue_repeated_with_its_request_id_is_one_task(client: Client) -> None:
    first, second = [
        await client.tasks.enqueue("repeated", request_id="enqueue-1") for _ in range(2)
    ]
    assert first.task.task_id == second.task.task_id
    with pytest.raises(AlreadyExistsError):
        await client.tasks.enqueue("something-else", request_id="enqueue-1")
    await client.tasks.cancel(first.task.task_id)


async def test_task_claim_repeated_with_its_request_id_is_the_same_claim(client: Client) -> None:
    await client.tasks.enqueue_batch(["same-claim", "same-claim"])
    async with live_session(client, "claimer", capacity=2) as session:
        first, second = [
            await client.tasks.claim(
                session.session_id, task_types=["same-claim"], request_id="claim-1"
            )
            for _ in range(2)
        ]
        assert [(task.task_id, task.claim_token) for task in first.tasks] == [
            (task.task_id, task.claim_token) for task in second.tasks
        ]
        assert len(first.tasks) == 1


async def test_task_waiting_claim_gets_the_task_that_comes(client: Client) -> None:
    async with live_session(client, "waiter") as session:
        waiting = asyncio.create_task(
            client.tasks.claim(session.session_id, wait=10, task_types=["awaited"])
        )

        async def is_waiting() -> bool:
            return (await client.tasks.stats()).waiting_claims >= 1

        await eventually(is_waiting, "the claim waits")
        began = time.monotonic()
        task_id = (await client.tasks.enqueue("awaited")).task.task_id
        [task] = (await waiting).tasks
        assert task.task_id == task_id
        assert time.monotonic() - began < 5
        assert not (await client.tasks.claim(session.session_id, task_types=["none"])).tasks
