"""Append streams between real grpc.aio servers: order, breaks, CLOSING, and a leader that died."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import grpc
import pytest
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc

from gaia_grpc.raft.messages import AppendRequest, AppendResponse, Envelope
from gaia_grpc.raft.types import Index, NodeId, Term
from gaia_grpc.transport import servicer
from gaia_grpc.transport.api import PeerTransport
from gaia_grpc.transport.links import refuses_connections
from gaia_grpc.transport.options import TransportOptions, server_arguments
from gaia_grpc.transport.wire import hello_to_proto
from tests.transport.peers import WAIT_S, Cluster, Peer

A, B = NodeId("a"), NodeId("b")


def rounds(peer: Peer) -> list[int]:
    payloads = [envelope.payload for envelope in peer.recorder.envelopes]
    return [payload.round for payload in payloads if isinstance(payload, AppendRequest)]


async def test_appends_arrive_in_order_and_answers_come_back(cluster: Cluster) -> None:
    a, b = await cluster(2)
    for number in range(200):
        a.append("b", round_number=number, data=b"x" * number)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 200)
    assert rounds(b) == list(range(200))
    third = b.recorder.envelopes[3].payload
    assert isinstance(third, AppendRequest)
    assert third.entries[0].data == b"xxx"
    answers = [e for e in a.recorder.envelopes if isinstance(e.payload, AppendResponse)]
    assert [(e.from_node, e.to_node, e.term) for e in answers] == [(B, A, 1)] * 200
    assert a.transport is not None
    transport: PeerTransport = a.transport
    stats = transport.stats()[B]
    assert (stats.sent, stats.received, stats.connects, stats.dropped) == (200, 200, 1, 0)


async def test_frames_do_not_wait_for_answers(cluster: Cluster) -> None:
    a, b = await cluster(2)
    b.recorder.answering = False
    for number in range(50):
        a.append("b", round_number=number)
    await b.recorder.until(lambda: len(rounds(b)) == 50)


async def ended_streams(peer: Peer) -> None:
    """Waits until `peer` has judged how the streams to it ended."""
    assert peer.transport is not None
    await peer.transport._servicer._probes.join(WAIT_S)


def nobody_listens_at(a: Peer, seen_by: Peer) -> None:
    """From now on a probe of `a` is refused, whatever `a` does."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert seen_by.transport is not None
    seen_by.transport._addresses[a.node_id] = f"127.0.0.1:{port}"


async def test_a_clean_close_says_so_and_nobody_is_reported_gone(cluster: Cluster) -> None:
    a, b = await cluster(2)
    nobody_listens_at(a, b)
    a.append("b", term=3)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 1)
    assert a.transport is not None
    await a.transport.close()
    await ended_streams(b)
    assert b.recorder.gone == []
    assert a.recorder.broken == []


async def test_an_end_without_closing_is_reported_with_its_term(cluster: Cluster) -> None:
    a, b = await cluster(2)
    nobody_listens_at(a, b)
    a.append("b", term=3)
    a.append("b", term=2)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 2)
    assert a.transport is not None
    await a.transport._links[B].channel.close(None)
    await b.recorder.until(lambda: b.recorder.gone == [(A, 3)])


async def test_a_peer_that_only_lost_its_stream_is_not_reported(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await cluster(2)
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def probe(address: str) -> bool:
        answer.set_result(await refuses_connections(address))
        return answer.result()

    monkeypatch.setattr(servicer, "refuses_connections", probe)
    a.append("b", term=3)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 1)
    assert a.transport is not None
    assert b.transport is not None
    await a.transport._links[B].channel.close(None)
    async with asyncio.timeout(WAIT_S):
        assert await answer is False
    await ended_streams(b)
    assert b.recorder.gone == []


async def test_close_is_idempotent_and_sends_what_waits(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.append("b", round_number=0)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 1)
    for number in range(1, 30):
        a.append("b", round_number=number)
    assert a.transport is not None
    await a.transport.close()
    await a.transport.close()
    assert rounds(b) == list(range(30))
    a.append("b", round_number=99)
    assert a.transport.stats()[B].queued == 0


async def test_a_restarted_follower_is_reached_again_soon(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.append("b", round_number=1)
    await b.recorder.until(lambda: rounds(b) == [1])
    await b.cut_off()
    await a.recorder.until(lambda: a.recorder.broken == [B])
    b.bind()
    await b.start()
    loop = asyncio.get_running_loop()
    began = loop.time()
    while 2 not in rounds(b):
        a.append("b", round_number=2)
        await asyncio.sleep(0.02)
        assert loop.time() - began < WAIT_S
    assert a.transport is not None
    assert a.transport.stats()[B].connects == 2


async def test_an_absent_follower_is_reported_and_old_frames_are_dropped(cluster: Cluster) -> None:
    a, b = await cluster(2)
    await b.stop()
    for number in range(10):
        a.append("b", round_number=number)
    await a.recorder.until(lambda: len(a.recorder.broken) >= 1)
    assert a.transport is not None
    stats = a.transport.stats()[B]
    assert (stats.connects, stats.queued) == (0, 0)
    assert stats.dropped >= 9


async def test_a_full_queue_drops_and_counts(cluster: Cluster) -> None:
    a, b = await cluster(2, TransportOptions(max_queue_frames=5, max_queue_size_bytes=1_000))
    for number in range(20):
        a.append("b", round_number=number)
    assert a.transport is not None
    assert (a.transport.stats()[B].queued, a.transport.stats()[B].dropped) == (5, 15)
    await b.recorder.until(lambda: rounds(b) == [0, 1, 2, 3, 4])
    for number in range(20, 24):
        a.append("b", round_number=number, data=bytes(600))
    await b.recorder.until(lambda: 20 in rounds(b))
    a.append("b", round_number=30, data=bytes(5_000))
    await b.recorder.until(lambda: 30 in rounds(b))
    assert rounds(b)[5:] == [20, 30]


async def test_the_newest_stream_of_a_peer_gets_the_answers(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.append("b", round_number=1)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 1)
    await a.stop()
    a.bind()
    await a.start()
    a.append("b", round_number=2)
    await a.recorder.until(lambda: len(a.recorder.payloads(AppendResponse)) == 2)
    assert b.recorder.gone == []


async def test_an_old_stream_that_ends_late_takes_nothing_with_it(cluster: Cluster) -> None:
    a, b = await cluster(2)
    hello = hello_to_proto(a.recorder.hello(B))
    frame = pb.AppendEntriesRequest(hello=hello, term=1)
    async with grpc.aio.insecure_channel(b.address) as channel:
        stub = raft_pb2_grpc.RaftServiceStub(channel)
        old, new = stub.AppendEntries(timeout=10), stub.AppendEntries(timeout=10)
        for stream in (old, new):
            await stream.write(frame)
            assert isinstance(await stream.read(), pb.AppendEntriesResponse)
        await old.write(pb.AppendEntriesRequest(closing=True))
        assert await old.code() is grpc.StatusCode.OK
        await new.write(pb.AppendEntriesRequest(term=1))
        assert isinstance(await new.read(), pb.AppendEntriesResponse)
        await new.write(pb.AppendEntriesRequest(closing=True))
        assert await new.code() is grpc.StatusCode.OK


async def test_a_used_port_is_refused(cluster: Cluster) -> None:
    (a,) = await cluster(1)
    second = grpc.aio.server(options=server_arguments(a.options))
    with pytest.raises(RuntimeError, match="Failed to bind"):
        second.add_insecure_port(a.address)


async def test_answers_without_a_stream_are_dropped_and_counted(cluster: Cluster) -> None:
    a, _ = await cluster(2)
    assert a.transport is not None
    answer = AppendResponse(True, Index(0), Index(0), Index(0), Term(0), 0)
    a.transport.send(Envelope(A, B, Term(1), answer))
    a.transport.send(Envelope(A, NodeId("stranger"), Term(1), answer))
    assert a.transport.stats()[B].dropped == 1


LEADER = """
import asyncio, sys
from gaia_grpc.raft.messages import AppendRequest, Envelope
from gaia_grpc.transport.options import TransportOptions
from tests.transport.peers import Peer

async def main():
    peer = Peer("a", TransportOptions())
    peer.bind()
    peer.addresses = {"a": peer.address, "b": sys.argv[1]}
    peer.recorder.accepted = {"b": "uuid-b"}
    await peer.start()
    print(peer.address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    peer.append("b", term=7)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_leader_is_reported_at_once_and_a_paused_one_is_not(
    cluster: Cluster,
) -> None:
    (b, _) = await cluster(2)
    b.recorder.accepted = {A: "uuid-a"}
    assert b.transport is not None
    await b.stop()
    leader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEADER, b.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert leader.stdout is not None
    assert leader.stdin is not None
    try:
        address = (await leader.stdout.readline()).decode().strip()
        b.node_id = b.recorder.node_id = B
        b.recorder.peer_uuid = "uuid-b"
        b.addresses = {A: address, B: b.address}
        b.bind()
        await b.start()
        leader.stdin.write(b"go\n")
        await b.recorder.until(lambda: len(rounds(b)) == 1)

        leader.send_signal(signal.SIGSTOP)
        assert not await refuses_connections(address)
        leader.send_signal(signal.SIGCONT)
        assert not await refuses_connections(address)
        assert b.recorder.gone == []

        leader.kill()
        await b.recorder.until(lambda: bool(b.recorder.gone))
        assert b.recorder.gone == [(A, 7)]
    finally:
        if leader.returncode is None:
            leader.kill()
        await leader.wait()
