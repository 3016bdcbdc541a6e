"""The state of one peer and the few ways to change it; the rules are in the modules beside it.

    node.py         the outside surface: inputs, effects, status
    inbox.py        messages: the rules for terms, and whom each kind is for (5.1)
    election.py     who may lead: timers, pre-votes, votes (5.2, 5.4.1)
    following.py    a follower's side of replication and of snapshots (5.3, 7)
    leading.py      a leader's side: commit, reads, check-quorum (5.3, 5.4.2, 6.4)
    sending.py      which append, heartbeat or snapshot each follower gets (5.3, 7)
    handover.py     leadership transfer and changes of the members (thesis 3.10, 4)
    membership.py   the configurations that the log holds
    core.py         term, vote, role, log and commit index, and the two ways a message can leave

Everything here runs to its end at once and touches memory only. Order is fixed: peers are sorted,
nothing loops over a set, and chance comes from the injected `draw_timeout` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gaia_grpc.errors import invariant
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.durability import Durability
from gaia_grpc.raft.effects import ReadGrant, ReadId, RoleName
from gaia_grpc.raft.log import RaftLog
from gaia_grpc.raft.membership import Configurations, others
from gaia_grpc.raft.messages import Envelope, Payload
from gaia_grpc.raft.roles import (
    ALLOWED_TRANSITIONS,
    ROLE_NAMES,
    Candidate,
    Follower,
    Leader,
    PreCandidate,
    Role,
)
from gaia_grpc.raft.types import (
    NO_NODE,
    Entry,
    EntryId,
    HardState,
    Index,
    Members,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
)


class Core:
    """Mutable state of a peer, shared by the rule modules and hidden behind `RaftNode`.

    Invariants: term and commit_index never fall; emitted_index <= commit_index <= log.last_index;
    log.base.index <= snapshot.index <= emitted_index.
    """

    __slots__ = (
        "commit_index",
        "config",
        "configuration_changed",
        "configurations",
        "draw_timeout",
        "durability",
        "election_elapsed_ticks",
        "election_timeout_ticks",
        "emitted_index",
        "install_owed",
        "is_voter",
        "log",
        "members",
        "messages",
        "node_id",
        "peers",
        "read_grants",
        "reads_dropped",
        "role",
        "snapshot",
        "term",
        "voted_for",
    )

    def __init__(
        self,
        config: RaftConfig,
        restored: Restored,
        draw_timeout: Callable[[int, int], int],
        decode_members: Callable[[bytes], Members],
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.draw_timeout = draw_timeout
        self.term: Term = restored.hard_state.term
        self.voted_for: NodeId = restored.hard_state.voted_for
        self.log = RaftLog(restored)
        invariant(self.log.last_term <= self.term, "the log holds a term beyond the stored one")
        self.durability = Durability(restored, self.log.last_index)
        self.snapshot: SnapshotMeta | None = restored.snapshot
        self.install_owed: SnapshotMeta | None = None
        self.emitted_index = Index(0) if restored.snapshot is None else restored.snapshot.index
        invariant(
            self.log.base.index <= self.emitted_index <= self.log.last_index,
            f"the snapshot at {self.emitted_index} does not fit the stored log",
        )
        # A stored commit index is a hint that may be ahead of what survived (faults B8).
        self.commit_index: Index = max(
            self.emitted_index, min(restored.hard_state.commit_index, self.log.last_index)
        )
        self.configurations = Configurations(restored, config.initial_members, decode_members)
        self._follow_configuration()
        self.configuration_changed = False
        self.role: Role = Follower()
        self.election_elapsed_ticks = 0
        self.election_timeout_ticks = 0
        self.restart_election_timer()
        self.messages: list[Envelope] = []
        self.read_grants: list[ReadGrant] = []
        self.reads_dropped: list[ReadId] = []

    # --- what is known -----------------------------------------------------------------------

    @property
    def leader_id(self) -> NodeId:
        """The leader of the current term, as far as this peer knows it."""
        if isinstance(self.role, Follower):
            return self.role.leader_id
        return self.node_id if isinstance(self.role, Leader) else NO_NODE

    @property
    def role_name(self) -> RoleName:
        if not self.is_voter and isinstance(self.role, Follower):
            return RoleName.LEARNER
        return ROLE_NAMES[type(self.role)]

    @property
    def configuration_is_committed(self) -> bool:
        return self.configurations.in_force.index <= self.commit_index

    @property
    def is_removed(self) -> bool:
        """Whether it is settled that this peer has no vote (any more)."""
        return not self.is_voter and self.configuration_is_committed

    @property
    def may_campaign(self) -> bool:
        """A voter may; and one that the configuration in force removes, until that is committed.

        Thesis 4.2.2, Figure 4.6: with the removal only in its log, no other peer may be able to
        win. It does not count its own vote.
        """
        return self.is_voter or (
            not self.configuration_is_committed
            and self.node_id in self.configurations.before.members.voters
        )

    def hard_state(self) -> HardState:
        return HardState(self.term, self.voted_for, self.commit_index)

    # --- how messages leave --------------------------------------------------------------------

    def send(self, to_node: NodeId, payload: Payload, term: Term | None = None) -> None:
        """Sends what depends on nothing that is not on disk yet."""
        self.messages.append(
            Envelope(self.node_id, to_node, self.term if term is None else term, payload)
        )

    def send_when_durable(self, to_node: NodeId, payload: Payload) -> None:
        """Sends what promises something (a vote, a term, entries): after it is on disk."""
        envelope = Envelope(self.node_id, to_node, self.term, payload)
        if not self.durability.defer(envelope, self.log.last_index):
            self.messages.append(envelope)

    # --- how state changes ---------------------------------------------------------------------

    def restart_election_timer(self) -> None:
        """A new random timeout, so that split votes don't repeat (section 5.2)."""
        low, high = self.config.election_ticks_min, self.config.election_ticks_max
        self.election_elapsed_ticks = 0
        self.election_timeout_ticks = self.draw_timeout(low, high)
        invariant(low <= self.election_timeout_ticks <= high, "draw_timeout left its range")

    def _become(self, role: Role) -> None:
        before, after = ROLE_NAMES[type(self.role)], ROLE_NAMES[type(role)]
        invariant(after in ALLOWED_TRANSITIONS[before], f"{before} can't become {after}")
        if isinstance(self.role, Leader):
            self.reads_dropped += self.role.reads.drop_all()
        self.role = role

    def _enter_term(self, term: Term, voted_for: NodeId) -> None:
        invariant(term > self.term, f"term {self.term} can't become {term}")
        self.term = term
        self.voted_for = voted_for
        self.durability.hard_state_changed()

    def become_follower(
        self, term: Term, leader_id: NodeId, lost_leader_id: NodeId = NO_NODE
    ) -> Follower:
        """Follows `leader_id` in `term`, or nobody yet.

        A follower that only learns of a higher term keeps its timer: it restarts for a vote or a
        leader (section 5.2), or a peer that can't win could hold up one that can.
        """
        if not isinstance(self.role, Follower) or leader_id != NO_NODE:
            self.restart_election_timer()
        if term > self.term:
            self._enter_term(term, NO_NODE)
        role = Follower(leader_id, lost_leader_id)
        self._become(role)
        return role

    def become_pre_candidate(self) -> PreCandidate:
        lost = NO_NODE if isinstance(self.role, Candidate | Leader) else self.role.lost_leader_id
        role = PreCandidate({self.node_id: True}, lost)
        self._become(role)
        self.restart_election_timer()
        return role

    def become_candidate(self) -> None:
        self._become(Candidate())
        self._enter_term(Term(self.term + 1), self.node_id)
        self.restart_election_timer()

    def become_leader(self, role: Leader) -> None:
        self._become(role)

    def vote_for(self, candidate_id: NodeId) -> None:
        """At most one vote a term (section 5.2)."""
        invariant(self.voted_for in (NO_NODE, candidate_id), "a second vote in one term")
        if self.voted_for != candidate_id:
            self.voted_for = candidate_id
            self.durability.hard_state_changed()

    def append(self, entries: Sequence[Entry]) -> None:
        """Adds to the log; a configuration among the entries is in force at once (thesis 4.1)."""
        self.log.append(entries)
        if self.configurations.appended(entries):
            self._follow_configuration()

    def truncate(self, first_removed: Index) -> None:
        """Removes uncommitted entries, and the configuration that is among them."""
        self.log.truncate(first_removed, self.commit_index)
        self.durability.truncated(first_removed)
        if self.configurations.truncated(first_removed):
            self._follow_configuration()

    def install(self, meta: SnapshotMeta) -> None:
        """Replaces log and state by a snapshot (section 7); what was not handed out never is."""
        self.durability.installed(meta, last_kept=self.commit_index)
        self.log.replace(EntryId(meta.term, meta.index))
        self.commit_index = self.emitted_index = meta.index
        self.snapshot = self.install_owed = meta
        self.configurations.installed(meta)
        self._follow_configuration()

    def compact(self, meta: SnapshotMeta, keep_entries: int) -> EntryId:
        """A snapshot of the own state is durable: the log may forget what it stands for."""
        if self.snapshot is not None and meta.index <= self.snapshot.index:
            return self.log.base  # one from the leader came in between (faults B20)
        durable = min(self.emitted_index, self.durability.durable_index)
        invariant(meta.index <= durable, f"a snapshot at {meta.index}, durable is {durable}")
        invariant(
            self.log.matches(meta.index, meta.term),
            f"a snapshot at {meta.term}/{meta.index} is not of this log",
        )
        self.configurations.compacted(meta)
        self.snapshot = meta
        self.log.compact(Index(max(self.log.base.index, meta.index - keep_entries)))
        return self.log.base

    def _follow_configuration(self) -> None:
        self.members = self.configurations.in_force.members
        self.peers = others(self.members, self.node_id)
        self.is_voter = self.node_id in self.members.voters
        self.configuration_changed = True

    def commit_to(self, index: Index) -> bool:
        """Raises the commit index, never beyond the log; True if it moved."""
        if index <= self.commit_index:
            return False
        invariant(index <= self.log.last_index, f"commit {index} beyond {self.log.last_index}")
        self.commit_index = index
        return True
