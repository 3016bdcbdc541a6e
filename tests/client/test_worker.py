"""The worker: claims, reports, renews, stops gracefully, and heals after a lost session."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.message import Message

from gaia_grpc.client import Fail, Worker, session_keeper
from gaia_grpc.errors import AlreadyExistsError
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse
from tests.client.worker_queue import Queue

Peers = tuple[FakePeer, FakePeer]


async def grade(task: task_pb2.Task) -> bytes:
    return b"A"


async def test_tasks_are_claimed_run_and_completed_with_their_token(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1", "t2", "t3")
    client = await connect(peers[0])
    async with Worker(client, name="w", handler=grade, specialty="math") as worker:
        await queue.until(lambda: len(queue.lines("completed")) == 3)
        await queue.until(lambda: bool(queue.lines("heartbeat 1")))
    assert queue.lines("completed") == [f"completed t{n} 7 A" for n in (1, 2, 3)]
    assert queue.events[-1] == "deregistered 1"
    assert (worker.counters.claimed, worker.counters.completed) == (3, 3)
    [request] = peers[0].of("RegisterSession")
    assert (request.name, request.specialty, request.max_concurrent_tasks) == ("w", "math", 1)


async def test_a_plain_function_runs_in_a_thread(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1")
    threads: list[int] = []

    def handler(task: task_pb2.Task) -> bytes:
        threads.append(threading.get_ident())
        return b"B"

    client = await connect(peers[0])
    async with Worker(client, name="w", handler=handler):
        await queue.until(lambda: bool(queue.lines("completed")))
    assert threads != [threading.get_ident()]
    assert queue.lines("completed") == ["completed t1 7 B"]


async def test_an_exception_fails_the_attempt_and_a_permanent_one_for_good(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1", "t2")

    async def handler(task: task_pb2.Task) -> bytes:
        if task.task_id == "t1":
            raise ValueError("no answer key")
        raise Fail("blank page")

    client = await connect(peers[0])
    async with Worker(client, name="w", handler=handler) as worker:
        await queue.until(lambda: len(queue.lines("failed")) == 2)
    assert queue.lines("failed") == [
        "failed t1 ValueError: no answer key False",
        "failed t2 blank page True",
    ]
    assert worker.counters.failed == 2


async def test_at_most_max_concurrent_handlers_run(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], *(f"t{n}" for n in range(9)))
    running, most = 0, 0
    gate = asyncio.Event()

    async def handler(task: task_pb2.Task) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if most == 3:
            gate.set()
        await gate.wait()
        running -= 1
        return b""

    client = await connect(peers[0])
    async with Worker(client, name="w", handler=handler, concurrency=3):
        await queue.until(lambda: len(queue.lines("completed")) == 9)
    assert most == 3
    assert all(1 <= request.max_tasks <= 3 for request in peers[0].of("ClaimTasks"))


async def test_a_long_task_is_renewed_at_a_third_of_its_claim(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1", claim_s=0.3)

    async def handler(task: task_pb2.Task) -> bytes:
        await queue.until(lambda: len(queue.lines("extended")) == 2)
        return b""

    client = await connect(peers[0])
    async with Worker(client, name="w", handler=handler):
        await queue.until(lambda: bool(queue.lines("completed")))
    assert len(queue.lines("extended")) >= 2


async def test_a_claim_that_was_lost_cancels_the_handler(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1", "t2", claim_s=0.15)
    queue.stale = {"t1"}
    cancelled = asyncio.Event()

    async def handler(task: task_pb2.Task) -> bytes:
        if task.task_id == "t1":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return b""

    client = await connect(peers[0])
    async with Worker(client, name="w", handler=handler) as worker:
        async with asyncio.timeout(5):
            await cancelled.wait()
        await queue.until(lambda: bool(queue.lines("completed t2")))
    assert worker.counters.lost == 1
    assert not queue.lines("completed t1")


async def test_a_failed_session_registers_again_and_works_on(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    started = asyncio.Event()

    async def handler(task: task_pb2.Task) -> bytes:
        if task.task_id == "t1":
            started.set()
            await asyncio.Event().wait()
        return b""

    client = await connect(peers[0])
    async with Worker(client, name="w", handler=handler) as worker:
        await started.wait()
        queue.session_failed = True
        await queue.until(lambda: bool(queue.lines("registered w 2")))
        queue.waiting.append("t2")
        queue.note("enqueued t2")
        await queue.until(lambda: bool(queue.lines("completed t2")))
        await queue.until(lambda: bool(queue.lines("heartbeat 2")))
    assert worker.counters.registrations == 2
    assert worker.counters.lost == 1
    assert queue.events[-1] == "deregistered 2"


async def test_stop_finishes_what_it_holds_and_claims_nothing_more(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    started, finish = asyncio.Event(), asyncio.Event()

    async def handler(task: task_pb2.Task) -> bytes:
        started.set()
        await finish.wait()
        return b""

    client = await connect(peers[0])
    worker = await Worker(client, name="w", handler=handler).start()
    await started.wait()
    queue.waiting.append("t2")
    stopping = asyncio.create_task(worker.stop())
    await queue.until(lambda: len(queue.lines("heartbeat")) >= 2)
    assert not stopping.done()
    finish.set()
    await stopping
    assert queue.events[-2:] == ["completed t1 7 ", "deregistered 1"]
    assert list(queue.waiting) == ["t2"]


async def test_stop_gives_back_what_outlasts_the_grace_time(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1")
    started = asyncio.Event()

    async def handler(task: task_pb2.Task) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    client = await connect(peers[0])
    worker = await Worker(client, name="w", handler=handler, grace=0.05).start()
    await started.wait()
    await worker.stop()
    assert queue.events[-2:] == ["released t1 7", "deregistered 1"]
    assert (worker.counters.released, worker.counters.lost) == (1, 0)


async def test_a_taken_name_is_an_error_of_the_start(peers: Peers, connect: Connect) -> None:
    Queue(peers[0])
    client = await connect(peers[0])
    with pytest.raises(AlreadyExistsError):
        await Worker(client, name="taken", handler=grade).start()


async def test_a_late_report_is_counted_as_lost(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1", "t2")
    queue.stale = {"t1"}
    client = await connect(peers[0])
    async with Worker(client, name="w", handler=grade) as worker:
        await queue.until(lambda: bool(queue.lines("completed t2")))
    assert (worker.counters.lost, worker.counters.completed) == (1, 1)


async def test_run_works_until_stop(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0], "t1")
    client = await connect(peers[0])
    worker = Worker(client, name="w", handler=grade, heartbeat_interval=30)
    running = asyncio.create_task(worker.run())
    await queue.until(lambda: bool(queue.lines("completed")))
    await worker.stop()
    await running
    assert queue.events[-1] == "deregistered 1"
    assert not queue.lines("heartbeat")


async def test_run_that_is_cancelled_deregisters(peers: Peers, connect: Connect) -> None:
    queue = Queue(peers[0])
    client = await connect(peers[0])
    running = asyncio.create_task(Worker(client, name="w", handler=grade).run())
    await queue.until(lambda: bool(queue.lines("heartbeat")))
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert queue.events[-1] == "deregistered 1"


async def test_errors_of_the_cluster_are_outlived(peers: Peers, connect: Connect) -> None:
    """Each call fails once in a way that ends nothing; then the work goes on."""
    queue = Queue(peers[0], "t1", claim_s=0.3)
    seen: set[str] = set()

    def once(name: str, code: grpc.StatusCode, reason: str) -> None:
        plain = peers[0].answers[name]

        async def answer(request: Message, context: Context) -> Message:
            if name not in seen:
                seen.add(name)
                await refuse(context, code, reason)
            return await plain(request, context)

        peers[0].answers[name] = answer

    once("ClaimTasks", grpc.StatusCode.FAILED_PRECONDITION, "SESSION_DEGRADED")
    once("Heartbeat", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    once("ExtendClaim", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    once("DeregisterSession", grpc.StatusCode.NOT_FOUND, "NOT_FOUND")

    async def handler(task: task_pb2.Task) -> bytes:
        await queue.until(lambda: len(queue.lines("extended")) == 1)
        return b""

    client = await connect(peers[0])
    async with Worker(client, name="w", handler=handler) as worker:
        await queue.until(lambda: bool(queue.lines("completed")))
    assert seen == {"ClaimTasks", "Heartbeat", "ExtendClaim", "DeregisterSession"}
    assert len(worker.counters.errors) == 4
    assert worker.counters.registrations == 1


async def test_a_claim_that_finds_the_session_failed_registers_again(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0], "t1")
    plain = peers[0].answers["ClaimTasks"]

    async def claim(request: task_pb2.ClaimTasksRequest, context: Context) -> Message:
        if queue.incarnation == 1:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "SESSION_FAILED")
        return await plain(request, context)

    peers[0].answers["ClaimTasks"] = claim
    client = await connect(peers[0])
    async with Worker(client, name="w", handler=grade, heartbeat_interval=30) as worker:
        await queue.until(lambda: bool(queue.lines("completed t1")))
    assert worker.counters.registrations == 2


async def test_registering_again_waits_until_the_name_is_free(
    peers: Peers, connect: Connect
) -> None:
    queue = Queue(peers[0])
    plain = peers[0].answers["RegisterSession"]
    refused = 0

    async def register(request: session_pb2.RegisterSessionRequest, context: Context) -> Message:
        nonlocal refused
        if queue.incarnation == 1 and refused < 2:
            refused += 1
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
        return await plain(request, context)

    peers[0].answers["RegisterSession"] = register
    client = await connect(peers[0])
    async with Worker(client, name="w", handler=grade):
        queue.session_failed = True
        await queue.until(lambda: bool(queue.lines("registered w 2")))
    assert refused == 2


async def test_a_result_that_is_refused_fails_the_attempt(peers: Peers, connect: Connect) -> None:
    """Unreported, nobody would work on it until its claim runs out."""
    queue = Queue(peers[0], "t1", "t2")
    plain = peers[0].answers["CompleteTask"]

    async def complete(request: task_pb2.CompleteTaskRequest, context: Context) -> Message:
        if request.task_id == "t1":
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, message="result is too large")
        return await plain(request, context)

    peers[0].answers["CompleteTask"] = complete
    client = await connect(peers[0])
    async with Worker(client, name="w", handler=grade) as worker:
        await queue.until(lambda: bool(queue.lines("completed t2")))
    assert queue.lines("failed") == ["failed t1 InvalidArgumentError: result is too large False"]
    assert (worker.counters.completed, worker.counters.failed) == (1, 1)


async def test_a_name_that_is_taken_is_waited_for_where_that_is_wanted(
    peers: Peers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_keeper, "NAME_PAUSE_S", 0.02)
    Queue(peers[0])
    plain = peers[0].answers["RegisterSession"]
    refusals = 3

    async def register(request: Message, context: Context) -> Message:
        nonlocal refusals
        if refusals:
            refusals -= 1
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
        return await plain(request, context)

    peers[0].answers["RegisterSession"] = register
    worker = Worker(await connect(peers[0]), name="w", handler=grade, name_wait=5)
    async with worker:
        assert refusals == 0
