"""Fixtures of the transport tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gaia_grpc.transport.options import TransportOptions
from tests.transport.peers import Cluster, Peer


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Makes peers a, b, ... that know each other; everything ends with the test."""
    peers: list[Peer] = []

    async def make(count: int, options: TransportOptions | None = None) -> list[Peer]:
        made = [Peer("abcde"[place], options or TransportOptions()) for place in range(count)]
        peers.extend(made)
        for peer in made:
            peer.bind()
        for peer in made:
            peer.addresses = {other.node_id: other.address for other in made}
            peer.recorder.accepted = {
                other.node_id: other.recorder.peer_uuid for other in made if other is not peer
            }
            await peer.start()
        return made

    yield make
    for peer in peers:
        await peer.stop()
