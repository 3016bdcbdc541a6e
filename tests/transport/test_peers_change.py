"""Members come, move, change their directory and go, while the transport runs."""

from __future__ import annotations

import asyncio
import os

import pytest

from gaia_grpc.errors import OutcomeUnknownError, UnavailableError
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    VoteRequest,
)
from gaia_grpc.raft.types import Index, NodeId, Term
from gaia_grpc.transport.api import (
    ForwardedCall,
    ForwardedOutcome,
    Hello,
    IdentifyRequest,
    MemberChange,
)
from tests.transport.peers import WAIT_S, Cluster, Peer

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
ASK = IdentifyRequest(A, "uuid-a")


def answers(peer: Peer) -> int:
    return len(peer.recorder.payloads(AppendResponse))


async def settled(peer: Peer) -> None:
    """Waits until links that were given up have ended."""
    assert peer.transport is not None
    await peer.transport._retiring.join(WAIT_S)
    assert len(peer.transport._retiring) == 0


async def test_a_new_member_is_reached_and_a_removed_one_is_not(cluster: Cluster) -> None:
    a, b, c = await cluster(3)
    assert a.transport is not None
    a.transport.set_peers({A: a.address, B: b.address})
    await settled(a)
    a.append("c")
    assert a.transport.stats()[C].dropped == 1
    with pytest.raises(UnavailableError, match="no way"):
        await a.transport.forward(C, ForwardedCall(b"x", 100), 0.1)
    with pytest.raises(UnavailableError, match="no way"):
        await a.transport.identify(C, ASK, 0.1)
    a.transport.set_peers({B: b.address, C: c.address})
    a.append("c")
    a.append("b")
    await a.recorder.until(lambda: answers(a) == 2)
    assert set(a.transport.stats()) == {B, C}


async def test_a_removed_member_hears_closing_and_holds_no_election(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.append("b", term=3)
    await a.recorder.until(lambda: answers(a) == 1)
    assert a.transport is not None
    assert b.transport is not None
    b.transport._addresses[A] = "127.0.0.1:1"  # nobody listens there
    a.transport.set_peers({})
    await settled(a)
    await b.transport._servicer._probes.join(WAIT_S)
    assert b.recorder.gone == []
    assert a.recorder.broken == []


async def test_b26_what_a_removed_member_still_answers_is_no_answer_of_its_successor(
    cluster: Cluster,
) -> None:
    """It was slow, or paused: that is why it was replaced. What it acknowledges now, a leader would
    count for the empty directory that has its name by then."""
    a, b, c = await cluster(3)
    b.recorder.answering = False
    a.append("b", data=b"x")
    await b.recorder.until(lambda: bool(b.recorder.envelopes))
    assert a.transport is not None
    assert b.transport is not None
    a.transport.set_peers({C: c.address})
    a.transport.set_peers({B: "127.0.0.1:1", C: c.address})
    late = AppendResponse(True, Index(1), Index(0), Index(0), Term(0), 0)
    b.transport.send(Envelope(B, A, Term(1), late))
    await settled(a)
    assert a.recorder.payloads(AppendResponse) == []


async def test_a_member_that_moved_is_reached_at_its_new_address(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.append("b", round_number=1)
    await a.recorder.until(lambda: answers(a) == 1)
    await b.stop()
    b.address = ""
    b.bind()
    b.addresses[B] = b.address
    await b.start()
    assert a.transport is not None
    a.transport.set_peers(b.addresses)
    a.append("b", round_number=2)
    await a.recorder.until(lambda: answers(a) == 2)
    assert a.transport.stats()[B].connects == 2


async def test_same_members_again_keep_their_links(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.append("b")
    await a.recorder.until(lambda: answers(a) == 1)
    assert a.transport is not None
    link = a.transport._links[B]
    a.transport.set_peers({B: b.address})
    a.append("b")
    await a.recorder.until(lambda: answers(a) == 2)
    assert a.transport._links[B] is link
    assert a.transport.stats()[B].connects == 1


async def test_a_name_with_a_new_directory_is_spoken_to_by_its_new_uuid(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.append("b")
    await a.recorder.until(lambda: answers(a) == 1)
    await b.stop()
    b.recorder.peer_uuid = "uuid-b-again"
    a.recorder.accepted[B] = "uuid-b-again"
    b.bind()
    await b.start()
    async with asyncio.timeout(WAIT_S):
        while answers(a) < 2:
            a.append("b")
            await asyncio.sleep(0.02)
    assert b.recorder.hellos[-1].to_peer_uuid == "uuid-b-again"


async def test_streams_of_a_former_owner_of_a_name_are_ended(cluster: Cluster) -> None:
    """A name was removed and given to another directory; the old one still has its streams."""
    a, b = await cluster(2)
    a.append("b")
    await a.recorder.until(lambda: answers(a) == 1)
    assert b.transport is not None
    b.recorder.accepted[A] = "uuid-of-the-new-owner"
    b.transport.set_peers({A: a.address})
    await a.recorder.until(lambda: a.recorder.broken == [B])
    heard = len(b.recorder.envelopes)
    a.append("b")
    await a.recorder.until(lambda: len(a.recorder.broken) == 2)
    assert len(b.recorder.envelopes) == heard
    await b.transport._servicer._probes.join(WAIT_S)
    assert b.recorder.gone == []


async def test_a_joiner_that_knows_nobody_answers_whoever_it_accepts(cluster: Cluster) -> None:
    a, b = await cluster(2)
    assert b.transport is not None
    b.transport.set_peers({})
    a.append("b")
    assert a.transport is not None
    a.transport.send(Envelope(A, B, Term(2), VoteRequest(Index(1), Term(1))))
    await a.recorder.until(lambda: len(a.recorder.envelopes) == 2)
    assert b.transport.stats()[A].sent == 2
    b.append("a")
    assert b.transport.stats()[A].dropped == 1


async def test_both_sides_learn_each_others_level_and_version(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.recorder.feature_level, b.recorder.feature_level = 3, 7
    a.append("b")
    await a.recorder.until(lambda: answers(a) == 1)
    expected_at_b = Hello("cluster", A, "uuid-a", B, "uuid-b", "a:1", 3, "version of a")
    expected_at_a = Hello("cluster", B, "uuid-b", A, "uuid-a", "b:1", 7, "version of b")
    assert b.recorder.hellos == [expected_at_b]
    assert a.recorder.hellos == [expected_at_a]
    assert a.transport is not None
    await a.transport.forward(B, ForwardedCall(b"x", 1000), 5.0)
    assert a.recorder.hellos == [expected_at_a] * 2


async def test_an_acceptor_whom_we_refuse_is_not_spoken_to(cluster: Cluster) -> None:
    """b accepts a, but a has learned meanwhile that the name b belongs to another directory."""
    a, b = await cluster(2)
    a.recorder.refused.append("uuid-b")
    a.append("b")
    await a.recorder.until(lambda: a.recorder.broken == [B])
    assert a.recorder.hellos == []
    assert a.recorder.payloads(AppendResponse) == []
    assert a.transport is not None
    assert a.transport.stats()[B].refused == 1
    with pytest.raises(UnavailableError, match="does not want"):
        await a.transport.forward(B, ForwardedCall(b"x", 1000), 5.0)
    assert b.recorder.calls == []


async def test_an_unanswered_change_of_the_members_has_an_unknown_outcome(cluster: Cluster) -> None:
    a, b = await cluster(2)

    async def never(call: ForwardedCall) -> ForwardedOutcome:
        await asyncio.Event().wait()
        raise AssertionError(call)

    b.recorder.on_call = never
    change = MemberChange(False, C, "uuid-c", "c:1")
    assert a.transport is not None
    with pytest.raises(OutcomeUnknownError):
        await a.transport.forward(B, ForwardedCall(None, 10_000, change), 0.2)
    assert b.recorder.calls == [ForwardedCall(None, 10_000, change)]


async def test_an_address_that_is_no_members_can_be_asked(cluster: Cluster) -> None:
    a, b = await cluster(2)
    assert a.transport is not None
    a.transport.set_peers({})
    assert (await a.transport.identify_at(b.address, ASK, 5.0)).peer_uuid == "uuid-b"
    await b.stop()
    with pytest.raises(UnavailableError, match="does not answer"):
        await a.transport.identify_at(b.address, ASK, 0.2)


async def test_a_question_on_a_link_that_ends_is_unavailable(cluster: Cluster) -> None:
    a, b = await cluster(2)
    await b.stop()
    assert a.transport is not None
    asking = asyncio.create_task(a.transport.identify(B, ASK, 30.0))
    calling = asyncio.create_task(a.transport.forward(B, ForwardedCall(b"x", 30_000), 30.0))
    await asyncio.sleep(0)
    a.transport.set_peers({})
    for task in (asking, calling):
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(WAIT_S):
                await task


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_twenty_moves_leave_nothing_behind(cluster: Cluster) -> None:
    a, b, c = await cluster(3)
    assert a.transport is not None
    a.append("b")
    await a.recorder.until(lambda: answers(a) == 1)
    files = tasks = 0
    for turn in range(21):
        # c answers for b, so that each move is seen to work.
        address, a.recorder.accepted[B] = [(c.address, "uuid-c"), (b.address, "uuid-b")][turn % 2]
        c.recorder.node_id = B
        seen = answers(a)
        a.transport.set_peers({B: address})
        async with asyncio.timeout(WAIT_S):
            while answers(a) == seen:
                a.append("b")
                await asyncio.sleep(0.01)
        await settled(a)
        if turn == 0:
            files, tasks = open_files(), len(asyncio.all_tasks())
    for peer in (b, c):
        assert peer.transport is not None
        await peer.transport._servicer._probes.join(WAIT_S)
    assert len(asyncio.all_tasks()) <= tasks
    assert open_files() <= files + 2  # gRPC closes sockets from a thread of its own
    assert len(a.transport._links) == 1
    heard = [e.payload for e in c.recorder.envelopes if isinstance(e.payload, AppendRequest)]
    assert len(heard) >= 10
