"""The worker's claims: told at once where they are lost, and nothing is sent with a stale token.

Tests named after a complaint stand for the worker's part in it: what users of other queues report
most often (a job that ran twice, a late result, one that was never delivered).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.message import Message

from gaia_grpc.client import (
    BlockingJob,
    Job,
    Worker,
    attempts,
    held_claim,
)
from gaia_grpc.errors import (
    StaleClaimError,
)
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer
from tests.client.worker_queue import Queue

Peers = tuple[FakePeer, FakePeer]


async def essay_handler(job: Job) -> bytes:
    return b"A"


def changed(state: task_pb2.TaskState.ValueType, token: int) -> task_pb2.WatchTasksResponse:
    task = task_pb2.Task(task_id="t1", state=state, claim_token=token)
    return task_pb2.WatchTasksResponse(task=task)


async def test_complaint_1_a_job_longer_than_its_claim_is_renewed_from_a_thread_too(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1", claim_s=0.3)
    worker = Worker(await connect(peers[0]), name="w")
    done = threading.Event()

    @worker.task("grade")
    def grade(job: BlockingJob) -> bytes:
        done.wait(5)
        return b"late"

    async with worker:
        await queue.until(lambda: len(queue.lines("extended")) >= 3)
        done.set()
        await queue.until(lambda: bool(queue.lines("completed")))
    assert queue.lines("completed") == ["completed t1 7 late"]
    assert worker.counters.lost == 0


@pytest.fixture
def watched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_claim, "WATCH_AFTER_S", 0.0)


@pytest.mark.usefixtures("watched_at_once")
async def test_a_task_that_is_called_off_cancels_its_handler_at_once(
    peers: Peers, connect: Connect
) -> None:
    """News from before the claim, and of its own completion, say nothing about it."""
    queue = Queue(peers[0], "t1")
    started, ended = asyncio.Event(), asyncio.Event()
    jobs: list[Job] = []

    async def changes(
        request: task_pb2.WatchTasksRequest, context: Context
    ) -> AsyncIterator[Message]:
        assert request.task_id == "t1"
        yield task_pb2.WatchTasksResponse(applied_index=3)
        yield changed(task_pb2.TASK_STATE_PENDING, 6)
        yield changed(task_pb2.TASK_STATE_CLAIMED, 7)
        await started.wait()
        yield changed(task_pb2.TASK_STATE_CANCELLED, 7)
        await asyncio.Event().wait()

    peers[0].streams["WatchTasks"] = changes
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        jobs.append(job)
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with worker, asyncio.timeout(5):
        await ended.wait()
        await queue.until(lambda: worker.counters.lost == 1)
    assert jobs[0].lost
    assert jobs[0].lost_because == "the task is CANCELLED"
    assert not peers[0].of("CompleteTask")
    assert not peers[0].of("FailTask")


@pytest.mark.usefixtures("watched_at_once")
async def test_a_thread_is_told_and_keeps_its_slot_until_it_ends(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1", "t2")
    lost, may_end = threading.Event(), threading.Event()

    async def changes(
        request: task_pb2.WatchTasksRequest, context: Context
    ) -> AsyncIterator[Message]:
        if request.task_id == "t1":
            yield changed(task_pb2.TASK_STATE_CLAIMED, 8)
        await asyncio.Event().wait()

    peers[0].streams["WatchTasks"] = changes
    worker = Worker(await connect(peers[0]), name="w")
    refusals: list[StaleClaimError] = []

    @worker.task("grade")
    def grade(job: BlockingJob) -> bytes:
        if job.task_id == "t1":
            assert job.wait(5)
            try:
                job.checkpoint(b"too late")
            except StaleClaimError as refusal:
                refusals.append(refusal)
            lost.set()
            may_end.wait(5)
        return b"done"

    async with worker:
        assert await asyncio.to_thread(lost.wait, 5)
        await queue.until(lambda: len(queue.lines("heartbeat")) >= 2)
        assert len(peers[0].of("ClaimTasks")) == 1, "one slot, and a thread is in it"
        may_end.set()
        await queue.until(lambda: bool(queue.lines("completed")))
    assert queue.lines("completed") == ["completed t2 7 done"]
    assert "stop here" in refusals[0].message
    assert not peers[0].of("ExtendClaim")


async def test_complaint_4_a_result_for_a_lost_claim_is_never_sent(
    peers: Peers, connect: Connect
) -> None:
    """The session fails and registers again while a thread works on; its result stays here."""
    queue = Queue(peers[0], "t1")
    worker = Worker(await connect(peers[0]), name="w", concurrency=2)
    started, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    @worker.task("grade")
    def grade(job: BlockingJob) -> bytes:
        if job.task_id == "t1":
            started.set()
            may_end.wait(5)
            ended.set()
        return b"done"

    async with worker:
        assert await asyncio.to_thread(started.wait, 5)
        queue.session_failed = True
        await queue.until(lambda: bool(queue.lines("registered w 2")))
        may_end.set()
        assert await asyncio.to_thread(ended.wait, 5)
        queue.waiting.append("t2")
        queue.note("enqueued")
        await queue.until(lambda: bool(queue.lines("completed")))
    assert [request.task_id for request in peers[0].of("CompleteTask")] == ["t2"]
    assert (worker.counters.lost, worker.counters.completed) == (1, 1)


async def test_a_heartbeat_that_counts_fewer_claims_makes_the_worker_ask(
    peers: Peers, connect: Connect
) -> None:
    """A change that the watch missed: the next heartbeat finds it, long before the renewal."""
    queue = Queue(peers[0], "t1")
    cancelled = asyncio.Event()
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        queue.held.clear()
        queue.stale.add("t1")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    async with worker, asyncio.timeout(5):
        await cancelled.wait()
    assert len(peers[0].of("ExtendClaim")) == 1
    assert worker.counters.lost == 1


@pytest.mark.parametrize("registered_late", [False, True])
async def test_a_grant_from_before_the_session_failed_is_asked_about_first(
    peers: Peers, connect: Connect, registered_late: bool
) -> None:
    """Also while the worker knows that it has lost its session, and of no other yet."""
    queue = Queue(peers[0], "t1")
    plain = peers[0].answers["ClaimTasks"]
    plain_register = peers[0].answers["RegisterSession"]
    runs: list[str] = []

    async def register(request: session_pb2.RegisterSessionRequest, context: Context) -> Message:
        answer = await plain_register(request, context)
        if registered_late and queue.incarnation == 2:
            await queue.until(lambda: bool(runs or peers[0].of("ExtendClaim")))
        return answer

    async def claim(request: task_pb2.ClaimTasksRequest, context: Context) -> Message:
        answer = await plain(request, context)
        if queue.incarnation == 1:
            queue.session_failed = True
            await queue.until(lambda: queue.incarnation == 2)
            queue.stale.add("t1")
            queue.waiting.append("t2")
        return answer

    peers[0].answers["ClaimTasks"] = claim
    peers[0].answers["RegisterSession"] = register
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        runs.append(job.task_id)
        return b""

    async with worker:
        await queue.until(lambda: bool(queue.lines("completed")))
    assert runs == ["t2"]
    assert worker.counters.lost == 1


async def test_complaint_5_a_claim_whose_answer_was_lost_is_asked_again_by_its_id(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    plain = peers[0].answers["ClaimTasks"]
    granted: dict[str, Message] = {}
    peers[0].status.peers.clear()

    async def claim(request: task_pb2.ClaimTasksRequest, context: Context) -> Message:
        if request.request_id not in granted:
            granted[request.request_id] = await plain(request, context)
            await asyncio.Event().wait()  # granted, and the answer is lost
        return granted[request.request_id]

    peers[0].answers["ClaimTasks"] = claim
    client = await connect(peers[0], timeout=0.2, attempt_timeout=0.2)
    worker = Worker(client, name="w", claim_wait=0.1, draw=lambda: 0.0)
    worker.task("grade")(essay_handler)
    async with worker:
        await queue.until(lambda: bool(queue.lines("completed")))
    assert queue.lines("completed") == ["completed t1 7 A"]


async def test_a_completion_with_an_unknown_outcome_is_repeated_until_it_is_known(
    peers: Peers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call gives up, the worker does not: the work is done, only the answer is missing."""
    monkeypatch.setattr(attempts, "OUTCOME_TIMEOUT_S", 0.2)
    monkeypatch.setattr(attempts, "REPORT_PAUSE_S", 0.01)
    queue = Queue(peers[0], "t1")
    plain = peers[0].answers["CompleteTask"]
    lost_answers = 3
    peers[0].status.peers.clear()

    async def complete(request: task_pb2.CompleteTaskRequest, context: Context) -> Message:
        nonlocal lost_answers
        answer = await plain(request, context)
        if lost_answers:
            lost_answers -= 1
            await asyncio.Event().wait()
        return answer

    peers[0].answers["CompleteTask"] = complete
    worker = Worker(await connect(peers[0]), name="w")
    worker.task("grade")(essay_handler)
    async with worker:
        await queue.until(lambda: len(queue.lines("completed")) == 4)
    assert set(queue.lines("completed")) == {"completed t1 7 A"}
    assert (worker.counters.completed, worker.counters.lost) == (1, 0)


async def test_a_claim_that_does_not_wait_is_not_asked_in_a_busy_loop(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0])
    asked: list[float] = []

    async def claim(request: task_pb2.ClaimTasksRequest, context: Context) -> Message:
        asked.append(time.monotonic())
        queue.note("claim")
        return task_pb2.ClaimTasksResponse()

    peers[0].answers["ClaimTasks"] = claim
    worker = Worker(await connect(peers[0]), name="w", draw=lambda: 0.5)
    worker.task("grade")(essay_handler)
    async with worker:
        await queue.until(lambda: len(asked) == 3)
    assert asked[1] - asked[0] >= 0.24
    assert asked[2] - asked[1] >= 0.49


@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
async def test_complaint_2_a_handler_that_hangs_does_not_hold_its_task_for_ever(
    peers: Peers, connect: Connect, threaded: bool
) -> None:
    """Its claim is renewed as long as it runs: only a time limit tells hanging from working."""
    queue = Queue(peers[0], "t1", "t2:essay", claim_s=0.2)
    worker = Worker(await connect(peers[0]), name="w")
    told = threading.Event()

    if threaded:

        @worker.task("grade", timeout=0.3)
        def hangs(job: BlockingJob) -> bytes:
            if job.wait(5):
                told.set()
            return b"late"
    else:

        @worker.task("grade", timeout=0.3)
        async def hangs_too(job: Job) -> bytes:
            try:
                await asyncio.Event().wait()
            finally:
                told.set()
            return b"late"

    worker.task("essay")(essay_handler)
    async with worker:
        await queue.until(lambda: bool(queue.lines("completed t2")))
    assert told.is_set()
    assert queue.lines("extended t1")
    assert queue.lines("failed") == [
        "failed t1 TimeoutError: the handler ran longer than 0.3 s False"
    ]
    assert (worker.counters.failed, worker.counters.lost) == (1, 0)
    assert [request.task_id for request in peers[0].of("CompleteTask")] == ["t2"]
