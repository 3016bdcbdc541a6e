"""One simulated cluster under faults: everything that happens is a function of one seed.

Phase 1 lets a swarm of faults loose (each seed draws its own rates, many of them zero), with the
safety checker watching every message, write and committed entry. Phase 2 (`liveness.py`) heals a
random majority and demands progress, then heals the rest.

    options.py      what a seed draws             peer.py        core, writer, state machine
    disks.py        writes, snapshots, faults     transfers.py   snapshots between peers
    clients.py      sessions, retries, reads      operator.py    changes of the members
    machine.py      the state, and the oracle     invariants.py  what must hold at any time
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from dataclasses import asdict
from random import Random

from gaia_grpc.errors import InvalidArgumentError, NotLeaderError, StorageDamagedError
from gaia_grpc.raft.effects import Effects, RoleName
from gaia_grpc.raft.messages import Envelope, SnapshotRequest
from gaia_grpc.raft.types import (
    NO_NODE,
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Restored,
    Term,
)
from gaia_grpc.transport.memory import MemoryNetwork
from tests.sim import describing
from tests.sim.clients import Clients
from tests.sim.cuts import Cuts
from tests.sim.disks import Disks
from tests.sim.identity import ANSWERS, Membership, Packet, accepts
from tests.sim.invariants import Books
from tests.sim.liveness import Liveness
from tests.sim.machine import Oracle
from tests.sim.operator import Operator
from tests.sim.options import Options
from tests.sim.peer import SimPeer
from tests.sim.transfers import Transfers

RECENT_EVENTS = 60
"""Of the trace, shown with a failure."""


class Simulation:
    """`run` raises `ViolationError` (or what the core raised) where something is wrong."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.seed = seed
        self.drawn = options or Options.from_seed(seed)
        self.options = self.drawn
        """In force now: phase 2 takes the faults out."""
        self.random = Random(seed)
        self.counts: Counter[str] = Counter()
        self.recent: deque[str] = deque(maxlen=RECENT_EVENTS)
        self._trace = hashlib.blake2b(digest_size=16)
        self.network = MemoryNetwork(Random(f"network {seed}"), self.drawn.network_faults())
        identities = [f"n{number}.1" for number in range(1, self.drawn.peers + 1)]
        founding = (
            Entry(
                Term(1), Index(1), EntryKind.CONFIGURATION, Membership(tuple(identities)).encode()
            ),
            Entry(Term(1), Index(2), EntryKind.NOOP, b""),
        )
        start = Restored(HardState(Term(1), NO_NODE, Index(2)), founding)
        self.peers: dict[NodeId, SimPeer] = {}
        self.backlog: dict[NodeId, deque[Packet]] = {}
        for identity in identities:
            self._machine(identity, start)
        for peer in self.peers.values():
            peer.start()
        self.books = Books(list(self.peers.values()), identities)
        self.books.committed += founding
        self.books.commit_terms += [entry.term for entry in founding]
        self.oracle = Oracle()
        self.disks = Disks(self)
        self.transfers = Transfers(self)
        self.clients = Clients(self, self.drawn.clients)
        self.operator = Operator(self)
        self.cuts = Cuts(self)
        self.paused_until: dict[NodeId, int] = {}
        self.full_until: dict[str, int] = {}
        self.last_leader: tuple[NodeId, Term] | None = None
        self.now = 0

    def _machine(self, identity: str, start: Restored | None) -> SimPeer:
        peer = SimPeer(identity, self.drawn, start, self.random.randint)
        spread = self.drawn.clock_rate_spread
        peer.rate = 1.0 + self.random.uniform(-spread, spread)
        peer.wall_offset_ms = self.random.randint(0, 50)
        self.peers[peer.node_id] = peer
        self.backlog[peer.node_id] = deque()
        return peer

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> str:
        """Both phases; returns the hash of everything that happened."""
        for _ in range(self.options.turns):
            self._faults()
            self.clients.run()
            self.operator.run()
            self.turn()
        Liveness(self).run()
        self.counts += self.books.counts + self.oracle.counts
        self.counts["committed"] = len(self.books.committed)
        for name, count in self.network.counts.items():
            self.counts[f"network_{name}"] += count
        return self._trace.hexdigest()

    def describe(self) -> str:
        """How to run it again, what it drew, and what it met."""
        drawn = " ".join(f"{name}={value}" for name, value in asdict(self.drawn).items())
        counted = " ".join(f"{name}={count}" for name, count in sorted(self.counts.items()))
        return f"SEED={self.seed}\n  options: {drawn}\n  counts: {counted}"

    def note(self, *what: object) -> None:
        """Adds to the trace."""
        line = f"{self.now} {' '.join(map(str, what))}"
        self.recent.append(line)
        self._trace.update(line.encode())

    def chance(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    # --- who there is ---------------------------------------------------------------------------

    def running(self) -> list[SimPeer]:
        """The peers that are up and not standing still."""
        return [peer for peer in self.peers.values() if peer.is_up and not self.is_paused(peer)]

    def is_paused(self, peer: SimPeer) -> bool:
        return peer.node_id in self.paused_until

    def is_full(self, peer: SimPeer) -> bool:
        return peer.identity in self.full_until

    def victim(self) -> SimPeer:
        """Whom a fault strikes: now and then on purpose the leader of the highest term."""
        if self.chance(self.options.at_leader):
            leaders = [peer for peer in self.running() if peer.is_leader]
            if leaders:
                return max(leaders, key=lambda peer: peer.node.term)
        return self.random.choice(list(self.peers.values()))

    def add_machine(self, identity: str) -> None:
        """With an empty disk: a stranger until it is added."""
        peer = self._machine(identity, None)
        self.books.add(peer, identity)
        peer.start()
        self.counts["machines_added"] += 1

    def replace(self, old: SimPeer) -> None:
        """Another machine, or the same one with an empty disk, under the same name."""
        name, _, number = old.identity.partition(".")
        self.paused_until.pop(old.node_id, None)
        self.add_machine(f"{name}.{int(number) + 1}")

    # --- messages -------------------------------------------------------------------------------

    def send(self, peer: SimPeer, envelope: Envelope) -> None:
        """As a transport does it: requests to members only, answers to whoever asked."""
        self.books.on_sent(envelope)
        name = envelope.to_node
        to_identity = peer.members.identity_of(name)
        if isinstance(envelope.payload, ANSWERS):
            to_identity = peer.heard.get(name, to_identity)
        packet = Packet(envelope, peer.identity, to_identity)
        if isinstance(envelope.payload, SnapshotRequest):
            self.transfers.begin(peer, packet)
        elif to_identity and name in self.peers:
            self.network.send(packet)  # type: ignore[arg-type]  # it has what is looked at

    def _deliver(self, peer: SimPeer, waiting: deque[Packet]) -> None:
        while waiting and peer.is_up:
            packet = waiting.popleft()
            if not accepts(peer.identity, peer.members, packet):
                self.counts["identity_refused"] += 1
                continue
            envelope, node = packet.envelope, peer.node
            peer.heard[packet.from_node] = packet.from_identity
            self.note("deliver", describing.short(envelope))
            index, term, current = node.last_index, node.last_term, node.term
            commit_index = node.commit_index
            node.step(envelope)
            if index >= node.first_index and node.entry_term(index) != term:
                self.counts["suffix_overwritten"] += 1
                self.counts["suffix_overwritten_under_way"] += bool(peer.queue or peer.under_way)
            self.counts["term_grew_during_a_write"] += node.term > current and bool(peer.under_way)
            if isinstance(envelope.payload, SnapshotRequest):
                self.counts["late_snapshots"] += envelope.payload.meta.index <= commit_index
            self.after(peer, heard=True)

    def after(self, peer: SimPeer, *, heard: bool = False) -> None:
        """A peer took something in: its state is checked, and it does what it owes, or later."""
        if peer.is_up:
            self.books.check(peer, leader_heard=heard)
            if peer.node.has_effects and not self.chance(self.options.lazy):
                self._take(peer)

    def _take(self, peer: SimPeer) -> None:
        effects = peer.take()
        for envelope in effects.messages:
            self.send(peer, envelope)
        self._note_effects(peer, effects)
        self.books.on_effects(peer, effects)
        self.books.check(peer, leader_heard=False)
        for read_id in effects.reads_dropped:
            self.clients.on_read_dropped(read_id)

    def _note_effects(self, peer: SimPeer, effects: Effects) -> None:
        write = effects.write
        self.note(
            "effects", peer.identity, len(effects.messages), len(effects.committed),
            write and f"{write.write_number}:{write.hard_state} {len(write.entries)}",
            effects.role_change or "",
        )  # fmt: skip
        if effects.install is not None:
            self.counts["installs_begun"] += 1
            self.counts["installed_with_appends_under_way"] += any(
                packet.to_node == peer.node_id for _, _, packet in self.network._queue
            )
        if effects.role_change is not None and effects.role_change.role is RoleName.LEADER:
            self.counts["elections"] += 1
            self.last_leader = (peer.node_id, effects.role_change.term)

    # --- one turn -------------------------------------------------------------------------------

    def turn(self) -> None:
        """One unit of the world's time; the clocks of the peers run by their own rates."""
        self.now += 1
        self.network.advance()
        for peer in self.running():
            for _ in range(peer.ticks_due()):
                peer.ticks += 1
                peer.node.tick()
                self._watch_disk(peer)
                self.after(peer)
        for packet in self.network.take_due() if self.network.has_due else ():
            self.backlog[packet.to_node].append(packet)  # type: ignore[arg-type]  # as sent
        for name, waiting in self.backlog.items():
            peer = self.peers[name]
            if not peer.is_up:
                waiting.clear()
            elif waiting and name not in self.paused_until:
                self._deliver(peer, waiting)
        self.transfers.run()
        for peer in self.running():
            self.disks.run(peer)
            if peer.is_up and peer.node.has_effects:
                self._take(peer)
            if peer.is_up:
                self._apply(peer)

    def _apply(self, peer: SimPeer) -> None:
        self.oracle.follow(self.books.committed)
        while peer.to_apply and not peer.holding:
            if self.chance(self.options.lazy_apply):
                break
            entry, answer = peer.apply()
            self.oracle.check_state(peer.identity, peer.machine)
            self.clients.on_applied(peer, entry, answer)
        self.clients.serve_reads(peer)

    def _watch_disk(self, peer: SimPeer) -> None:
        """As `gaia_grpc.node.disk_watch`: a leader whose disk hangs hands over (faults B15)."""
        age = peer.write_age_ticks()
        if age <= self.options.stall_ticks or not peer.is_leader:
            peer.abdicating = False
        elif not peer.abdicating:
            peer.abdicating = True
            self._transfer(peer)
        elif age > self.options.stall_ticks + 10 and len(peer.members.voters) > 1:
            peer.node.step_down()
            self.counts["stepped_down_for_its_disk"] += 1

    def _transfer(self, peer: SimPeer) -> None:
        others = [name for name in peer.node.members.voters if name != peer.node_id]
        if others:
            try:
                peer.node.transfer(self.random.choice(others))
            except (NotLeaderError, InvalidArgumentError):
                return
            self.counts["handovers"] += 1

    # --- what the world does --------------------------------------------------------------------

    def _faults(self) -> None:
        options = self.options
        self.paused_until = {n: until for n, until in self.paused_until.items() if until > self.now}
        for peer in list(self.peers.values()):
            if not peer.is_up and self.chance(options.restart):
                self.restart(peer)
        if self.chance(options.crash) and (peer := self.victim()).is_up:
            self.crash(peer)
        if self.chance(options.crash_at_work):
            busy = [peer for peer in self.running() if self._is_at_work(peer)]
            if busy:
                self.crash(self.random.choice(busy))
        if self.chance(options.pause) and (peer := self.victim()).is_up:
            self.paused_until[peer.node_id] = self.now + self.random.randint(1, 60)
            self.counts["pauses"] += 1
        if self.chance(options.clock_step):
            self.victim().wall_offset_ms += self.random.randint(-200, 200)
            self.counts["clock_steps"] += 1
        self.disks.faults()
        self.cuts.run()
        self._hints()

    def _is_at_work(self, peer: SimPeer) -> bool:
        """Whether a snapshot is half way into its files, its log or its state."""
        return (
            peer.making is not None
            or peer.installing
            or peer.holding
            or self.transfers.receives(peer)
        )

    def _hints(self) -> None:
        """What drivers tell their cores, rightly or not, and who wants other leaders."""
        options = self.options
        running = self.running()
        if not running:
            return
        peer = self.random.choice(running)
        if self.chance(options.unreachable):
            peer.node.report_unreachable(self.random.choice(list(self.peers)))
        if self.last_leader is not None and self.chance(options.peer_lost):
            peer.node.peer_lost(*self.last_leader)
            self.counts["peer_lost"] += 1
        if self.chance(options.transfer):
            victim = self.victim()
            if victim in running and victim.is_leader:
                self._transfer(victim)
        self.after(peer)

    def restart(self, peer: SimPeer) -> None:
        """Starts a process; one whose disk is damaged refuses, and is replaced some time later."""
        if peer.is_refused:
            self.replace(peer)
            return
        try:
            snapshot = peer.start()
        except StorageDamagedError as error:
            self.disks.refused(peer, error)
            return
        self.counts["restarts"] += 1
        if snapshot is not None:
            self.counts["restarts_from_a_snapshot"] += 1
            self.disks.check_restored(peer, peer.read_snapshot(snapshot))
        # After a refusal is checked: a damaged peer that starts is caught here.
        self.disks.require_whole(peer)

    def crash(self, peer: SimPeer) -> None:
        """The power of one machine fails, or its process ends."""
        self.paused_until.pop(peer.node_id, None)
        self.full_until.pop(peer.identity, None)
        lost = len(peer.queue) + len(peer.under_way)
        self.clients.on_crash(peer, peer.node.durable_index)
        self.counts["crashes"] += 1
        self.counts["crashes_of_leaders"] += peer.is_leader
        self.counts["crashes_while_making"] += peer.making is not None
        self.counts["crashes_while_receiving"] += self.transfers.receives(peer)
        self.counts["crashes_while_installing"] += peer.installing or peer.holding
        survived = peer.crash(self.random.randint if self.options.survive else None)
        self.counts["writes_lost"] += lost - len(survived)
        self.counts["writes_torn_but_whole"] += len(survived)
        self.note("crash", peer.identity, len(survived))
        self.books.on_crash(peer, survived)
