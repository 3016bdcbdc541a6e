"""The guide's times as they are, 10 s to 10 min, on the served port under a clock set by hand.

The same scenarios run with short times on real processes in tests/e2e; here nothing is shortened.
"""

from __future__ import annotations

import asyncio

import grpc
import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, failure_of

HEALTHY = session_pb2.HEALTH_HEALTHY
DEGRADED = session_pb2.HEALTH_DEGRADED
FAILED = session_pb2.HEALTH_FAILED
BEAT_MS = 10_000
LATE_BEAT_MS = 29_000
"""Just early enough to keep what a session holds; each beat takes real time."""
DEGRADED_MS = 15_000
FAILED_MS = 30_000
CLAIM_MS = 600_000


async def session_of(peer: ServedPeer, session_id: str) -> session_pb2.Session:
    request = session_pb2.GetSessionRequest(session_id=session_id)
    return (await peer.sessions.GetSession(request, timeout=TIMEOUT_S)).session


async def beat(peer: ServedPeer, session: session_pb2.Session) -> session_pb2.Session:
    request = session_pb2.HeartbeatRequest(
        session_id=session.session_id, incarnation=session.incarnation
    )
    return (await peer.sessions.Heartbeat(request, timeout=TIMEOUT_S)).session


async def keep_alive(peer: ServedPeer, milliseconds: int, *sessions: session_pb2.Session) -> None:
    """Lets time pass while these sessions send their heartbeats."""
    for passed_ms in range(0, milliseconds, LATE_BEAT_MS):
        await peer.node.let_pass(min(LATE_BEAT_MS, milliseconds - passed_ms))
        await asyncio.gather(*(beat(peer, session) for session in sessions))


async def enqueue(peer: ServedPeer, task_type: str = "grade") -> str:
    request = task_pb2.EnqueueTaskRequest(task_type=task_type)
    return (await peer.tasks.EnqueueTask(request, timeout=TIMEOUT_S)).task.task_id


async def claim(peer: ServedPeer, session: session_pb2.Session) -> list[task_pb2.Task]:
    request = task_pb2.ClaimTasksRequest(session_id=session.session_id)
    return list((await peer.tasks.ClaimTasks(request, timeout=TIMEOUT_S)).tasks)


async def task_of(peer: ServedPeer, task_id: str) -> task_pb2.Task:
    return (
        await peer.tasks.GetTask(task_pb2.GetTaskRequest(task_id=task_id), timeout=TIMEOUT_S)
    ).task


def completion(task: task_pb2.Task, result: bytes = b"") -> task_pb2.CompleteTaskRequest:
    return task_pb2.CompleteTaskRequest(
        task_id=task.task_id,
        claim_token=task.claim_token,
        session_id=task.claimed_by,
        result=result,
    )


async def test_session_health_at_15_and_30_seconds(peer: ServedPeer) -> None:
    """C3: degraded gets nothing new and keeps what it has, failed loses it, and each way back."""
    session, heir = await peer.register("fading"), await peer.register("heir")
    held_id = await enqueue(peer)
    [held] = await claim(peer, session)
    await peer.node.let_pass(DEGRADED_MS - 1)
    assert (await session_of(peer, session.session_id)).health == HEALTHY
    await beat(peer, heir)
    await peer.node.let_pass(1)
    degraded = await session_of(peer, session.session_id)
    assert (degraded.health, degraded.claimed_tasks) == (DEGRADED, 1)

    await enqueue(peer, "next")
    assert (await failure_of(claim(peer, session))).reason == "SESSION_DEGRADED"
    assert (await beat(peer, session)).health == HEALTHY
    [following] = await claim(peer, session)
    await peer.tasks.CompleteTask(completion(following), timeout=TIMEOUT_S)

    await keep_alive(peer, FAILED_MS - 1, heir)
    assert (await session_of(peer, session.session_id)).health == DEGRADED
    assert (await task_of(peer, held_id)).claimed_by == session.session_id
    await peer.node.let_pass(1)
    failed = await session_of(peer, session.session_id)
    assert (failed.health, failed.claimed_tasks) == (FAILED, 0)
    failure = await failure_of(beat(peer, session))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.reason == "SESSION_FAILED"

    returned = await task_of(peer, held_id)
    assert (returned.claimed_by, returned.retry_count) == ("", 1)
    await peer.node.let_pass(1_000)  # the first backoff
    [inherited] = await claim(peer, heir)
    assert inherited.task_id == held_id
    assert inherited.claim_token > held.claim_token

    again = await peer.register("fading")
    assert again.session_id == session.session_id
    assert (again.health, again.incarnation) == (HEALTHY, session.incarnation + 1)
    assert (await failure_of(beat(peer, session))).reason == "STALE_INCARNATION"
    await enqueue(peer, "after")
    assert len(await claim(peer, again)) == 1


@pytest.mark.parametrize(
    ("silent_ms", "health"),
    [
        (BEAT_MS - 1, HEALTHY),  # none is missed
        (DEGRADED_MS - 1, HEALTHY),  # one is, but it may be late
        (DEGRADED_MS, DEGRADED),
        (2 * BEAT_MS, DEGRADED),  # two are
        (FAILED_MS - 1, DEGRADED),
        (FAILED_MS, FAILED),  # three are
        (4 * BEAT_MS, FAILED),
    ],
)
async def test_session_missed_heartbeats(
    peer: ServedPeer, silent_ms: int, health: session_pb2.Health.ValueType
) -> None:
    """C6: three missed heartbeats are a failed session; before that one heartbeat heals it."""
    request = session_pb2.RegisterSessionRequest(name="beating")
    registered = await peer.sessions.RegisterSession(request, timeout=TIMEOUT_S)
    assert registered.heartbeat_interval_ms == BEAT_MS
    session = registered.session
    for _ in range(2):  # what was missed before and made good is forgotten
        await peer.node.let_pass(FAILED_MS - 1)
        assert (await beat(peer, session)).health == HEALTHY
    await peer.node.let_pass(silent_ms)
    assert (await session_of(peer, session.session_id)).health == health
    if health != FAILED:
        assert (await beat(peer, session)).health == HEALTHY


async def test_task_retries_after_1_2_and_4_seconds(peer: ServedPeer) -> None:
    """T4: to the millisecond of log time, and the fourth failure is the last."""
    session = await peer.register("worker")
    task_id = await enqueue(peer)
    for attempt, backoff_ms in enumerate((1_000, 2_000, 4_000)):
        [task] = await claim(peer, session)
        await peer.tasks.FailTask(
            task_pb2.FailTaskRequest(
                task_id=task_id,
                claim_token=task.claim_token,
                session_id=session.session_id,
                error=f"attempt {attempt}",
            ),
            timeout=TIMEOUT_S,
        )
        waiting = await task_of(peer, task_id)
        assert waiting.state == task_pb2.TASK_STATE_SCHEDULED
        failed_ms = waiting.history[-1].time.ToMilliseconds()
        assert waiting.available_time.ToMilliseconds() - failed_ms == backoff_ms
        await peer.node.let_pass(backoff_ms - 1)
        assert await claim(peer, session) == []
        await peer.node.let_pass(1)
        await beat(peer, session)
    [task] = await claim(peer, session)
    last = task_pb2.FailTaskRequest(
        task_id=task_id, claim_token=task.claim_token, session_id=session.session_id, error="last"
    )
    ended = (await peer.tasks.FailTask(last, timeout=TIMEOUT_S)).task
    assert (ended.state, ended.retry_count) == (task_pb2.TASK_STATE_FAILED, 4)
    await keep_alive(peer, 60_000, session)
    assert await claim(peer, session) == []


async def test_task_retry_jitter_shortens_each_wait_by_up_to_its_share(serve: Serve) -> None:
    """T4: a thousand tasks that fail at one moment do not come back at one moment."""
    async with serve({"task.retry_jitter": "0.5"}) as peer:
        session = await peer.register("worker")
        count = 50
        for _ in range(count):
            await enqueue(peer)
        request = task_pb2.ClaimTasksRequest(session_id=session.session_id, max_tasks=count)
        waits_ms = []
        for task in (await peer.tasks.ClaimTasks(request, timeout=TIMEOUT_S)).tasks:
            failure = task_pb2.FailTaskRequest(
                task_id=task.task_id, claim_token=task.claim_token, session_id=session.session_id
            )
            failed = (await peer.tasks.FailTask(failure, timeout=TIMEOUT_S)).task
            waits_ms.append(
                failed.available_time.ToMilliseconds() - failed.update_time.ToMilliseconds()
            )
    assert len(waits_ms) == count
    assert all(500 <= wait_ms <= 1_000 for wait_ms in waits_ms)
    assert len(set(waits_ms)) > count // 2


@pytest.mark.parametrize("ageing", ["60s", "0ms"])
async def test_task_of_low_priority_is_overtaken_for_four_minutes_at_most(
    serve: Serve, ageing: str
) -> None:
    """T6: each minute brings two tasks of priority 3 and time for one. A task of priority 0 goes
    before all that came (3 - 0 + 1) minutes after it; without ageing it would never be its turn."""
    async with serve({"task.ageing_interval": ageing}) as peer:
        session = await peer.register("worker")
        low = task_pb2.EnqueueTaskRequest(task_type="low", priority=0)
        await peer.tasks.EnqueueTask(low, timeout=TIMEOUT_S)
        order: list[str] = []
        for minute in range(10):
            for _ in range(2):
                high = task_pb2.EnqueueTaskRequest(task_type=f"minute-{minute}", priority=3)
                await peer.tasks.EnqueueTask(high, timeout=TIMEOUT_S)
            [task] = await claim(peer, session)
            order.append(task.task_type)
            await peer.tasks.CompleteTask(completion(task), timeout=TIMEOUT_S)
            await keep_alive(peer, 60_000, session)
    if ageing == "0ms":
        assert "low" not in order
    else:
        before = order[: order.index("low")]
        assert before == [f"minute-{minute}" for minute in (0, 0, 1, 1, 2, 2)]


async def test_task_claim_ends_after_ten_minutes(peer: ServedPeer) -> None:
    """T5: worker-1 lives and is merely slow; worker-2 gets the task, and worker-1 is refused."""
    first, second = await peer.register("worker-1"), await peer.register("worker-2")
    task_id = await enqueue(peer)
    [slow] = await claim(peer, first)
    claimed_ms = slow.claim_expire_time.ToMilliseconds() - CLAIM_MS
    assert claimed_ms == (await task_of(peer, task_id)).history[-1].time.ToMilliseconds()
    await keep_alive(peer, CLAIM_MS - 1, first, second)
    assert (await task_of(peer, task_id)).claimed_by == first.session_id
    assert await claim(peer, second) == []
    await peer.node.let_pass(1)
    expired = await task_of(peer, task_id)
    assert (expired.claimed_by, expired.retry_count) == ("", 1)
    assert task_pb2.TASK_EVENT_KIND_CLAIM_EXPIRED in [event.kind for event in expired.history]
    await peer.node.let_pass(1_000)
    [quick] = await claim(peer, second)
    assert quick.claim_token > slow.claim_token

    for _ in range(2):  # before and after the other one's completion
        failure = await failure_of(
            peer.tasks.CompleteTask(completion(slow, b"late"), timeout=TIMEOUT_S)
        )
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        assert failure.reason == "STALE_CLAIM"
        await peer.tasks.CompleteTask(completion(quick, b"in time"), timeout=TIMEOUT_S)
    done = await task_of(peer, task_id)
    assert (done.state, done.result) == (task_pb2.TASK_STATE_COMPLETED, b"in time")


async def test_task_claim_that_is_extended_lasts_beyond_ten_minutes(peer: ServedPeer) -> None:
    session = await peer.register("patient")
    task_id = await enqueue(peer)
    [task] = await claim(peer, session)
    for _ in range(2):
        await keep_alive(peer, CLAIM_MS - 1, session)
        extend = task_pb2.ExtendClaimRequest(
            task_id=task_id, claim_token=task.claim_token, session_id=session.session_id
        )
        await peer.tasks.ExtendClaim(extend, timeout=TIMEOUT_S)
    done = await peer.tasks.CompleteTask(completion(task), timeout=TIMEOUT_S)
    assert (done.task.state, done.task.retry_count) == (task_pb2.TASK_STATE_COMPLETED, 0)
