"""Handlers by task type: what they are told, and what becomes of how they end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time

import grpc
import pytest
from gaia.task.v1 import task_pb2
from google.protobuf.message import Message

from gaia_grpc.client import (
    JSON,
    BlockingJob,
    Fail,
    Job,
    Release,
    Retry,
    Worker,
    current_job,
    session_keeper,
)
from gaia_grpc.errors import (
    ConfigError,
    FailedPreconditionError,
    InvalidArgumentError,
    StaleClaimError,
)
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse
from tests.client.worker_queue import Queue

Peers = tuple[FakePeer, FakePeer]


async def test_each_type_has_its_handler_and_only_these_are_claimed(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1:essay", "t2:quiz", "t3:test")
    worker = Worker(await connect(peers[0]), name="w", concurrency=3)

    @worker.task("essay")
    async def essay(job: Job) -> bytes:
        return f"{job.task_type} {job.attempt} {job.claim_token}".encode()

    @worker.task("quiz", "test")
    def quiz(job: BlockingJob) -> bytes:
        return b"in a thread" if threading.current_thread().daemon else b""

    async with worker:
        await queue.until(lambda: len(queue.lines("completed")) == 3)
    assert sorted(queue.lines("completed")) == [
        "completed t1 7 essay 1 7",
        "completed t2 7 in a thread",
        "completed t3 7 in a thread",
    ]
    assert list(peers[0].of("ClaimTasks")[0].task_types) == ["essay", "quiz", "test"]
    assert worker.counters.busy == 0


async def test_complaint_8_a_task_that_nobody_knows_here_is_given_back_not_discarded(
    peers: Peers, connect: Connect
) -> None:
    """A cluster that respects the filter never grants one; the worker does not count on it."""
    queue = Queue(peers[0], "t1:unheard-of")
    worker = Worker(await connect(peers[0]), name="w")
    worker.task("essay")(essay_handler)
    async with worker:
        await queue.until(lambda: bool(queue.lines("released")))
    assert queue.lines("released") == ["released t1 7"]
    assert not queue.lines("failed")
    assert "'unheard-of'" in worker.counters.errors[0]


async def essay_handler(job: Job) -> bytes:
    return b"A"


async def test_a_worker_that_can_do_nothing_says_what_is_missing(
    peers: Peers, connect: Connect
) -> None:
    client = await connect(peers[0])
    with pytest.raises(ConfigError, match=r"@worker\.task"):
        await Worker(client, name="w").start()
    with pytest.raises(ConfigError, match="concurrency is 0"):
        Worker(client, name="w", concurrency=0)
    worker = Worker(client, name="w")
    with pytest.raises(ConfigError, match="name the task types"):
        worker.task()
    worker.task("essay")(essay_handler)
    with pytest.raises(ConfigError, match="essay has a handler"):
        worker.task("essay")(essay_handler)


async def test_a_checkpoint_reaches_the_next_attempt_and_progress_is_told(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        if job.attempt == 1:
            await job.checkpoint(b"page 3", progress=0.5)
            queue.waiting.append("t1")
            raise Retry("the model is busy")
        return job.previous_checkpoint

    async with worker:
        await queue.until(lambda: bool(queue.lines("completed")))
    assert queue.lines("extended") == ["extended t1 0.5"]
    assert queue.lines("failed") == ["failed t1 the model is busy False"]
    assert queue.lines("completed") == ["completed t1 8 page 3"]


async def test_progress_is_sent_soon_without_a_checkpoint(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1")
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    def grade(job: BlockingJob) -> bytes:
        with pytest.raises(InvalidArgumentError, match="0 to 1"):
            job.progress(25)
        job.progress(0.25)
        while not queue.lines("extended") and not job.wait(0.01):
            continue
        return b""

    async with worker:
        await queue.until(lambda: bool(queue.lines("completed")))
    assert queue.lines("extended") == ["extended t1 0.25"]


class UnspeakableError(Exception):
    pass


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Fail("no such page"), "failed t1 no such page True"),
        (Retry("busy"), "failed t1 busy False"),
        (Release("not mine"), "released t1 7"),
        (UnspeakableError(), "failed t1 UnspeakableError False"),
        (ValueError("\udc80"), "failed t1 ValueError: ? False"),
        (
            SystemExit(3),
            "failed t1 RuntimeError: the handler called for an exit: SystemExit(3)",
        ),
        (StopIteration(1), "failed t1 RuntimeError: "),
        (asyncio.CancelledError(), "failed t1 CancelledError False"),
        (ValueError("x" * 5_000), f"failed t1 ValueError: {'x' * 4_083}… False"),
        (
            "text",
            "failed t1 TypeError: the handler returned str; it may return bytes or None, or name "
            "a codec",
        ),
        (5, "failed t1 TypeError: the handler returned int; it may return bytes or None"),
        (None, "completed t1 7 "),
        (bytearray(b"A"), "completed t1 7 A"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
async def test_how_a_handler_ends_is_what_the_cluster_is_told(
    peers: Peers, connect: Connect, outcome: object, told: str, threaded: bool
) -> None:
    queue = Queue(peers[0], "t1", "t2:last")
    worker = Worker(await connect(peers[0]), name="w", concurrency=2)

    def end() -> bytes:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome  # type: ignore[return-value]  # what a handler without types may do

    if threaded:

        @worker.task("grade")
        def blocking(job: BlockingJob) -> bytes:
            return end()
    else:

        @worker.task("grade")
        async def grade(job: Job) -> bytes:
            return end()

    worker.task("last")(essay_handler)
    async with worker:
        await queue.until(lambda: any(line.split()[1] == "t1" for line in queue.done[1:]))
        await queue.until(lambda: bool(queue.lines("completed t2")))
    [line] = [line for line in queue.done if line.split()[1] == "t1"]
    assert line.startswith(told)


async def test_a_dead_letter_is_told_with_its_traceback(
    peers: Peers, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(peers[0], "t1")
    worker = Worker(await connect(peers[0]), name="w")

    async def fail(request: task_pb2.FailTaskRequest, context: Context) -> Message:
        queue.note("failed t1")
        return task_pb2.FailTaskResponse(
            task=task_pb2.Task(state=task_pb2.TASK_STATE_FAILED, retry_count=4)
        )

    peers[0].answers["FailTask"] = fail

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        raise ValueError("no answer key")

    async with worker:
        await queue.until(lambda: bool(queue.lines("failed")))
    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "task t1 (grade) is a dead letter after 4 attempts" in record.message
    assert record.exc_info is not None


async def test_stopping_is_told_and_a_released_task_does_not_count(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    started = threading.Event()
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    def grade(job: BlockingJob) -> bytes:
        started.set()
        while not job.stopping and not job.wait(0.01):
            continue
        job.checkpoint(b"half")
        raise Release

    async with worker:
        assert await asyncio.to_thread(started.wait, 5)
    assert queue.events[-3:] == ["extended t1 0", "released t1 7", "deregistered 1"]
    assert queue.checkpoints == {"t1": b"half"}
    assert worker.counters.released == 1


async def test_a_cancelled_handler_may_store_its_checkpoint(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1")
    started = asyncio.Event()
    worker = Worker(await connect(peers[0]), name="w", grace=0.2)

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await job.checkpoint(b"half")
        return b""

    async with worker:
        await started.wait()
    assert queue.checkpoints == {"t1": b"half"}
    assert queue.events[-2:] == ["released t1 7", "deregistered 1"]


async def test_a_thread_that_never_ends_does_not_keep_the_worker(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    started, may_end, told = threading.Event(), threading.Event(), threading.Event()
    worker = Worker(await connect(peers[0]), name="w", grace=0.05)

    @worker.task("grade")
    def grade(job: BlockingJob) -> bytes:
        started.set()
        may_end.wait(10)
        try:
            job.checkpoint(b"nobody wants it")
        except StaleClaimError:
            told.set()
        return b"nobody wants it"

    async with worker:
        assert await asyncio.to_thread(started.wait, 5)
    may_end.set()
    assert await asyncio.to_thread(told.wait, 5)
    assert queue.events[-1] == "deregistered 1"
    assert not peers[0].of("CompleteTask")


@pytest.mark.parametrize("signals", [1, 2])
async def test_sigterm_lets_handlers_finish_and_the_second_one_does_not(
    peers: Peers, connect: Connect, signals: int
) -> None:
    queue = Queue(peers[0], "t1")
    started, finish = asyncio.Event(), asyncio.Event()
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        started.set()
        await finish.wait()
        return b"A"

    before = signal.getsignal(signal.SIGTERM)
    running = asyncio.create_task(worker.run(signals=True))
    await started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await queue.until(lambda: len(queue.lines("heartbeat")) >= 2)
    assert not running.done()
    if signals == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        finish.set()
    async with asyncio.timeout(5):
        await running
    ended = {1: "completed t1 7 A", 2: "released t1 7"}[signals]
    assert queue.events[-2:] == [ended, "deregistered 1"]
    assert signal.getsignal(signal.SIGTERM) is before


async def test_a_worker_starts_once_and_again_after_its_stop(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0])
    worker = Worker(await connect(peers[0]), name="w")
    worker.task("grade")(essay_handler)
    async with worker:
        with pytest.raises(FailedPreconditionError, match="works already"):
            await worker.start()
    queue.waiting.append("t1")
    async with worker:
        await queue.until(lambda: bool(queue.lines("completed")))
    assert queue.lines("deregistered") == ["deregistered 1", "deregistered 2"]


async def test_a_handler_that_blocks_the_loop_is_named_in_the_log(
    peers: Peers,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_keeper, "BLOCKED_S", 0.1)
    queue = Queue(peers[0], "t1")
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            continue
        return b""

    async with worker:
        await queue.until(lambda: len(queue.lines("heartbeat")) >= 2)
    assert any("make it a plain function" in record.message for record in caplog.records)


async def test_the_job_is_found_from_deep_inside_in_both_kinds_of_handlers(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1", "t2:quiz")

    def deep() -> bytes:
        return current_job().task_id.encode()

    async def default(task: task_pb2.Task) -> bytes:
        return deep() + await asyncio.to_thread(deep)

    worker = Worker(await connect(peers[0]), name="w", handler=default, concurrency=2)

    @worker.task("quiz")
    def quiz(job: BlockingJob) -> bytes:
        return deep()

    async with worker:
        await queue.until(lambda: len(queue.lines("completed")) == 2)
    assert sorted(queue.lines("completed")) == ["completed t1 7 t1t1", "completed t2 7 t2"]
    assert list(peers[0].of("ClaimTasks")[0].task_types) == []
    with pytest.raises(FailedPreconditionError, match="no handler runs here"):
        current_job()


def caused(outcome: Exception, cause: Exception) -> Exception:
    outcome.__cause__ = cause
    return outcome


@pytest.mark.parametrize(
    ("outcome", "error_type", "delay_ms"),
    [
        (UnspeakableError(), "UnspeakableError", None),
        (Retry("busy", after=2.5), "Retry", 2_500),
        (Retry("busy", after=0), "Retry", 0),
        (Retry("busy", error_type="RateLimited"), "RateLimited", None),
        (caused(Retry("busy"), TimeoutError()), "TimeoutError", None),
        (caused(Fail("no key"), KeyError("k")), "KeyError", None),
        (Fail("no key", error_type="bad\ninput"), "bad?input", None),
        (type("X" * 200, (Exception,), {})(), "X" * 128, None),
    ],
)
async def test_the_kind_of_an_error_and_the_wanted_wait_are_told(
    peers: Peers, connect: Connect, outcome: Exception, error_type: str, delay_ms: int | None
) -> None:
    queue = Queue(peers[0], "t1")
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        raise outcome

    async with worker:
        await queue.until(lambda: bool(queue.lines("failed")))
    [request] = queue.failures
    assert request.error_type == error_type
    told = request.retry_delay.ToMilliseconds() if request.HasField("retry_delay") else None
    assert told == delay_ms


def test_a_wait_that_nobody_can_wait_is_refused() -> None:
    for after in (-1, float("nan"), 31 * 86_400.0):
        with pytest.raises(InvalidArgumentError, match="30 days"):
            Retry("busy", after=after)


async def test_a_codec_reads_the_payload_and_writes_the_result(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1", "t2:quiz")
    queue.payloads = {"t1": b'{"essay":7}', "t2": b"no JSON"}
    worker = Worker(await connect(peers[0]), name="w", concurrency=2)

    @worker.task("grade", "quiz", codec=JSON)
    def grade(job: BlockingJob) -> dict[str, object]:
        return {"grade": "A", "of": job.data["essay"]}

    async with worker:
        await queue.until(lambda: bool(queue.lines("failed") and queue.lines("completed")))
    assert queue.lines("completed") == ['completed t1 7 {"grade":"A","of":7}']
    [failure] = queue.failures
    assert (failure.task_id, failure.error_type, failure.permanent) == (
        "t2",
        "UndecodableError",
        True,
    )


async def test_a_result_without_bytes_is_a_failed_attempt(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1")
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade", codec=JSON)
    async def grade(job: Job) -> object:
        return object()

    async with worker:
        await queue.until(lambda: bool(queue.lines("failed")))
    [failure] = queue.failures
    assert failure.error.startswith("TypeError: the handler's codec does not take its result")
    assert not failure.permanent


@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
async def test_a_handler_is_cancelled_when_the_deadline_of_its_task_has_passed(
    peers: Peers, connect: Connect, threaded: bool
) -> None:
    queue = Queue(peers[0], "t1")
    queue.deadline_s = 0.3
    left: list[float | None] = []
    told: list[str] = []
    worker = Worker(await connect(peers[0]), name="w")

    async def extend(
        request: task_pb2.ExtendClaimRequest, context: Context
    ) -> task_pb2.ExtendClaimResponse:
        queue.note("looked")
        if len(queue.lines("looked")) > 1:  # the log's clock lags: at first it is not over
            await refuse(
                context, grpc.StatusCode.FAILED_PRECONDITION, "STALE_CLAIM", message="too late"
            )
        return task_pb2.ExtendClaimResponse()

    peers[0].answers["ExtendClaim"] = extend
    if threaded:

        @worker.task("grade")
        def blocking(job: BlockingJob) -> bytes:
            left.append(job.seconds_left)
            told.append("lost" if job.wait(5) else "late")
            return b""
    else:

        @worker.task("grade")
        async def grade(job: Job) -> bytes:
            left.append(job.seconds_left)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.append("lost")
                raise
            return b""

    async with worker:
        await queue.until(lambda: worker.counters.lost == 1)
    assert told == ["lost"]
    assert left[0] is not None
    assert 0 < left[0] <= 0.3
    assert worker.counters.lost == 1
    assert not queue.lines("completed")
    assert not queue.lines("failed")


async def test_a_task_without_a_deadline_has_no_seconds_left(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    left: list[float | None] = []
    worker = Worker(await connect(peers[0]), name="w")

    @worker.task("grade")
    async def grade(job: Job) -> bytes:
        left.append(job.seconds_left)
        return b""

    async with worker:
        await queue.until(lambda: bool(queue.lines("completed")))
    assert left == [None]
