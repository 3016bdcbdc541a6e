"""A founder campaigns without waiting, and disturbs nobody who leads."""

from __future__ import annotations

from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.messages import Envelope, PreVoteRequest, VoteRequest
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import Index, NodeId, Term
from tests.support.cluster import decode_members, longest, make_config, restored


def core_of(*voters: str) -> RaftNode:
    names = tuple(NodeId(name) for name in voters)
    return RaftNode(make_config("n1", names), restored(1, 1), longest, decode_members)


def node() -> RaftNode:
    return core_of("n1", "n2", "n3")


def test_campaign_asks_at_once_and_again() -> None:
    core = node()
    for _ in range(2):
        core.campaign()
        asked = [envelope.payload for envelope in core.take_effects().messages]
        assert [type(payload) for payload in asked] == [PreVoteRequest, PreVoteRequest]
    assert core.role is RoleName.PRE_CANDIDATE


def test_campaign_leaves_a_leader_alone() -> None:
    core = core_of("n1")
    core.campaign()
    write = core.take_effects().write
    assert write is not None
    core.persisted(write.write_number)
    assert core.role is RoleName.LEADER
    term = core.term
    core.campaign()
    assert (core.role, core.term) == (RoleName.LEADER, term)


def test_a_vote_that_is_given_restarts_the_timer() -> None:
    """5.2: without it a voter would stand against the leader that it has just helped to elect."""
    core = node()
    timeout_ticks = make_config("n1", (NodeId("n1"),)).election_ticks_max
    for _ in range(timeout_ticks - 1):
        core.tick()
    request = VoteRequest(Index(2), Term(1))
    core.step(Envelope(NodeId("n2"), NodeId("n1"), Term(2), request))
    roles: list[RoleName] = []
    for _ in range(timeout_ticks):
        core.tick()
        roles.append(core.role)
    assert roles == [RoleName.FOLLOWER] * (timeout_ticks - 1) + [RoleName.PRE_CANDIDATE]
