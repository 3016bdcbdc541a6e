"""The bug classes of other systems that belong to the core; each name holds its number.

B1 PySyncObj 84, B2 etcd 14370, B3 PySyncObj 169, B4 hashicorp/raft 113, B5 willemt/raft 118, B6 CCF
6016, B7 PySyncObj 166, B8 etcd 15699, B9 etcd 20418, B10 etcd 7331, B11 Xraft 33, B12 willemt/raft
118, B13 etcd `TestDisruptiveFollower`, B14 Cloudflare 2020, B30 raftos 30, B31 etcd
`async_storage_writes_append_aba_race`.
"""

from __future__ import annotations

import pytest

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.effects import ReadId, RoleName
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    Payload,
    PreVoteResponse,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Entry, HardState, Index, NodeId, Restored, Term
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import Cluster, Peer, config, entry, log_of, names, restored

N1, N2, N3 = names(3)


def alone(stored: Restored | None = None) -> tuple[Peer, list[Envelope]]:
    """Peer n1 of three, and everything it sends."""
    sent: list[Envelope] = []
    return Peer(config("n1", names(3)), MemoryLog(stored), sent.append), sent


def step(peer: Peer, payload: Payload, term: int, from_node: str = "n2") -> None:
    peer.node.step(Envelope(NodeId(from_node), peer.node_id, Term(term), payload))


def append(
    term_index: tuple[int, int], *entries: Entry, commit: int = 0, number: int = 1
) -> AppendRequest:
    term, index = term_index
    return AppendRequest(Index(index), Term(term), entries, Index(commit), number)


def accepted(match_index: int, number: int = 1) -> AppendResponse:
    return AppendResponse(True, Index(match_index), Index(0), Index(0), Term(0), number)


def lead(stored: Restored | None = None) -> tuple[Peer, list[Envelope]]:
    """n1 as a leader whose no-op is on its disk, and nothing more is known of the others."""
    peer, sent = alone(stored)
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(True), peer.node.term + 1)
    peer.settle()
    step(peer, VoteResponse(True), peer.node.term)
    peer.settle()
    assert role(peer) is RoleName.LEADER
    sent.clear()
    return peer, sent


def role(peer: Peer) -> RoleName:
    return peer.node.role


def answers(sent: list[Envelope], kind: type[Payload]) -> list[Payload]:
    return [each.payload for each in sent if isinstance(each.payload, kind)]


def test_b01_a_vote_leaves_only_after_its_write() -> None:
    peer, sent = alone()
    step(peer, VoteRequest(Index(0), Term(0)), 1)
    effects = peer.take()
    assert sent == []
    assert effects.write is not None
    assert effects.write.hard_state == HardState(Term(1), N2)
    peer.persist()
    assert answers(sent, VoteResponse) == [VoteResponse(True)]


def test_b01_a_repeated_request_is_not_answered_before_the_first_write_either() -> None:
    """The second answer makes no write of its own; the vote that it tells of is under way."""
    peer, sent = alone()
    step(peer, VoteRequest(Index(0), Term(0)), 1)
    peer.take()
    step(peer, VoteRequest(Index(0), Term(0)), 1)
    assert peer.take().write is None
    assert sent == []
    peer.persist()
    peer.take()
    assert answers(sent, VoteResponse) == [VoteResponse(True)] * 2


def test_b01_a_vote_in_a_term_that_is_on_disk_is_written_too() -> None:
    """Nothing but the vote is new: forgotten in a crash, it would be given a second time."""
    peer, sent = alone(restored(term=1))
    step(peer, VoteRequest(Index(0), Term(0)), 1)
    effects = peer.take()
    assert sent == []
    assert effects.write is not None
    assert effects.write.hard_state == HardState(Term(1), N2)
    peer.persist()
    assert answers(sent, VoteResponse) == [VoteResponse(True)]


def test_b01_a_candidate_counts_itself_only_when_its_vote_is_on_disk() -> None:
    peer, sent = alone()
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(True), 1)
    peer.take()
    assert not answers(sent, VoteRequest)
    step(peer, VoteResponse(True), 1)
    assert role(peer) is RoleName.CANDIDATE, "one vote that is known to last, of three"
    peer.persist()
    assert role(peer) is RoleName.LEADER


def test_b02_an_acknowledgement_waits_for_the_disk() -> None:
    peer, sent = alone()
    step(peer, append((0, 0), *log_of(1, 1)), 1)
    peer.take()
    assert sent == []
    peer.persist()
    assert answers(sent, AppendResponse) == [accepted(2)]


def test_b02_an_acknowledgement_waits_for_the_term_too() -> None:
    """The entry is on disk, the new term is not: after a crash the answer would be a lie."""
    peer, sent = alone(restored(1))
    step(peer, append((1, 1)), 2)
    peer.take()
    step(peer, append((1, 1), number=2), 2)
    peer.take()
    assert sent == []
    peer.persist()
    peer.take()
    assert answers(sent, AppendResponse) == [accepted(1, 1), accepted(1, 2)]


def test_b02_a_leader_is_no_part_of_the_majority_before_its_own_write() -> None:
    peer, _ = lead()
    step(peer, accepted(1), 1)
    peer.node.propose([b"x"])
    peer.take()
    assert peer.node.commit_index == 1
    step(peer, accepted(2), 1)
    assert peer.node.commit_index == 1, "n2 and a memory are not two disks"
    peer.persist()
    assert peer.node.commit_index == 2


def test_b02_two_followers_commit_without_the_leaders_disk() -> None:
    peer, _ = lead()
    peer.node.propose([b"x"])
    peer.take()
    step(peer, accepted(2), 1)
    step(peer, accepted(2), 1, "n3")
    assert peer.node.commit_index == 2
    assert peer.node.durable_index == 1


def test_b03_an_old_entry_on_a_majority_is_not_committed_by_counting() -> None:
    peer, _ = lead(restored(1, 2, 2))
    step(peer, accepted(3), 3)
    step(peer, accepted(3), 3, "n3")
    assert peer.node.commit_index == 0
    step(peer, accepted(4), 3, "n3")
    assert peer.node.commit_index == 4


def test_b04_a_late_append_does_not_truncate() -> None:
    peer, _ = alone()
    first = append((0, 0), *log_of(1, 1, 1))
    for request in (first, append((1, 3), entry(1, 4), entry(1, 5)), first, append((1, 1))):
        step(peer, request, 1)
    assert peer.node.last_index == 5
    peer.settle()
    assert len(peer.disk.load().entries) == 5


def test_b04_truncation_and_append_reach_the_disk_as_one() -> None:
    """A crash between them would leave a hole; here the disk has either log, never a mixture."""
    for survived, expected in ((min, [1, 1, 1]), (max, [1, 2])):
        peer, _ = alone(restored(1, 1, 1))
        step(peer, append((1, 1), entry(2, 2)), 2)
        peer.take()
        peer.crash(survived)
        peer.start()
        assert [each.term for each in peer.node.entries(Index(1), 9)] == expected


def test_b05_everything_after_a_conflict_is_removed() -> None:
    peer, _ = alone(restored(1, 1, 1, 1, 1))
    step(peer, append((1, 1), entry(2, 2)), 2)
    peer.settle()
    assert [each.term for each in peer.disk.load().entries] == [1, 2]


def test_b05_a_committed_entry_is_never_removed() -> None:
    peer, _ = alone(restored(1, 1, commit=2))
    with pytest.raises(InvariantError, match="truncating from 2, commit 2"):
        step(peer, append((1, 1), entry(2, 2)), 2)


def test_b06_ack_index_is_previous_plus_entries() -> None:
    """Not the follower's own last index: its tail may be another leader's."""
    peer, sent = alone(restored(1, 1, 1, 1))
    step(peer, append((1, 1), number=1), 2)
    step(peer, append((1, 1), entry(1, 2), number=2), 2)
    peer.settle()
    assert answers(sent, AppendResponse) == [accepted(1, 1), accepted(2, 2)]


def test_b06_match_index_does_not_fall_in_a_term() -> None:
    peer, _ = lead()
    peer.node.propose([b"x", b"y"])
    peer.settle()
    step(peer, accepted(3), 1)
    step(peer, accepted(1), 1)
    refusal = AppendResponse(False, Index(0), Index(2), Index(0), Term(0), 1)
    step(peer, refusal, 1)
    assert peer.node.match_index(N2) == 3


def test_b07_the_commit_index_stops_at_what_was_verified() -> None:
    peer, _ = alone(restored(1, 1, 1))
    step(peer, append((1, 1), commit=3), 2)
    assert peer.node.commit_index == 1


def test_b07_the_commit_index_does_not_go_back() -> None:
    peer, _ = alone(restored(1, 1, 1))
    step(peer, append((1, 3), commit=3), 2)
    step(peer, append((1, 3), commit=1, number=2), 3, "n3")
    assert peer.node.commit_index == 3


def test_b07_a_refusal_moves_no_commit_index() -> None:
    peer, _ = alone(restored(1, 1, 1))
    step(peer, append((2, 3), commit=3), 2)
    assert peer.node.commit_index == 0
    leader, _ = lead(restored(1, 1, 1))
    refusal = AppendResponse(False, Index(0), Index(3), Index(3), Term(1), 1)
    step(leader, refusal, 2)
    step(leader, refusal, 2, "n3")
    assert leader.node.commit_index == 0


@pytest.mark.parametrize(("stored_commit", "commit"), [(9, 2), (2, 2), (1, 1), (0, 0)])
def test_b08_a_stored_commit_index_beyond_the_log_is_clamped(
    stored_commit: int, commit: int
) -> None:
    peer, _ = alone(restored(1, 1, commit=stored_commit))
    assert peer.node.commit_index == commit
    peer.take()
    assert [each.index for each in peer.applied] == list(range(1, commit + 1))


def test_b08_the_commit_index_is_written_with_the_entries_it_covers_or_later() -> None:
    peer, _ = alone()
    step(peer, append((0, 0), *log_of(1, 1), commit=2), 1)
    write = peer.take().write
    assert write is not None
    assert write.hard_state == HardState(Term(1), commit_index=Index(2))
    assert write.entries[-1].index == 2
    step(peer, append((1, 2), entry(1, 3), number=2), 1)
    peer.take()
    step(peer, append((1, 3), commit=3, number=3), 1)
    assert peer.take().write is None, "a commit index alone is no reason to write"


def test_b09_a_leader_that_was_paused_grants_no_stale_read() -> None:
    """Stopped for a while, it goes on where it was, with the answers to old rounds in its inbox."""
    cluster = Cluster(3)
    old = cluster.elect("n1")
    old.node.request_read(ReadId("u", 1, 1))
    old.settle()
    cluster.deliver(lambda envelope: envelope.to_node != "n1")
    for name in ("n2", "n3"):
        cluster[name].settle()
    kept, cluster.wire[:] = list(cluster.wire), []  # answers to the first round, on their way
    cluster.isolate("n1")
    cluster.elect("n2").node.propose([b"new"])
    cluster.stabilize()
    old.node.request_read(ReadId("u", 1, 2))
    for envelope in kept:
        old.node.step(envelope)
    old.settle()
    assert [grant.read_id.counter for grant in old.grants] == [1], "it was asked before the pause"
    cluster.heal()
    cluster.tick(3)
    assert role(old) is RoleName.FOLLOWER
    assert old.dropped == [ReadId("u", 1, 2)]


def test_b10_no_read_before_the_leaders_own_noop_is_committed() -> None:
    peer, sent = lead(restored(1, 1))
    peer.node.request_read(ReadId("u", 1, 1))
    assert not peer.node.is_ready_leader
    for other in ("n2", "n3"):
        step(peer, accepted(2, 1), 2, other)
        peer.settle()
    assert peer.grants == []
    step(peer, accepted(3, 1), 2)
    peer.settle()
    assert peer.node.is_ready_leader
    rounds = [
        each.round for each in answers(sent, AppendRequest) if isinstance(each, AppendRequest)
    ]
    step(peer, accepted(3, max(rounds)), 2)
    peer.settle()
    assert [grant.index for grant in peer.grants] == [3]


def test_b11_a_repeated_vote_counts_once() -> None:
    sent: list[Envelope] = []
    peer = Peer(config("n1", names(5)), MemoryLog(), sent.append)
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    for _ in range(3):
        step(peer, PreVoteResponse(True), 1, "n2")
    assert role(peer) is RoleName.PRE_CANDIDATE
    step(peer, PreVoteResponse(True), 1, "n3")
    peer.settle()
    for _ in range(3):
        step(peer, VoteResponse(True), 1, "n2")
    assert role(peer) is RoleName.CANDIDATE
    step(peer, VoteResponse(True), 1, "n3")
    assert role(peer) is RoleName.LEADER


def test_b11_a_vote_does_not_change_its_mind() -> None:
    peer, _ = alone()
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(True), 1)
    peer.settle()
    step(peer, VoteResponse(False), 1, "n2")
    step(peer, VoteResponse(True), 1, "n2")
    assert role(peer) is RoleName.CANDIDATE


def test_b11_votes_of_an_older_term_and_of_strangers_do_not_count() -> None:
    peer, _ = alone(restored(term=4))
    while role(peer) is RoleName.FOLLOWER:
        peer.node.tick()
    step(peer, PreVoteResponse(True), 4)
    step(peer, PreVoteResponse(True), 5, "n9")
    assert role(peer) is RoleName.PRE_CANDIDATE
    step(peer, PreVoteResponse(True), 5)
    peer.settle()
    step(peer, VoteResponse(True), 4)
    step(peer, VoteResponse(True), 5, "n9")
    step(peer, PreVoteResponse(True), 6)
    assert role(peer) is RoleName.CANDIDATE


def test_b11_a_leader_and_a_candidate_vote_for_nobody_else() -> None:
    peer, sent = lead()
    step(peer, VoteRequest(Index(9), Term(9)), 1, "n3")
    peer.settle()
    assert answers(sent, VoteResponse) == [VoteResponse(False)]


def test_b12_the_term_never_falls_also_across_a_restart() -> None:
    peer, _ = alone(restored(term=7))
    step(peer, append((0, 0)), 3)
    step(peer, VoteRequest(Index(0), Term(0)), 6)
    peer.settle()
    assert peer.node.term == 7
    peer.crash()
    peer.start()
    assert peer.node.term == 7


def test_b12_a_log_of_a_later_term_than_the_stored_one_is_refused() -> None:
    with pytest.raises(InvariantError, match="a term beyond the stored one"):
        alone(Restored(HardState(Term(1)), log_of(2)))


def test_b13_a_peer_that_was_cut_off_comes_back_without_a_new_term() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    cluster.tick(200)
    assert cluster["n3"].node.term == leader.node.term
    cluster.heal()
    cluster.tick(10)
    assert cluster.leader() is leader
    assert leader.node.term == 1
    assert cluster["n3"].node.leader_id == "n1"


@pytest.mark.parametrize("cut", [("n1", "n2"), ("n1", "n3"), ("n2", "n3")])
def test_b14_one_cut_link_ends_in_a_stable_leader(cut: tuple[str, str]) -> None:
    """Cloudflare's outage: with the link between leader and one follower cut, the terms grew for
    hours. Here the lease of the peer in the middle keeps the leader.
    """
    cluster = Cluster(3)
    cluster.elect("n1")
    cluster.cut(*cut)
    changes = sum(len(peer.role_changes) for peer in cluster.peers.values())
    cluster.tick(60)
    middle = cluster.leader()
    assert middle is not None
    assert middle.node_id == "n1"
    terms = {peer.node.term for peer in cluster.peers.values()}
    assert terms == {Term(1)}
    leaders = [c for p in cluster.peers.values() for c in p.role_changes if c.role == "leader"]
    assert len(leaders) == 1
    assert changes > 0
    middle.node.propose([b"x"])
    cluster.stabilize()
    assert middle.node.commit_index == 2


def test_b30_a_lost_append_is_noticed_by_the_next_heartbeat() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.propose([b"x"])
    leader.settle()
    cluster.wire.clear()
    cluster.stabilize()
    assert leader.node.commit_index == 1
    cluster.tick(leader.config.heartbeat_ticks)
    assert leader.node.commit_index == 2


def test_b30_a_full_window_whose_answers_are_lost_opens_again() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    for number in range(20):
        leader.node.propose([b"%d" % number])
        leader.settle()
    cluster.deliver(lambda envelope: envelope.to_node != "n1")
    for name in ("n2", "n3"):
        cluster[name].settle()
    cluster.wire.clear()  # all answers
    cluster.tick(leader.config.heartbeat_ticks)
    assert leader.node.commit_index == 21


def test_b31_an_overwritten_write_acknowledges_nothing() -> None:
    peer, sent = alone(restored(1))
    step(peer, append((1, 1), entry(1, 2)), 1)
    peer.take()
    step(peer, append((1, 1), entry(2, 2)), 2, "n3")
    peer.take()
    peer.persist()
    assert peer.node.durable_index == 1, "index 2 is on disk, but not this entry"
    assert [each.to_node for each in sent] == [N2], "the old leader may know what it had"
    peer.persist()
    assert peer.node.durable_index == 2
    assert [each.to_node for each in sent] == [N2, N3]


def test_b31_a_deposed_leaders_write_is_not_counted_in_its_next_term() -> None:
    """etcd TestLeaderMsgAppSelfAckAfterTermChange: the completion comes in a later term."""
    peer, _ = lead()
    peer.node.propose([b"x", b"y"])
    peer.take()
    step(peer, append((1, 1), entry(2, 2)), 2, "n3")
    peer.take()
    first, second = peer.pending[0][0], peer.pending[1][0]
    peer.disk.sync_one()
    peer.node.persisted(first.write_number)
    assert peer.node.durable_index == 1
    peer.disk.sync_one()
    peer.node.persisted(second.write_number)
    assert peer.node.durable_index == 2
