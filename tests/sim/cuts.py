"""Partitions of all kinds, and their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaia_grpc.raft.types import NodeId

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

KINDS = ("one_way", "pair", "isolate", "halves", "deaf", "bridge", "freeze")


class Cuts:
    """Draws them for the network of a world."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._is_cut = False

    def run(self) -> None:
        """One turn."""
        world = self._world
        if world.chance(world.options.cut):
            self._cut(world.random.choice(KINDS), world.victim().node_id)
        if world.chance(world.options.heal):
            world.network.heal()
            if self._is_cut and world.chance(world.options.crash_at_heal):
                self._crash_leader()
            self._is_cut = False

    def _crash_leader(self) -> None:
        """Who was cut off may have a longer log than those that go on (section 5.4.1)."""
        leaders = [peer for peer in self._world.running() if peer.is_leader]
        if leaders:
            self._world.counts["crashes_after_a_cut"] += 1
            self._world.crash(max(leaders, key=lambda peer: peer.node.term))

    def _cut(self, kind: str, one: NodeId) -> None:
        world = self._world
        self._is_cut = True
        network, names = world.network, list(world.peers)
        others = [name for name in names if name != one]
        other = world.random.choice(others)
        world.counts[f"cut_{kind}"] += 1
        if kind == "isolate":
            network.isolate(one, names)
        elif kind == "freeze":
            # It wakes up alone, and may believe for a while that it leads still (faults B9).
            network.isolate(one, names)
            if world.peers[one].is_up:
                world.paused_until[one] = world.now + world.random.randint(10, 40)
        elif kind == "one_way":
            network.cut(*world.random.sample((one, other), 2))
        elif kind == "pair":
            self._both(one, other)
        elif kind == "deaf":
            for name in others:
                network.cut(name, one)
        else:
            side = [name for name in others if world.random.random() < 0.5]
            bridge = one if kind == "bridge" else None  # it reaches both sides
            for name in names:
                for far in side:
                    if name not in side and name != bridge:
                        self._both(name, far)

    def _both(self, one: NodeId, other: NodeId) -> None:
        self._world.network.cut(one, other)
        self._world.network.cut(other, one)
