"""B20, snapshot against log: redisraft 43, 45 and 52, etcd 18055; B30 and B31 beside a snapshot."""

from __future__ import annotations

import pytest

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.effects import ReadId, RoleName
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    SnapshotRequest,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import (
    EntryId,
    HardState,
    Index,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
)
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import Cluster, Peer, config, entry, log_of, names, restored

N1, N2, N3 = names(3)


def alone(stored: Restored | None = None) -> tuple[Peer, list[Envelope]]:
    sent: list[Envelope] = []
    return Peer(config("n1", names(3)), MemoryLog(stored), sent.append), sent


def step(peer: Peer, payload: AppendRequest | SnapshotRequest | VoteRequest, term: int) -> None:
    peer.node.step(Envelope(N2, peer.node_id, Term(term), payload))


def meta(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(Index(index), Term(term), b"")


def append(index: int, term: int, *entries: tuple[int, int], commit: int = 0) -> AppendRequest:
    return AppendRequest(
        Index(index), Term(term), tuple(entry(*each) for each in entries), Index(commit), 1
    )


def matches(sent: list[Envelope]) -> list[int]:
    return [
        each.payload.match_index
        for each in sent
        if isinstance(each.payload, AppendResponse) and each.payload.success
    ]


def racing() -> tuple[Peer, list[Envelope]]:
    """Writes under way before, in and after an install, none of them done."""
    peer, sent = alone(restored(1, 1, commit=1))
    peer.take()
    step(peer, append(2, 1, (1, 3), (1, 4)), 1)
    peer.take()
    step(peer, SnapshotRequest(meta(9, 2)), 2)
    peer.take()
    step(peer, append(9, 2, (2, 10)), 2)
    step(peer, append(2, 1, (1, 3), (1, 4)), 1)
    peer.take()
    return peer, sent


@pytest.mark.parametrize(
    ("survived", "terms", "base"),
    [(0, [1, 1], 0), (1, [1, 1, 1, 1], 0), (2, [], 9), (3, [2], 9)],
)
def test_b20_install_racing_append_leaves_one_whole_log(
    survived: int, terms: list[int], base: int
) -> None:
    """A crash after any number of the writes: never a mixture, never a gap."""
    peer, sent = racing()
    promised = matches(sent)
    peer.crash(lambda low, high: min(high, survived))
    peer.start()
    assert [each.term for each in peer.node.entries(peer.node.first_index, 99)] == terms
    assert peer.node.first_index == base + 1
    assert promised == [], "nothing was answered before its write"
    assert peer.node.commit_index >= base


def test_b20_answers_follow_their_own_write() -> None:
    peer, sent = racing()
    seen = []
    while peer.pending:
        peer.persist()
        seen.append(matches(sent))
        sent.clear()
    assert seen == [[4], [9], [10]]


def test_b20_b31_a_write_from_before_the_install_stands_for_nothing_behind_it() -> None:
    """Its completion must not make the snapshot, or what follows it, count as durable."""
    peer, _ = racing()
    assert peer.node.durable_index == 1, "what was committed is the same in the snapshot"
    peer.persist()
    assert peer.node.durable_index == 1
    peer.persist()
    assert peer.node.durable_index == 9
    peer.persist()
    assert peer.node.durable_index == 10


def test_b20_an_older_snapshot_after_a_newer_one_changes_nothing() -> None:
    peer, sent = alone(restored(1))
    step(peer, SnapshotRequest(meta(9, 2)), 2)
    peer.settle()
    step(peer, SnapshotRequest(meta(5, 2)), 2)
    peer.settle()
    assert peer.installs == [meta(9, 2)]
    assert matches(sent) == [9, 9]
    assert peer.node.last_index == 9


def test_b20_an_older_one_in_the_turn_of_the_newer_one_changes_nothing_either() -> None:
    peer, sent = alone(restored(1))
    step(peer, SnapshotRequest(meta(9, 2)), 2)
    step(peer, SnapshotRequest(meta(5, 2)), 2)
    peer.settle()
    assert peer.installs == [meta(9, 2)]
    assert matches(sent) == [9, 9]


def test_b20_a_second_snapshot_while_one_is_installed_comes_after_it() -> None:
    peer, sent = alone(restored(1))
    step(peer, SnapshotRequest(meta(5, 2)), 2)
    peer.take()
    step(peer, SnapshotRequest(meta(9, 2)), 2)
    peer.take()
    assert [write.snapshot for write, _ in peer.pending] == [meta(5, 2), meta(9, 2)]
    assert (peer.node.durable_index, peer.node.is_installing) == (0, True)
    peer.persist()
    assert (matches(sent), peer.node.durable_index) == ([5], 5)
    peer.persist()
    assert (matches(sent), peer.node.durable_index) == ([5, 9], 9)
    assert not peer.node.is_installing


def test_b20_two_snapshots_in_one_turn_are_one_install() -> None:
    peer, _ = alone(restored(1))
    step(peer, SnapshotRequest(meta(5, 2)), 2)
    step(peer, SnapshotRequest(meta(9, 2)), 2)
    peer.settle()
    assert peer.installs == [meta(9, 2)]


def test_b20_what_was_committed_but_not_handed_out_is_not_applied_behind_an_install() -> None:
    peer, _ = alone(restored(1, 1, 1))
    step(peer, append(3, 1, commit=3), 1)
    step(peer, SnapshotRequest(meta(9, 1)), 1)
    effects = peer.take()
    assert effects.committed == ()
    assert effects.install == meta(9, 1)


def test_b20_a_late_append_of_the_replaced_part_is_skipped() -> None:
    """It comes from before the snapshot; its entries are committed, hence the same."""
    peer, sent = alone(restored(1))
    step(peer, SnapshotRequest(meta(5, 2)), 2)
    step(peer, append(1, 1, (1, 2), (2, 3)), 2)
    step(peer, append(3, 2, (2, 4), (2, 5), (2, 6)), 2)
    peer.settle()
    assert (peer.node.first_index, peer.node.last_index) == (6, 6)
    assert matches(sent) == [5, 3, 6]


def test_b20_an_own_snapshot_that_an_install_overtook_is_of_no_use() -> None:
    peer, _ = alone(restored(1, 1, commit=2))
    peer.take()
    step(peer, SnapshotRequest(meta(9, 2)), 2)
    peer.settle()
    assert peer.node.compact(meta(2, 1), 0) == EntryId(Term(2), Index(9))
    assert peer.node.snapshot == meta(9, 2)


def test_b20_a_snapshot_that_does_not_fit_the_log_is_refused() -> None:
    peer, _ = alone(restored(1, 1, commit=2))
    peer.take()
    with pytest.raises(InvariantError, match="a snapshot at 7/2 is not of this log"):
        peer.node.compact(meta(2, 7), 0)


@pytest.mark.parametrize(
    ("snapshot", "base"),
    [(meta(9, 1), (0, 0)), (None, (1, 1)), (meta(1, 1), (1, 2))],
)
def test_b20_a_stored_snapshot_that_does_not_fit_the_stored_log_is_refused(
    snapshot: SnapshotMeta | None, base: tuple[int, int]
) -> None:
    base_id = EntryId(Term(base[0]), Index(base[1]))
    stored = Restored(HardState(Term(1)), log_of(1, 1, 1)[base[1] :], snapshot, base_id)
    with pytest.raises(InvariantError, match="does not fit the stored log"):
        alone_from(stored)


def alone_from(stored: Restored) -> None:
    disk = MemoryLog()
    disk.load = lambda: stored  # type: ignore[method-assign]  # a disk that no code of ours wrote
    Peer(config("n1", names(3)), disk, lambda envelope: None)


def test_b18_a_restart_hands_out_only_what_the_snapshot_does_not_hold() -> None:
    """The entries before a snapshot that are kept for slow followers are in its state already."""
    state = HardState(Term(1), NodeId(""), Index(8))
    log = log_of(1, 1, 1, 1, 1, 1, 1, 1)
    base = EntryId(Term(1), Index(2))
    peer, _ = alone(Restored(state, log[2:], meta(5, 1), base))
    assert [each.index for each in peer.node.take_effects().committed] == [6, 7, 8]
    step(peer, append(8, 1, (1, 9), commit=9), 1)
    assert [each.index for each in peer.node.take_effects().committed] == [9]


def test_b20_a_vote_during_an_install_is_given_by_the_new_log_and_after_it() -> None:
    peer, sent = alone(restored(1))
    step(peer, SnapshotRequest(meta(5, 2)), 2)
    peer.take()
    for _ in range(peer.config.election_ticks_min):
        peer.node.tick()
    peer.node.step(Envelope(N3, N1, Term(3), VoteRequest(Index(1), Term(1))))
    peer.take()
    peer.node.step(Envelope(N2, N1, Term(4), VoteRequest(Index(5), Term(2))))
    peer.take()
    assert sent == []
    while peer.pending:
        peer.persist()
    votes = [each.payload for each in sent if isinstance(each.payload, VoteResponse)]
    assert votes == [VoteResponse(False), VoteResponse(True)]


def test_b20_a_leader_compacts_under_its_own_window() -> None:
    """Entries that are under way to a follower are compacted: their answers still count."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.propose([b"a", b"b"])
    leader.settle()
    cluster.deliver(lambda envelope: envelope.to_node == "n2")
    cluster["n2"].settle()
    cluster.deliver(lambda envelope: envelope.to_node == "n1")
    leader.settle()
    leader.compact()
    leader.node.propose([b"c"])
    cluster.stabilize()
    assert [peer.node.commit_index for peer in cluster.peers.values()] == [4, 4, 4]
    assert cluster["n3"].installs == []


def test_b20_a_read_round_after_compaction_asks_at_an_entry_that_is_there() -> None:
    """`match_index` of a slow follower may lie before the log: the term there is not known."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"a"])
    cluster.stabilize()
    leader.compact()
    leader.node.propose([b"b"])
    cluster.stabilize()
    cluster.heal()
    leader.node.request_read(ReadId("u", 1, 1))
    leader.settle()
    requests = [
        each.payload
        for each in cluster.wire
        if isinstance(each.payload, AppendRequest) and each.to_node == NodeId("n3")
    ]
    assert all(each.previous_term == 1 for each in requests)
    cluster.stabilize()
    assert [grant.index for grant in leader.grants] == [3]


def test_b30_compaction_again_and_again_does_not_keep_a_follower_out() -> None:
    """Each snapshot that arrives is older than the log by then: another one follows, and at last
    the entries."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"a"])
    cluster.stabilize()
    leader.compact()
    cluster.heal()
    cluster.tick(3)
    for number in range(3):
        held = [each for each in cluster.wire if each.to_node == NodeId("n3")]
        assert held == []
        cluster.isolate("n3")
        leader.node.propose([b"%d" % number])
        cluster.stabilize()
        leader.compact()
        cluster.heal()
        leader.node.report_unreachable(N3)
        cluster.tick(3)
    assert cluster["n3"].node.commit_index == 5
    assert len(cluster["n3"].installs) == 4


def test_b30_a_snapshot_older_than_the_base_leads_to_the_next_one() -> None:
    """The follower installed it, and the leader has compacted further meanwhile."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"a"])
    cluster.stabilize()
    leader.compact()
    cluster.heal()
    for _ in range(3):
        leader.node.tick()
    leader.settle()
    cluster.deliver()
    cluster["n3"].settle()
    cluster["n2"].settle()
    cluster.deliver()
    leader.settle()
    leader.node.propose([b"b"])
    leader.settle()
    cluster.deliver(lambda envelope: envelope.to_node == "n2")
    cluster["n2"].settle()
    cluster.deliver(lambda envelope: envelope.to_node == "n1")
    leader.settle()
    leader.compact()
    assert leader.node.progress(N3) is not None
    cluster.stabilize()
    cluster.tick(3)
    assert [each.index for each in cluster["n3"].installs] == [2, 3]
    assert cluster["n3"].node.commit_index == 3


def test_b13_a_learner_that_was_cut_off_neither_campaigns_nor_stays_behind() -> None:
    cluster = Cluster(3)
    cluster.elect("n1")
    cluster.join("n4")
    cluster.change(["n1", "n2", "n3"], ["n4"])
    cluster.stabilize()
    cluster.isolate("n4")
    cluster.tick(100)
    assert cluster["n4"].node.role is RoleName.LEARNER
    assert cluster["n4"].node.term == 1
    cluster.heal()
    cluster.tick(3)
    assert cluster["n4"].node.leader_id == "n1"
