"""Watches go on at another peer; whoever reads them sees only messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.client.streams import ResumableStream
from gaia_grpc.errors import InvalidArgumentError, UnavailableError
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse

Peers = tuple[FakePeer, FakePeer]
Request = cluster_pb2.WatchStatusRequest
Response = cluster_pb2.WatchStatusResponse


def status(term: int) -> Response:
    return Response(status=cluster_pb2.GetStatusResponse(term=term))


async def test_a_watch_goes_on_at_the_other_peer_when_one_ends_or_breaks_it(
    peers: Peers, connect: Connect
) -> None:
    async def ends(request: Request, context: Context) -> AsyncIterator[Response]:
        yield status(1)

    async def breaks(request: Request, context: Context) -> AsyncIterator[Response]:
        yield status(2)
        await refuse(context, grpc.StatusCode.UNAVAILABLE, "DRAINING")

    peers[0].streams["WatchStatus"] = ends
    peers[1].streams["WatchStatus"] = breaks
    client = await connect(peers[0])
    terms = []
    async with asyncio.timeout(10), aclosing(client.cluster.watch_status()) as watch:
        async for update in watch:
            terms.append(update.status.term)
            if len(terms) == 4:
                break
    assert terms == [1, 2, 1, 2]


async def test_a_watch_that_is_refused_says_so(peers: Peers, connect: Connect) -> None:
    async def refuses(request: Request, context: Context) -> AsyncIterator[Response]:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        yield status(1)

    peers[0].streams["WatchStatus"] = refuses
    client = await connect(peers[0])
    async with aclosing(client.cluster.watch_status()) as watch:
        with pytest.raises(InvalidArgumentError):
            await anext(watch)


async def test_a_stream_that_is_closed_while_it_is_read_says_so(
    peers: Peers, connect: Connect
) -> None:
    async def silent(request: Request, context: Context) -> AsyncIterator[Response]:
        await asyncio.Event().wait()
        yield status(1)

    peers[0].streams["WatchStatus"] = silent
    client = await connect(peers[0])
    stream = ResumableStream(
        client.connection, lambda peer: peer.cluster.WatchStatus, Request, silence=60
    )
    reading = asyncio.create_task(stream.next())
    await asyncio.sleep(0)
    await stream.close()
    with pytest.raises(UnavailableError, match="closed"):
        await reading


async def test_a_stream_whose_client_is_closed_ends_with_an_error(
    peers: Peers, connect: Connect
) -> None:
    started = asyncio.Event()

    async def silent(request: Request, context: Context) -> AsyncIterator[Response]:
        started.set()
        await asyncio.Event().wait()
        yield status(1)

    for peer in peers:
        peer.streams["WatchStatus"] = silent
    client = await connect(peers[0])
    stream = ResumableStream(
        client.connection, lambda peer: peer.cluster.WatchStatus, Request, silence=60
    )
    reading = asyncio.create_task(stream.next())
    await started.wait()
    await client.close()
    with pytest.raises(UnavailableError, match="closed"):
        async with asyncio.timeout(5):
            await reading
    await stream.close()
