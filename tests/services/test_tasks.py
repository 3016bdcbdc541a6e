"""TaskService over the real state machine."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.errors import UnavailableError
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.services.task_specs import content_digest, milliseconds, task_spec
from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, eventually, failure_of


async def enqueue(peer: ServedPeer, **fields: Any) -> task_pb2.EnqueueTaskResponse:
    fields.setdefault("task_type", "grade")
    request = task_pb2.EnqueueTaskRequest(**fields)
    return await peer.tasks.EnqueueTask(request, timeout=TIMEOUT_S)


async def claim(
    peer: ServedPeer, session: session_pb2.Session, timeout: float = TIMEOUT_S, **fields: Any
) -> task_pb2.ClaimTasksResponse:
    request = task_pb2.ClaimTasksRequest(session_id=session.session_id, **fields)
    return await peer.tasks.ClaimTasks(request, timeout=timeout)


async def claimed_task(peer: ServedPeer) -> tuple[session_pb2.Session, task_pb2.Task]:
    session = await peer.register()
    await enqueue(peer, payload=b"essay")
    (task,) = (await claim(peer, session)).tasks
    return session, task


async def test_a_task_from_enqueue_to_completion(peer: ServedPeer) -> None:
    session = await peer.register()
    enqueued = await enqueue(peer, payload=b"essay", priority=5)
    assert not enqueued.existing
    assert enqueued.applied_index == peer.node.machine.applied_index
    (task,) = (await claim(peer, session)).tasks
    assert (task.task_id, task.payload) == (enqueued.task.task_id, b"essay")
    extend = task_pb2.ExtendClaimRequest(
        task_id=task.task_id,
        claim_token=task.claim_token,
        session_id=session.session_id,
        progress=0.5,
        checkpoint=b"half",
    )
    extended = await peer.tasks.ExtendClaim(extend, timeout=TIMEOUT_S)
    assert extended.task.progress == 0.5
    complete = task_pb2.CompleteTaskRequest(
        task_id=task.task_id,
        claim_token=task.claim_token,
        session_id=session.session_id,
        result=b"A+",
    )
    completed = await peer.tasks.CompleteTask(complete, timeout=TIMEOUT_S)
    assert completed.task.state == task_pb2.TASK_STATE_COMPLETED
    again = await peer.tasks.CompleteTask(complete, timeout=TIMEOUT_S)
    assert again.task.state == task_pb2.TASK_STATE_COMPLETED
    get = task_pb2.GetTaskRequest(task_id=task.task_id)
    read = (await peer.tasks.GetTask(get, timeout=TIMEOUT_S)).task
    assert (read.result, read.checkpoint) == (b"A+", b"half")
    assert read.history
    stats = await peer.tasks.GetQueueStats(task_pb2.GetQueueStatsRequest(), timeout=TIMEOUT_S)
    assert (stats.completed, stats.enqueued_total, stats.claims_total) == (1, 1, 1)


async def test_commands_by_token_keep_no_request_id(peer: ServedPeer) -> None:
    session, task = await claimed_task(peer)
    release = task_pb2.ReleaseTaskRequest(
        task_id=task.task_id, claim_token=task.claim_token, session_id=session.session_id
    )
    released = await peer.tasks.ReleaseTask(release, timeout=TIMEOUT_S)
    assert released.task.state == task_pb2.TASK_STATE_PENDING
    assert peer.node.commands[-1].request_id == ""
    assert peer.node.commands[-1].request_digest == b""


async def test_a_stale_token_names_the_holder(peer: ServedPeer) -> None:
    session, task = await claimed_task(peer)
    request = task_pb2.CompleteTaskRequest(
        task_id=task.task_id, claim_token=task.claim_token + 7, session_id=session.session_id
    )
    failure = await failure_of(peer.tasks.CompleteTask(request, timeout=TIMEOUT_S))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STALE_CLAIM",
    )
    assert session.session_id in failure.metadata.values()


async def test_a_failed_attempt_is_scheduled_again_and_a_permanent_one_is_not(
    peer: ServedPeer,
) -> None:
    session, task = await claimed_task(peer)
    request = task_pb2.FailTaskRequest(
        task_id=task.task_id,
        claim_token=task.claim_token,
        session_id=session.session_id,
        error="model overloaded\nline 2",
    )
    failed = await peer.tasks.FailTask(request, timeout=TIMEOUT_S)
    assert failed.task.state == task_pb2.TASK_STATE_SCHEDULED
    assert failed.task.retry_count == 1
    await peer.node.let_pass(1_000)
    (again,) = (await claim(peer, session)).tasks
    request.claim_token, request.permanent = again.claim_token, True
    failed = await peer.tasks.FailTask(request, timeout=TIMEOUT_S)
    assert failed.task.state == task_pb2.TASK_STATE_FAILED
    requeue = task_pb2.RequeueTaskRequest(task_id=task.task_id)
    requeued = await peer.tasks.RequeueTask(requeue, timeout=TIMEOUT_S)
    assert requeued.task.state == task_pb2.TASK_STATE_PENDING


async def test_a_checkpoint_that_forwarding_repeats_undoes_no_later_one(peer: ServedPeer) -> None:
    """Found by `make chaos`: repeated after a lost leader, it came back over a newer one."""
    session = await peer.register()
    await enqueue(peer)
    (task,) = (await claim(peer, session)).tasks
    for checkpoint in (b"first", b"second"):
        request = task_pb2.ExtendClaimRequest(
            task_id=task.task_id,
            claim_token=task.claim_token,
            session_id=session.session_id,
            checkpoint=checkpoint,
        )
        await peer.tasks.ExtendClaim(request, timeout=TIMEOUT_S)
    repeated = peer.node.commands[-2].SerializeToString()
    await peer.node.propose(repeated, timeout_s=TIMEOUT_S)
    stored = await peer.tasks.GetTask(
        task_pb2.GetTaskRequest(task_id=task.task_id), timeout=TIMEOUT_S
    )
    assert stored.task.checkpoint == b"second"


async def test_a_task_is_called_off(peer: ServedPeer) -> None:
    enqueued = await enqueue(peer)
    request = task_pb2.CancelTaskRequest(task_id=enqueued.task.task_id, reason="not needed")
    cancelled = await peer.tasks.CancelTask(request, timeout=TIMEOUT_S)
    assert cancelled.task.state == task_pb2.TASK_STATE_CANCELLED
    assert peer.node.commands[-1].ingress_assigned


async def test_an_idempotency_key_is_the_same_task_and_other_content_is_refused(
    peer: ServedPeer,
) -> None:
    first = await enqueue(peer, idempotency_key="job-123", payload=b"a")
    again = await enqueue(peer, idempotency_key="job-123", payload=b"a")
    assert (again.task.task_id, again.existing) == (first.task.task_id, True)
    assert peer.node.commands[-1].request_id == ""
    failure = await failure_of(enqueue(peer, idempotency_key="job-123", payload=b"b"))
    assert failure.code is grpc.StatusCode.ALREADY_EXISTS


async def test_a_batch_is_enqueued_in_order_by_one_entry(peer: ServedPeer) -> None:
    before = len(peer.node.commands)
    tasks = [task_pb2.NewTask(task_type=f"t{number}") for number in range(1_000)]
    request = task_pb2.BatchEnqueueTasksRequest(tasks=tasks)
    response = await peer.tasks.BatchEnqueueTasks(request, timeout=TIMEOUT_S)
    assert [task.task_type for task in response.tasks] == [task.task_type for task in tasks]
    assert len(peer.node.commands) == before + 1
    assert peer.node.commands[-1].ingress_assigned


async def test_a_batch_of_keyed_tasks_needs_no_request_id(peer: ServedPeer) -> None:
    tasks = [task_pb2.NewTask(task_type="t", idempotency_key=key) for key in ("a", "b")]
    request = task_pb2.BatchEnqueueTasksRequest(tasks=tasks)
    await peer.tasks.BatchEnqueueTasks(request, timeout=TIMEOUT_S)
    assert not peer.node.commands[-1].ingress_assigned


async def test_each_completion_of_a_batch_has_its_outcome(peer: ServedPeer) -> None:
    session, task = await claimed_task(peer)
    request = task_pb2.BatchCompleteTasksRequest(
        session_id=session.session_id,
        completions=[
            task_pb2.Completion(task_id=task.task_id, claim_token=task.claim_token),
            task_pb2.Completion(task_id="task-999", claim_token=1),
        ],
    )
    response = await peer.tasks.BatchCompleteTasks(request, timeout=TIMEOUT_S)
    done, unknown = response.outcomes
    assert (done.task_id, done.completed, done.reason) == (task.task_id, True, "")
    assert (unknown.task_id, unknown.completed, unknown.reason) == (
        "task-999",
        False,
        "NOT_FOUND",
    )
    assert unknown.message


async def test_tasks_are_listed_a_page_at_a_time(peer: ServedPeer) -> None:
    for _ in range(3):
        await enqueue(peer)
    request = task_pb2.ListTasksRequest(page_size=2, state=task_pb2.TASK_STATE_PENDING)
    first = await peer.tasks.ListTasks(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    second = await peer.tasks.ListTasks(request, timeout=TIMEOUT_S)
    assert (len(first.tasks), len(second.tasks)) == (2, 1)
    assert second.next_page_token == ""


async def test_a_large_page_is_read_in_pieces_and_comes_whole(peer: ServedPeer) -> None:
    tasks = [task_pb2.NewTask(task_type="t") for _ in range(350)]
    batch = task_pb2.BatchEnqueueTasksRequest(tasks=tasks)
    enqueued = (await peer.tasks.BatchEnqueueTasks(batch, timeout=TIMEOUT_S)).tasks
    peer.node.reads.clear()
    request = task_pb2.ListTasksRequest(page_size=250)
    first = await peer.tasks.ListTasks(request, timeout=TIMEOUT_S)
    assert peer.node.reads == [
        ReadConsistency.LINEARIZABLE,
        ReadConsistency.LOCAL,
        ReadConsistency.LOCAL,
    ]
    request.page_token = first.next_page_token
    second = await peer.tasks.ListTasks(request, timeout=TIMEOUT_S)
    assert (len(first.tasks), len(second.tasks), second.next_page_token) == (250, 100, "")
    listed = [task.task_id for task in (*first.tasks, *second.tasks)]
    assert listed == [task.task_id for task in enqueued]


async def test_an_unknown_task_is_not_found(peer: ServedPeer) -> None:
    request = task_pb2.GetTaskRequest(task_id="task-1")
    failure = await failure_of(peer.tasks.GetTask(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.NOT_FOUND


# --- claims ----------------------------------------------------------------------------------


async def test_a_claim_without_wait_answers_at_once(peer: ServedPeer) -> None:
    session = await peer.register()
    assert list((await claim(peer, session)).tasks) == []


async def test_a_repeated_claim_is_the_same_claim_also_with_less_time_to_wait(
    peer: ServedPeer,
) -> None:
    session = await peer.register()
    await enqueue(peer)
    await enqueue(peer)
    first = await claim(peer, session, request_id="c-1", wait=Duration(seconds=2))
    again = await claim(peer, session, request_id="c-1", wait=Duration(seconds=1))
    assert [task.claim_token for task in again.tasks] == [task.claim_token for task in first.tasks]
    assert len(first.tasks) == 1


async def test_a_waiting_claim_is_granted_by_the_enqueue(peer: ServedPeer) -> None:
    session = await peer.register()
    waiting = asyncio.ensure_future(claim(peer, session, wait=Duration(seconds=3)))
    await eventually(lambda: peer.node.waiting == 1)
    enqueued = await enqueue(peer, payload=b"late")
    (task,) = (await waiting).tasks
    assert (task.task_id, task.payload) == (enqueued.task.task_id, b"late")
    assert not any(command.HasField("cancel_claim_wait") for command in peer.node.commands)


async def test_a_wait_that_runs_out_in_log_time_is_empty(peer: ServedPeer) -> None:
    session = await peer.register()
    waiting = asyncio.ensure_future(claim(peer, session, wait=Duration(seconds=3)))
    await eventually(lambda: peer.node.waiting == 1)
    await peer.node.let_pass(3_000)
    assert list((await waiting).tasks) == []


async def test_a_wait_ends_before_the_deadline_and_is_cancelled(peer: ServedPeer) -> None:
    session = await peer.register()
    response = await claim(peer, session, timeout=0.5, wait=Duration(seconds=60))
    assert list(response.tasks) == []
    await eventually(lambda: peer.node.commands[-1].HasField("cancel_claim_wait"))
    await enqueue(peer)
    assert len((await claim(peer, session)).tasks) == 1


async def test_a_caller_that_is_gone_cancels_its_wait(peer: ServedPeer) -> None:
    session = await peer.register()
    request = task_pb2.ClaimTasksRequest(session_id=session.session_id, wait=Duration(seconds=3))
    call = peer.tasks.ClaimTasks(request, timeout=TIMEOUT_S)
    await eventually(lambda: peer.node.waiting == 1)
    call.cancel()
    await eventually(lambda: peer.node.commands[-1].HasField("cancel_claim_wait"))
    await enqueue(peer)
    assert len((await claim(peer, session)).tasks) == 1


async def test_a_caller_that_goes_before_its_wait_is_known_cancels_it_too(peer: ServedPeer) -> None:
    """Such a wait stayed in the log, took a task for nobody and held it for task.claim_timeout."""
    session = await peer.register()
    peer.node.answers.clear()
    request = task_pb2.ClaimTasksRequest(session_id=session.session_id, wait=Duration(seconds=30))
    call = peer.tasks.ClaimTasks(request, timeout=TIMEOUT_S)
    await eventually(lambda: peer.node.commands[-1].HasField("claim_tasks"))
    call.cancel()
    await eventually(lambda: peer.port.interceptor.calls == 0)
    peer.node.answers.set()
    await eventually(lambda: peer.node.commands[-1].HasField("cancel_claim_wait"))
    await enqueue(peer)
    assert len((await claim(peer, session)).tasks) == 1


async def test_a_wait_that_can_not_be_cancelled_runs_out_by_itself(peer: ServedPeer) -> None:
    session = await peer.register()
    request = task_pb2.ClaimTasksRequest(session_id=session.session_id, wait=Duration(seconds=3))
    call = peer.tasks.ClaimTasks(request, timeout=TIMEOUT_S)
    await eventually(lambda: peer.node.waiting == 1)
    peer.node.error = UnavailableError("no quorum")
    call.cancel()
    await eventually(lambda: peer.port.interceptor.calls == 0)
    await peer.port._services.close()
    peer.node.error = None
    await peer.node.let_pass(3_000)
    stats = await peer.tasks.GetQueueStats(task_pb2.GetQueueStatsRequest(), timeout=TIMEOUT_S)
    assert stats.waiting_claims == 0


async def test_many_waiting_claims_do_not_keep_other_calls_out(serve: Serve) -> None:
    async with serve(max_concurrent_calls=50) as peer:
        session = await peer.register(max_concurrent_tasks=1_000)
        waits = [
            asyncio.ensure_future(claim(peer, session, wait=Duration(seconds=4))) for _ in range(40)
        ]
        await eventually(lambda: peer.node.waiting == 40)
        for _ in range(40):
            await enqueue(peer)
        granted = [task.task_id for wait in waits for task in (await wait).tasks]
        assert len(set(granted)) == 40


# --- specs -----------------------------------------------------------------------------------


def test_a_task_without_fields_gets_the_defaults() -> None:
    spec = task_spec(task_pb2.NewTask(task_type="grade"))
    assert (spec.affinity, spec.HasField("max_retries"), spec.content_digest) == (
        "general",
        False,
        b"",
    )
    assert (spec.delay_ms, spec.deadline_ms) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"task_type": "other"},
        {"payload": b"other"},
        {"affinity": "math"},
        {"priority": 1},
        {"max_retries": 0},
        {"delay": Duration(seconds=1)},
        {"deadline": Duration(seconds=1)},
        {"depends_on": ["task-1"]},
    ],
)
def test_every_field_is_part_of_the_content(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"task_type": "grade", "idempotency_key": "k"}
    plain = task_spec(task_pb2.NewTask(**fields))
    changed = task_spec(task_pb2.NewTask(**{**fields, **change}))
    assert plain.content_digest != changed.content_digest
    other_key = task_spec(task_pb2.NewTask(**{**fields, "idempotency_key": "other"}))
    assert other_key.content_digest == plain.content_digest
    assert content_digest(plain) == plain.content_digest


def test_the_digest_of_a_task_never_changes() -> None:
    """It is stored: a new value would refuse every retry across an update."""
    spec = task_spec(
        task_pb2.NewTask(
            task_type="grade",
            payload=b"essay",
            affinity="math",
            priority=-3,
            idempotency_key="k",
            max_retries=2,
            depends_on=["task-1"],
        )
    )
    assert (
        spec.content_digest.hex()
        == "17c667c95644c735c7823d8eae6dd3e4d45f5cf156422c7e58ce3472c6f81260"
    )


def test_durations_are_rounded_up_to_milliseconds() -> None:
    assert milliseconds(Duration(seconds=1, nanos=1)) == 1_001
    assert milliseconds(Duration(nanos=2_000_000)) == 2


async def test_a_checkpoint_that_a_client_repeats_undoes_no_later_one(peer: ServedPeer) -> None:
    session = await peer.register()
    await enqueue(peer)
    (task,) = (await claim(peer, session)).tasks
    requests = [
        task_pb2.ExtendClaimRequest(
            task_id=task.task_id,
            claim_token=task.claim_token,
            session_id=session.session_id,
            checkpoint=checkpoint,
            request_id=f"extend-{checkpoint.decode()}",
        )
        for checkpoint in (b"first", b"second")
    ]
    for request in (*requests, requests[0]):
        await peer.tasks.ExtendClaim(request, timeout=TIMEOUT_S)
    stored = await peer.tasks.GetTask(
        task_pb2.GetTaskRequest(task_id=task.task_id), timeout=TIMEOUT_S
    )
    assert stored.task.checkpoint == b"second"


async def test_a_renewal_without_a_checkpoint_keeps_nothing(peer: ServedPeer) -> None:
    """Every claim sends many of them, and the SDK names each call."""
    session = await peer.register()
    await enqueue(peer)
    (task,) = (await claim(peer, session)).tasks
    request = task_pb2.ExtendClaimRequest(
        task_id=task.task_id,
        claim_token=task.claim_token,
        session_id=session.session_id,
        request_id="renewal-1",
    )
    await peer.tasks.ExtendClaim(request, timeout=TIMEOUT_S)
    assert peer.node.commands[-1].request_id == ""
