"""A stream that breaks while nothing waits must not take its task with it."""

from __future__ import annotations

from gaia_grpc.raft.messages import AppendResponse
from gaia_grpc.raft.types import NodeId
from tests.transport.peers import Cluster

B = NodeId("b")


async def test_stream_is_opened_again_after_it_broke_with_nothing_queued(cluster: Cluster) -> None:
    """Seen with real peers: the follower stopped first, the leader's stream never came back."""
    a, b = await cluster(2)
    a.append("b", term=3)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 1)
    assert b.transport is not None
    await b.transport.close()
    await a.recorder.until(lambda: len(a.recorder.broken) == 1)
    assert a.transport is not None
    running = len(a.transport._links[B].streams)
    await a.transport._links[B].streams.join(0.3)  # longer than the back-off
    assert len(a.transport._links[B].streams) == running
    a.append("b", term=3)
    await a.recorder.until(lambda: len(a.recorder.broken) == 2)
