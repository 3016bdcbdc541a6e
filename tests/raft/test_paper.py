"""The rules of the Raft paper (extended version), one test a sentence, cited by section.

`Cluster` keeps every message until it is delivered and every write until it is persisted.
"""

from __future__ import annotations

import pytest

from gaia_grpc.errors import InvariantError, NotLeaderError
from gaia_grpc.raft.effects import ReadId, RoleName
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    Payload,
    PreVoteRequest,
    PreVoteResponse,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Entry, EntryKind, Index, NodeId, Term
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import Cluster, Peer, config, entry, log_of, names, restored


class Lone(Peer):
    """One peer whose two rivals are played by the test."""

    def __init__(self, *terms: int, term: int = 0, voted_for: str = "", commit: int = 0) -> None:
        self.sent: list[Envelope] = []
        stored = restored(*terms, term=term, voted_for=voted_for, commit=commit)
        super().__init__(config("n1", names(3)), MemoryLog(stored), self.sent.append)

    def hear(self, payload: Payload, term: int, from_node: str = "n2") -> list[Envelope]:
        """Steps a message and returns what came of it, with everything on disk."""
        self.sent.clear()
        self.node.step(Envelope(NodeId(from_node), self.node_id, Term(term), payload))
        self.settle()
        return list(self.sent)

    def time_out(self) -> list[Envelope]:
        self.sent.clear()
        for _ in range(self.config.election_ticks_max):
            self.node.tick()
            if self.node.has_effects:
                break
        self.settle()
        return list(self.sent)

    def stand(self) -> list[Envelope]:
        """Becomes a candidate: the timer runs out and n2 answers the pre-vote."""
        self.time_out()
        return self.hear(PreVoteResponse(True), self.node.term + 1)

    def lead(self) -> list[Envelope]:
        self.stand()
        return self.hear(VoteResponse(True), self.node.term)


def append(
    previous: tuple[int, int] = (0, 0), *entries: Entry, commit: int = 0, round_number: int = 1
) -> AppendRequest:
    """`previous` is (term, index), as in the paper's figures."""
    term, index = previous
    return AppendRequest(Index(index), Term(term), entries, Index(commit), round_number)


def accepted(match_index: int, round_number: int = 1) -> AppendResponse:
    return AppendResponse(True, Index(match_index), Index(0), Index(0), Term(0), round_number)


def vote(last: tuple[int, int] = (0, 0)) -> VoteRequest:
    return VoteRequest(Index(last[1]), Term(last[0]))


def payloads(sent: list[Envelope], kind: type[Payload]) -> list[Envelope]:
    return [envelope for envelope in sent if isinstance(envelope.payload, kind)]


def terms_of(peer: Peer) -> list[int]:
    return [each.term for each in peer.node.entries(Index(1), 100)]


def round_trip(cluster: Cluster, leader: Peer, name: str) -> None:
    """Delivers what is on the way to one peer, and its answers."""
    cluster.deliver(lambda envelope: envelope.to_node == name)
    cluster[name].settle()
    cluster.deliver(lambda envelope: envelope.to_node == leader.node_id)
    leader.settle()


# --- 5.1 Raft basics ---------------------------------------------------------------------------


@pytest.mark.parametrize("role", [RoleName.FOLLOWER, RoleName.CANDIDATE, RoleName.LEADER])
def test_a_larger_term_is_taken_over_and_makes_a_follower(role: RoleName) -> None:
    """5.1: "If one server's current term is smaller than the other's, then it updates its current
    term to the larger value. If a candidate or leader discovers that its term is out of date, it
    immediately reverts to follower state."
    """
    peer = Lone(term=1)
    if role is not RoleName.FOLLOWER:
        peer.stand() if role is RoleName.CANDIDATE else peer.lead()
    assert peer.node.role is role
    peer.hear(append(), term=7, from_node="n3")
    assert (peer.node.role, peer.node.term, peer.node.leader_id) == (RoleName.FOLLOWER, 7, "n3")
    assert peer.disk.load().hard_state.term == 7


@pytest.mark.parametrize("payload", [append(), vote((9, 9)), VoteResponse(True), accepted(1)])
def test_a_request_with_a_stale_term_is_rejected(payload: Payload) -> None:
    """5.1: "If a server receives a request with a stale term number, it rejects the request."""
    peer = Lone(1, 2, term=5)
    answers = peer.hear(payload, term=4)
    assert (peer.node.term, peer.node.role, terms_of(peer)) == (5, RoleName.FOLLOWER, [1, 2])
    for answer in answers:
        assert isinstance(answer.payload, VoteResponse | AppendResponse)
        assert answer.term == 5
        assert not getattr(answer.payload, "granted", False)
        assert not getattr(answer.payload, "success", False)
    assert len(answers) == isinstance(payload, AppendRequest | VoteRequest)


def test_a_peer_starts_as_follower() -> None:
    """5.2: "When servers start up, they begin as followers."""
    assert Lone(1, term=3).node.role is RoleName.FOLLOWER


# --- 5.2 Leader election -------------------------------------------------------------------------


def test_a_follower_stays_one_while_it_hears_from_a_leader() -> None:
    """5.2: "A server remains in follower state as long as it receives valid RPCs from a leader or
    candidate."
    """
    peer = Lone(term=1)
    for _ in range(10):
        for _ in range(peer.config.election_ticks_max - 1):
            peer.node.tick()
        peer.hear(append(), term=1)
        assert peer.node.role is RoleName.FOLLOWER


def test_a_leader_sends_heartbeats_to_all_followers() -> None:
    """5.2: "Leaders send periodic heartbeats (AppendEntries RPCs that carry no log entries) to all
    followers in order to maintain their authority."
    """
    peer = Lone(term=1)
    peer.lead()
    for other in ("n2", "n3"):
        peer.hear(accepted(1), peer.node.term, other)
    peer.sent.clear()
    for _ in range(peer.config.heartbeat_ticks):
        assert not peer.sent
        peer.node.tick()
        peer.settle()
    assert [
        (each.to_node, len(each.payload.entries))
        for each in peer.sent
        if isinstance(each.payload, AppendRequest)
    ] == [("n2", 0), ("n3", 0)]


@pytest.mark.parametrize("role", [RoleName.FOLLOWER, RoleName.CANDIDATE])
def test_an_election_timeout_starts_a_new_election(role: RoleName) -> None:
    """5.2: "If a follower receives no communication over a period of time called the election
    timeout, then it assumes there is no viable leader and begins an election"; "Each candidate
    that does not win or lose will time out and start a new election" - here both ask for pre-votes
    first (thesis 9.6).
    """
    peer = Lone(term=1)
    if role is RoleName.CANDIDATE:
        peer.stand()
    term = peer.node.term
    sent = peer.time_out()
    assert peer.node.role is RoleName.PRE_CANDIDATE
    assert [(each.to_node, each.term) for each in payloads(sent, PreVoteRequest)] == [
        ("n2", term + 1),
        ("n3", term + 1),
    ]
    assert peer.node.term == term, "a pre-vote changes no state"


def test_an_election_increments_the_term_votes_for_itself_and_asks_all() -> None:
    """5.2: "To begin an election, a follower increments its current term and transitions to
    candidate state. It then votes for itself and issues RequestVote RPCs in parallel to each of
    the other servers in the cluster."
    """
    peer = Lone(1, 1, term=2)
    sent = peer.stand()
    assert (peer.node.role, peer.node.term, peer.node.voted_for) == (RoleName.CANDIDATE, 3, "n1")
    assert [(each.to_node, each.term, each.payload) for each in sent] == [
        ("n2", 3, vote((1, 2))),
        ("n3", 3, vote((1, 2))),
    ]


@pytest.mark.parametrize(
    ("size", "grants", "refusals", "role"),
    [
        (1, 0, 0, RoleName.LEADER),
        (3, 0, 0, RoleName.CANDIDATE), (3, 1, 0, RoleName.LEADER), (3, 0, 1, RoleName.CANDIDATE),
        (3, 1, 1, RoleName.LEADER), (3, 0, 2, RoleName.FOLLOWER),
        (5, 1, 0, RoleName.CANDIDATE), (5, 2, 0, RoleName.LEADER), (5, 2, 2, RoleName.LEADER),
        (5, 1, 3, RoleName.FOLLOWER), (5, 1, 2, RoleName.CANDIDATE),
    ],
)  # fmt: skip
def test_a_candidate_wins_with_votes_from_a_majority(
    size: int, grants: int, refusals: int, role: RoleName
) -> None:
    """5.2: "A candidate wins an election if it receives votes from a majority of the servers in
    the full cluster for the same term."
    """
    sent: list[Envelope] = []
    peer = Peer(config("n1", names(size)), MemoryLog(), sent.append)
    while peer.node.role is RoleName.FOLLOWER:
        peer.node.tick()
    others = names(size)[1:]
    for other in others[: size // 2]:
        peer.node.step(Envelope(other, NodeId("n1"), Term(1), PreVoteResponse(True)))
    peer.settle()
    answers = [True] * grants + [False] * refusals
    for other, granted in zip(others, answers, strict=False):
        peer.node.step(Envelope(other, NodeId("n1"), Term(1), VoteResponse(granted)))
    assert peer.node.role is role


def test_a_vote_goes_to_one_candidate_a_term_first_come_first_served() -> None:
    """5.2: "Each server will vote for at most one candidate in a given term, on a first-come-
    first-served basis."
    """
    peer = Lone(term=1)
    assert [each.payload for each in peer.hear(vote(), 2, "n2")] == [VoteResponse(True)]
    assert [each.payload for each in peer.hear(vote(), 2, "n3")] == [VoteResponse(False)]
    assert [each.payload for each in peer.hear(vote(), 2, "n2")] == [VoteResponse(True)]
    assert [each.payload for each in peer.hear(vote(), 3, "n3")] == [VoteResponse(True)]
    assert peer.disk.load().hard_state.voted_for == "n3"


@pytest.mark.parametrize("term", [2, 3])
def test_a_candidate_gives_way_to_a_leader_of_its_term(term: int) -> None:
    """5.2: "If the leader's term (included in its RPC) is at least as large as the candidate's
    current term, then the candidate recognizes the leader as legitimate and returns to follower
    state."
    """
    peer = Lone(term=1)
    peer.stand()
    assert peer.node.term == 2
    peer.hear(append(), term, "n3")
    assert (peer.node.role, peer.node.term, peer.node.leader_id) == (RoleName.FOLLOWER, term, "n3")


def test_a_candidate_ignores_a_leader_of_an_older_term() -> None:
    """5.2: "If the term in the RPC is smaller than the candidate's current term, then the
    candidate rejects the RPC and continues in candidate state."
    """
    peer = Lone(term=5)
    peer.stand()
    (answer,) = peer.hear(append(), 5, "n3")
    assert isinstance(answer.payload, AppendResponse)
    assert (answer.payload.success, answer.term) == (False, 6)
    assert peer.node.role is RoleName.CANDIDATE


def test_election_timeouts_are_drawn_anew_from_a_fixed_interval() -> None:
    """5.2: "Election timeouts are chosen randomly from a fixed interval"; "Each candidate restarts
    its randomized election timeout at the start of an election".
    """
    drawn: list[tuple[int, int]] = []

    def draw(low: int, high: int) -> int:
        drawn.append((low, high))
        return low + len(drawn)

    peer = Peer(config("n1", names(3)), MemoryLog(), lambda envelope: None, draw)
    waited: list[int] = []
    for _ in range(3):
        count, before = 0, len(drawn)
        while len(drawn) == before:
            peer.node.tick()
            count += 1
        waited.append(count)
    assert set(drawn) == {(10, 20)}
    assert waited == [11, 12, 13]


# --- 5.3 Log replication -------------------------------------------------------------------------


def test_a_leader_appends_a_command_and_sends_it_to_all_in_parallel() -> None:
    """5.3: "The leader appends the command to its log as a new entry, then issues AppendEntries
    RPCs in parallel to each of the other servers" - here also in parallel with its own write.
    """
    peer = Lone(term=1)
    peer.lead()
    for other in ("n2", "n3"):
        peer.hear(accepted(1), 2, other)
    peer.sent.clear()
    (where,) = peer.node.propose([b"x"])
    effects = peer.take()
    new = Entry(Term(2), Index(2), EntryKind.COMMAND, b"x")
    assert (where.term, where.index) == (2, 2)
    assert effects.write is not None
    assert effects.write.entries == (new,)
    assert [(each.to_node, each.payload) for each in effects.messages] == [
        (other, AppendRequest(Index(1), Term(2), (new,), Index(1), 1)) for other in ("n2", "n3")
    ]


def test_an_entry_is_committed_once_a_majority_holds_it_and_is_then_applied() -> None:
    """5.3: "A log entry is committed once the leader that created the entry has replicated it on a
    majority of the servers"; "When the entry has been safely replicated, the leader applies the
    entry to its state machine".
    """
    cluster = Cluster(5)
    leader = cluster.elect("n1")
    leader.node.propose([b"x"])
    leader.settle()
    for count, name in enumerate(("n2", "n3", "n4"), 2):
        assert leader.node.commit_index == (1 if count <= 3 else 2), f"{count - 1} have it"
        round_trip(cluster, leader, name)
    assert [each.data for each in leader.applied] == [b"", b"x"]


def test_commits_of_entries_from_previous_leaders_come_along() -> None:
    """5.3: "This also commits all preceding entries in the leader's log, including entries created
    by previous leaders."
    """
    peer = Lone(1, 2, term=2)
    peer.lead()
    assert peer.node.commit_index == 0
    peer.hear(accepted(3), 3)
    assert peer.node.commit_index == 3
    assert [each.term for each in peer.applied] == [1, 2, 3]


def test_followers_learn_the_commit_index_and_apply_in_log_order() -> None:
    """5.3: "Once a follower learns that a log entry is committed, it applies the entry to its local
    state machine (in log order)."
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    leader.node.propose([b"a", b"b"])
    cluster.stabilize()
    for peer in cluster.peers.values():
        assert [each.data for each in peer.applied] == [b"", b"a", b"b"]


@pytest.mark.parametrize(
    ("previous", "fits"), [((0, 0), True), ((1, 1), True), ((2, 2), True), ((1, 2), False),
                           ((3, 3), False), ((2, 3), False)],
)  # fmt: skip
def test_a_follower_refuses_entries_whose_predecessor_it_lacks(
    previous: tuple[int, int], fits: bool
) -> None:
    """5.3: "If the follower does not find an entry in its log with the same index and term, then
    it refuses the new entries."
    """
    peer = Lone(1, 2, term=2)
    (answer,) = peer.hear(append(previous), 2)
    assert isinstance(answer.payload, AppendResponse)
    assert answer.payload.success is fits
    assert answer.payload.match_index == (previous[1] if fits else 0)


@pytest.mark.parametrize(
    ("previous", "entries", "result"),
    [
        ((2, 2), (entry(3, 3),), [1, 2, 3]),
        ((1, 1), (entry(3, 2), entry(4, 3)), [1, 3, 4]),
        ((0, 0), (entry(1, 1),), [1, 2]),
        ((0, 0), (entry(3, 1),), [3]),
    ],
)
def test_conflicting_entries_are_overwritten_and_others_kept(
    previous: tuple[int, int], entries: tuple[Entry, ...], result: list[int]
) -> None:
    """5.3: "The leader handles inconsistencies by forcing the followers' logs to duplicate its
    own"; Figure 2, AppendEntries 3 and 4: delete on conflict only, append what is not there.
    """
    peer = Lone(1, 2, term=4)
    peer.hear(append(previous, *entries), 4)
    assert terms_of(peer) == result
    assert [each.term for each in peer.disk.load().entries] == result


FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}
FIGURE_7_LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)


@pytest.mark.parametrize("name", FIGURE_7)
def test_a_leader_brings_any_log_of_figure_7_to_its_own(name: str) -> None:
    """5.3 and Figure 7: "the leader must find the latest log entry where the two logs agree, delete
    any entries in the follower's log after that point, and send the follower all of the leader's
    entries after that point."
    """
    stored = [restored(*FIGURE_7_LEADER, term=7), restored(*FIGURE_7[name], term=7), restored()]
    cluster = Cluster(3, stored)
    cluster.elect("n1")  # by the vote of n3; the follower under test may have a newer log
    cluster["n1"].node.propose([b"x"])
    cluster.stabilize()
    assert cluster["n1"].node.term == 8
    for peer in cluster.peers.values():
        assert terms_of(peer) == [*FIGURE_7_LEADER, 8, 8]


def test_one_round_trip_skips_a_whole_conflicting_term() -> None:
    """5.3: "one AppendEntries RPC will be required for each term with conflicting entries, rather
    than one RPC per entry."
    """
    peer = Lone(1, *[2] * 50, term=4)
    (answer,) = peer.hear(append((3, 51)), 4)
    assert isinstance(answer.payload, AppendResponse)
    assert (answer.payload.hint_term, answer.payload.hint_index) == (2, 51)
    leader = Lone(1, *[3] * 50, term=3)
    first = payloads(leader.lead(), AppendRequest)[0]
    assert isinstance(first.payload, AppendRequest)
    assert first.payload.previous_index == 51
    refusal = AppendResponse(False, Index(0), Index(51), Index(51), Term(2), 1)
    (again,) = leader.hear(refusal, 4)
    assert isinstance(again.payload, AppendRequest)
    assert again.payload.previous_index == 1


def test_a_leader_never_overwrites_its_own_log() -> None:
    """5.3, Leader Append-Only: "A leader never overwrites or deletes entries in its own log"; a
    rival of its own term would have to, and Election Safety says that there is none.
    """
    peer = Lone(1, term=1)
    peer.lead()
    before = terms_of(peer)
    with pytest.raises(InvariantError, match="two leaders in term 2"):
        peer.node.step(Envelope(NodeId("n3"), NodeId("n1"), Term(2), append((0, 0), entry(2, 1))))
    assert terms_of(peer) == before


def test_a_slow_follower_does_not_hold_up_the_others() -> None:
    """2 and 5.3: "a minority of slow servers need not impact overall system performance"; the
    leader retries "until all followers eventually store all log entries".
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"x"])
    cluster.stabilize()
    assert leader.node.commit_index == 2
    assert cluster["n3"].node.last_index == 1
    cluster.heal()
    cluster.tick(3, only=["n1"])
    assert [each.data for each in cluster["n3"].applied] == [b"", b"x"]


# --- 5.4 Safety ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "asked", "granted"),
    [
        ((1,), (1, 1), True), ((1,), (1, 2), True), ((1, 1), (1, 1), False),
        ((1,), (2, 1), True), ((1, 1), (2, 1), True), ((2,), (1, 1), False),
        ((2,), (1, 2), False), ((2, 2), (3, 1), True),
    ],
)  # fmt: skip
def test_a_voter_denies_its_vote_to_an_older_log(
    own: tuple[int, ...], asked: tuple[int, int], granted: bool
) -> None:
    """5.4.1: "the voter denies its vote if its own log is more up-to-date than that of the
    candidate": later last term first, then the longer log. The same holds for pre-votes.
    """
    peer = Lone(*own, term=3)
    (answer,) = peer.hear(PreVoteRequest(Index(asked[1]), Term(asked[0])), 4)
    assert answer.payload == PreVoteResponse(granted)
    (answer,) = peer.hear(vote(asked), 4)
    assert answer.payload == VoteResponse(granted)


def test_only_entries_of_the_own_term_are_committed_by_counting() -> None:
    """5.4.2 and Figure 8: "Raft never commits log entries from previous terms by counting replicas.
    Only log entries from the leader's current term are committed by counting replicas".
    """
    peer = Lone(1, 2, term=3)
    peer.lead()
    peer.hear(accepted(1), 4)
    peer.hear(accepted(2), 4, "n3")
    peer.hear(accepted(2), 4)
    assert peer.node.commit_index == 0
    peer.hear(accepted(3), 4)
    assert peer.node.commit_index == 3


def test_a_new_leader_holds_all_committed_entries() -> None:
    """5.4.3, Leader Completeness: "all committed entries ... are present in the leaders' logs"."""
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n3")
    leader.node.propose([b"x"])
    cluster.stabilize()
    cluster.heal()
    leader.crash()
    cluster.campaign("n3")
    cluster.stabilize()
    assert cluster.leader() is None, "n3 lacks x"
    cluster.campaign("n2")
    cluster.stabilize()
    (new_leader,) = [peer for peer in cluster.peers.values() if peer is cluster.leader()]
    assert new_leader.node_id == "n2"
    assert new_leader.node.entries(Index(2), 1)[0].data == b"x"


# --- 5.5 and 8 -----------------------------------------------------------------------------------


def test_a_repeated_append_changes_nothing() -> None:
    """5.5: "if a follower receives an AppendEntries request that includes log entries already
    present in its log, it ignores those entries in the new request."
    """
    peer = Lone(term=1)
    request = append((0, 0), *log_of(1, 1, 1), commit=2)
    first = peer.hear(request, 1)
    syncs = peer.disk.syncs
    assert peer.hear(request, 1) == first
    assert terms_of(peer) == [1, 1, 1]
    assert peer.disk.syncs == syncs
    assert len(peer.applied) == 2


def test_term_vote_and_log_survive_a_restart() -> None:
    """Figure 2: "Persistent state on all servers (Updated on stable storage before responding to
    RPCs)": currentTerm, votedFor, log[].
    """
    peer = Lone(term=1)
    peer.hear(append((0, 0), *log_of(1)), 1)
    for _ in range(peer.config.election_ticks_min):
        peer.node.tick()
    assert peer.hear(vote((1, 1)), 2)[0].payload == VoteResponse(True)
    peer.crash()
    peer.start()
    assert (peer.node.term, peer.node.voted_for, terms_of(peer)) == (2, "n2", [1])
    assert peer.hear(vote((1, 1)), 2, "n3")[0].payload == VoteResponse(False)


def test_clients_are_sent_to_the_leader() -> None:
    """8: "If the client's first choice is not the leader, that server will reject the client's
    request and supply information about the most recent leader it has heard from."
    """
    cluster = Cluster(3)
    cluster.elect("n1")
    with pytest.raises(NotLeaderError) as refused:
        cluster["n2"].node.propose([b"x"])
    assert refused.value.leader_id == "n1"
    with pytest.raises(NotLeaderError):
        cluster["n3"].node.request_read(ReadId("u", 1, 1))
    with pytest.raises(NotLeaderError):
        Lone(term=1).node.transfer(NodeId("n2"))


def test_a_leader_commits_a_noop_at_the_start_of_its_term() -> None:
    """8: "each leader commit a blank no-op entry into the log at the start of its term"."""
    cluster = Cluster(3)
    leader = cluster.elect("n2")
    (first,) = leader.node.entries(Index(1), 10)
    assert (first.kind, first.data, first.term) == (EntryKind.NOOP, b"", leader.node.term)
    assert leader.node.commit_index == 1


def test_a_read_waits_for_heartbeats_of_a_majority() -> None:
    """8: "Raft handles this by having the leader exchange heartbeat messages with a majority of the
    cluster before responding to read-only requests."
    """
    cluster = Cluster(5)
    leader = cluster.elect("n1")
    leader.node.request_read(ReadId("u", 1, 1))
    leader.settle()
    for count, name in enumerate(("n2", "n3"), 1):
        assert not leader.grants
        round_trip(cluster, leader, name)
        assert len(leader.grants) == (count == 2)
    assert leader.grants[0].index == 1


def test_a_leader_that_is_cut_off_grants_no_read() -> None:
    """8: "a leader must check whether it has been deposed before processing a read-only request";
    it then gives up by check-quorum (thesis 6.2) and says that the read must be asked again.
    """
    cluster = Cluster(3)
    leader = cluster.elect("n1")
    cluster.isolate("n1")
    leader.node.request_read(ReadId("u", 1, 1))
    cluster.tick(leader.config.election_ticks_max, only=["n1"])
    assert leader.grants == []
    assert leader.dropped == [ReadId("u", 1, 1)]
    assert leader.node.role is RoleName.FOLLOWER
