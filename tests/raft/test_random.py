"""Random runs with snapshots and changes of the members, small enough to be many.

The big simulation has faults of time and disk; this one aims at the rules of sections 6 and 7. Each
run mixes compaction, installs, joins, removals, crashes, cuts and transfers over a network that
reorders, repeats and loses. What is checked keeps its own books.
"""

from __future__ import annotations

from random import Random

import pytest

from gaia_grpc.errors import ConfigurationRefusedError, InvalidArgumentError, NotLeaderError
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.messages import AppendRequest, Envelope, SnapshotRequest
from gaia_grpc.raft.types import Entry, Index, NodeId
from gaia_grpc.storage.memory import MemoryLog
from tests.support.checkers import SafetyChecker
from tests.support.cluster import Cluster, Peer, configuration, make_config, names

RUNS = 30
STEPS = 400


class Run:
    """One cluster of three with up to two more peers that come and go."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = Cluster(0)
        self.wire = self.cluster.wire
        self.committed: list[Entry] = []
        self.senders: dict[int, NodeId] = {}
        self.proposed = 0
        voters = names(3)
        for name in names(5):
            raft_config = make_config(name, voters if name in voters else (), max_entries=3)
            self.cluster.peers[name] = Peer(
                raft_config, MemoryLog(), self.send, self.random.randint
            )
        self.peers = list(self.cluster.peers.values())
        self.checker = SafetyChecker(self.peers)

    def send(self, envelope: Envelope) -> None:
        if isinstance(envelope.payload, AppendRequest | SnapshotRequest):
            sender = self.senders.setdefault(envelope.term, envelope.from_node)
            assert sender == envelope.from_node, f"two leaders in term {envelope.term}"
        self.checker.on_sent(envelope)
        self.wire.append(envelope)

    def persist(self, peer: Peer) -> None:
        write = peer.pending[0][0]
        peer.disk.sync_one()
        self.checker.on_synced(peer, write)
        peer.completed()
        self.checker.check(peer)

    def take(self, peer: Peer) -> None:
        before = len(peer.applied)
        installed = len(peer.installs)
        self.checker.on_effects(peer, peer.take())
        self.checker.check(peer)
        if len(peer.installs) > installed:
            before = 0
            meta = peer.installs[-1]
            assert meta.index <= len(self.committed), "a snapshot of what is not committed"
            assert self.committed[meta.index - 1].term == meta.term
        for entry in peer.applied[before:]:
            if entry.index > len(self.committed):
                assert entry.index == len(self.committed) + 1
                self.committed.append(entry)
            assert self.committed[entry.index - 1] == entry, "two different committed entries"

    def up(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.is_up]

    def leaders(self) -> list[Peer]:
        return [peer for peer in self.up() if peer.node.role is RoleName.LEADER]

    def step(self) -> None:
        random = self.random
        for peer in self.up():
            if random.random() < 0.5:
                peer.node.tick()
        for _ in range(min(len(self.wire), random.randint(0, 12))):
            envelope = self.wire.pop(random.randrange(min(len(self.wire), 4)))
            if random.random() < 0.03:
                self.wire.append(envelope)
            if random.random() < 0.03:
                self.lose(envelope)
            else:
                self.cluster.hand_over(envelope)
            self.take_some(0.8)
        if self.leaders():
            self.ask(random.choice(self.leaders()))
        self.faults()
        self.take_some(1.0)
        for peer in self.up():
            while peer.pending and random.random() < 0.7:
                self.persist(peer)
        self.take_some(1.0)

    def take_some(self, chance: float) -> None:
        for peer in self.up():
            if peer.node.has_effects and self.random.random() < chance:
                self.take(peer)

    def lose(self, envelope: Envelope) -> None:
        sender = self.cluster.peers[envelope.from_node]
        if isinstance(envelope.payload, SnapshotRequest) and sender.is_up:
            sender.node.report_snapshot(envelope.to_node, False)

    def ask(self, leader: Peer) -> None:
        random, node = self.random, leader.node
        try:
            if random.random() < 0.5:
                self.proposed += 1
                node.propose([b"%d" % self.proposed])
            if random.random() < 0.08:
                node.propose_configuration(self.changed(leader))
            if random.random() < 0.02:
                node.transfer(random.choice(names(5)))
            if random.random() < 0.005:
                node.step_down()
        except (NotLeaderError, ConfigurationRefusedError, InvalidArgumentError):
            pass

    def changed(self, leader: Peer) -> bytes:
        """Any change; the core refuses those that are not safe."""
        random = self.random
        voters, learners = list(leader.node.members.voters), list(leader.node.members.learners)
        name = random.choice(names(5))
        if name in learners:
            learners.remove(name)
            voters.append(name)
        elif name in voters and len(voters) > 1:
            voters.remove(name)
            if random.random() < 0.3:
                learners.append(name)
        elif name not in voters:
            (learners if random.random() < 0.6 else voters).append(name)
        return configuration(sorted(voters), sorted(learners))

    def faults(self) -> None:
        random = self.random
        peer = random.choice(self.peers)
        if peer.is_up and random.random() < 0.03:
            writes = [write for write, _ in peer.pending]
            survived = peer.crash(random.randint)
            self.checker.on_crash(peer, writes[:survived])
        elif not peer.is_up and random.random() < 0.5:
            peer.start()
        elif peer.is_up and random.random() < 0.15 and self.may_compact(peer):
            self.checker.on_compacted(peer, peer.compact(random.choice((0, 0, 2))))
        if random.random() < 0.02:
            one, other = random.sample(names(5), 2)
            self.cluster.cut(one, other)
        if random.random() < 0.05:
            self.cluster.heal()

    @staticmethod
    def may_compact(peer: Peer) -> bool:
        known = peer.node.snapshot
        at = min(peer.state_index, peer.node.durable_index)
        return at > (known.index if known else 0) and not any(
            write.snapshot for write, _ in peer.pending
        )

    def converge(self) -> None:
        """Everyone is up and connected: the members agree soon."""
        self.cluster.heal()
        for peer in self.peers:
            if not peer.is_up:
                peer.start()
        for round_number in range(400):
            for peer in self.up():
                peer.node.tick()
            for envelope in self.wire[:]:
                self.wire.remove(envelope)
                self.cluster.hand_over(envelope)
                self.take_some(1.0)
            self.take_some(1.0)
            for peer in self.up():
                while peer.pending:
                    self.persist(peer)
            self.take_some(1.0)
            if round_number > 80 and self.agreed():
                return
        raise AssertionError("no agreement")

    def agreed(self) -> bool:
        ready = [peer for peer in self.leaders() if peer.node.is_ready_leader]
        if not ready:
            return False
        leader = max(ready, key=lambda peer: peer.node.term).node
        members = leader.members.voters + leader.members.learners
        return all(
            self.cluster[name].node.commit_index == leader.last_index == leader.commit_index
            and self.cluster[name].node.members == leader.members
            for name in members
        )


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_random_run_is_safe_and_comes_to_rest(seed: int) -> None:
    run = Run(seed)
    for _ in range(STEPS):
        run.step()
    run.converge()
    for peer in run.peers:
        log = peer.node.entries(peer.node.first_index, 1000)
        for entry in log[: max(peer.node.commit_index - peer.node.first_index + 1, 0)]:
            assert entry == run.committed[entry.index - 1]
        assert peer.node.configuration == peer.node.configuration_at(Index(10_000))
