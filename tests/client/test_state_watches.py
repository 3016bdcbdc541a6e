"""Watches of tasks and sessions go on where they were, at any peer, and hand nothing out twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client.watches import StateWatch
from gaia_grpc.errors import InvalidArgumentError
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse

Peers = tuple[FakePeer, FakePeer]
Response = task_pb2.WatchTasksResponse
EXISTING = task_pb2.WATCH_KIND_EXISTING
COMPLETE = task_pb2.WATCH_KIND_COMPLETE
CHANGED = task_pb2.WATCH_KIND_CHANGED
RESYNC = task_pb2.WATCH_KIND_RESYNC
PROGRESS = task_pb2.WATCH_KIND_PROGRESS


def existing(*ids: str) -> Response:
    return Response(kind=EXISTING, tasks=[task_pb2.Task(task_id=each) for each in ids])


def complete(index: int) -> Response:
    return Response(kind=COMPLETE, through_index=index, cluster_id="c")


def changed(task_id: str, index: int, through: int = 0) -> Response:
    return Response(
        kind=CHANGED,
        task=task_pb2.Task(task_id=task_id),
        applied_index=index,
        through_index=through or index,
    )


def script(peers: Peers, *connections: list[Response]) -> list[task_pb2.WatchTasksRequest]:
    """Either peer sends the next list and breaks off; after the last it stays open. Returns what
    is asked."""
    left = list(connections)
    asked: list[task_pb2.WatchTasksRequest] = []

    async def serve(request: Any, context: Context) -> AsyncIterator[Response]:
        asked.append(request)
        for message in left.pop(0) if left else []:
            yield message
        if left:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await asyncio.Event().wait()

    for peer in peers:
        peer.streams["WatchTasks"] = serve
    return asked


async def read(watch: StateWatch[Any, Response], count: int) -> list[tuple[int, str]]:
    """(kind, ids) of the next messages."""
    found: list[tuple[int, str]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            message = await anext(watch)
            ids = [task.task_id for task in message.tasks] or [message.task.task_id]
            found.append((int(message.kind), " ".join(ids)))
    return found


async def test_a_watch_goes_on_after_what_it_handed_out(peers: Peers, connect: Connect) -> None:
    asked = script(
        peers,
        [existing("a"), complete(5), changed("a", 6)],
        [changed("b", 7), Response(kind=PROGRESS, through_index=20)],
        [changed("a", 21)],
    )
    client = await connect(peers[0])
    async with client.tasks.watch(task_type="grade") as watch:
        assert await read(watch, 5) == [
            (EXISTING, "a"), (COMPLETE, ""), (CHANGED, "a"), (CHANGED, "b"), (CHANGED, "a"),
        ]  # fmt: skip
        assert watch.through_index == 21
        assert watch.reconnects == 2
    assert [(one.after_index, one.cluster_id) for one in asked] == [(0, ""), (6, "c"), (20, "c")]
    assert {one.task_type for one in asked} == {"grade"}


async def test_what_comes_again_of_a_burst_that_was_cut_off_is_dropped(
    peers: Peers, connect: Connect
) -> None:
    """Changes of one entry: none of them moves the cursor but the last."""
    asked = script(
        peers,
        [complete(5), changed("a", 9, 8), changed("b", 9, 8)],
        [changed("a", 9, 8), changed("b", 9, 8), changed("c", 9, 9), changed("a", 10)],
    )
    client = await connect(peers[0])
    async with client.tasks.watch() as watch:
        assert [task_id for _, task_id in await read(watch, 5)] == ["", "a", "b", "c", "a"]
    assert [one.after_index for one in asked] == [0, 8]


async def test_a_picture_that_is_cut_off_begins_again_behind_a_resync(
    peers: Peers, connect: Connect
) -> None:
    script(peers, [existing("a", "b")], [existing("a"), complete(7)])
    client = await connect(peers[0])
    async with client.tasks.watch() as watch:
        assert await read(watch, 4) == [
            (EXISTING, "a b"), (RESYNC, ""), (EXISTING, "a"), (COMPLETE, ""),
        ]  # fmt: skip


async def test_a_resync_of_the_peer_is_handed_on_once(peers: Peers, connect: Connect) -> None:
    asked = script(
        peers,
        [complete(50)],
        [Response(kind=RESYNC, resync=True), existing("z")],
        [existing("z"), complete(9), changed("z", 10)],
    )
    client = await connect(peers[0])
    async with client.tasks.watch() as watch:
        kinds = [kind for kind, _ in await read(watch, 7)]
        assert kinds == [COMPLETE, RESYNC, EXISTING, RESYNC, EXISTING, COMPLETE, CHANGED]
        assert watch.through_index == 10
    assert [one.after_index for one in asked] == [0, 50, 0]


async def test_a_watch_that_is_refused_says_so(peers: Peers, connect: Connect) -> None:
    async def refuses(request: Any, context: Context) -> AsyncIterator[Response]:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        yield complete(1)

    peers[0].streams["WatchTasks"] = refuses
    client = await connect(peers[0])
    async with aclosing(client.tasks.watch()) as watch:
        with pytest.raises(InvalidArgumentError):
            await anext(watch)


async def test_a_closed_watch_ends_its_iteration(peers: Peers, connect: Connect) -> None:
    script(peers, [complete(1)])
    client = await connect(peers[0])
    watch = client.tasks.watch()
    assert await read(watch, 1) == [(COMPLETE, "")]
    reading = asyncio.create_task(read(watch, 1))
    await asyncio.sleep(0)
    await watch.close()
    with pytest.raises(StopAsyncIteration):
        await anext(watch)
    with pytest.raises(StopAsyncIteration):
        await reading


async def test_a_watch_of_sessions_falls_silent_and_goes_to_another_peer(
    peers: Peers, connect: Connect
) -> None:
    async def silent(request: Any, context: Context) -> AsyncIterator[Any]:
        yield session_pb2.WatchSessionsResponse(
            kind=session_pb2.WATCH_KIND_COMPLETE, through_index=4, cluster_id="c"
        )
        await asyncio.Event().wait()

    async def other(request: Any, context: Context) -> AsyncIterator[Any]:
        yield session_pb2.WatchSessionsResponse(
            kind=session_pb2.WATCH_KIND_CHANGED,
            session=session_pb2.Session(session_id="s-1"),
            applied_index=5,
            through_index=5,
        )
        await asyncio.Event().wait()

    peers[0].streams["WatchSessions"] = silent
    peers[1].streams["WatchSessions"] = other
    client = await connect(peers[0], peers[1])
    async with client.sessions.watch(interval=0.1, address=peers[0].address) as watch:
        async with asyncio.timeout(10):
            assert (await anext(watch)).kind == session_pb2.WATCH_KIND_COMPLETE
            assert (await anext(watch)).session.session_id == "s-1"
        assert watch.address == peers[1].address
    assert peers[1].of("WatchSessions")[0].after_index == 4
