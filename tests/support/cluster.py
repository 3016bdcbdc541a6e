"""Peers of the consensus core in memory: a node, its disk, and the driver's rules of order.

A write stays staged until `persist`, so a test can crash between "decided" and "durable".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.effects import Effects, ReadGrant, ReadId, RoleChange, RoleName
from gaia_grpc.raft.messages import Envelope, SnapshotRequest
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import (
    Entry,
    EntryId,
    EntryKind,
    HardState,
    Index,
    Members,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.memory import MemoryLog


def names(count: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(f"n{number}") for number in range(1, count + 1))


def members(voters: Sequence[str], learners: Sequence[str] = ()) -> Members:
    return Members(tuple(NodeId(name) for name in voters), tuple(NodeId(name) for name in learners))


def configuration(voters: Sequence[str], learners: Sequence[str] = ()) -> bytes:
    """The content of a CONFIGURATION entry in these tests: `n1,n2,n3` or `n1,n2,n3+n4`."""
    return "+".join(",".join(part) for part in (voters, learners) if part).encode()


def decode_members(data: bytes) -> Members:
    voters, _, learners = data.decode().partition("+")
    return members(*([name for name in part.split(",") if name] for part in (voters, learners)))


def config(node: str, voters: Sequence[NodeId], learners: Sequence[str] = ()) -> RaftConfig:
    """Ten ticks are an election timeout, three a heartbeat: small numbers read well in traces."""
    return make_config(node, voters, learners)


def make_config(
    node: str,
    voters: Sequence[NodeId],
    learners: Sequence[str] = (),
    *,
    max_entries: int = 64,
    max_bytes: int = 1 << 16,
    max_inflight: int = 8,
    max_partial: int = 1 << 20,
    election_ticks_max: int = 20,
) -> RaftConfig:
    return RaftConfig(
        node_id=NodeId(node),
        initial_members=members(voters, learners),
        election_ticks_min=10,
        election_ticks_max=election_ticks_max,
        heartbeat_ticks=3,
        max_entries_per_append=max_entries,
        max_bytes_per_append=max_bytes,
        max_inflight_appends=max_inflight,
        max_inflight_partial_appends=max_partial,
    )


def entry(term: int, index: int, data: bytes = b"", kind: EntryKind = EntryKind.COMMAND) -> Entry:
    return Entry(Term(term), Index(index), kind, data or b"%d/%d" % (term, index))


def log_of(*terms: int) -> tuple[Entry, ...]:
    """A log written as in Figure 7: the terms of entries 1, 2, 3, ..."""
    return tuple(entry(term, index) for index, term in enumerate(terms, 1))


def restored(*terms: int, term: int = 0, voted_for: str = "", commit: int = 0) -> Restored:
    """Stored state with that log, in `term` (default: that of the last entry)."""
    current = term or (terms[-1] if terms else 0)
    state = HardState(Term(current), NodeId(voted_for), Index(commit))
    return Restored(state, log_of(*terms))


def longest(low: int, high: int) -> int:
    """The longest election timeout, so that a lease can run out before anyone campaigns."""
    return high


class Peer:
    """One peer: what a driver does, without a clock and a loop."""

    def __init__(
        self,
        raft_config: RaftConfig,
        disk: MemoryLog,
        send: Callable[[Envelope], None],
        draw_timeout: Callable[[int, int], int] = longest,
    ) -> None:
        self.config = raft_config
        self.node_id = raft_config.node_id
        self.disk = disk
        self._send = send
        self._draw_timeout = draw_timeout
        self._running: RaftNode | None = None
        self.boots = 0
        self.pending: deque[tuple[WriteBatch, tuple[Envelope, ...]]] = deque()
        self.applied: list[Entry] = []
        """Since the start or the last snapshot that was installed."""
        self.state_index = 0
        """How far the state machine of this peer is; a restart begins at the snapshot."""
        self.installs: list[SnapshotMeta] = []
        self.configurations: list[bytes] = []
        self.grants: list[ReadGrant] = []
        self.dropped: list[ReadId] = []
        self.role_changes: list[RoleChange] = []
        self.start()

    @property
    def node(self) -> RaftNode:
        assert self._running is not None, f"{self.node_id} is down"
        return self._running

    @property
    def is_up(self) -> bool:
        return self._running is not None

    def start(self) -> None:
        self.boots += 1
        stored = self.disk.load()
        self.state_index = stored.snapshot.index if stored.snapshot else 0
        self._running = RaftNode(self.config, stored, self._draw_timeout, decode_members)

    def crash(self, draw: Callable[[int, int], int] | None = None) -> int:
        """Loses memory and what was not synced; returns how many writes reached the disk."""
        survived = self.disk.crash(draw)
        self._running = None
        self.pending.clear()
        self.applied.clear()
        return survived

    def take(self) -> Effects:
        """Carries out what is owed, but leaves the write staged."""
        effects = self.node.take_effects()
        if effects.write is not None:
            self.disk.stage([effects.write])
            self.pending.append((effects.write, effects.messages_after_write))
        else:
            assert not effects.messages_after_write, "messages wait for a write that is not there"
        for envelope in effects.messages:
            self._send(envelope)
        if effects.install is not None:
            assert effects.write is not None
            assert effects.write.snapshot == effects.install
            self.installs.append(effects.install)
            self.applied.clear()
            self.state_index = effects.install.index
        for each in effects.committed:
            assert each.index == self.state_index + 1, "entries are applied in order, each once"
            self.state_index = each.index
        self.applied += effects.committed
        if effects.configuration is not None:
            self.configurations.append(effects.configuration)
        self.grants += effects.read_grants
        self.dropped += effects.reads_dropped
        if effects.role_change is not None:
            self.role_changes.append(effects.role_change)
        return effects

    def persist(self) -> WriteBatch:
        """Completes the oldest write under way."""
        self.disk.sync_one()
        return self.completed()

    def completed(self) -> WriteBatch:
        """The oldest write under way is on disk: tells the core."""
        write, messages = self.pending.popleft()
        for envelope in messages:
            self._send(envelope)
        self.node.persisted(write.write_number)
        return write

    def compact(self, keep: int = 0, index: int | None = None) -> EntryId:
        """Makes a snapshot of the own state durable, as a driver does, and lets the log go."""
        at = min(self.state_index, self.node.durable_index) if index is None else index
        meta = SnapshotMeta(
            Index(at), self.node.entry_term(Index(at)), self.node.configuration_at(Index(at))
        )
        self.disk.note_snapshot(meta)
        base = self.node.compact(meta, keep)
        self.disk.compact(base)
        self.disk.maintain()
        return base

    def settle(self) -> None:
        """Until nothing is owed and everything is on disk."""
        while self.node.has_effects or self.pending:
            self.take()
            while self.pending:
                self.persist()


class Cluster:
    """Peers with a network that keeps every message until the test delivers it."""

    def __init__(self, peers: int = 3, stored: Restored | Sequence[Restored] | None = None) -> None:
        self.voters = names(peers)
        self.wire: list[Envelope] = []
        self.cuts: list[tuple[NodeId, NodeId]] = []
        default = stored if isinstance(stored, Restored) else Restored(HardState(), ())
        self.peers: dict[NodeId, Peer] = {}
        for number, name in enumerate(self.voters):
            start = default if stored is None or isinstance(stored, Restored) else stored[number]
            self.peers[name] = Peer(config(name, self.voters), MemoryLog(start), self.wire.append)

    def join(self, name: str) -> Peer:
        """A peer with an empty disk, which knows nobody; it is no member yet."""
        peer = Peer(make_config(name, ()), MemoryLog(), self.wire.append)
        self.peers[NodeId(name)] = peer
        return peer

    def change(self, voters: Sequence[str], learners: Sequence[str] = ()) -> EntryId:
        """The leader proposes these members; nothing is delivered yet."""
        leader = self.leader()
        assert leader is not None, "nobody leads"
        return leader.node.propose_configuration(configuration(voters, learners))

    def __getitem__(self, name: str) -> Peer:
        return self.peers[NodeId(name)]

    def deliver(self, wanted: Callable[[Envelope], bool] = lambda envelope: True) -> int:
        """Delivers the wanted messages that are on the wire now; the others stay."""
        now = [envelope for envelope in self.wire if wanted(envelope)]
        self.wire[:] = [envelope for envelope in self.wire if not wanted(envelope)]
        for envelope in now:
            self.hand_over(envelope)
        return len(now)

    def hand_over(self, envelope: Envelope, *, report: bool = True) -> bool:
        """As a transport does it: how the transfer of a snapshot ended is told to its sender."""
        arrives = self._arrives(envelope)
        if arrives:
            self.peers[envelope.to_node].node.step(envelope)
        if report:
            self.report_snapshot(envelope)
        return arrives

    def report_snapshot(self, envelope: Envelope) -> None:
        sender = self.peers[envelope.from_node]
        if isinstance(envelope.payload, SnapshotRequest) and sender.is_up:
            sender.node.report_snapshot(envelope.to_node, self._arrives(envelope))

    def _arrives(self, envelope: Envelope) -> bool:
        is_cut = (envelope.from_node, envelope.to_node) in self.cuts
        receiver = self.peers.get(envelope.to_node)
        return receiver is not None and receiver.is_up and not is_cut

    def cut(self, one: str, other: str) -> None:
        """Both directions."""
        pair = NodeId(one), NodeId(other)
        self.cuts += [pair, (pair[1], pair[0])]

    def isolate(self, name: str) -> None:
        for other in self.peers:
            if other != name:
                self.cut(name, other)

    def heal(self) -> None:
        self.cuts.clear()

    def stabilize(self) -> None:
        """Persists and delivers until nothing is left to do; no time passes."""
        for _ in range(1000):
            for peer in self.peers.values():
                if peer.is_up:
                    peer.settle()
            if not self.wire:
                return
            self.deliver()
        raise AssertionError("the cluster does not come to rest")

    def tick(self, count: int = 1, only: Sequence[str] = ()) -> None:
        """Time passes for the named peers (all, by default), with everything delivered."""
        for _ in range(count):
            for name, peer in self.peers.items():
                if peer.is_up and (not only or name in only):
                    peer.node.tick()
            self.stabilize()

    def campaign(self, name: str) -> None:
        """Lets the election timer of `name` run out: nothing is delivered yet."""
        peer = self[name]
        changes = len(peer.role_changes)
        for _ in range(peer.config.election_ticks_max):
            peer.node.tick()
            peer.take()
            if len(peer.role_changes) > changes:
                return
        raise AssertionError(f"{name} did not campaign")

    def elect(self, name: str) -> Peer:
        """Makes `name` the leader of a cluster without faults."""
        for other in self.peers.values():
            if other.is_up and other.node_id != name and other.node.role is RoleName.FOLLOWER:
                for _ in range(10 if other.node.leader_id else 0):  # its lease runs out
                    other.node.tick()
        self.campaign(name)
        self.stabilize()
        assert self[name].node.is_ready_leader, f"{name} was not elected"
        return self[name]

    def leader(self) -> Peer | None:
        for peer in self.peers.values():
            if peer.is_up and peer.node.is_ready_leader:
                return peer
        return None
