"""Scripted peers and clients that are gone after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gaia_grpc.client import Client
from tests.client.fake_peer import FakePeer

Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
async def peers() -> AsyncIterator[tuple[FakePeer, FakePeer]]:
    """Two scripted peers that know of each other; `a` says that nobody leads."""
    a, b = await FakePeer().start(), await FakePeer().start()
    for peer in (a, b):
        for name, other in (("a", a), ("b", b)):
            peer.status.peers.add(node_id=name, client_address=other.address)
    yield a, b
    await a.stop()
    await b.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects clients and closes them at the end."""
    async with AsyncExitStack() as stack:

        async def make(*peers: FakePeer, **options: Any) -> Client:
            return await stack.enter_async_context(
                Client.connect([peer.address for peer in peers], **options)
            )

        yield make
