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
from tests.support.peers import Peer, entry, make_config, names


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
    max_entries: int
    max_inflight: int
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
            crash=rate(0.02),
            survive=random.random() < 0.6,
            eio=rate(0.005, zero=0.7),
            restart=random.choice((0.02, 0.1, 0.3)),
            cut=rate(0.06),
            heal=random.choice((0.01, 0.04, 0.15)),
            propose=random.choice((0.2, 0.5, 0.9)),
            read=rate(0.5),
            transfer=rate(0.02, zero=0.6),
            peer_lost=rate(0.05, zero=0.6),
            unreachable=rate(0.05, zero=0.5),
            max_entries=random.choice((1, 2, 5, 64)),
            max_inflight=random.choice((1, 2, 8)),
            founded=random.random() < 0.3,
        )


class Simulation:
    """`run` raises `ViolationError` (or what the core raised) where something is wrong."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.seed = seed
        self.options = options or Options.from_seed(seed)
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
            founding = (entry(1, 1, kind=EntryKind.CONFIGURATION), entry(1, 2))
            start = Restored(HardState(Term(1), NO_NODE, Index(2)), founding)
        self.peers = {
            name: Peer(
                make_config(
                    name,
                    voters,
                    max_entries=self.options.max_entries,
                    max_inflight=self.options.max_inflight,
                ),
                MemoryLog(start),
                self._send,
                self.random.randint,
            )
            for name in voters
        }
        self.checker = SafetyChecker(self.peers.values())
        self.checker.committed += start.entries
        self.proposed = 0
        self.pending: dict[EntryId, bytes] = {}
        self.acknowledged: dict[EntryId, bytes] = {}
        self.read_floor: dict[ReadId, int] = {}
        self.reads = 0
        self.last_leader: tuple[NodeId, Term] | None = None

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
        faults = " ".join(f"{name}={value}" for name, value in asdict(self.options).items())
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

    def _up(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.is_up]

    # --- one step -------------------------------------------------------------------------------

    def _turn(self) -> None:
        self.network.advance()
        for peer in self._up():
            if not self._chance(self.options.tick_skew):
                peer.node.tick()
                self._after(peer)
        for envelope in self.network.take_due():
            peer = self.peers[envelope.to_node]
            if peer.is_up:
                self._note("deliver", envelope)
                before = peer.node.last_index, peer.node.last_term
                peer.node.step(envelope)
                if (peer.node.last_term, peer.node.last_index) < (before[1], before[0]) or (
                    peer.node.entry_term(before[0]) != before[1]
                ):
                    self.counts["suffix_overwritten"] += 1
                    self.counts["overwritten_under_way"] += bool(peer.pending)
                self._after(peer)
        for peer in self._up():
            while peer.is_up and peer.pending and self._chance(self.options.persist):
                self._persist(peer)
            if peer.is_up and peer.node.has_effects:
                self._take(peer)

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
        options, random = self.options, self.random
        for peer in list(self.peers.values()):
            if not peer.is_up:
                if self._chance(options.restart):
                    peer.start()
                    self.counts["restarts"] += 1
            elif self._chance(options.crash):
                self._crash(peer)
            elif self._chance(options.eio):
                peer.disk.fail()
                self.counts["eio"] += 1
        voters = list(self.peers)
        if self._chance(options.cut):
            kind = random.choice(("one_way", "pair", "isolate"))
            one, other = random.sample(voters, 2)
            self.counts[f"cut_{kind}"] += 1
            if kind == "isolate":
                self.network.isolate(one, voters)
            else:
                self.network.cut(one, other)
                if kind == "pair":
                    self.network.cut(other, one)
        if self._chance(options.heal):
            self.network.heal()

    def _crash(self, peer: Peer) -> None:
        writes = [write for write, _ in peer.pending]
        survived = peer.crash(self.random.randint if self.options.survive else None)
        self.counts["crashes"] += 1
        self.counts["writes_lost"] += len(writes) - survived
        self.counts["writes_torn_off_half_way"] += 0 < survived < len(writes)
        self._note("crash", peer.node_id, survived)
        self.checker.on_crash(peer, writes[:survived])

    def _clients(self) -> None:
        options = self.options
        for peer in self._up():
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
        for where, command in self.acknowledged.items():
            for peer in self.peers.values():
                applied = peer.applied[where.index - 1]
                require(
                    (applied.term, applied.data) == (where.term, command),
                    f"{peer.node_id} lost the acknowledged {where}",
                )
        self.counts["acknowledged"] = len(self.acknowledged)
        self.counts["committed"] = len(self.checker.committed)

    def _converge(self, peers: list[Peer]) -> None:
        marker = b"marker %d" % self.proposed
        # One entry a round trip of two turns is the slowest that a seed may configure.
        backlog = max(peer.node.last_index for peer in peers)
        budget = 10 * peers[0].config.election_ticks_max + 4 * backlog
        for step in range(budget):
            leader = next((peer for peer in peers if peer.node.is_ready_leader), None)
            if leader is not None and marker not in [
                e.data for e in leader.node.entries(Index(max(1, leader.node.last_index - 20)), 21)
            ]:
                try:
                    leader.node.propose([marker])
                except NotLeaderError:
                    self.counts["handing_over_after_heal"] += 1
            self._turn()
            ends = [peer.applied[-1].data if peer.applied else b"" for peer in peers]
            if all(end == marker for end in ends):
                self.counts["converged_after"] = max(self.counts["converged_after"], step)
                self._require_equal(peers)
                return
        states = [(p.node_id, p.node.role, p.node.term, p.node.commit_index) for p in peers]
        require(False, f"no progress within {budget} ticks after healing: {states}")

    def _require_equal(self, peers: list[Peer]) -> None:
        for peer in peers:
            require(peer.applied == self.checker.committed, f"{peer.node_id} differs at the end")
