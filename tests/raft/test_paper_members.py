"""Changes of the members, one test a sentence of Ongaro's thesis, chapter 4 (one server at a time).

Section 6 of the paper describes joint consensus instead; what both share is cited from section 6.
"""

from __future__ import annotations

from itertools import chain, combinations

import pytest

from gaia_grpc.errors import ConfigurationRefusedError, NotLeaderError
from gaia_grpc.raft.effects import ReadId, RoleName
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.quorum import majority
from gaia_grpc.raft.types import Index, NodeId, Term
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import (
    Cluster,
    Peer,
    config,
    configuration,
    members,
    names,
    restored,
)

N1, N2, N3, N4 = names(4)


def step(peer: Peer, payload: object, term: int, from_node: str = "n2") -> None:
    peer.node.step(Envelope(NodeId(from_node), peer.node_id, Term(term), payload))  # type: ignore[arg-type]  # any payload


def accepted(match_index: int, number: int = 1) -> AppendResponse:
    return AppendResponse(True, Index(match_index), Index(0), Index(0), Term(0), number)


def grown(peers: int = 3) -> Cluster:
    """A cluster with n4 as a learner that has caught up."""
    cluster = Cluster(peers)
    cluster.elect("n1")
    cluster.join("n4")
    cluster.change(names(3), ["n4"])
    cluster.stabilize()
    return cluster


# --- 4.1 Safety --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 7))
def test_majorities_of_configurations_that_differ_by_one_voter_share_a_server(count: int) -> None:
    """4.1: "any majority of the old cluster overlaps with any majority of the new cluster", shown
    by trying all of them; by two voters they need not.
    """

    def majorities(voters: tuple[int, ...]) -> list[set[int]]:
        sizes = range(majority(len(voters)), len(voters) + 1)
        return [set(each) for each in chain(*(combinations(voters, size) for size in sizes))]

    old = tuple(range(count))
    for new in (old, (*old, count), old[1:]):
        assert all(one & other for one in majorities(old) for other in majorities(new))
    two_more = (*old, count, count + 1)
    disjoint = [not one & other for one in majorities(old) for other in majorities(two_more)]
    assert any(disjoint) or count % 2 == 0


@pytest.mark.parametrize(
    ("voters", "learners"),
    [
        (("n1",), ()),
        (("n1", "n2", "n3", "n4", "n5"), ()),
        (("n1", "n2", "n4"), ()),
        (("n1",), ("n2", "n3")),
    ],
)
def test_only_one_server_is_added_or_removed_at_a_time(
    voters: tuple[str, ...], learners: tuple[str, ...]
) -> None:
    """4.1: "only one server can be added or removed from the cluster at a time"; learners do not
    count, so any number of them may change.
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    with pytest.raises(ConfigurationRefusedError, match="one voter at a time"):
        leader.node.propose_configuration(configuration(voters, learners))
    assert leader.node.last_index == 1
    leader.node.propose_configuration(configuration(names(3), ["a", "b", "c"]))
    assert leader.node.members.learners == ("a", "b", "c")


def test_a_new_configuration_takes_effect_when_it_is_added_to_the_log() -> None:
    """4.1: "The new configuration takes effect on each server as soon as it is added to that
    server's log: the Cnew entry is replicated to the Cnew servers, and a majority of the new
    configuration is used to determine the Cnew entry's commitment".
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.join("n4")
    where = cluster.change(["n1", "n2", "n3", "n4"])
    assert leader.node.members == members(["n1", "n2", "n3", "n4"])
    leader.settle()
    assert {each.to_node for each in cluster.wire} == {N2, N3, N4}
    step(leader, accepted(2), 1, "n2")
    assert leader.node.commit_index == 1, "two of four"
    step(leader, accepted(2), 1, "n4")
    assert leader.node.commit_index == where.index == 2
    cluster.deliver(lambda envelope: envelope.to_node == N2)
    assert cluster["n2"].node.configuration_index == 2
    assert cluster["n2"].node.commit_index == 1


def test_a_server_uses_the_latest_configuration_in_its_log_and_may_fall_back() -> None:
    """4.1: "each server always uses the latest configuration found in its log ... If the entry is
    removed, the server must be prepared to fall back to the previous configuration in its log".
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n1")
    cluster.change(["n1", "n2"])
    leader.settle()
    leader.crash()
    leader.start()
    assert leader.node.members == members(["n1", "n2"]), "also after a restart"
    cluster.elect("n2")
    cluster.heal()
    cluster.tick(6)
    assert leader.node.members == members(["n1", "n2", "n3"])
    assert leader.configurations == [b"n1,n2", b""]


def test_another_change_begins_only_when_the_one_before_is_committed() -> None:
    """4.1: "it would not be safe to begin another change before it has been committed" """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(names(3), ["n4"])
    with pytest.raises(ConfigurationRefusedError, match="not committed yet"):
        cluster.change(names(3), ["n4", "n5"])
    cluster.stabilize()
    assert cluster.change(names(3), ["n4", "n5"]).index == 3
    with pytest.raises(NotLeaderError):
        cluster["n2"].node.propose_configuration(b"n1,n2")
    assert leader.node.is_ready_leader


def test_requests_are_handled_without_consulting_the_own_configuration() -> None:
    """4.1: "it is the caller's configuration that is used in reaching consensus. A server accepts
    AppendEntries requests from a leader that is not part of the server's latest configuration ...
    A server also grants its vote to a candidate that is not part of the server's latest
    configuration".
    """
    sent: list[Envelope] = []
    peer = Peer(config("n1", names(3)), MemoryLog(restored(1)), sent.append)
    step(peer, PreVoteRequest(Index(1), Term(1)), 2, "n9")
    step(peer, VoteRequest(Index(1), Term(1)), 2, "n9")
    step(peer, AppendRequest(Index(1), Term(1), (), Index(1), 1), 3, "n8")
    peer.settle()
    assert [each.payload for each in sent] == [
        PreVoteResponse(True),
        VoteResponse(True),
        accepted(1),
    ]
    assert (peer.node.leader_id, peer.node.commit_index) == ("n8", 1)


def test_answers_of_servers_that_are_no_members_count_for_nothing() -> None:
    """Nor do they teach a term: a server that was removed does not disturb (4.2.3)."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.propose([b"x"])
    leader.settle()
    for answer in (accepted(2), VoteResponse(True), PreVoteResponse(False)):
        step(leader, answer, 1, "n9")
        step(leader, answer, 7, "n9")
    assert (leader.node.commit_index, leader.node.term) == (1, 1)
    assert leader.node.role is RoleName.LEADER
    step(leader, VoteResponse(False), 7, "n2")
    assert leader.node.term == 7


# --- 4.2.1 Catching up new servers -------------------------------------------------------------


def test_a_new_server_joins_without_a_vote_and_gets_the_log() -> None:
    """4.2.1: "the leader replicates log entries to it, but it is not yet counted towards majorities
    for voting or commitment purposes".
    """
    cluster = grown()
    leader, joiner = cluster["n1"], cluster["n4"]
    assert joiner.node.role is RoleName.LEARNER
    assert joiner.node.commit_index == leader.node.commit_index == 2
    cluster.cut("n1", "n2")
    cluster.cut("n1", "n3")
    leader.node.propose([b"x"])
    leader.node.request_read(ReadId("u", 1, 1))
    cluster.stabilize()
    assert leader.node.match_index(N4) == 3
    assert leader.node.commit_index == 2
    assert leader.grants == []
    cluster.tick(20, only=["n1"])
    assert leader.node.role is RoleName.FOLLOWER, "a learner keeps no leader in office either"


def test_a_learner_becomes_a_voter_and_may_lead() -> None:
    cluster = grown()
    cluster.change(names(4))
    cluster.stabilize()
    joiner = cluster["n4"]
    assert [change.role for change in joiner.role_changes][-1] is RoleName.FOLLOWER
    cluster["n1"].node.transfer(N4)
    cluster.stabilize()
    assert joiner.node.is_ready_leader
    assert joiner.node.members.voters == names(4)


def test_a_voter_becomes_a_learner_and_campaigns_no_more() -> None:
    cluster = Cluster(3)
    cluster.elect("n1")
    cluster.change(["n1", "n2"], ["n3"])
    cluster.stabilize()
    demoted = cluster["n3"]
    cluster.isolate("n3")
    cluster.tick(1)
    for _ in range(100):
        demoted.node.tick()
        demoted.settle()
    assert (demoted.node.role, demoted.node.commit_index) == (RoleName.LEARNER, 2)
    assert demoted.node.term == 1


def test_a_new_server_gets_a_fresh_view_at_the_leader() -> None:
    """4.2.1 with faults B26: a name that comes back may have lost everything."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n1", "n2"])
    cluster.stabilize()
    assert leader.node.progress(N3) is None
    step(leader, accepted(1), 1, "n3")
    assert leader.node.match_index(N3) == 0
    cluster.peers[N3].crash()
    cluster.join("n3")
    cluster.change(["n1", "n2"], ["n3"])
    known = leader.node.progress(N3)
    assert known is not None
    assert (known.state, known.match_index, known.heard_ticks_ago) == ("probe", 0, 0)
    cluster.stabilize()
    assert leader.node.match_index(N3) == 3


# --- 4.2.2 Removing the current leader ---------------------------------------------------------


def test_a_leader_that_is_removed_manages_a_cluster_without_itself() -> None:
    """4.2.2: "there will be a period of time (while it is committing Cnew) when a leader can manage
    a cluster that does not include itself; it replicates log entries but does not count itself in
    majorities".
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n2", "n3"])
    leader.node.request_read(ReadId("u", 1, 1))
    leader.settle()
    assert leader.node.durable_index == 2
    step(leader, accepted(2, 2), 1, "n2")
    leader.settle()
    assert (leader.node.commit_index, leader.grants) == (1, []), "itself and n2 are not two of two"
    assert leader.node.role is RoleName.LEADER
    step(leader, accepted(2, 2), 1, "n3")
    leader.settle()
    assert leader.node.commit_index == 2
    assert [grant.index for grant in leader.grants] == [1]


def test_a_removed_leader_steps_down_once_the_configuration_is_committed() -> None:
    """4.2.2: "a leader that is removed from the configuration steps down once the Cnew entry is
    committed"; by a transfer (3.10), so that nobody waits for a timeout.
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n2", "n3"])
    cluster.stabilize()
    assert leader.node.role is RoleName.LEARNER
    assert cluster.leader() in (cluster["n2"], cluster["n3"])
    for _ in range(200):
        leader.node.tick()
    leader.settle()
    assert leader.node.term == 1, "it never campaigns"


def test_a_removed_leader_does_not_count_itself_for_its_quorum() -> None:
    """6.2 with 4.2.2: check-quorum asks for a majority of the others."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n2", "n3"])
    leader.settle()
    for number in range(2, 9):
        for _ in range(3):
            leader.node.tick()
        leader.settle()
        if leader.node.role is RoleName.LEADER:
            step(leader, accepted(1, number), 1, "n2")
    assert leader.node.role is not RoleName.LEADER, "n2 alone is no majority of n2 and n3"
    assert leader.node.commit_index == 1


def test_a_removed_leader_that_nobody_relieves_steps_down_after_an_election_timeout() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n2", "n3"])
    leader.node.propose([b"x"])
    leader.settle()
    for name in ("n2", "n3"):
        step(leader, accepted(2), 1, name)
    leader.settle()
    assert leader.node.transfer_to == "n2"
    for tick in range(leader.config.election_ticks_max):
        assert leader.node.role is RoleName.LEADER, tick
        leader.node.tick()
        leader.settle()
        if leader.node.role is RoleName.LEADER:
            for name in ("n2", "n3"):
                step(leader, accepted(2), 1, name)
    assert leader.node.role is RoleName.LEARNER
    assert leader.node.commit_index == 2


def test_a_removed_leader_turns_to_the_next_one_when_its_successor_falls_away() -> None:
    cluster = Cluster(4)
    leader = cluster.elect("n1")
    cluster.change(["n2", "n3", "n4"])
    leader.node.propose([b"x"])
    leader.settle()
    for name in ("n2", "n3"):
        step(leader, accepted(2), 1, name)
    leader.settle()
    assert leader.node.transfer_to == "n2"
    for _ in range(leader.config.election_ticks_min):
        leader.node.tick()
    for name in ("n3", "n4"):
        step(leader, accepted(2), 1, name)
    leader.node.report_unreachable(N2)
    leader.settle()
    assert leader.node.transfer_to == "n3"
    step(leader, accepted(3), 1, "n3")
    leader.settle()
    assert leader.node.role is RoleName.LEARNER


def test_a_server_outside_its_latest_configuration_still_starts_elections() -> None:
    """4.2.2: "a server that is not part of its own latest configuration should still start new
    elections, as it might still be needed until the Cnew entry is committed ... It does not count
    its own vote in elections unless it is part of its latest configuration".
    """
    cluster = Cluster(2)
    leader = cluster.elect("n1")
    cluster.change(["n2"])
    leader.settle()
    leader.crash()
    leader.start()
    cluster.wire.clear()
    cluster.campaign("n1")
    leader.settle()
    roles = [change.role for change in leader.role_changes]
    assert roles[-2:] == [RoleName.LEADER, RoleName.PRE_CANDIDATE], "its own vote does not count"
    for _ in range(10):
        cluster["n2"].node.tick()
    cluster.stabilize()
    assert cluster["n2"].node.is_ready_leader
    assert cluster["n2"].node.members == members(["n2"])
    assert leader.node.role is RoleName.LEARNER


def test_a_removed_server_that_knows_it_is_settled_does_not_campaign() -> None:
    """Its configuration is committed: nobody can need it any more."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n2", "n3"])
    cluster.stabilize()
    leader.node.campaign()
    leader.node.peer_lost(N2, leader.node.term)
    for _ in range(100):
        leader.node.tick()
    assert leader.take().messages == ()


# --- 4.2.3 Disruptive servers ------------------------------------------------------------------


def test_a_removed_server_cannot_disrupt_the_cluster() -> None:
    """4.2.3: "if a server receives a RequestVote request within the minimum election timeout of
    hearing from a current leader, it does not update its term or grant its vote".
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    cluster.change(["n1", "n2"])
    cluster.stabilize()
    cluster.tick(50)
    cluster.heal()
    for round_number in range(60):
        cluster.tick()
        for name in ("n1", "n2"):
            step(cluster[name], VoteRequest(Index(99), Term(9)), 9 + round_number, "n3")
        cluster.stabilize()
    assert cluster.leader() is leader
    assert leader.node.term == 1


# --- an even number of voters ------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "needed"), [(2, 2), (4, 3), (6, 4)])
def test_an_even_number_of_voters_needs_more_than_half(peers: int, needed: int) -> None:
    cluster = Cluster(peers)
    leader = cluster.elect("n1")
    leader.node.propose([b"x"])
    leader.settle()
    for others, name in enumerate(names(peers)[1:], 1):
        assert leader.node.commit_index == (2 if others >= needed else 1)
        step(leader, accepted(2), 1, name)
    assert leader.node.commit_index == 2


def test_two_voters_become_one_and_go_on() -> None:
    """etcd 10563: the removal of one of two is committed by the one that stays."""
    for gone, stays in (("n2", "n1"), ("n1", "n2")):
        cluster = Cluster(2)
        cluster.elect("n1")
        cluster.change([stays])
        cluster.stabilize()
        cluster[gone].crash()
        assert cluster[stays].node.is_ready_leader
        cluster[stays].node.propose([b"x"])
        cluster.stabilize()
        assert cluster[stays].node.commit_index == cluster[stays].node.last_index


def test_a_smaller_quorum_commits_what_waited() -> None:
    """etcd `TestCommitAfterRemoveNode`: with n3 gone, what n2 holds is on a majority."""
    cluster = Cluster(2)
    leader = cluster.elect("n1")
    cluster["n2"].crash()
    leader.node.propose([b"x"])
    leader.node.request_read(ReadId("u", 1, 1))
    cluster.stabilize()
    assert leader.node.commit_index == 1
    cluster.change(["n1"])
    assert leader.node.commit_index == 2, "what is on its disk; its own removal entry is not yet"
    cluster.stabilize()
    assert leader.node.commit_index == 3
    assert len(leader.grants) == 1
