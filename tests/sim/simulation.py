"""One simulated cluster under faults: everything that happens is a function of one seed.

Phase 1 lets a swarm of faults loose (each seed draws its own rates, many of them zero), with the
safety checker watching. Phase 2 heals a random majority and demands progress, then heals the rest.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from random import Random

from gaia_grpc.errors import NotLeaderError, StorageFailedError
from gaia_grpc.raft.effects import ReadId, RoleName
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.types import (
    NO_NODE,
    EntryId,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Restored,
    Term,
)
from gaia_grpc.storage.memory import MemoryLog
from gaia_grpc.transport.memory import MemoryNetwork, NetworkFaults
from tests.support.checkers import SafetyChecker, require
from tests.support.cluster import Peer, configuration, entry, make_config, names


@dataclass(frozen=True)
class Options:
    """What a seed draws before the run starts."""

    peers: int
    steps: int
    loss: float
    duplicate: float
    delay_ticks_max: int
    tick_skew: float
    persist: float
    """The chance that a write under way completes in a step."""
    lazy: float
    """The chance that a peer leaves its effects for a later turn."""
    crash: float
    survive: bool
    """Whether unsynced writes may reach the disk in a crash."""
    eio: float
    restart: float
    cut: float
    heal: float
    propose: float
    read: float
    transfer: float
    peer_lost: float
    unreachable: float
    pause: float
    """The chance that a process stands still for a while and then goes on with what it knew."""
    at_leader: float
    """How often a fault strikes the leader: elections are where the bugs are."""
    max_entries: int
    max_inflight: int
    max_partial: int
    founded: bool

    @classmethod
    def from_seed(cls, seed: int) -> Options:
        random = Random(f"options {seed}")

        def rate(high: float, zero: float = 0.4) -> float:
            return 0.0 if random.random() < zero else round(random.uniform(high / 20, high), 4)

        return cls(
            peers=random.choice((3, 3, 5)),
            steps=random.choice((300, 500)),
            loss=rate(0.3),
            duplicate=rate(0.5),
            delay_ticks_max=random.choice((0, 0, 1, 2, 4, 8)),
            tick_skew=rate(0.3),
            persist=random.choice((1.0, 0.7, 0.4, 0.15)),
            lazy=rate(0.5),
            crash=rate(random.choice((0.02, 0.02, 0.06))),
            survive=random.random() < 0.6,
            eio=rate(0.005, zero=0.7),
            restart=random.choice((0.02, 0.1, 0.3)),
            cut=rate(random.choice((0.06, 0.15))),
            heal=random.choice((0.01, 0.04, 0.15)),
            propose=random.choice((0.2, 0.5, 0.9)),
            read=rate(0.5),
            transfer=rate(0.02, zero=0.6),
            peer_lost=rate(0.05, zero=0.6),
            unreachable=rate(0.05, zero=0.5),
            pause=rate(0.03),
            at_leader=random.choice((0.0, 0.3, 0.8)),
            max_entries=random.choice((1, 2, 5, 64)),
            max_inflight=random.choice((1, 2, 8)),
            max_partial=random.choice((1, 2, 8)),
            founded=random.random() < 0.3,
        )


class Simulation:
    """`run` raises `ViolationError` (or what the core raised) where something is wrong."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.seed = seed
        self.drawn = options or Options.from_seed(seed)
        self.options = self.drawn
        """In force now: phase 2 takes the faults out."""
        self.random = Random(seed)
        self.counts: Counter[str] = Counter()
        self.trace = hashlib.sha256()
        self.network = MemoryNetwork(
            Random(f"network {seed}"),
            NetworkFaults(
                self.options.loss, self.options.duplicate, 0, self.options.delay_ticks_max
            ),
        )
        voters = names(self.options.peers)
        start = Restored(HardState(), ())
        if self.options.founded:
            founding = (entry(1, 1, configuration(voters), EntryKind.CONFIGURATION), entry(1, 2))
            start = Restored(HardState(Term(1), NO_NODE, Index(2)), founding)
        self.peers = {
            name: Peer(
                make_config(
                    name,
                    voters,
                    max_entries=self.options.max_entries,
                    max_inflight=self.options.max_inflight,
                    max_partial=self.options.max_partial,
                ),
                MemoryLog(start),
                self._send,
                self.random.randint,
            )
            for name in voters
        }
        self.checker = SafetyChecker(self.peers.values())
        self.checker.committed += start.entries
        self.checker.commit_terms += [entry.term for entry in start.entries]
        self.proposed = 0
        self.pending: dict[EntryId, bytes] = {}
        self.acknowledged: dict[EntryId, bytes] = {}
        self.read_floor: dict[ReadId, int] = {}
        self.reads = 0
        self.last_leader: tuple[NodeId, Term] | None = None
        self.paused_until: dict[NodeId, int] = {}
        self.backlog: dict[NodeId, list[Envelope]] = {name: [] for name in voters}
        self.now = 0

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> str:
        """Both phases; returns the hash of everything that happened."""
        for _ in range(self.options.steps):
            self._faults()
            self._clients()
            self._turn()
        self._liveness()
        return self.trace.hexdigest()

    def describe(self) -> str:
        faults = " ".join(f"{name}={value}" for name, value in asdict(self.drawn).items())
        counts = {**self.counts, **{f"net_{k}": v for k, v in self.network.counts.items()}}
        counted = " ".join(f"{name}={count}" for name, count in sorted(counts.items()))
        return f"SEED={self.seed}\n  options: {faults}\n  counts: {counted}"

    def _note(self, *what: object) -> None:
        self.trace.update(repr(what).encode())

    def _send(self, envelope: Envelope) -> None:
        self._note("send", envelope)
        self.checker.on_sent(envelope)
        self.network.send(envelope)

    def _chance(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    def _running(self) -> list[Peer]:
        """The peers that are up and not standing still."""
        return [
            peer
            for peer in self.peers.values()
            if peer.is_up and peer.node_id not in self.paused_until
        ]

    def _victim(self) -> Peer:
        """Whom a fault strikes: now and then on purpose the leader of the highest term."""
        leaders = [
            (peer.node.term, peer.node_id)
            for peer in self._running()
            if peer.node.role is RoleName.LEADER
        ]
        if leaders and self._chance(self.options.at_leader):
            return self.peers[max(leaders)[1]]
        return self.random.choice(list(self.peers.values()))

    # --- one step -------------------------------------------------------------------------------

    def _turn(self) -> None:
        self.now += 1
        self.network.advance()
        for peer in self._running():
            if not self._chance(self.options.tick_skew):
                peer.node.tick()
                self._after(peer)
        for envelope in self.network.take_due():
            self.backlog[envelope.to_node].append(envelope)
        for name, waiting in self.backlog.items():
            if not self.peers[name].is_up:
                waiting.clear()
            elif name not in self.paused_until:
                self._deliver(self.peers[name], waiting)
        for peer in self._running():
            while peer.is_up and peer.pending and self._chance(self.options.persist):
                self._persist(peer)
            if peer.is_up and peer.node.has_effects:
                self._take(peer)

    def _deliver(self, peer: Peer, waiting: list[Envelope]) -> None:
        while waiting and peer.is_up:
            envelope = waiting.pop(0)
            self._note("deliver", envelope)
            index, term = peer.node.last_index, peer.node.last_term
            peer.node.step(envelope)
            if peer.node.entry_term(index) != term:
                self.counts["suffix_overwritten"] += 1
                self.counts["overwritten_under_way"] += bool(peer.pending)
            self._after(peer)

    def _after(self, peer: Peer) -> None:
        if not peer.is_up:
            return
        self.checker.check(peer)
        if peer.node.has_effects and not self._chance(self.options.lazy):
            self._take(peer)

    def _take(self, peer: Peer) -> None:
        try:
            effects = peer.take()
        except StorageFailedError:
            self._crash(peer)
            return
        self._note("effects", peer.node_id, effects)
        self.checker.on_effects(peer, effects)
        self.checker.check(peer)
        if len(peer.pending) > 1:
            self.counts["writes_in_flight"] += 1
        for committed in effects.committed:
            name = EntryId(committed.term, committed.index)
            if name in self.pending and peer.node.role is RoleName.LEADER:
                self.acknowledged[name] = self.pending.pop(name)
                require(self.acknowledged[name] == committed.data, "another command was applied")
        for grant in effects.read_grants:
            self.counts["reads_granted"] += 1
            require(grant.index >= self.read_floor.pop(grant.read_id), "a stale read")
        self.counts["reads_dropped"] += len(effects.reads_dropped)
        if effects.role_change is not None and effects.role_change.role is RoleName.LEADER:
            self.counts["leaders"] += 1
            self.last_leader = (peer.node_id, effects.role_change.term)

    def _persist(self, peer: Peer) -> None:
        write = peer.pending[0][0]
        self._note("persist", peer.node_id, write.write_number)
        try:
            peer.disk.sync_one()
        except StorageFailedError:
            self._crash(peer)
            return
        self.checker.on_synced(peer, write)
        peer.completed()
        self.checker.check(peer)

    # --- what the world does --------------------------------------------------------------------

    def _faults(self) -> None:
        options = self.options
        self.paused_until = {n: until for n, until in self.paused_until.items() if until > self.now}
        for peer in self.peers.values():
            if not peer.is_up and self._chance(options.restart):
                peer.start()
                self.counts["restarts"] += 1
        if self._chance(options.crash * options.peers):
            peer = self._victim()
            if peer.is_up:
                self._crash(peer)
        if self._chance(options.eio * options.peers):
            peer = self._victim()
            if peer.is_up:
                peer.disk.fail()
                self.counts["eio"] += 1
        if self._chance(options.pause * options.peers):
            self.paused_until[self._victim().node_id] = self.now + self.random.randint(1, 60)
            self.counts["pauses"] += 1
        if self._chance(options.cut):
            self._cut(self._victim().node_id)
        if self._chance(options.heal):
            self.network.heal()

    def _cut(self, one: NodeId) -> None:
        kind = self.random.choice(("one_way", "pair", "isolate"))
        other = self.random.choice([name for name in self.peers if name != one])
        self.counts[f"cut_{kind}"] += 1
        if kind == "isolate":
            self.network.isolate(one, self.peers)
        elif kind == "pair":
            self.network.cut(one, other)
            self.network.cut(other, one)
        else:
            self.network.cut(*self.random.sample((one, other), 2))

    def _crash(self, peer: Peer) -> None:
        self.paused_until.pop(peer.node_id, None)
        writes = [write for write, _ in peer.pending]
        survived = peer.crash(self.random.randint if self.options.survive else None)
        self.counts["crashes"] += 1
        self.counts["writes_lost"] += len(writes) - survived
        self.counts["writes_torn_off_half_way"] += 0 < survived < len(writes)
        self._note("crash", peer.node_id, survived)
        self.checker.on_crash(peer, writes[:survived])

    def _clients(self) -> None:
        options = self.options
        for peer in self._running():
            if self._chance(options.propose):
                self._propose(peer, self.random.randint(1, 4))
            if self._chance(options.read):
                self._read(peer)
            if self._chance(options.transfer) and peer.node.role is RoleName.LEADER:
                peer.node.transfer(self.random.choice(list(self.peers)))
                self.counts["transfers"] += 1
            if self._chance(options.unreachable):
                peer.node.report_unreachable(self.random.choice(list(self.peers)))
            if self.last_leader is not None and self._chance(options.peer_lost):
                peer.node.peer_lost(*self.last_leader)
                self.counts["peer_lost"] += 1
            self._after(peer)

    def _propose(self, peer: Peer, count: int) -> None:
        commands = [b"%d" % (self.proposed + offset) for offset in range(count)]
        try:
            accepted = peer.node.propose(commands)
        except NotLeaderError:
            return
        self.proposed += count
        self.counts["proposed"] += count
        for name, command in zip(accepted, commands, strict=True):
            require(name not in self.pending, f"{name} was given away twice")
            self.pending[name] = command

    def _read(self, peer: Peer) -> None:
        self.reads += 1
        read_id = ReadId(peer.node_id, peer.boots, self.reads)
        try:
            peer.node.request_read(read_id)
        except NotLeaderError:
            return
        self.read_floor[read_id] = len(self.checker.committed)

    # --- phase 2 --------------------------------------------------------------------------------

    def _liveness(self) -> None:
        """A healed majority makes progress while the rest is broken; then all are equal."""
        self.network.heal()
        self.paused_until.clear()
        self.network.faults = NetworkFaults()
        quiet = {"loss": 0.0, "tick_skew": 0.0, "persist": 1.0, "lazy": 0.0}
        self.options = Options(**{**asdict(self.options), **quiet})
        order = list(self.peers)
        self.random.shuffle(order)
        majority = order[: len(order) // 2 + 1]
        for name, peer in self.peers.items():
            if name in majority:
                if peer.is_up and peer.disk.failing:
                    self._crash(peer)
                if not peer.is_up:
                    peer.start()
            elif peer.is_up:
                self._crash(peer)
        self._converge([self.peers[name] for name in majority])
        for peer in self.peers.values():
            if not peer.is_up:
                peer.start()
        self._converge(list(self.peers.values()))
        self._one_link_down()
        self._converge(list(self.peers.values()))
        for where, command in self.acknowledged.items():
            for peer in self.peers.values():
                applied = peer.applied[where.index - 1]
                require(
                    (applied.term, applied.data) == (where.term, command),
                    f"{peer.node_id} lost the acknowledged {where}",
                )
        self.counts["acknowledged"] = len(self.acknowledged)
        self.counts["committed"] = len(self.checker.committed)

    def _one_link_down(self) -> None:
        """With one link cut, there is a leader that stays and commits (faults B14)."""
        one, other = self.random.sample(list(self.peers), 2)
        self.network.cut(one, other)
        self.network.cut(other, one)
        ticks = 3 * self.peers[one].config.election_ticks_max
        for _ in range(ticks):
            self._turn()
        before, committed = self.counts["leaders"], len(self.checker.committed)
        for _ in range(ticks):
            for peer in self.peers.values():
                if peer.node.is_ready_leader:
                    self._propose(peer, 1)
            self._turn()
        require(len(self.checker.committed) > committed, f"no progress with {one}-{other} cut")
        require(self.counts["leaders"] <= before + 1, f"no stable leader with {one}-{other} cut")
        self.network.heal()

    def _converge(self, peers: list[Peer]) -> None:
        """Until a new command, and with it everything before it, is applied by all of them."""
        # One entry a round trip of two turns is the slowest that a seed may configure.
        backlog = max(peer.node.last_index for peer in peers)
        budget = 10 * peers[0].config.election_ticks_max + 4 * backlog
        accepted: EntryId | None = None
        for step in range(budget):
            leader = next((peer for peer in peers if peer.node.is_ready_leader), None)
            if leader is not None and (accepted is None or accepted.term != leader.node.term):
                try:
                    (accepted,) = leader.node.propose([b"after healing"])
                except NotLeaderError:
                    self.counts["handing_over_after_heal"] += 1
            self._turn()
            if accepted is not None and all(
                accepted.index <= len(peer.applied) == peer.node.last_index for peer in peers
            ):
                self.counts["converged_after_ticks"] += step
                for peer in peers:
                    require(peer.applied == self.checker.committed, f"{peer.node_id} differs")
                return
        states = [(p.node_id, p.node.role, p.node.term, p.node.commit_index) for p in peers]
        require(False, f"no progress within {budget} ticks after healing: {states}")
