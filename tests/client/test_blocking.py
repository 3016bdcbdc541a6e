"""The blocking facade: the same methods and types, from any thread, under any loop."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.message import Message

from gaia_grpc.client import (
    AlertListener,
    BlockingJob,
    Client,
    HeldLock,
    MetricsApi,
    MetricsBuffer,
    TasksApi,
    Worker,
    blocking,
    blocking_handles,
)
from gaia_grpc.client import connect_blocking as connect
from gaia_grpc.client.portal import Portal
from gaia_grpc.client.watches import StateWatch
from gaia_grpc.errors import (
    FailedPreconditionError,
    NotFoundError,
    OutcomeUnknownError,
    UnavailableError,
)
from tests.client.fake_peer import Context, FakePeer, never, refuse
from tests.client.worker_queue import Queue

Peers = tuple[FakePeer, FakePeer]

LEFT_OUT = {
    # Connecting is `connect_blocking`; channels and raw stubs belong to the loop.
    Client: {"connect", "open", "connection", "peer"},
    MetricsApi: {"publisher", "close"},
    StateWatch: {"aclose"},
}
SAME: list[tuple[type, str]] = [
    (Client, "Client"),
    (AlertListener, "Listener"),
    (HeldLock, "Lock"),
    (MetricsBuffer, "Buffer"),
    (StateWatch, "Watch"),
    (Worker, "Worker"),
    *(
        (type(api), name.capitalize())
        for name, api in vars(Client.connect("127.0.0.1:1")).items()
        if type(api).__name__.endswith("Api")
    ),
]


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("theirs", "name"), SAME, ids=[name for _, name in SAME])
def test_whatever_the_sdk_has_the_facade_has(theirs: type, name: str) -> None:
    """A name that is missing here wants one line in `blocking.py`."""
    assert len(SAME) >= 12
    ours = vars(blocking_handles).get(f"Blocking{name}") or getattr(blocking, f"Blocking{name}")
    assert public(theirs) - public(ours) - LEFT_OUT.get(theirs, set()) == set()


def test_the_signatures_and_the_documentation_are_the_same() -> None:
    own = blocking.BlockingTasks.enqueue
    assert inspect.signature(own) == inspect.signature(TasksApi.enqueue)
    assert own.__doc__ == TasksApi.enqueue.__doc__


async def test_calls_lists_and_errors_from_many_threads(peers: Peers) -> None:
    async def enqueue(request: task_pb2.EnqueueTaskRequest, context: Context) -> Message:
        task = task_pb2.Task(task_id=request.task_type)
        return task_pb2.EnqueueTaskResponse(task=task)

    async def page(request: task_pb2.ListTasksRequest, context: Context) -> Message:
        first = int(request.page_token or 0)
        if first >= 600:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        tasks = [task_pb2.Task(task_id=str(first + n)) for n in range(300)]
        return task_pb2.ListTasksResponse(tasks=tasks, next_page_token=str(first + 300))

    peers[0].answers |= {"EnqueueTask": enqueue, "ListTasks": page}

    def script() -> tuple[list[str], list[str]]:
        with connect(peers[0].address) as client:
            with ThreadPoolExecutor(8) as pool:
                answers = pool.map(lambda n: client.tasks.enqueue(f"t{n}").task.task_id, range(40))
            listed: list[str] = []
            with pytest.raises(NotFoundError):
                listed.extend(task.task_id for task in client.tasks.list())
            return list(answers), listed

    answers, listed = await asyncio.to_thread(script)
    assert answers == [f"t{n}" for n in range(40)]
    assert listed == [str(n) for n in range(600)]


async def test_a_call_has_its_timeout_and_the_client_its_end(peers: Peers) -> None:
    peers[0].answers["EnqueueTask"] = never
    threads = threading.active_count()

    def script() -> None:
        client = connect(peers[0].address, timeout=0.2)
        with pytest.raises((OutcomeUnknownError, UnavailableError)):
            client.tasks.enqueue("grade")
        client.close()
        client.close()
        with pytest.raises(UnavailableError, match="closed"):
            client.tasks.enqueue("grade")

    await asyncio.to_thread(script)
    assert threading.active_count() <= threads + 1


async def test_closing_ends_a_call_of_another_thread(peers: Peers) -> None:
    called = asyncio.Event()

    async def silent(request: Message, context: Context) -> Message:
        called.set()
        return await never(request, context)  # type: ignore[no-any-return]

    peers[0].answers["EnqueueTask"] = silent
    client = await asyncio.to_thread(connect, peers[0].address)
    call = asyncio.create_task(asyncio.to_thread(client.tasks.enqueue, "grade"))
    await called.wait()
    await asyncio.to_thread(client.close)
    with pytest.raises(UnavailableError):
        await call


def test_nobody_there_is_an_error_and_leaves_no_thread() -> None:
    threads = threading.active_count()
    with pytest.raises(UnavailableError, match="no peer answered"):
        connect("127.0.0.1:1", connect_timeout=0.2)
    assert threading.active_count() == threads


async def test_alerts_are_iterated_and_the_metrics_of_a_buffer_arrive(peers: Peers) -> None:
    async def alerts(request: Any, context: Context) -> AsyncIterator[Message]:
        yield alert_pb2.SubscribeAlertsResponse(cluster_id="c", through_sequence=4)
        for sequence in (5, 6):
            event = alert_pb2.AlertEvent(sequence=sequence)
            yield alert_pb2.SubscribeAlertsResponse(event=event, through_sequence=sequence)
        await asyncio.Event().wait()

    async def publish(request: metrics_pb2.PublishMetricsRequest, context: Context) -> Message:
        response = metrics_pb2.PublishMetricsResponse()
        for batch in request.batches:
            response.results.add(
                source_id=batch.source_id,
                source_epoch=batch.source_epoch,
                sequence=batch.sequence,
                status=metrics_pb2.BATCH_STATUS_ACCEPTED,
                accepted_count=len(batch.metrics),
            )
        return response

    peers[0].streams["SubscribeAlerts"] = alerts
    peers[0].answers["PublishMetrics"] = publish

    def script() -> tuple[list[int], int | None, int]:
        with connect(peers[0].address) as client:
            seen = []
            with client.alerts.listen(after_sequence=0) as listener:
                for event in listener:
                    seen.append(event.sequence)
                    if event.sequence == 6:
                        break
                assert listener.next(timeout=0.01) is None
            with client.metrics.buffer(student_id="ana", app_name="math") as buffer:
                assert buffer.record("error")
                buffer.flush()
                assert buffer.counters.pending == 0
            return seen, listener.cursor, buffer.counters.acknowledged

    assert await asyncio.to_thread(script) == ([5, 6], 6, 1)


async def test_a_watch_is_iterated_and_closed(peers: Peers) -> None:
    ended = asyncio.Event()

    async def statuses(request: Any, context: Context) -> AsyncIterator[Message]:
        try:
            yield cluster_pb2.WatchStatusResponse()
            await asyncio.Event().wait()
        finally:
            ended.set()

    peers[0].streams["WatchStatus"] = statuses

    def script() -> int:
        with connect(peers[0].address) as client, client.cluster.watch_status() as watch:
            return len([next(watch)])

    assert await asyncio.to_thread(script) == 1
    async with asyncio.timeout(5):
        await ended.wait()


async def test_a_worker_of_a_script_runs_plain_functions_that_use_the_client(peers: Peers) -> None:
    queue = Queue(peers[0], "t1", "t2:async", "t3:more")
    trouble: list[FailedPreconditionError] = []

    def script() -> None:
        with connect(peers[0].address) as client:
            worker = client.worker(name="w", specialty="math", concurrency=2)

            @worker.task("grade", "more")
            def grade(job: BlockingJob) -> bytes:
                return client.sessions.register("inner").session.session_id.encode()

            @worker.task("async")
            async def wrong(job: object) -> bytes:
                try:
                    client.tasks.stats()
                except FailedPreconditionError as error:
                    trouble.append(error)
                return b""

            with worker:
                asyncio.run_coroutine_threadsafe(three_done(), loop).result(10)
            assert worker.counters.completed == 3

    async def three_done() -> None:
        await queue.until(lambda: len(queue.lines("completed")) == 3)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(script)
    assert "plain function" in trouble[0].message
    assert queue.events[-1].startswith("deregistered")


async def test_a_watch_of_tasks_has_a_timeout(peers: Peers) -> None:
    async def changes(request: task_pb2.WatchTasksRequest, _: Context) -> AsyncIterator[Message]:
        task = task_pb2.Task(task_id="t1")
        kind = task_pb2.WATCH_KIND_CHANGED
        yield task_pb2.WatchTasksResponse(kind=kind, task=task, applied_index=7, through_index=7)
        await asyncio.Event().wait()

    peers[0].streams["WatchTasks"] = changes

    def script() -> tuple[list[str], int]:
        with connect(peers[0].address) as client, client.tasks.watch(task_id="t1") as watch:
            seen = [next(watch).task.task_id]
            assert watch.next(timeout=0.01) is None
            return seen, watch.through_index

    assert await asyncio.to_thread(script) == (["t1"], 7)


def test_ctrl_c_that_comes_while_the_call_begins_ends_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    portal = Portal()
    ended = threading.Event()
    call_soon = portal.loop.call_soon_threadsafe

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def interrupted(*arguments: Any) -> object:
        call_soon(*arguments)
        monkeypatch.undo()
        begun = threading.Event()
        call_soon(lambda: call_soon(begun.set))
        assert begun.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(portal.loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        portal.run(for_ever())
    assert ended.wait(5)
    portal.stop()


def test_a_call_under_a_running_loop_of_another_kind() -> None:
    """As in a notebook: the caller's loop runs, and stands still for the call."""
    peer: list[FakePeer] = []
    serving, may_end = threading.Event(), threading.Event()

    async def serve() -> None:
        peer.append(await FakePeer().start())
        serving.set()
        await asyncio.to_thread(may_end.wait, 10)
        await peer[0].stop()

    async def cell() -> str:
        with connect(peer[0].address) as client:
            return client.cluster.status().node_id

    server = threading.Thread(target=lambda: asyncio.run(serve()))
    server.start()
    try:
        assert serving.wait(5)
        assert asyncio.run(cell()) == "fake"
    finally:
        may_end.set()
        server.join()


def test_ctrl_c_ends_the_wait_and_the_call() -> None:
    # What runs the tests may have taken the signal, and a test before this one too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    portal = Portal()
    cancelled = threading.Event()

    async def for_ever() -> None:
        main = threading.main_thread().ident
        assert main is not None
        portal.loop.call_later(0.3, signal.pthread_kill, main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    try:
        with pytest.raises(KeyboardInterrupt):
            portal.run(for_ever())
    finally:
        signal.signal(signal.SIGINT, before)
    assert cancelled.wait(5)
    portal.stop()
    portal.stop()
