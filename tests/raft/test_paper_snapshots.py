"""Section 7 of the Raft paper (log compaction), one test a sentence. Figure 13 is its message."""

from __future__ import annotations

import pytest

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    SnapshotRequest,
)
from gaia_grpc.raft.types import (
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
    entry,
    log_of,
    members,
    names,
    restored,
)

N1, N2, N3 = names(3)
FOUR = configuration(["n1", "n2", "n3"], ["n4"])


def alone(stored: Restored) -> tuple[Peer, list[Envelope]]:
    sent: list[Envelope] = []
    return Peer(config("n1", names(3)), MemoryLog(stored), sent.append), sent


def snapshot(index: int, term: int, data: bytes = b"") -> SnapshotRequest:
    return SnapshotRequest(SnapshotMeta(Index(index), Term(term), data))


def step(peer: Peer, payload: SnapshotRequest | AppendRequest, term: int) -> None:
    peer.node.step(Envelope(N2, peer.node_id, Term(term), payload))


def accepted(match_index: int, number: int = 0) -> AppendResponse:
    return AppendResponse(True, Index(match_index), Index(0), Index(0), Term(0), number)


def snapshots_in(wire: list[Envelope], to_node: str) -> list[Envelope]:
    return [
        each
        for each in wire
        if isinstance(each.payload, SnapshotRequest) and each.to_node == to_node
    ]


def test_each_server_takes_snapshots_independently() -> None:
    """7: "each server takes snapshots independently, covering just the committed entries in its
    log", and "followers can take snapshots without the knowledge of the leader".
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.propose([b"a", b"b"])
    cluster.stabilize()
    assert cluster["n2"].compact() == EntryId(Term(1), Index(3))
    assert [peer.node.first_index for peer in cluster.peers.values()] == [1, 4, 1]
    leader.node.propose([b"c"])
    cluster.stabilize()
    assert cluster["n2"].node.commit_index == 4
    assert cluster["n2"].installs == []


@pytest.mark.parametrize(("index", "message"), [(3, "durable is 2"), (4, "durable is 2")])
def test_a_snapshot_covers_only_committed_entries(index: int, message: str) -> None:
    """7: "covering just the committed entries in its log"; here also those on disk, since an entry
    may be committed by the disks of others.
    """
    peer, _ = alone(restored(1, 1, 1, commit=2))
    peer.take()
    meta = SnapshotMeta(Index(index), Term(1), b"")
    with pytest.raises(InvariantError, match=message):
        peer.node.compact(meta, 0)


def test_a_committed_entry_that_is_not_on_disk_is_in_no_snapshot() -> None:
    peer, _ = alone(restored(1))
    request = AppendRequest(Index(1), Term(1), (entry(1, 2),), Index(2), 1)
    step(peer, request, 1)
    peer.take()
    assert peer.state_index == 2
    with pytest.raises(InvariantError, match="a snapshot at 2, durable is 1"):
        peer.node.compact(SnapshotMeta(Index(2), Term(1), b""), 0)
    peer.persist()
    assert peer.node.compact(SnapshotMeta(Index(2), Term(1), b""), 0).index == 2


def test_last_included_index_and_term_serve_the_consistency_check() -> None:
    """7: "the last included index ... the last included term ... are preserved to support the
    AppendEntries consistency check for the first log entry following the snapshot".
    """
    peer, sent = alone(restored(1, 2, 2, commit=3))
    peer.take()
    peer.compact()
    assert peer.node.entries(Index(1), 9) == ()
    step(peer, AppendRequest(Index(3), Term(1), (entry(3, 4),), Index(0), 1), 3)
    step(peer, AppendRequest(Index(3), Term(2), (entry(3, 4),), Index(0), 1), 3)
    peer.settle()
    answers = [each.payload for each in sent]
    assert [a.success for a in answers if isinstance(a, AppendResponse)] == [False, True]
    assert (peer.node.last_index, peer.node.entry_term(Index(3))) == (4, 2)


def test_the_snapshot_holds_the_configuration_as_of_its_last_entry() -> None:
    """7: "the snapshot also includes the latest configuration in the log as of last included
    index", not a later one.
    """
    log = (*log_of(1), entry(1, 2, FOUR, EntryKind.CONFIGURATION), entry(1, 3), entry(1, 4))
    late = configuration(["n1", "n2", "n3"])
    log = (*log, entry(1, 5, late, EntryKind.CONFIGURATION))
    peer, _ = alone(Restored(HardState(Term(1), commit_index=Index(5)), log))
    peer.take()
    assert peer.node.configuration_at(Index(4)) == FOUR
    with pytest.raises(InvariantError, match="does not hold the configuration 2"):
        peer.node.compact(SnapshotMeta(Index(4), Term(1), late), 0)
    peer.compact(index=4)
    peer.crash()
    peer.start()
    assert peer.node.configuration == late, "its entry is behind the snapshot"
    assert peer.node.snapshot == SnapshotMeta(Index(4), Term(1), FOUR)
    peer.take()
    peer.compact()
    peer.crash()
    peer.start()
    assert peer.node.members == members(["n1", "n2", "n3"])


def test_a_server_may_delete_the_entries_up_to_the_last_included_one() -> None:
    """7: "Once a server completes writing a snapshot, it may delete all log entries up through the
    last included index, as well as any prior snapshot"; it may also keep some.
    """
    peer, _ = alone(restored(1, 1, 1, 2, 2, commit=5))
    peer.take()
    assert peer.compact(keep=2, index=4) == EntryId(Term(1), Index(2))
    assert peer.node.first_index == 3
    assert peer.compact(keep=99) == EntryId(Term(1), Index(2)), "what is gone stays gone"
    peer.crash()
    peer.start()
    assert (peer.node.first_index, peer.node.commit_index) == (3, 5)
    peer.take()
    assert peer.applied == [], "the state begins at the snapshot, behind the kept entries"
    assert peer.node.has_effects is False


def test_a_leader_sends_a_snapshot_where_it_has_discarded_the_next_entry() -> None:
    """7: "the leader must occasionally send snapshots to followers that lag behind. This happens
    when the leader has already discarded the next log entry that it needs to send".
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"a", b"b", b"c"])
    cluster.stabilize()
    leader.compact(keep=2)
    cluster.heal()
    cluster.tick(3)
    assert [each.index for each in cluster["n3"].installs] == [4]
    assert leader.node.first_index == 3


def test_kept_entries_spare_a_slow_follower_the_snapshot() -> None:
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"a", b"b", b"c"])
    cluster.stabilize()
    leader.compact(keep=3)
    cluster.heal()
    cluster.tick(3)
    assert cluster["n3"].installs == []
    assert cluster["n3"].node.commit_index == 4


def test_the_follower_discards_its_entire_log() -> None:
    """7: "Usually the snapshot will contain new information not already in the recipient's log. In
    this case, the follower discards its entire log; it is all superseded by the snapshot".
    """
    for own in ((1,), (1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 2)):
        peer, sent = alone(restored(*own))
        step(peer, snapshot(5, 3, FOUR), 3)
        peer.take()
        assert sent == [], "the answer waits for the write"
        write = peer.persist()
        assert write.snapshot == SnapshotMeta(Index(5), Term(3), FOUR)
        assert write.entries == ()
        assert [each.payload for each in sent] == [accepted(5)]
        assert (peer.node.first_index, peer.node.last_index, peer.node.commit_index) == (6, 5, 5)
        assert (peer.node.last_term, peer.node.durable_index) == (3, 5)
        assert peer.node.members.learners == ("n4",), "Figure 13, step 8: and its configuration"
        peer.crash()
        peer.start()
        assert (peer.node.last_index, peer.node.configuration) == (5, FOUR)


def test_a_snapshot_of_a_prefix_retains_what_follows() -> None:
    """7: "If instead the follower receives a snapshot that describes a prefix of its log (due to
    retransmission or by mistake) ... entries following the snapshot are still valid".
    """
    peer, sent = alone(restored(1, 1, 2, 2, 2))
    step(peer, snapshot(4, 2), 2)
    effects = peer.take()
    assert (effects.install, effects.write) == (None, None)
    assert [each.index for each in effects.committed] == [1, 2, 3, 4]
    assert (peer.node.last_index, peer.node.commit_index) == (5, 4)
    assert [each.payload for each in sent] == [accepted(4)]


def test_a_snapshot_of_what_is_committed_changes_nothing() -> None:
    """etcd `TestRestoreIgnoreSnapshot`: the answer names what is committed here, which is more."""
    peer, sent = alone(restored(1, 1, 1, commit=3))
    peer.take()
    step(peer, snapshot(2, 1), 1)
    peer.settle()
    assert [each.payload for each in sent] == [accepted(3)]
    assert (peer.node.first_index, peer.installs) == (1, [])


def test_figure_13_a_snapshot_of_an_older_term_is_refused() -> None:
    """Figure 13, step 1: "Reply immediately if term < currentTerm"."""
    peer, sent = alone(restored(1, term=4))
    step(peer, snapshot(9, 3), 3)
    peer.settle()
    (answer,) = sent
    assert (answer.term, answer.payload) == (
        4,
        AppendResponse(False, Index(0), Index(9), Index(0), Term(0), 0),
    )
    assert peer.node.last_index == 1


def test_a_snapshot_of_a_newer_term_makes_its_sender_the_leader() -> None:
    """5.1 holds for InstallSnapshot too, and it restarts the election timer like an append."""
    peer, _ = alone(restored(1, term=1))
    step(peer, snapshot(9, 3), 3)
    assert (peer.node.term, peer.node.leader_id) == (3, "n2")
    for _ in range(peer.config.election_ticks_max - 1):
        peer.node.tick()
    step(peer, snapshot(9, 3), 3)
    peer.node.tick()
    assert peer.node.leader_id == "n2"


def test_two_senders_of_snapshots_in_one_term_stop_the_peer() -> None:
    peer, _ = alone(restored(1))
    step(peer, snapshot(9, 3), 3)
    with pytest.raises(InvariantError, match="two leaders in term 3"):
        peer.node.step(Envelope(N3, N1, Term(3), snapshot(9, 3)))


def test_entries_follow_a_snapshot_in_the_same_turn() -> None:
    """One write holds the snapshot and what follows it; applying begins behind it."""
    peer, sent = alone(restored(1))
    step(peer, snapshot(5, 3), 3)
    step(peer, AppendRequest(Index(5), Term(3), (entry(3, 6),), Index(6), 1), 3)
    effects = peer.take()
    assert effects.write is not None
    assert effects.write.snapshot == effects.install
    assert [each.index for each in effects.write.entries] == [6]
    assert [each.index for each in effects.committed] == [6]
    assert effects.configuration == b""
    peer.persist()
    assert [each.payload for each in sent] == [accepted(5), accepted(6, 1)]


def test_a_new_leader_brings_a_follower_up_that_got_half_of_it() -> None:
    """The leader that sent the snapshot is gone; its successor has one of its own."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"a", b"b"])
    cluster.stabilize()
    for name in ("n1", "n2"):
        cluster[name].compact()
    cluster.heal()
    cluster.tick(2)
    leader.crash()
    for _ in range(10):
        cluster["n3"].node.tick()
    cluster.elect("n2")
    cluster.tick(3)
    assert cluster["n3"].node.commit_index == 4
    assert [each.index for each in cluster["n3"].installs] == [3]


def test_one_snapshot_is_asked_for_however_much_is_refused() -> None:
    """etcd `TestSendAppendForProgressSnapshot`: nothing but heartbeats goes out beside it."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"a", b"b"])
    cluster.stabilize()
    leader.compact()
    cluster.heal()
    leader.node.report_unreachable(N3)
    for _ in range(2):
        for _ in range(3):
            leader.node.tick()
        leader.settle()
        cluster.deliver(lambda envelope: isinstance(envelope.payload, AppendRequest))
        cluster["n3"].settle()
        cluster.deliver(lambda envelope: isinstance(envelope.payload, AppendResponse))
        leader.node.propose([b"c"])
        leader.settle()
    assert len(snapshots_in(cluster.wire, "n3")) == 1
    appends = [
        each.payload.entries
        for each in cluster.wire
        if isinstance(each.payload, AppendRequest) and each.to_node == NodeId("n3")
    ]
    assert appends in ([], [()])
