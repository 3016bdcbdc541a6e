"""Votes, TimeoutNow, Identify, and who is refused."""

from __future__ import annotations

import asyncio
from functools import partial

import grpc
import pytest
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from structlog.testing import capture_logs

from gaia_grpc.errors import UnavailableError
from gaia_grpc.raft.messages import (
    AppendRequest,
    Envelope,
    Payload,
    PreVoteRequest,
    PreVoteResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Index, NodeId, Term
from gaia_grpc.transport.api import ForwardedCall, IdentifyRequest
from gaia_grpc.transport.options import TransportOptions
from gaia_grpc.transport.wire import hello_to_proto
from tests.transport.peers import Cluster, Peer

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def send(peer: Peer, to: NodeId, term: int, payload: Payload) -> None:
    assert peer.transport is not None
    peer.transport.send(Envelope(peer.node_id, to, Term(term), payload))


def broke_more_often(peer: Peer, count: int) -> bool:
    return len(peer.recorder.broken) > count


async def test_votes_and_pre_votes_are_asked_and_answered(cluster: Cluster) -> None:
    a, b, c = await cluster(3)
    for to in (B, C):
        send(a, to, 4, PreVoteRequest(Index(9), Term(3)))
        send(a, to, 4, VoteRequest(Index(9), Term(3), leadership_transfer=True))
    await a.recorder.until(lambda: len(a.recorder.envelopes) == 4)
    for peer in (b, c):
        assert {e.payload for e in peer.recorder.envelopes} == {
            PreVoteRequest(Index(9), Term(3)),
            VoteRequest(Index(9), Term(3), leadership_transfer=True),
        }
        answers = {e.payload for e in a.recorder.envelopes if e.from_node == peer.node_id}
        assert answers == {PreVoteResponse(True), VoteResponse(False)}
    assert {(e.to_node, e.term) for e in a.recorder.envelopes} == {(A, 4)}


async def test_a_vote_that_is_not_answered_ends_and_a_late_answer_is_dropped(
    cluster: Cluster,
) -> None:
    a, b = await cluster(2, TransportOptions(vote_timeout_ms=50))
    b.recorder.answering = False
    send(a, B, 4, VoteRequest(Index(9), Term(3)))
    await b.recorder.until(lambda: len(b.recorder.envelopes) == 1)
    assert a.transport is not None
    assert b.transport is not None
    await a.transport._links[B].unary.join(10)
    send(b, A, 4, VoteResponse(True))
    assert b.transport.stats()[A].dropped == 1
    assert a.recorder.envelopes == []


async def test_an_answer_of_another_term_is_delivered_as_it_is(cluster: Cluster) -> None:
    a, b = await cluster(2)
    b.recorder.answering = False
    send(a, B, 4, VoteRequest(Index(9), Term(3)))
    await b.recorder.until(lambda: len(b.recorder.envelopes) == 1)
    send(b, A, 9, VoteResponse(False))
    await a.recorder.until(lambda: len(a.recorder.envelopes) == 1)
    assert a.recorder.envelopes == [Envelope(B, A, Term(9), VoteResponse(False))]


async def test_a_peer_that_is_just_coming_up_still_votes(cluster: Cluster) -> None:
    a, b = await cluster(2, TransportOptions(vote_timeout_ms=5_000))
    await b.stop()
    send(a, B, 4, VoteRequest(Index(9), Term(3)))
    await asyncio.sleep(0.05)
    b.bind()
    await b.start()
    await a.recorder.until(lambda: len(a.recorder.envelopes) == 1)


async def test_votes_in_flight_are_bounded(cluster: Cluster) -> None:
    a, b = await cluster(2, TransportOptions(max_votes_in_flight=3, vote_timeout_ms=5_000))
    b.recorder.answering = False
    for term in range(1, 11):
        send(a, B, term, VoteRequest(Index(9), Term(3)))
    await b.recorder.until(lambda: len(b.recorder.envelopes) == 3)
    assert a.transport is not None
    assert a.transport.stats()[B].dropped == 7


async def test_timeout_now_arrives(cluster: Cluster) -> None:
    a, b = await cluster(2)
    send(a, B, 6, TimeoutNow())
    await b.recorder.until(lambda: b.recorder.envelopes == [Envelope(A, B, Term(6), TimeoutNow())])


async def test_identify_answers_strangers_and_waits_for_a_peer_to_come_up(
    cluster: Cluster,
) -> None:
    a, b = await cluster(2)
    b.recorder.accepted = {}
    request = IdentifyRequest(A, "uuid-a", ((A, "host:1"), (B, "host:2")))
    assert a.transport is not None
    answer = await a.transport.identify(B, request, 5.0)
    assert (answer.node_id, answer.peer_uuid, answer.empty) == (B, "uuid-b", True)
    assert answer.listed_peers == request.listed_peers
    await b.stop()
    with pytest.raises(UnavailableError, match="peer b does not answer"):
        await a.transport.identify(B, request, 0.05)
    asked = asyncio.create_task(a.transport.identify(B, request, 10.0))
    b.bind()
    await b.start()
    assert (await asked).peer_uuid == "uuid-b"
    with pytest.raises(UnavailableError, match="no way to peer c"):
        await a.transport.identify(C, request, 1.0)


@pytest.mark.parametrize("wrong", ["cluster", "uuid", "stranger", "addressee"])
async def test_who_does_not_fit_is_refused_everywhere_and_logged_once(
    cluster: Cluster, wrong: str
) -> None:
    a, b = await cluster(2)
    if wrong == "cluster":
        a.recorder.cluster_id = "another"
    elif wrong == "uuid":
        b.recorder.accepted = {A: "uuid-before-the-wipe"}
    elif wrong == "stranger":
        b.recorder.accepted = {}
    else:
        a.recorder.accepted = {B: "uuid-before-the-wipe"}
    assert a.transport is not None
    with capture_logs() as logs:
        for number in range(3):
            send(a, B, 4, VoteRequest(Index(9), Term(3)))
            send(a, B, 4, TimeoutNow())
            a.append("b", round_number=number)
            await a.recorder.until(partial(broke_more_often, a, number))
            with pytest.raises(UnavailableError, match="refuses us"):
                await a.transport.forward(B, ForwardedCall(b"x", 1000), 5.0)
    assert b.recorder.envelopes == []
    assert b.recorder.calls == []
    assert [entry["event"] for entry in logs].count("peer refused") == 1
    assert b.transport is not None
    assert b.transport.stats()[A].refused >= 9
    assert a.transport.stats()[B].refused >= 6


async def test_a_refusal_carries_the_reason(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.recorder.cluster_id = "another"
    async with grpc.aio.insecure_channel(b.address) as channel:
        stub = raft_pb2_grpc.RaftServiceStub(channel)
        hello = hello_to_proto(a.recorder.hello(B))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RequestVote(pb.RequestVoteRequest(hello=hello, term=1), timeout=5)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # aio errors work too
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("IDENTITY_REFUSED", "gaia")


async def test_malformed_messages_are_invalid_arguments(cluster: Cluster) -> None:
    a, b = await cluster(2)
    hello = hello_to_proto(a.recorder.hello(B))
    async with grpc.aio.insecure_channel(b.address) as channel:
        stub = raft_pb2_grpc.RaftServiceStub(channel)
        codes = []
        for call in (
            stub.RequestVote(pb.RequestVoteRequest(hello=hello, term=-1), timeout=5),
            stub.TimeoutNow(pb.TimeoutNowRequest(hello=hello), timeout=5),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            codes.append(caught.value.code())
        append = stub.AppendEntries(timeout=5)
        await append.write(pb.AppendEntriesRequest(hello=hello, term=-1))
        codes.append(await append.code())
        forward = stub.Forward(timeout=5)
        await forward.write(pb.ForwardRequest(hello=hello, calls=[pb.ForwardedCall()]))
        codes.append(await forward.code())
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT] * 4
    assert b.recorder.envelopes == []


async def test_a_closed_peer_answers_unavailable(cluster: Cluster) -> None:
    a, b = await cluster(2)
    assert b.transport is not None
    await b.transport.close()
    async with grpc.aio.insecure_channel(b.address) as channel:
        stub = raft_pb2_grpc.RaftServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Identify(pb.IdentifyRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    a.append("b")
    await a.recorder.until(lambda: a.recorder.broken == [B])
    assert a.recorder.payloads(AppendRequest) == []
