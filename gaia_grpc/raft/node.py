"""The outside of the consensus core: one peer of a Raft cluster, as a value that computes.

Feed it (`tick`, `step`, `propose`, `request_read`, `persisted`, ...), take what it owes
(`take_effects`), carry that out by the rules in `effects.py`. It does no I/O, reads no clock, draws
no random number of its own and calls nobody back. Not safe for use from two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gaia_grpc.errors import NotLeaderError
from gaia_grpc.raft import election, handover, inbox, leading, sending
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.effects import Effects, ReadId, RoleChange, RoleName
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.progress import PeerProgress
from gaia_grpc.raft.roles import Leader
from gaia_grpc.raft.types import (
    NO_NODE,
    Entry,
    EntryId,
    EntryKind,
    Index,
    Members,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
)

_NOTHING = Effects()


class RaftNode:
    """The seam to everything above; see the module docstring."""

    __slots__ = ("_announced", "_announced_role", "_core")

    def __init__(
        self,
        config: RaftConfig,
        restored: Restored,
        draw_timeout: Callable[[int, int], int],
        decode_members: Callable[[bytes], Members],
    ) -> None:
        """`draw_timeout(low, high)` returns ticks, both ends included; `decode_members` says who
        takes part by the content of a CONFIGURATION entry."""
        self._core = Core(config, restored, draw_timeout, decode_members)
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
        """Takes in one message; what is not for us is ignored.

        Whom the transport lets through is heard, member or not: a peer that lags behind, or that
        joins, does not know every leader and candidate (thesis 4.1). Only members are counted.
        """
        core = self._core
        if envelope.to_node != core.node_id or envelope.from_node in (NO_NODE, core.node_id):
            return
        if envelope.term == core.term or inbox.follow_term(core, envelope):
            inbox.dispatch(core, envelope)

    def propose(self, commands: Sequence[bytes]) -> tuple[EntryId, ...]:
        """Appends the commands to the log of a leader; they may or may not come to be committed.

        Raises `NotLeaderError` if this peer does not lead or is handing over: nothing was done.
        """
        core, leader = self._core, self._proposer_or_raise()
        term, first = core.term, core.log.last_index + 1
        entries = [
            Entry(term, Index(index), EntryKind.COMMAND, command)
            for index, command in enumerate(commands, first)
        ]
        core.log.append(entries)
        leader.must_send = True
        return tuple([EntryId(term, entry.index) for entry in entries])

    def propose_configuration(self, data: bytes) -> EntryId:
        """Appends a change of the members; it is in force at once, and may yet be taken back.

        Raises `NotLeaderError`, and `ConfigurationRefusedError` where it is not safe now.
        """
        return handover.propose_configuration(self._core, self._proposer_or_raise(), data)

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
        handover.start_transfer(self._core, self._leader_or_raise(), to)

    def step_down(self) -> None:
        """A leader that must not lead gives it up at once; anybody else goes on as before."""
        if isinstance(self._core.role, Leader):
            handover.step_down(self._core, self._core.role)

    def report_unreachable(self, peer: NodeId) -> None:
        """What was under way to `peer` is lost: probe from its last known match, by heartbeat."""
        if isinstance(self._core.role, Leader):
            leading.report_unreachable(self._core, self._core.role, peer)

    def report_snapshot(self, peer: NodeId, delivered: bool) -> None:
        """How the transfer ended that a `SnapshotRequest` to `peer` asked for: once for each."""
        if isinstance(self._core.role, Leader):
            leading.report_snapshot(self._core, self._core.role, peer, delivered=delivered)

    def compact(self, meta: SnapshotMeta, keep_entries: int) -> EntryId:
        """A snapshot of the own state at `meta.index` is durable: the log forgets what it holds.

        `meta.index` is at most what is durable and was handed out as committed. The last
        `keep_entries` before it stay for followers that lag. Returns the base of the log, which is
        the old one where a newer snapshot was installed meanwhile.
        """
        return self._core.compact(meta, keep_entries)

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
            or core.configuration_changed
            or self._role_changed()
        )

    def take_effects(self) -> Effects:
        """Hands out all work owed since the last call, once."""
        core = self._core
        if isinstance(core.role, Leader) and core.role.must_send:
            sending.send_appends(core, core.role)
        if not self.has_effects:
            return _NOTHING
        write, messages_after_write = core.durability.hand_out(core.log, core.hard_state())
        committed = core.log.slice(core.emitted_index + 1, core.commit_index)
        core.emitted_index = core.commit_index
        role_change = self._role_now() if self._role_changed() else None
        self._announced = role_change or self._announced
        self._announced_role = core.role
        configuration = core.configurations.in_force.data if core.configuration_changed else None
        core.configuration_changed = False
        effects = Effects(
            messages=tuple(core.messages),
            write=write,
            messages_after_write=messages_after_write,
            install=core.install_owed,
            committed=committed,
            read_grants=tuple(core.read_grants),
            reads_dropped=tuple(core.reads_dropped),
            role_change=role_change,
            configuration=configuration,
        )
        core.install_owed = None
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
    def snapshot(self) -> SnapshotMeta | None:
        """The newest snapshot of this peer, own or installed."""
        return self._core.snapshot

    @property
    def is_installing(self) -> bool:
        """Whether a received snapshot replaces the log and its write is not done: until then no
        other one may take its place in the store."""
        core = self._core
        return core.snapshot is not None and core.durability.durable_index < core.snapshot.index

    @property
    def members(self) -> Members:
        """Who takes part by the configuration in force, committed or not."""
        return self._core.members

    @property
    def configuration(self) -> bytes:
        """The configuration in force; empty where neither log nor snapshot holds one."""
        return self._core.configurations.in_force.data

    @property
    def configuration_index(self) -> Index:
        """Its entry, or the snapshot that brought it; it is committed up to `commit_index`."""
        return self._core.configurations.in_force.index

    def configuration_at(self, index: Index) -> bytes:
        """What is in force for a log that ends at `index`, from the snapshot on: for the meta data
        of the next one."""
        return self._core.configurations.at(index).data

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

    def progress(self, peer: NodeId) -> PeerProgress | None:
        """What a leader knows of another member; None of a stranger, or if this is no leader."""
        leader = self._core.role
        known = leader.progress_of.get(peer) if isinstance(leader, Leader) else None
        return known.view(leader.ticks) if known and isinstance(leader, Leader) else None

    # --- inside ----------------------------------------------------------------------------------

    def _role_now(self) -> RoleChange:
        core = self._core
        return RoleChange(core.role_name, core.term, core.leader_id)

    def _role_changed(self) -> bool:
        core, announced = self._core, self._announced
        # Term, role and leader change only with a new role object: the usual answer is cheap.
        return (core.role is not self._announced_role or core.configuration_changed) and (
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

    def _proposer_or_raise(self) -> Leader:
        leader = self._leader_or_raise()
        if leader.transfer_to != NO_NODE:
            raise NotLeaderError(f"{self.node_id} is handing over to {leader.transfer_to}")
        return leader
