"""Policies, deadlines and dependencies as callers see them, and in which words they are refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration

from tests.services.test_tasks import claim, claimed_task, enqueue
from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, failure_of

BLOCKED = task_pb2.TASK_STATE_BLOCKED
PENDING = task_pb2.TASK_STATE_PENDING
FAILED = task_pb2.TASK_STATE_FAILED
SCHEDULED = task_pb2.TASK_STATE_SCHEDULED


def ms(milliseconds: int) -> Duration:
    value = Duration()
    value.FromMilliseconds(milliseconds)
    return value


async def get(peer: ServedPeer, task_id: str) -> task_pb2.Task:
    request = task_pb2.GetTaskRequest(task_id=task_id)
    return (await peer.tasks.GetTask(request, timeout=TIMEOUT_S)).task


async def fail(peer: ServedPeer, task: task_pb2.Task, **fields: Any) -> task_pb2.Task:
    request = task_pb2.FailTaskRequest(
        task_id=task.task_id, claim_token=task.claim_token, session_id=task.claimed_by, **fields
    )
    return (await peer.tasks.FailTask(request, timeout=TIMEOUT_S)).task


async def put_policy(peer: ServedPeer, **fields: Any) -> task_pb2.PutTaskPolicyResponse:
    policy = task_pb2.TaskPolicy(task_type="grade", **fields)
    request = task_pb2.PutTaskPolicyRequest(policy=policy)
    return await peer.tasks.PutTaskPolicy(request, timeout=TIMEOUT_S)


async def test_a_policy_is_put_listed_followed_and_deleted(peer: ServedPeer) -> None:
    put = await put_policy(peer, max_retries=1, final_error_types=["ValueError"])
    assert put.policy.HasField("update_time")
    assert put.applied_index == peer.node.machine.applied_index
    listed = await peer.tasks.ListTaskPolicies(
        task_pb2.ListTaskPoliciesRequest(), timeout=TIMEOUT_S
    )
    assert list(listed.policies) == [put.policy]
    _, task = await claimed_task(peer)
    assert task.max_retries == 1
    failed = await fail(peer, task, error="no", error_type="ValueError")
    assert (failed.state, failed.last_error_type) == (FAILED, "ValueError")
    delete = task_pb2.DeleteTaskPolicyRequest(task_type="grade")
    deleted = await peer.tasks.DeleteTaskPolicy(delete, timeout=TIMEOUT_S)
    assert deleted.policy == put.policy
    failure = await failure_of(peer.tasks.DeleteTaskPolicy(delete, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_policies_are_listed_a_page_at_a_time(peer: ServedPeer) -> None:
    for number in (2, 0, 1):
        policy = task_pb2.TaskPolicy(task_type=f"type-{number}", max_retries=number)
        await peer.tasks.PutTaskPolicy(
            task_pb2.PutTaskPolicyRequest(policy=policy), timeout=TIMEOUT_S
        )
    request = task_pb2.ListTaskPoliciesRequest(page_size=2)
    first = await peer.tasks.ListTaskPolicies(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    second = await peer.tasks.ListTaskPolicies(request, timeout=TIMEOUT_S)
    names = [[policy.task_type for policy in page.policies] for page in (first, second)]
    assert names == [["type-0", "type-1"], ["type-2"]]
    assert not second.next_page_token


async def test_the_wait_before_a_retry_can_be_named(peer: ServedPeer) -> None:
    _, task = await claimed_task(peer)
    failed = await fail(peer, task, error="busy", error_type="RateLimited", retry_delay=ms(7_000))
    assert (failed.state, failed.last_error_type) == (SCHEDULED, "RateLimited")
    waits_ms = failed.available_time.ToMilliseconds() - failed.update_time.ToMilliseconds()
    assert waits_ms == 7_000
    event = next(event for event in (await get(peer, task.task_id)).history if event.error)
    assert (event.error, event.error_type) == ("busy", "RateLimited")


async def test_a_deadline_ends_the_task_and_the_holder_is_told(peer: ServedPeer) -> None:
    session = await peer.register()
    enqueued = await enqueue(peer, deadline=ms(5_000))
    created_ms = enqueued.task.create_time.ToMilliseconds()
    assert enqueued.task.deadline_time.ToMilliseconds() == created_ms + 5_000
    (task,) = (await claim(peer, session)).tasks
    await peer.node.let_pass(5_000)
    late = await get(peer, task.task_id)
    assert late.state == FAILED
    assert "deadline" in late.last_error
    complete = task_pb2.CompleteTaskRequest(
        task_id=task.task_id, claim_token=task.claim_token, session_id=session.session_id
    )
    failure = await failure_of(peer.tasks.CompleteTask(complete, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.metadata["state"] == "FAILED"


async def test_tasks_wait_for_others_also_of_their_own_batch(peer: ServedPeer) -> None:
    request = task_pb2.BatchEnqueueTasksRequest(
        tasks=[
            task_pb2.NewTask(task_type="fetch"),
            task_pb2.NewTask(task_type="grade", depends_on=["#0"]),
            task_pb2.NewTask(task_type="report", depends_on=["#1"]),
        ]
    )
    batch = await peer.tasks.BatchEnqueueTasks(request, timeout=TIMEOUT_S)
    first, second, third = batch.tasks
    assert [task.state for task in batch.tasks] == [PENDING, BLOCKED, BLOCKED]
    assert list(second.depends_on) == [first.task_id]
    stats = await peer.tasks.GetQueueStats(task_pb2.GetQueueStatsRequest(), timeout=TIMEOUT_S)
    assert (stats.pending, stats.blocked) == (1, 2)
    cancel = task_pb2.CancelTaskRequest(task_id=first.task_id, reason="no school")
    await peer.tasks.CancelTask(cancel, timeout=TIMEOUT_S)
    await peer.node.let_pass(1_000)
    ended = [await get(peer, task.task_id) for task in (second, third)]
    assert [task.state for task in ended] == [FAILED, FAILED]
    assert first.task_id in ended[0].last_error
    requeue = task_pb2.RequeueTaskRequest(task_id=first.task_id, include_dependents=True)
    requeued = await peer.tasks.RequeueTask(requeue, timeout=TIMEOUT_S)
    assert (requeued.task.state, requeued.requeued_dependents) == (PENDING, 2)
    assert (await get(peer, third.task_id)).state == BLOCKED


async def test_a_dependency_that_nobody_knows_is_not_found(peer: ServedPeer) -> None:
    failure = await failure_of(enqueue(peer, depends_on=["t-000000000009"]))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert "t-000000000009" in failure.message


async def test_a_payload_that_is_too_large_is_told_the_limit(serve: Serve) -> None:
    async with serve(max_payload_size_bytes=16) as peer:
        failure = await failure_of(enqueue(peer, payload=b"x" * 17))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.violations == {"payload": "has 17 bytes, at most 16 are allowed"}


async def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    async with serve({"task.max_pending": "2"}) as peer:
        first = await enqueue(peer)
        await enqueue(peer, depends_on=[first.task.task_id])
        failure = await failure_of(enqueue(peer))
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure.reason == "QUEUE_FULL"
        assert failure.retry_after_ms
        assert "task.max_pending" in failure.message


@pytest.mark.parametrize("name", ["ExtendClaim", "CompleteTask", "FailTask", "ReleaseTask"])
@pytest.mark.parametrize("gone", ["expired", "foreign"])
async def test_a_claim_that_is_no_longer_held_names_the_holder(
    peer: ServedPeer, name: str, gone: str
) -> None:
    session, task = await claimed_task(peer)
    other = await peer.register("other")
    token = task.claim_token
    if gone == "expired":
        await peer.node.let_pass(10 * 60_000)
        await peer.node.let_pass(1_000)
        session = await peer.register(session.name)
        other = await peer.register("other")
        ((again),) = (await claim(peer, other)).tasks
        token = again.claim_token
    request = getattr(task_pb2, f"{name}Request")(
        task_id=task.task_id,
        claim_token=task.claim_token,
        session_id=session.session_id if gone == "expired" else other.session_id,
    )
    failure = await failure_of(getattr(peer.tasks, name)(request, timeout=TIMEOUT_S))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STALE_CLAIM",
    )
    holder = other if gone == "expired" else session
    assert failure.metadata["claimed_by"] == holder.session_id
    assert failure.metadata["claim_token"] == str(token)
    assert holder.session_id in failure.message


@pytest.mark.parametrize(
    ("name", "state"),
    [("RequeueTask", "PENDING"), ("RequeueTask", "CLAIMED"), ("CancelTask", "COMPLETED")],
)
async def test_an_illegal_transition_names_the_state(
    peer: ServedPeer, name: str, state: str
) -> None:
    session, task = await claimed_task(peer)
    if state == "PENDING":
        release = task_pb2.ReleaseTaskRequest(
            task_id=task.task_id, claim_token=task.claim_token, session_id=session.session_id
        )
        await peer.tasks.ReleaseTask(release, timeout=TIMEOUT_S)
    if state == "COMPLETED":
        complete = task_pb2.CompleteTaskRequest(
            task_id=task.task_id, claim_token=task.claim_token, session_id=session.session_id
        )
        await peer.tasks.CompleteTask(complete, timeout=TIMEOUT_S)
    request = getattr(task_pb2, f"{name}Request")(task_id=task.task_id)
    failure = await failure_of(getattr(peer.tasks, name)(request, timeout=TIMEOUT_S))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "ILLEGAL_TRANSITION",
    )
    assert failure.metadata["state"] == state
    assert state in failure.message


async def test_a_claim_of_an_old_incarnation_gets_nothing(peer: ServedPeer) -> None:
    session = await peer.register("again")
    await peer.node.let_pass(31_000)
    renewed = await peer.register("again")
    assert (renewed.session_id, renewed.incarnation) == (session.session_id, 2)
    await enqueue(peer)
    failure = await failure_of(claim(peer, session, incarnation=1))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STALE_INCARNATION",
    )
    assert len((await claim(peer, session, incarnation=2)).tasks) == 1
