"""B25, membership change unsafe: raft-dev 2015 (two majorities that do not overlap), RethinkDB
2.2.3, NATS 7545; and cases of etcd's tests for transfers and changes together."""

from __future__ import annotations

import pytest

from gaia_grpc.errors import (
    ConfigurationRefusedError,
    InvalidArgumentError,
    InvariantError,
    NotLeaderError,
)
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.messages import AppendRequest, AppendResponse, Envelope, TimeoutNow
from gaia_grpc.raft.types import EntryKind, Index, NodeId, Term
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import Cluster, Peer, config, configuration, entry, names, restored

N1, N2, N3, N4, N5 = names(5)


def accepted(match_index: int, number: int = 1) -> AppendResponse:
    return AppendResponse(True, Index(match_index), Index(0), Index(0), Term(0), number)


def step(peer: Peer, payload: AppendResponse | TimeoutNow, term: int, from_node: str) -> None:
    peer.node.step(Envelope(NodeId(from_node), peer.node_id, Term(term), payload))


def test_b25_the_bug_of_2015() -> None:
    """Two leaders, each with a change of its own that the other has not seen.

    n1 leads four and adds n5, on its own log only. n2 is elected by n2, n3, n4 and removes n1: by
    n2 and n3, a majority of three, that would be committed. n1 comes back, and of n1, n4, n5 gets
    a majority of its five, which share nobody with those two. The rule: n2 must commit an entry
    of its term first, by three of four, and one of those three is n4: then n1 loses.
    """
    cluster = Cluster(4)
    cluster.join("n5")
    old = cluster.elect("n1")
    cluster.isolate("n1")
    cluster.change(["n1", "n2", "n3", "n4", "n5"])
    old.settle()
    cluster.wire.clear()
    for name in ("n3", "n4"):
        for _ in range(10):
            cluster[name].node.tick()
    cluster.campaign("n2")
    new = cluster["n2"]
    while new.node.role is not RoleName.LEADER:
        for peer in cluster.peers.values():
            peer.settle()
        cluster.deliver()
    removal = configuration(["n2", "n3", "n4"])
    with pytest.raises(ConfigurationRefusedError, match="an entry of its term"):
        new.node.propose_configuration(removal)
    cluster.cut("n2", "n4")
    cluster.stabilize()
    assert new.node.commit_index == 1, "two of four are no majority"
    with pytest.raises(ConfigurationRefusedError, match="an entry of its term"):
        new.node.propose_configuration(removal)
    cluster.cuts.clear()
    cluster.isolate("n1")
    cluster.tick(3, only=["n2"])
    new.node.propose_configuration(removal)
    cluster.stabilize()
    assert new.node.commit_index == 3
    cluster.cuts.clear()
    cluster.cut("n1", "n2")
    cluster.cut("n1", "n3")
    cluster.cut("n4", "n2")
    cluster.cut("n4", "n3")
    for _ in range(5):
        cluster.tick(30, only=["n1", "n4", "n5"])
    assert old.node.role is not RoleName.LEADER
    cluster.heal()
    cluster.tick(30)
    assert [entry.term for entry in cluster["n4"].applied[:3]] == [1, 2, 2]


def test_b25_a_leader_that_comes_back_to_a_log_with_a_change_ends_it_first() -> None:
    """The configuration of an older term is in force; it is committed below the leader's no-op."""
    cluster = Cluster(3)
    old = cluster.elect("n1")
    cluster.isolate("n1")
    cluster.change(["n1", "n2"])
    old.settle()
    old.crash()
    old.start()
    cluster.wire.clear()
    cluster.heal()
    cluster.campaign("n1")
    for _ in range(10):
        cluster["n2"].node.tick()
    cluster.stabilize()
    cluster.tick(20)
    leader = cluster.leader()
    assert leader is old
    assert old.node.commit_index == 3
    assert old.node.members.voters == ("n1", "n2")


@pytest.mark.parametrize("removed", ["n2", "n3"])
def test_b25_partition_kill_and_remove_in_quick_succession(removed: str) -> None:
    """RethinkDB 2.2.3: both sides of a partition must not go on with a view of their own."""
    cluster = Cluster(5)
    leader = cluster.elect("n1")
    for one in ("n1", "n2"):
        for other in ("n3", "n4", "n5"):
            cluster.cut(one, other)
    cluster.change([name for name in names(5) if name != removed])
    leader.node.propose([b"lost"])
    cluster.stabilize()
    assert leader.node.commit_index == 1
    with pytest.raises(ConfigurationRefusedError):
        cluster.change(["n1", "n2"])
    cluster["n5"].crash()
    cluster.tick(40, only=["n1", "n2"])
    for name in ("n3", "n4"):
        cluster.campaign(name)
    cluster.stabilize()
    assert all(not peer.node.is_ready_leader for peer in cluster.peers.values() if peer.is_up)
    cluster["n5"].start()
    cluster["n3"].node.campaign()
    cluster.stabilize()
    cluster["n3"].node.propose([b"kept"])
    cluster.stabilize()
    cluster.heal()
    cluster.tick(60)
    assert {peer.node.members.voters for peer in cluster.peers.values()} == {names(5)}
    assert [e.data for e in cluster["n1"].applied if e.kind is EntryKind.COMMAND] == [b"kept"]


def test_b25_a_change_is_refused_while_leadership_is_handed_over() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.propose([b"x"])
    leader.node.transfer(N2)
    with pytest.raises(NotLeaderError, match="handing over to n2"):
        cluster.change(["n1", "n2"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"n2,n1,n3", "sorted"),
        (b"n1,n2,n2", "unique"),
        (b"n1,n2,n3+n3", "not both"),
        (b"+n1,n2,n3", "at least one voter"),
    ],
)
def test_b25_a_configuration_that_makes_no_sense_is_refused(data: bytes, message: str) -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    with pytest.raises(ConfigurationRefusedError, match=message):
        leader.node.propose_configuration(data)
    assert leader.node.members.voters == names(3)


def test_b25_a_log_with_such_a_configuration_stops_the_peer() -> None:
    peer = Peer(config("n1", names(3)), MemoryLog(restored(1)), lambda envelope: None)
    bad = entry(1, 2, b"+n1", EntryKind.CONFIGURATION)
    request = AppendRequest(Index(1), Term(1), (bad,), Index(0), 1)
    with pytest.raises(InvariantError, match="configuration 2: a cluster has at least one voter"):
        peer.node.step(Envelope(N2, N1, Term(1), request))


def test_b25_the_same_members_again_are_a_change_too() -> None:
    """Only the driver knows what else is in it, such as addresses."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(names(3))
    cluster.stabilize()
    assert leader.node.configuration == b"n1,n2,n3"
    assert (leader.node.configuration_index, leader.node.commit_index) == (2, 2)


def test_b25_a_removed_follower_is_sent_nothing_more() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n1", "n2"])
    cluster.stabilize()
    cluster.tick(3, only=["n1"])
    leader.node.propose([b"x"])
    leader.settle()
    assert {each.to_node for each in cluster.wire} == {N2}
    step(leader, accepted(9), 1, "n3")
    leader.node.report_unreachable(N3)
    leader.node.report_snapshot(N3, True)
    assert leader.node.match_index(N3) == 0


def test_b25_no_leadership_for_one_without_a_vote() -> None:
    """etcd `TestLeaderTransferRemoveNode`, `TestLeaderTransferDemoteNode`."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.change(["n1", "n2"], ["n3"])
    cluster.stabilize()
    with pytest.raises(InvalidArgumentError, match="n3 is no voter"):
        leader.node.transfer(N3)
    step(cluster["n3"], TimeoutNow(), 1, "n1")
    cluster["n3"].settle()
    assert cluster["n3"].node.role is RoleName.LEARNER


def test_b15_a_leader_steps_down_at_once_and_the_furthest_voter_takes_over() -> None:
    cluster = Cluster(4)
    leader = cluster.elect("n1")
    cluster.change(["n1", "n2", "n3"], ["n4"])
    cluster.stabilize()
    leader.node.propose([b"x"])
    leader.settle()
    cluster.deliver(lambda envelope: envelope.to_node in ("n3", "n4"))
    for name in ("n3", "n4"):
        cluster[name].settle()
    cluster.deliver(lambda envelope: envelope.to_node == N1)
    leader.node.step_down()
    leader.take()
    told = [each.to_node for each in cluster.wire if isinstance(each.payload, TimeoutNow)]
    assert told == [N3]
    assert leader.node.role is RoleName.FOLLOWER
    with pytest.raises(NotLeaderError):
        leader.node.propose([b"y"])
    leader.node.step_down()
    cluster.stabilize()
    assert cluster["n3"].node.is_ready_leader


def test_b15_the_only_voter_steps_down_too() -> None:
    cluster = Cluster(1)
    leader = cluster.elect("n1")
    leader.node.step_down()
    effects = leader.take()
    assert effects.messages == ()
    assert effects.role_change is not None
    assert leader.node.role is RoleName.FOLLOWER
    cluster.tick(20)
    assert leader.node.is_ready_leader


def test_a_follower_that_falls_away_ends_the_transfer_to_it() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"x"])
    leader.node.transfer(N3)
    leader.node.report_unreachable(N2)
    assert leader.node.transfer_to == N3
    leader.node.report_unreachable(N3)
    assert leader.node.transfer_to == ""
    leader.node.propose([b"y"])


def test_a_follower_that_needs_a_snapshot_can_take_over_after_it() -> None:
    """etcd `TestLeaderTransferAfterSnapshot`."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"x"])
    cluster.stabilize()
    leader.compact()
    cluster.heal()
    leader.node.transfer(N3)
    cluster.tick(3)
    assert len(cluster["n3"].installs) == 1
    assert cluster["n3"].node.is_ready_leader
