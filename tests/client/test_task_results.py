"""Waiting for a task: what comes back, and what the errors say to do next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import JSON, new_task
from gaia_grpc.client import connect_blocking as connect_script
from gaia_grpc.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotDoneError,
    UnavailableError,
    UndecodableError,
)
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse

Peers = tuple[FakePeer, FakePeer]
Message = task_pb2.WatchTasksResponse

PENDING = task_pb2.TASK_STATE_PENDING
COMPLETED = task_pb2.TASK_STATE_COMPLETED
FAILED = task_pb2.TASK_STATE_FAILED
CANCELLED = task_pb2.TASK_STATE_CANCELLED
EXISTING = task_pb2.WATCH_KIND_EXISTING
COMPLETE = task_pb2.WATCH_KIND_COMPLETE
CHANGED = task_pb2.WATCH_KIND_CHANGED
REMOVED = task_pb2.WATCH_KIND_REMOVED


class OneTask:
    """A peer that keeps one task, and lets watchers know of its changes when the test says so."""

    def __init__(self, peer: FakePeer, task: task_pb2.Task | None = None) -> None:
        self.task = task or task_pb2.Task(task_id="t1", task_type="grade", state=PENDING)
        self.index = 7
        self.gone = False
        self.changed = asyncio.Event()
        self.watched = asyncio.Event()
        peer.answers |= {"GetTask": self.get, "EnqueueTask": self.enqueue}
        peer.streams["WatchTasks"] = self.watch

    def set(self, **fields: object) -> None:
        self.task.MergeFrom(task_pb2.Task(**fields))  # type: ignore[arg-type]  # fields by name
        self.index += 1
        self.changed.set()

    async def get(
        self, request: task_pb2.GetTaskRequest, context: Context
    ) -> task_pb2.GetTaskResponse:
        if self.gone or request.task_id != self.task.task_id:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", message="no task 't1'")
        return task_pb2.GetTaskResponse(task=self.task)

    async def enqueue(
        self, request: task_pb2.EnqueueTaskRequest, context: Context
    ) -> task_pb2.EnqueueTaskResponse:
        return task_pb2.EnqueueTaskResponse(task=self.task)

    async def watch(
        self, request: task_pb2.WatchTasksRequest, context: Context
    ) -> AsyncIterator[Message]:
        bare = task_pb2.Task(task_id=self.task.task_id, state=self.task.state)
        yield Message(kind=EXISTING, tasks=[bare], applied_index=self.index)
        yield Message(kind=COMPLETE, applied_index=self.index, through_index=self.index)
        self.watched.set()
        while True:
            await self.changed.wait()
            self.changed.clear()
            state = task_pb2.TASK_STATE_UNSPECIFIED if self.gone else self.task.state
            bare = task_pb2.Task(task_id=self.task.task_id, state=state)
            kind = REMOVED if self.gone else CHANGED
            yield Message(kind=kind, task=bare, applied_index=self.index, through_index=self.index)


async def test_the_result_of_a_task_that_is_done_comes_at_once(
    peers: Peers, connect: Connect
) -> None:
    one = OneTask(peers[0])
    one.set(state=COMPLETED, result=b"A")
    client = await connect(peers[0])
    assert await client.tasks.result("t1") == b"A"
    assert await client.tasks.result(one.task) == b"A"
    assert not peers[0].of("WatchTasks")


async def test_a_result_is_waited_for_and_decoded(peers: Peers, connect: Connect) -> None:
    one = OneTask(peers[0])
    client = await connect(peers[0])
    waiting = asyncio.create_task(client.tasks.result("t1", codec=JSON, timeout=5))
    await one.watched.wait()
    one.set(state=task_pb2.TASK_STATE_CLAIMED)
    one.set(state=COMPLETED, result=b'{"grade":"A"}')
    assert await waiting == {"grade": "A"}


async def test_run_enqueues_and_waits(peers: Peers, connect: Connect) -> None:
    one = OneTask(peers[0])
    client = await connect(peers[0])
    waiting = asyncio.create_task(
        client.tasks.run("grade", {"essay": 7}, codec=JSON, deadline=60, timeout=5)
    )
    await one.watched.wait()
    one.set(state=COMPLETED, result=b"[1,2]")
    assert await waiting == [1, 2]
    [request] = peers[0].of("EnqueueTask")
    assert (request.payload, request.deadline.seconds) == (b'{"essay":7}', 60)


async def test_a_dead_letter_says_what_failed_and_what_to_do(
    peers: Peers, connect: Connect
) -> None:
    one = OneTask(peers[0])
    one.set(
        state=FAILED,
        last_error="ValueError: no answer key",
        last_error_type="ValueError",
        retry_count=4,
    )
    client = await connect(peers[0])
    with pytest.raises(TaskFailedError) as caught:
        await client.tasks.result("t1")
    error = caught.value
    assert (error.task_id, error.task_type, error.state) == ("t1", "grade", "FAILED")
    assert (error.error_type, error.retry_count) == ("ValueError", 4)
    assert error.last_error == "ValueError: no answer key"
    assert error.message == (
        "task t1 (grade) failed for good after 4 failed attempts: ValueError: no answer key; see "
        "its history (`gaia tasks get t1`), put right what failed, then requeue it "
        "(tasks.requeue, `gaia tasks requeue t1`)"
    )
    assert isinstance(error, FailedPreconditionError)


async def test_a_cancelled_task_says_so(peers: Peers, connect: Connect) -> None:
    one = OneTask(peers[0])
    client = await connect(peers[0])
    waiting = asyncio.create_task(client.tasks.result("t1", timeout=5))
    await one.watched.wait()
    one.set(state=CANCELLED, last_error="holidays")
    with pytest.raises(TaskCancelledError, match=r"was cancelled: holidays; .* requeue it"):
        await waiting


async def test_the_end_of_the_patience_is_not_the_end_of_the_task(
    peers: Peers, connect: Connect
) -> None:
    OneTask(peers[0])
    client = await connect(peers[0])
    with pytest.raises(TaskNotDoneError, match=r"not done after 0.2 s \(it is PENDING\)") as caught:
        await client.tasks.result("t1", timeout=0.2)
    assert caught.value.state == "PENDING"
    assert not peers[0].of("CancelTask")


@pytest.mark.parametrize("begun", [False, True])
async def test_a_task_that_is_no_longer_kept(peers: Peers, connect: Connect, begun: bool) -> None:
    one = OneTask(peers[0])
    one.gone = not begun
    client = await connect(peers[0])
    waiting = asyncio.create_task(client.tasks.result("t1", timeout=5))
    if begun:
        await one.watched.wait()
        one.gone = True
        one.set()
    with pytest.raises(NotFoundError, match="no longer kept"):
        await waiting


async def test_a_peer_that_lags_does_not_end_the_wait(peers: Peers, connect: Connect) -> None:
    """Its picture has the failure from before the requeue; the linearizable read decides."""
    one = OneTask(peers[0])
    first = asyncio.Event()

    async def stale(
        request: task_pb2.WatchTasksRequest, context: Context
    ) -> AsyncIterator[Message]:
        if not first.is_set():
            first.set()
            old = task_pb2.Task(task_id="t1", state=FAILED)
            yield Message(kind=EXISTING, tasks=[old], applied_index=3)
            await asyncio.Event().wait()
        async for message in one.watch(request, context):
            yield message

    peers[0].streams["WatchTasks"] = stale
    client = await connect(peers[0])
    waiting = asyncio.create_task(client.tasks.result("t1", timeout=5))
    await one.watched.wait()
    one.set(state=COMPLETED, result=b"B")
    assert await waiting == b"B"


async def test_an_outage_is_waited_out_within_the_patience_of_the_caller(
    peers: Peers, connect: Connect
) -> None:
    """Longer than one call of this client may take."""
    one = OneTask(peers[0])
    one.set(state=COMPLETED, result=b"A")
    outage_ends = asyncio.get_running_loop().time() + 0.6

    async def get(request: task_pb2.GetTaskRequest, context: Context) -> task_pb2.GetTaskResponse:
        if asyncio.get_running_loop().time() < outage_ends:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "NO_QUORUM")
        return await one.get(request, context)

    for peer in peers:
        peer.answers["GetTask"] = get
    client = await connect(peers[0], timeout=0.2)
    assert await client.tasks.result("t1", timeout=10) == b"A"
    outage_ends = asyncio.get_running_loop().time() + 60
    with pytest.raises((UnavailableError, TaskNotDoneError)):
        await client.tasks.result("t1", timeout=0.5)


async def test_what_the_codec_cannot_read(peers: Peers, connect: Connect) -> None:
    one = OneTask(peers[0])
    one.set(state=COMPLETED, result=b"\xff")
    client = await connect(peers[0])
    with pytest.raises(UndecodableError, match="1 bytes are no JSON"):
        await client.tasks.result("t1", codec=JSON)
    with pytest.raises(InvalidArgumentError, match="has no JSON"):
        await client.tasks.enqueue("grade", object(), codec=JSON)
    with pytest.raises(InvalidArgumentError, match=r"dict is not bytes: .*codec=JSON"):
        await client.tasks.enqueue("grade", {"essay": 7})
    assert not peers[0].of("EnqueueTask")


@pytest.mark.parametrize("value", [None, 1, "ä", [1, {"a": None}], {"b": 1.5, "a": True}])
def test_json_goes_both_ways(value: object) -> None:
    assert JSON.decode(JSON.encode(value)) == value


def test_json_is_the_same_bytes_for_the_same_content() -> None:
    """Idempotency keys compare bytes."""
    expected = '{"a":"ä","b":1}'.encode()
    assert JSON.encode({"b": 1, "a": "ä"}) == JSON.encode({"a": "ä", "b": 1}) == expected
    assert JSON.decode(b"") is None
    with pytest.raises(InvalidArgumentError):
        JSON.encode(float("nan"))


async def test_dependencies_are_named_by_what_enqueueing_returned(
    peers: Peers, connect: Connect
) -> None:
    OneTask(peers[0])
    client = await connect(peers[0])
    first = await client.tasks.enqueue("fetch")
    await client.tasks.enqueue("grade", depends_on=[first, first.task, "t9"], deadline=1.5)
    request = peers[0].of("EnqueueTask")[1]
    assert list(request.depends_on) == ["t1", "t1", "t9"]
    assert request.deadline.ToMilliseconds() == 1_500
    assert not peers[0].of("EnqueueTask")[0].HasField("deadline")
    with pytest.raises(InvalidArgumentError, match="no id"):
        await client.tasks.enqueue("grade", depends_on=[task_pb2.Task()])
    for one in ("t1", first, first.task):  # and not "t" and "1"
        assert list(new_task("grade", depends_on=one).depends_on) == ["t1"]
    for delay in ("10s", float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match="is no number of seconds"):
            await client.tasks.enqueue("grade", delay=delay)  # type: ignore[arg-type]  # on purpose
    task = new_task("grade", {"a": 1}, codec=JSON, depends_on=["#0"], delay=0)
    assert (task.payload, list(task.depends_on)) == (b'{"a":1}', ["#0"])
    assert task.HasField("delay")


async def test_a_task_is_named_by_what_enqueueing_returned(peers: Peers, connect: Connect) -> None:
    one = OneTask(peers[0])
    client = await connect(peers[0])
    enqueued = await client.tasks.enqueue("grade")
    assert (await client.tasks.get(enqueued)).task == one.task
    assert (await client.tasks.get(enqueued.task)).task == one.task
    with pytest.raises(InvalidArgumentError, match="no id"):
        await client.tasks.cancel(task_pb2.Task())


async def test_scripts_wait_too(peers: Peers) -> None:
    one = OneTask(peers[0])
    one.set(state=COMPLETED, result=b"3")

    def script() -> tuple[bytes, object, object]:
        with connect_script(peers[0].address) as client:
            return (
                client.tasks.result("t1"),
                client.tasks.result("t1", codec=JSON),
                client.tasks.run("grade", 1, codec=JSON, timeout=5),
            )

    assert await asyncio.to_thread(script) == (b"3", 3, 3)
