"""A peer that is stopped keeps its connections: nothing breaks, nothing answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
from gaia.cluster.v1 import cluster_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, never

Peers = tuple[FakePeer, FakePeer]
Request = task_pb2.EnqueueTaskRequest
Response = task_pb2.EnqueueTaskResponse
GetStatus = cluster_pb2.GetStatusRequest
Status = cluster_pb2.GetStatusResponse


async def accept(request: Request, context: Context) -> Response:
    return Response(applied_index=7)


async def test_a_peer_that_fell_silent_costs_a_moment_and_not_the_whole_attempt(
    peers: Peers, connect: Connect
) -> None:
    stopped, other = peers
    client = await connect(stopped, other, attempt_timeout=60.0)
    stopped.answers = {"EnqueueTask": never, "GetStatus": never}
    other.answers = {"EnqueueTask": accept}
    other.status.writable = True
    answer = await asyncio.wait_for(client.tasks.enqueue("grade", timeout=60.0), 5.0)
    assert answer.applied_index == 7
    sent = [peer.of("EnqueueTask")[0].request_id for peer in (stopped, other)]
    assert sent[0] == sent[1] != ""


async def test_an_attempt_that_was_given_up_is_cancelled_when_the_call_is_over(
    peers: Peers, connect: Connect
) -> None:
    """Cancelled at once, a peer that wakes up would end the caller's wait in the log before the
    repeated call stands in its place: found by leaders that are paused under a waiter for a lock.
    """
    stopped, other = peers
    client = await connect(stopped, other, attempt_timeout=60.0)
    cancelled, answering, may_answer = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def waits(request: Request, context: Context) -> Response:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Response()

    async def answers_late(request: Request, context: Context) -> Response:
        answering.set()
        await may_answer.wait()
        return Response(applied_index=7)

    stopped.answers = {"EnqueueTask": waits, "GetStatus": never}
    other.answers = {"EnqueueTask": answers_late}
    other.status.writable = True
    call = asyncio.create_task(client.tasks.enqueue("grade", timeout=60.0))
    await asyncio.wait_for(answering.wait(), 5.0)
    # A round trip to the stopped peer: a cancellation before it would have arrived by then.
    await stopped_answers(client, stopped)
    assert not cancelled.is_set()
    may_answer.set()
    assert (await call).applied_index == 7
    await asyncio.wait_for(cancelled.wait(), 5.0)


async def stopped_answers(client: Client, peer: FakePeer) -> None:
    peer.answers["GetTask"] = never
    with suppress(grpc.aio.AioRpcError):
        await client.peer(peer.address).tasks.GetTask(task_pb2.GetTaskRequest(), timeout=0.3)


async def test_a_peer_that_is_merely_slow_keeps_the_call(peers: Peers, connect: Connect) -> None:
    slow, other = peers
    client = await connect(slow, other)
    asked = asyncio.Event()

    async def takes_its_time(request: Request, context: Context) -> Response:
        await asked.wait()
        return Response(applied_index=8)

    async def is_asked(request: GetStatus, context: Context) -> Status:
        asked.set()
        return slow.status

    slow.answers = {"EnqueueTask": takes_its_time, "GetStatus": is_asked}
    slow.status.writable = other.status.writable = True
    answer = await asyncio.wait_for(client.tasks.enqueue("grade", timeout=60.0), 5.0)
    assert answer.applied_index == 8
    assert not other.of("EnqueueTask")


async def test_a_peer_without_a_leader_is_left_for_one_that_has_one(
    peers: Peers, connect: Connect
) -> None:
    """A member that was removed while its process runs on waits for a leader in vain."""
    removed, other = peers
    client = await connect(removed, other, attempt_timeout=60.0)
    removed.answers = {"EnqueueTask": never}
    other.answers = {"EnqueueTask": accept}
    other.status.writable = True
    answer = await asyncio.wait_for(client.tasks.enqueue("grade", timeout=60.0), 5.0)
    assert answer.applied_index == 7


async def test_where_nobody_takes_writes_the_call_stays_where_it_is(
    peers: Peers, connect: Connect
) -> None:
    """Without a better peer, going on to another one would only lose the place in the queue."""
    stopped, other = peers
    client = await connect(stopped, other)
    asked = asyncio.Event()

    async def comes_back(request: Request, context: Context) -> Response:
        await asked.wait()
        return Response(applied_index=9)

    async def is_asked(request: GetStatus, context: Context) -> Status:
        asked.set()
        return other.status

    stopped.answers = {"EnqueueTask": comes_back, "GetStatus": never}
    other.answers = {"GetStatus": is_asked}
    answer = await asyncio.wait_for(client.tasks.enqueue("grade", timeout=60.0), 5.0)
    assert answer.applied_index == 9
    assert not other.of("EnqueueTask")


async def test_a_caller_that_is_cancelled_meanwhile_stays_cancelled(
    peers: Peers, connect: Connect
) -> None:
    stopped, other = peers
    client = await connect(stopped, other)
    asked = asyncio.Event()

    async def is_asked(request: GetStatus, context: Context) -> Status:
        asked.set()
        return other.status

    stopped.answers = {"EnqueueTask": never, "GetStatus": never}
    other.answers = {"EnqueueTask": accept, "GetStatus": is_asked}
    other.status.writable = True
    call = asyncio.create_task(client.tasks.enqueue("grade", timeout=60.0))
    await asked.wait()
    call.cancel()
    assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], BaseException)
    assert call.cancelled()
    assert not other.of("EnqueueTask")
