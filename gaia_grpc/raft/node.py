"""The outside of the consensus core: one peer of a Raft cluster, as a value that computes.

Feed it (`tick`, `step`, `propose`, `request_read`, `persisted`, ...), take what it owes
(`take_effects`), carry that out by the rules in `effects.py`. It does no I/O, reads no clock, draws
no random number of its own and calls nobody back. Not safe for use from two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from gaia_grpc.errors import NotLeaderError
from gaia_grpc.raft import election, following, leading
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.effects import Effects, ReadId, RoleChange, RoleName
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.roles import Leader
from gaia_grpc.raft.types import (
    NO_NODE,
    Entry,
    EntryId,
    EntryKind,
    Index,
    NodeId,
    Restored,
    Term,
)

_NOTHING = Effects()
MAX_TERM_LEAD = 1 << 32
"""No honest peer is so many elections ahead. Followed once, a forged or damaged term of 2^63 - 1
would be the last that fits the wire and the disk: nobody could ever be elected again."""


class RaftNode:
    """The seam to everything above; see the module docstring."""

    __slots__ = ("_announced", "_announced_role", "_core", "_peers")

    def __init__(
        self, config: RaftConfig, restored: Restored, draw_timeout: Callable[[int, int], int]
    ) -> None:
        """`draw_timeout(low, high)` returns ticks, both ends included."""
        self._core = Core(config, restored, draw_timeout)
        self._peers = frozenset(config.peers)  # for membership tests only, never looped over
        self._announced = self._role_now()
        self._announced_role = self._core.role

    # --- inputs ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        core = self._core
        if isinstance(core.role, Leader):
            leading.tick(core, core.role)
        else:
            election.tick(core)

    def step(self, envelope: Envelope) -> None:
        """Takes in one message; what is not for us or not from a member is ignored."""
        core = self._core
        if envelope.to_node != core.node_id or envelope.from_node not in self._peers:
            return
        if envelope.term > core.term + MAX_TERM_LEAD:
            return
        if envelope.term == core.term or self._follow_term(envelope):
            self._dispatch(envelope)

    def propose(self, commands: Sequence[bytes]) -> tuple[EntryId, ...]:
        """Appends the commands to the log of a leader; they may or may not come to be committed.

        Raises `NotLeaderError` if this peer does not lead or is handing over: nothing was done.
        """
        core = self._core
        leader = self._leader_or_raise()
        if leader.transfer_to != NO_NODE:
            raise NotLeaderError(f"{core.node_id} is handing over to {leader.transfer_to}")
        term, first = core.term, core.log.last_index + 1
        entries = [
            Entry(term, Index(index), EntryKind.COMMAND, command)
            for index, command in enumerate(commands, first)
        ]
        core.log.append(entries)
        leader.must_send = True
        return tuple([EntryId(term, entry.index) for entry in entries])

    def request_read(self, read_id: ReadId) -> None:
        """Asks for a linearizable read: ends in a grant or in `reads_dropped`.

        Raises `NotLeaderError`.
        """
        leader = self._leader_or_raise()
        leader.reads.waiting.append(read_id)
        leader.must_send = True

    def persisted(self, write_number: int) -> None:
        """All writes up to `write_number` are on disk."""
        core = self._core
        core.messages += core.durability.complete(write_number)
        if isinstance(core.role, Leader):
            leading.advance_commit(core, core.role)
        else:
            election.on_durable(core)

    def peer_lost(self, peer: NodeId, term: Term) -> None:
        """The driver knows that the process of `peer`, seen as leader of `term`, is gone."""
        election.on_peer_lost(self._core, peer, term)

    def campaign(self) -> None:
        """Stands for election now, if no leader is known: a founder waits for no timeout."""
        election.on_campaign(self._core)

    def transfer(self, to: NodeId) -> None:
        """Hands leadership over to a voter; given up after one election timeout.

        Raises `NotLeaderError`, and `InvalidArgumentError` if `to` is no voter.
        """
        election.start_transfer(self._core, self._leader_or_raise(), to)

    def report_unreachable(self, peer: NodeId) -> None:
        """What was under way to `peer` is lost: probe from its last known match, by heartbeat."""
        leader = self._core.role
        if isinstance(leader, Leader) and peer in leader.progress_of:
            progress = leader.progress_of[peer]
            progress.probe(Index(progress.match_index + 1))
            progress.probe_sent = True

    # --- outputs ---------------------------------------------------------------------------------

    @property
    def has_effects(self) -> bool:
        """Whether `take_effects` would return anything."""
        core = self._core
        return bool(
            core.messages
            or (isinstance(core.role, Leader) and core.role.must_send)
            or core.commit_index > core.emitted_index
            or core.durability.owes_write(core.log.last_index)
            or core.read_grants
            or core.reads_dropped
            or self._role_changed()
        )

    def take_effects(self) -> Effects:
        """Hands out all work owed since the last call, once."""
        core = self._core
        if isinstance(core.role, Leader) and core.role.must_send:
            leading.send_appends(core, core.role)
        if not self.has_effects:
            return _NOTHING
        write, messages_after_write = core.durability.hand_out(core.log, core.hard_state())
        committed = core.log.slice(core.emitted_index + 1, core.commit_index)
        core.emitted_index = core.commit_index
        role_change = self._role_now() if self._role_changed() else None
        self._announced = role_change or self._announced
        self._announced_role = core.role
        effects = Effects(
            messages=tuple(core.messages),
            write=write,
            messages_after_write=messages_after_write,
            committed=committed,
            read_grants=tuple(core.read_grants),
            reads_dropped=tuple(core.reads_dropped),
            role_change=role_change,
        )
        core.messages.clear()
        core.read_grants.clear()
        core.reads_dropped.clear()
        return effects

    # --- status ----------------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        return self._core.node_id

    @property
    def role(self) -> RoleName:
        return self._core.role_name

    @property
    def term(self) -> Term:
        return self._core.term

    @property
    def voted_for(self) -> NodeId:
        """Who got this peer's vote in the current term; `NO_NODE` if nobody did."""
        return self._core.voted_for

    @property
    def leader_id(self) -> NodeId:
        """The known leader of the current term, or `NO_NODE`."""
        return self._core.leader_id

    @property
    def transfer_to(self) -> NodeId:
        """Whom this leader is handing over to; `NO_NODE` once that is done or given up."""
        leader = self._core.role
        return leader.transfer_to if isinstance(leader, Leader) else NO_NODE

    @property
    def commit_index(self) -> Index:
        return self._core.commit_index

    @property
    def first_index(self) -> Index:
        return self._core.log.first_index

    @property
    def last_index(self) -> Index:
        return self._core.log.last_index

    @property
    def last_term(self) -> Term:
        return self._core.log.last_term

    @property
    def durable_index(self) -> Index:
        """The last entry that is on this peer's disk as it stands in memory."""
        return self._core.durability.durable_index

    @property
    def quorum_ok(self) -> bool:
        """Whether this is a leader that a quorum has answered within an election timeout."""
        core = self._core
        return isinstance(core.role, Leader) and leading.has_quorum(core, core.role)

    @property
    def is_ready_leader(self) -> bool:
        """Whether this leader has committed an entry of its own term: it may serve."""
        core = self._core
        return isinstance(core.role, Leader) and core.commit_index >= core.role.term_start

    def entry_term(self, index: Index) -> Term:
        """The term of an entry of the log; 0 where it has none at `index`."""
        return self._core.log.term_at(index)

    def entries(self, first: Index, count: int) -> tuple[Entry, ...]:
        """Up to `count` entries from `first` on, as far as the log has them."""
        return self._core.log.slice(first, min(first + count - 1, self._core.log.last_index))

    def match_index(self, peer: NodeId) -> Index:
        """How far a leader knows `peer` to hold its log on disk; 0 if not leading or not known."""
        core = self._core
        if not isinstance(core.role, Leader):
            return Index(0)
        if peer == core.node_id:
            return core.durability.durable_index
        progress = core.role.progress_of.get(peer)
        return Index(0) if progress is None else progress.match_index

    # --- inside ----------------------------------------------------------------------------------

    def _role_now(self) -> RoleChange:
        core = self._core
        return RoleChange(core.role_name, core.term, core.leader_id)

    def _role_changed(self) -> bool:
        core, announced = self._core, self._announced
        # Term, role and leader change only with a new role object: the usual answer is cheap.
        return core.role is not self._announced_role and (
            core.term != announced.term
            or core.role_name is not announced.role
            or core.leader_id != announced.leader_id
        )

    def _leader_or_raise(self) -> Leader:
        core = self._core
        if isinstance(core.role, Leader):
            return core.role
        raise NotLeaderError(
            f"{core.node_id} does not lead in term {core.term}", leader_id=core.leader_id
        )

    def _follow_term(self, envelope: Envelope) -> bool:
        """The rules for a message of another term (section 5.1); True if it is to be handled."""
        core, payload = self._core, envelope.payload
        if isinstance(payload, PreVoteRequest):
            return True
        if envelope.term < core.term:
            if isinstance(payload, AppendRequest):
                following.refuse_stale_leader(core, envelope.from_node, payload)
            elif isinstance(payload, VoteRequest):
                core.send_when_durable(envelope.from_node, VoteResponse(granted=False))
            return False
        if isinstance(payload, PreVoteResponse) and payload.granted:
            return True
        by_transfer = isinstance(payload, VoteRequest) and payload.leadership_transfer
        if isinstance(payload, VoteRequest) and not by_transfer and election.has_lease(core):
            return False
        leader_id = envelope.from_node if isinstance(payload, AppendRequest) else NO_NODE
        core.become_follower(envelope.term, leader_id)
        return True

    def _dispatch(self, envelope: Envelope) -> None:
        core, from_node, payload = self._core, envelope.from_node, envelope.payload
        match payload:
            case AppendResponse():
                leading.on_append_response(core, from_node, payload)
            case AppendRequest():
                following.on_append_request(core, from_node, payload)
            case VoteRequest():
                election.on_vote_request(core, from_node, payload)
            case VoteResponse():
                election.on_vote_response(core, from_node, payload)
            case PreVoteRequest():
                election.on_pre_vote_request(core, from_node, envelope.term, payload)
            case PreVoteResponse():
                election.on_pre_vote_response(core, from_node, envelope.term, payload)
            case TimeoutNow():
                election.on_timeout_now(core, from_node, payload)
            case _:
                assert_never(payload)
