"""The outside of the core: inputs, effects and status beyond what the paper and the traces say."""

from __future__ import annotations

import pytest

from gaia_grpc.errors import InvariantError, NotLeaderError
from gaia_grpc.raft.effects import Effects, ReadId, RoleChange, RoleName
from gaia_grpc.raft.inbox import MAX_TERM_LEAD
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    Payload,
    PreVoteRequest,
    PreVoteResponse,
    SnapshotRequest,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.roles import ALLOWED_TRANSITIONS, ROLE_NAMES
from gaia_grpc.raft.types import (
    NO_NODE,
    EntryId,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
)
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import (
    Cluster,
    Peer,
    config,
    configuration,
    decode_members,
    entry,
    make_config,
    names,
    restored,
)

N1, N2, N3 = names(3)


def peer_of(stored: Restored | None = None, *, node: str = "n1") -> tuple[Peer, list[Envelope]]:
    sent: list[Envelope] = []
    learners = () if node in names(3) else (node,)
    raft_config = config(node, names(3), learners)
    return Peer(raft_config, MemoryLog(stored), sent.append), sent


def step(peer: Peer, payload: Payload, term: int, from_node: str = "n2") -> None:
    peer.node.step(Envelope(NodeId(from_node), peer.node_id, Term(term), payload))


def append(term_index: tuple[int, int], commit: int = 0, number: int = 1) -> AppendRequest:
    return AppendRequest(Index(term_index[1]), Term(term_index[0]), (), Index(commit), number)


def accepted(match_index: int, number: int = 1) -> AppendResponse:
    return AppendResponse(True, Index(match_index), Index(0), Index(0), Term(0), number)


def role(peer: Peer) -> RoleName:
    return peer.node.role


# --- messages that are none of ours -------------------------------------------------------------


@pytest.mark.parametrize(("from_node", "to_node"), [("n2", "n3"), ("n1", "n1"), ("", "n1")])
def test_messages_for_others_and_from_itself_are_ignored(from_node: str, to_node: str) -> None:
    peer, _ = peer_of()
    message = VoteRequest(Index(9), Term(9))
    peer.node.step(Envelope(NodeId(from_node), NodeId(to_node), Term(9), message))
    assert peer.node.term == 0
    assert not peer.node.has_effects


@pytest.mark.parametrize(
    "payload",
    [
        VoteRequest(Index(9), Term(9)),
        PreVoteRequest(Index(9), Term(9)),
        AppendRequest(Index(0), Term(0), (), Index(0), 1),
        VoteResponse(granted=False),
    ],
)
def test_a_term_that_nobody_can_have_reached_is_not_followed(payload: Payload) -> None:
    peer, sent = peer_of()
    term = peer.node.term
    step(peer, payload, (1 << 63) - 1)
    step(peer, payload, term + MAX_TERM_LEAD + 1)
    assert peer.node.term == term
    assert sent == []
    step(peer, VoteRequest(Index(9), Term(9)), term + MAX_TERM_LEAD)
    assert peer.node.term == term + MAX_TERM_LEAD


def test_answers_that_come_too_late_are_ignored() -> None:
    peer, _ = peer_of(restored(term=3))
    for late in (accepted(5), VoteResponse(True), PreVoteResponse(True), PreVoteResponse(False)):
        step(peer, late, 3)
    step(peer, PreVoteResponse(True), 9)
    assert (peer.node.term, role(peer), peer.node.has_effects) == (3, RoleName.FOLLOWER, False)


def test_an_answer_that_cannot_be_true_stops_the_peer() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    with pytest.raises(InvariantError, match="an answer beyond our log"):
        step(leader, accepted(9), 1)
    with pytest.raises(InvariantError, match="an answer to a round that was not sent"):
        step(leader, accepted(1, 99), 1)


def test_two_leaders_of_one_term_stop_the_peer() -> None:
    peer, _ = peer_of()
    step(peer, append((0, 0)), 1, "n2")
    with pytest.raises(InvariantError, match="two leaders in term 1"):
        step(peer, append((0, 0)), 1, "n3")


# --- effects ------------------------------------------------------------------------------------


def test_a_fresh_peer_owes_nothing() -> None:
    peer, _ = peer_of()
    assert not peer.node.has_effects
    assert peer.node.take_effects() == Effects()


def test_effects_are_handed_out_once() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.propose([b"x"])
    assert leader.node.has_effects
    first = leader.node.take_effects()
    assert first.write is not None
    assert first.messages
    assert not leader.node.has_effects
    assert leader.node.take_effects() == Effects()


def test_founding_entries_are_committed_at_once() -> None:
    """Every peer of a new cluster is built from the same entries of term 1."""
    founding = Restored(
        HardState(Term(1), NO_NODE, Index(2)),
        (entry(1, 1, configuration(names(3)), EntryKind.CONFIGURATION), entry(1, 2)),
    )
    cluster = Cluster(3, founding)
    cluster.elect("n2")
    for peer in cluster.peers.values():
        assert [(each.term, each.index) for each in peer.applied] == [(1, 1), (1, 2), (2, 3)]


def test_role_changes_are_told_once() -> None:
    peer, _ = peer_of()
    step(peer, append((0, 0)), 1)
    assert peer.take().role_change == RoleChange(RoleName.FOLLOWER, Term(1), N2)
    step(peer, append((0, 0), number=2), 1)
    assert peer.take().role_change is None


def test_a_burst_of_inputs_makes_one_append_a_follower() -> None:
    """Proposals, a read and a heartbeat of one turn go out together."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    for number in range(10):
        leader.node.propose([b"%d" % number])
    leader.node.request_read(ReadId("u", 1, 1))
    leader.node.request_read(ReadId("u", 1, 2))
    for _ in range(leader.config.heartbeat_ticks):
        leader.node.tick()
    messages = leader.take().messages
    assert [each.to_node for each in messages] == ["n2", "n3"]
    one, other = (each.payload for each in messages)
    assert isinstance(one, AppendRequest)
    assert isinstance(other, AppendRequest)
    assert len(one.entries) == 10
    assert one.entries is other.entries, "shared, so that it is encoded once"
    cluster.stabilize()
    assert [grant.read_id.counter for grant in leader.grants] == [1, 2]


def test_large_entries_go_out_one_by_one() -> None:
    sent: list[Envelope] = []
    raft_config = make_config("n1", names(3), max_bytes=10)
    peer = Peer(raft_config, MemoryLog(restored(term=1)), sent.append)
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(True), 2)
    peer.settle()
    step(peer, VoteResponse(True), 2)
    peer.settle()
    step(peer, accepted(1), 2)
    peer.settle()
    sent.clear()
    peer.node.propose([b"a" * 6, b"b" * 6, b"c" * 100, b"d" * 4, b"e" * 6])
    peer.settle()
    sizes = [
        [len(each.data) for each in message.payload.entries]
        for message in sent
        if message.to_node == "n2" and isinstance(message.payload, AppendRequest)
    ]
    assert sizes == [[6], [6], [100], [4, 6]]


def test_a_repeated_commit_notice_is_not_answered() -> None:
    """It tells nothing new: the round and the entries before it were answered already."""
    peer, sent = peer_of()
    step(peer, append((0, 0), number=1), 1)
    peer.settle()
    assert len(sent) == 1
    step(peer, append((0, 0), number=1), 1)
    peer.settle()
    assert len(sent) == 1
    step(peer, append((0, 0), number=2), 1)
    peer.settle()
    assert len(sent) == 2


def test_an_answer_names_the_highest_round_that_was_seen() -> None:
    """A late append is news to a newer round too: it proves that no higher term is here."""
    peer, sent = peer_of(restored(1))
    step(peer, append((1, 1), number=5), 1)
    late = AppendRequest(Index(1), Term(1), (entry(1, 2),), Index(0), 3)
    step(peer, late, 1)
    peer.settle()
    assert [each.payload for each in sent] == [accepted(1, 5), accepted(2, 5)]


# --- a log with a compacted prefix --------------------------------------------------------------


def compacted() -> Restored:
    """A snapshot up to 2/5, and 2/6 behind it."""
    return Restored(
        HardState(Term(2), NO_NODE, Index(5)),
        (entry(2, 6),),
        SnapshotMeta(Index(5), Term(2), b""),
        EntryId(Term(2), Index(5)),
    )


def test_a_restart_behind_a_snapshot_applies_only_what_follows() -> None:
    peer, _ = peer_of(compacted())
    assert (peer.node.first_index, peer.node.last_index, peer.node.commit_index) == (6, 6, 5)
    step(peer, append((2, 6), commit=6), 2)
    peer.take()
    assert [each.index for each in peer.applied] == [6]


@pytest.mark.parametrize(
    ("previous", "indexes", "last", "match"),
    [(2, (3, 4), 6, 4), (3, (4, 5, 6), 6, 6), (3, (4, 5, 6, 7), 7, 7), (1, (), 6, 1)],
)
def test_entries_of_the_compacted_part_are_known_to_match(
    previous: int, indexes: tuple[int, ...], last: int, match: int
) -> None:
    peer, sent = peer_of(compacted())
    entries = tuple(entry(2, index) for index in indexes)
    step(peer, AppendRequest(Index(previous), Term(2), entries, Index(0), 1), 2)
    peer.settle()
    assert peer.node.last_index == last
    (answer,) = sent
    assert answer.payload == accepted(match)


def test_a_follower_that_needs_compacted_entries_gets_a_snapshot_and_heartbeats() -> None:
    sent: list[Envelope] = []
    peer = Peer(config("n1", names(3)), MemoryLog(compacted()), sent.append)
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(True), 3)
    peer.settle()
    step(peer, VoteResponse(True), 3)
    peer.settle()
    refusal = AppendResponse(False, Index(0), Index(6), Index(2), Term(1), 1)
    step(peer, refusal, 3)
    sent.clear()
    for _ in range(peer.config.heartbeat_ticks):
        peer.settle()
        peer.node.tick()
    peer.settle()
    asked, heartbeat = [each.payload for each in sent if each.to_node == N2]
    assert asked == SnapshotRequest(SnapshotMeta(Index(5), Term(2), b""))
    assert isinstance(heartbeat, AppendRequest)
    assert (heartbeat.previous_index, heartbeat.previous_term, heartbeat.entries) == (5, 2, ())
    step(peer, AppendResponse(False, Index(0), Index(5), Index(2), Term(1), 2), 3)
    assert peer.node.match_index(N2) == 0
    step(peer, accepted(7, 2), 3)
    assert peer.node.commit_index == 7


# --- elections ----------------------------------------------------------------------------------


def test_a_pre_candidate_votes_for_a_candidate_of_its_term() -> None:
    peer, sent = peer_of(restored(term=2))
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, VoteRequest(Index(0), Term(0)), 2, "n3")
    peer.settle()
    assert role(peer) is RoleName.FOLLOWER
    assert sent[-1].payload == VoteResponse(True)


def test_a_pre_vote_for_the_current_term_is_granted_as_long_as_the_vote_is_free() -> None:
    """A peer whose term is one ahead after a failed election must not block the others."""
    for voted_for, granted in (("", True), ("n2", True), ("n3", False)):
        peer, sent = peer_of(restored(term=3, voted_for=voted_for))
        step(peer, PreVoteRequest(Index(0), Term(0)), 3)
        peer.settle()
        assert sent[-1].payload == PreVoteResponse(granted)
        assert sent[-1].term == 3


def test_a_refused_pre_vote_teaches_the_term() -> None:
    peer, _ = peer_of(restored(term=3))
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(False), 7)
    assert (role(peer), peer.node.term) == (RoleName.FOLLOWER, 7)


def test_a_lost_pre_vote_ends_in_follower() -> None:
    peer, _ = peer_of(restored(term=3))
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(False), 3, "n2")
    step(peer, PreVoteResponse(False), 3, "n3")
    assert (role(peer), peer.node.term) == (RoleName.FOLLOWER, 3)


def test_a_late_vote_does_not_disturb_a_leader() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    step(leader, VoteResponse(True), 1)
    step(leader, PreVoteResponse(True), 2)
    step(leader, TimeoutNow(), 1)
    assert leader.node.is_ready_leader


def test_a_vote_request_during_the_lease_changes_nothing() -> None:
    peer, sent = peer_of()
    step(peer, append((0, 0)), 1)
    peer.settle()
    sent.clear()
    step(peer, VoteRequest(Index(9), Term(9)), 5, "n3")
    assert (peer.node.term, peer.node.has_effects) == (1, False)
    step(peer, VoteRequest(Index(9), Term(9), leadership_transfer=True), 5, "n3")
    assert peer.node.term == 5


def test_a_higher_term_does_not_restart_the_timer() -> None:
    """Only a vote or a leader does (5.2): a rival that can't win must not hold us up."""
    peer, _ = peer_of(restored(5))
    for _ in range(19):
        peer.node.tick()
    step(peer, VoteRequest(Index(0), Term(0)), 9)
    assert role(peer) is RoleName.FOLLOWER
    peer.node.tick()
    assert role(peer) is RoleName.PRE_CANDIDATE


def test_a_drawn_timeout_outside_its_range_stops_the_peer() -> None:
    def too_long(low: int, high: int) -> int:
        return high + 1

    with pytest.raises(InvariantError, match="draw_timeout left its range"):
        RaftNode(
            config("n1", names(3)),
            Restored(HardState(), ()),
            lambda low, high: high + 1,
            decode_members,
        )


@pytest.mark.parametrize(
    ("before", "after"),
    [(before, after) for before in ALLOWED_TRANSITIONS for after in RoleName],
)
def test_the_table_of_transitions_is_what_the_core_allows(
    before: RoleName, after: RoleName
) -> None:
    """A peer only leads after an election, and a leader only ever falls back to follower."""
    allowed = after in ALLOWED_TRANSITIONS[before]
    if before is RoleName.LEADER:
        assert allowed == (after is RoleName.FOLLOWER)
    if after is RoleName.LEADER:
        assert allowed == (before is RoleName.CANDIDATE)
    if after is RoleName.FOLLOWER:
        assert allowed
    assert sorted([*ROLE_NAMES.values(), RoleName.LEARNER]) == sorted(RoleName)


# --- learners -----------------------------------------------------------------------------------


def test_a_learner_never_campaigns_and_forgets_a_silent_leader() -> None:
    peer, sent = peer_of(node="n4")
    step(peer, append((0, 0)), 1)
    peer.settle()
    sent.clear()
    for _ in range(100):
        peer.node.tick()
    step(peer, TimeoutNow(), 1)
    peer.node.peer_lost(N2, peer.node.term)
    peer.settle()
    assert (role(peer), peer.node.leader_id, sent) == (RoleName.LEARNER, NO_NODE, [])


def test_a_learner_gets_the_log_and_counts_for_nothing() -> None:
    sent: list[Envelope] = []
    peer = Peer(config("n1", names(3), ["n4"]), MemoryLog(restored(term=1)), sent.append)
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    assert [each.to_node for each in sent] == []
    peer.settle()
    assert [each.to_node for each in sent] == ["n2", "n3"]
    step(peer, PreVoteResponse(True), 2, "n4")
    assert role(peer) is RoleName.PRE_CANDIDATE
    step(peer, PreVoteResponse(True), 2)
    peer.settle()
    step(peer, VoteResponse(True), 2, "n4")
    assert role(peer) is RoleName.CANDIDATE
    step(peer, VoteResponse(True), 2)
    sent.clear()
    peer.settle()
    assert [each.to_node for each in sent] == ["n2", "n3", "n4"]
    step(peer, accepted(1), 2, "n4")
    assert peer.node.commit_index == 0
    assert peer.node.match_index(NodeId("n4")) == 1
    step(peer, accepted(1), 2)
    assert peer.node.commit_index == 1
    peer.node.request_read(ReadId("u", 1, 1))
    peer.settle()
    step(peer, accepted(1, 2), 2, "n4")
    peer.settle()
    assert peer.grants == []
    step(peer, accepted(1, 2), 2)
    peer.settle()
    assert [grant.index for grant in peer.grants] == [1]


# --- leaving office -----------------------------------------------------------------------------


def test_a_leader_that_steps_down_drops_reads_of_all_kinds() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.request_read(ReadId("u", 1, 1))
    leader.take()
    leader.node.request_read(ReadId("u", 1, 2))
    step(leader, append((1, 1)), 2, "n3")
    assert leader.take().reads_dropped == (ReadId("u", 1, 1), ReadId("u", 1, 2))
    with pytest.raises(NotLeaderError) as refused:
        leader.node.propose([b"x"])
    assert refused.value.leader_id == "n3"


def test_a_transfer_to_itself_or_twice_to_the_same_changes_nothing() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.transfer(N1)
    leader.node.propose([b"x"])
    leader.node.transfer(N3)
    leader.settle()
    leader.node.transfer(N3)
    assert not leader.node.has_effects
    cluster.stabilize()
    assert cluster["n3"].node.is_ready_leader


def test_the_target_of_a_transfer_can_change() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"x"])
    leader.node.transfer(N3)
    cluster.stabilize()
    assert leader.node.is_ready_leader
    leader.node.transfer(N2)
    cluster.stabilize()
    assert cluster["n2"].node.is_ready_leader


def test_peer_lost_needs_the_leader_of_this_term() -> None:
    peer, _ = peer_of()
    step(peer, append((0, 0)), 2)
    peer.settle()
    peer.node.peer_lost(N3, Term(2))
    peer.node.peer_lost(N2, Term(1))
    assert role(peer) is RoleName.FOLLOWER
    peer.node.peer_lost(N2, Term(2))
    assert role(peer) is RoleName.PRE_CANDIDATE
    step(peer, append((0, 0), number=2), 2)
    assert (role(peer), peer.node.leader_id) == (RoleName.FOLLOWER, N2)


def test_peer_lost_can_be_repeated_until_a_leader_is_heard() -> None:
    peer, sent = peer_of()
    step(peer, append((0, 0)), 1)
    peer.settle()
    peer.node.peer_lost(N2, Term(1))
    step(peer, PreVoteResponse(False), 1, "n2")
    step(peer, PreVoteResponse(False), 1, "n3")
    assert role(peer) is RoleName.FOLLOWER
    peer.settle()
    sent.clear()
    peer.node.peer_lost(N2, Term(1))
    peer.settle()
    assert role(peer) is RoleName.PRE_CANDIDATE
    assert len(sent) == 2
    for _ in range(peer.config.election_ticks_max):
        peer.node.tick()  # the timer asks again by itself, and the seam still works
    peer.node.peer_lost(N2, Term(1))
    peer.settle()
    assert len(sent) == 6


# --- status -------------------------------------------------------------------------------------


def test_status_of_a_leader() -> None:
    cluster = Cluster(3)
    node = cluster.elect("n1").node
    node.propose([b"x"])
    assert (node.node_id, node.role, node.term, node.leader_id) == (N1, RoleName.LEADER, 1, N1)
    assert (node.first_index, node.last_index, node.last_term, node.durable_index) == (1, 2, 1, 1)
    assert [node.match_index(each) for each in (N1, N2, N3, NodeId("n9"))] == [1, 1, 1, 0]
    assert [node.entry_term(Index(each)) for each in (0, 1, 2, 3)] == [0, 1, 1, 0]
    assert [each.index for each in node.entries(Index(2), 5)] == [2]
    assert node.entries(Index(3), 5) == ()
    assert node.quorum_ok


def test_status_of_a_follower() -> None:
    cluster = Cluster(3)
    cluster.elect("n1")
    node = cluster["n2"].node
    assert (node.role, node.leader_id, node.voted_for) == (RoleName.FOLLOWER, N1, N1)
    assert not node.quorum_ok
    assert not node.is_ready_leader
    assert node.match_index(N1) == 0


def test_quorum_is_ok_as_long_as_a_majority_answers() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    cluster.tick(50)
    assert leader.node.quorum_ok
    cluster["n2"].crash()
    ticks = 0
    while leader.node.quorum_ok:
        leader.node.tick()
        ticks += 1
    longest = leader.config.election_ticks_max
    assert longest - leader.config.heartbeat_ticks <= ticks <= longest
    assert role(leader) is RoleName.FOLLOWER


def test_report_unreachable_is_for_leaders_and_their_followers() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster["n2"].node.report_unreachable(N1)
    leader.node.report_unreachable(NodeId("n9"))
    assert not leader.node.has_effects
    assert not cluster["n2"].node.has_effects
