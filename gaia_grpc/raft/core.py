"""The state of one peer and the few ways to change it; the rules are in the modules beside it.

    node.py         the outside surface: inputs, effects, status
    election.py     who may lead: timers, pre-votes, votes, leadership transfer (5.2, 5.4.1)
    following.py    a follower's side of replication (5.3)
    leading.py      a leader's side: appends, commit, reads, check-quorum (5.3, 5.4.2, 6.4)
    core.py         term, vote, role and commit index, and the two ways a message can leave

Everything here runs to its end at once and touches memory only. Order is fixed: peers are sorted,
nothing loops over a set, and chance comes from the injected `draw_timeout` alone.
"""

from __future__ import annotations

from collections.abc import Callable

from gaia_grpc.errors import invariant
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.durability import Durability
from gaia_grpc.raft.effects import ReadGrant, ReadId, RoleName
from gaia_grpc.raft.log import RaftLog
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
from gaia_grpc.raft.types import NO_NODE, HardState, Index, NodeId, Restored, Term


class Core:
    """Mutable state of a peer, shared by the rule modules and hidden behind `RaftNode`.

    Invariants: term and commit_index never fall; emitted_index <= commit_index <= log.last_index.
    """

    __slots__ = (
        "commit_index",
        "config",
        "draw_timeout",
        "durability",
        "election_elapsed_ticks",
        "election_timeout_ticks",
        "emitted_index",
        "log",
        "messages",
        "node_id",
        "read_grants",
        "reads_dropped",
        "role",
        "term",
        "voted_for",
    )

    def __init__(
        self, config: RaftConfig, restored: Restored, draw_timeout: Callable[[int, int], int]
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.draw_timeout = draw_timeout
        self.term: Term = restored.hard_state.term
        self.voted_for: NodeId = restored.hard_state.voted_for
        self.log = RaftLog(restored)
        invariant(self.log.last_term <= self.term, "the log holds a term beyond the stored one")
        self.durability = Durability(restored, self.log.last_index)
        self.emitted_index = Index(self.log.first_index - 1)
        # A stored commit index is a hint that may be ahead of what survived (faults B8).
        self.commit_index: Index = max(
            self.emitted_index, min(restored.hard_state.commit_index, self.log.last_index)
        )
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
        return ROLE_NAMES[type(self.role)]

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
        before, after = self.role_name, ROLE_NAMES[type(role)]
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

    def commit_to(self, index: Index) -> bool:
        """Raises the commit index, never beyond the log; True if it moved."""
        if index <= self.commit_index:
            return False
        invariant(index <= self.log.last_index, f"commit {index} beyond {self.log.last_index}")
        self.commit_index = index
        return True
