"""Phase 2: a healed majority makes progress while the rest is broken; then all become equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gaia_grpc.errors import NotLeaderError
from gaia_grpc.raft.types import EntryId
from gaia_grpc.transport.memory import NetworkFaults
from tests.sim.clients import propose_noop
from tests.sim.identity import name_of
from tests.sim.peer import SimPeer
from tests.support.checkers import require

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

TIMEOUT_TURNS = 25
"""One election timeout by the slowest clock: 20 ticks at 80 %."""


class Liveness:
    """Demands it of one world."""

    def __init__(self, world: Simulation) -> None:
        self._world = world

    def run(self) -> None:
        """Raises `ViolationError` where there is no progress in time."""
        world = self._world
        self._quiet()
        majority = self._majority()
        self._break(majority)
        self._progress(majority)
        world.network.heal()
        for peer in world.peers.values():
            if peer.identity not in world.disks.lost and not peer.is_up:
                world.restart(peer)
        world.paused_until.clear()
        self._converge()
        if world.drawn.one_link_down:
            self._one_link_down()
            self._converge()

    def _quiet(self) -> None:
        world = self._world
        world.options = world.drawn.quiet()
        world.network.faults = NetworkFaults()
        world.network.heal()
        world.paused_until.clear()
        world.full_until.clear()
        world.clients.stopping = True
        for peer in world.peers.values():
            peer.disk.set_full(False)
            peer.stalled_until = 0
            if peer.is_up and peer.disk.failing:
                world.crash(peer)

    def _majority(self) -> list[SimPeer]:
        """Random machines that are a majority of every configuration that may be in force."""
        world = self._world
        alive = world.books.alive()
        good = [peer for peer in world.peers.values() if peer.identity not in world.disks.lost]
        world.random.shuffle(good)
        chosen: list[SimPeer] = []
        for peer in good:
            wanting = [
                members
                for members in alive
                if sum(each.identity in members.voters for each in chosen)
                <= len(members.voters) // 2
            ]
            if any(peer.identity in members.voters for members in wanting):
                chosen.append(peer)
        return chosen

    def _break(self, majority: list[SimPeer]) -> None:
        """The others are down, cut off, or talk and hear nothing."""
        world = self._world
        for peer in world.peers.values():
            if peer in majority:
                if not peer.is_up:
                    world.restart(peer)
                continue
            kind = world.random.choice(("down", "isolated", "deaf"))
            if kind == "down" and peer.is_up:
                world.crash(peer)
            elif kind == "isolated":
                world.network.isolate(peer.node_id, world.peers)
            else:
                for name in world.peers:
                    world.network.cut(name, peer.node_id)

    def _until(self, turns: int, done: Callable[[], bool], what: str) -> int:
        world = self._world
        for turn in range(turns):
            if done():
                return turn
            world.clients.run()
            world.turn()
        states = [
            f"{p.identity} {p.node.role} t{p.node.term} c{p.node.commit_index} l{p.node.last_index}"
            for p in world.peers.values()
            if p.is_up
        ]
        require(False, f"{what} within {turns} turns after healing: {states}")
        return turns

    def _backlog(self) -> int:
        """One entry a round trip of two turns is the slowest that a seed may configure."""
        return 4 * max(p.node.last_index for p in self._world.peers.values() if p.is_up)

    def _leader(self, among: list[SimPeer]) -> SimPeer | None:
        ready = [peer for peer in among if peer.is_up and peer.node.is_ready_leader]
        return max(ready, key=lambda peer: peer.node.term, default=None)

    def _progress(self, majority: list[SimPeer]) -> None:
        world = self._world
        turns = self._until(
            10 * TIMEOUT_TURNS, lambda: any(peer.is_leader for peer in majority), "no leader"
        )
        world.counts["turns_to_a_leader"] += turns
        budget = 10 * TIMEOUT_TURNS + self._backlog()
        self._until(budget, lambda: self._leader(majority) is not None, "no ready leader")
        self._until(budget, lambda: world.clients.pending == 0, "requests without an answer")

    def _converge(self) -> None:
        """A new command, and with it all before it, is applied by every member that can be."""
        world = self._world
        asked: EntryId | None = None

        def equal() -> bool:
            nonlocal asked
            leader = self._leader(list(world.peers.values()))
            if leader is None:
                return False
            if asked is None or asked.term != leader.node.term:
                try:
                    asked = propose_noop(leader, world.now)
                except NotLeaderError:
                    world.counts["handing_over_after_heal"] += 1
                return False
            members = leader.members
            return all(
                peer.machine.index == leader.node.last_index >= asked.index
                for peer in world.peers.values()
                if peer.identity in (*members.voters, *members.learners) and peer.is_up
            )

        turns = self._until(20 * TIMEOUT_TURNS + self._backlog(), equal, "not equal")
        world.counts["turns_to_equal_states"] += turns
        leader = self._leader(list(world.peers.values()))
        require(leader is not None, "the leader is gone")
        for each in (*leader.members.voters, *leader.members.learners) if leader else ():
            peer = next(p for p in world.peers.values() if p.node_id == name_of(each))
            if peer.identity == each and each not in world.disks.lost:
                require(peer.is_up, f"{each} did not start")
                world.oracle.check_state(each, peer.machine)

    def _one_link_down(self) -> None:
        """With one link cut, there is a leader that stays and commits (faults B14)."""
        world = self._world
        leader = self._leader(list(world.peers.values()))
        assert leader is not None
        voters = [p for p in world.peers.values() if p.identity in leader.members.voters]
        if len(voters) < 3 or any(each in world.disks.lost for each in leader.members.voters):
            return
        one, other = world.random.sample([peer.node_id for peer in voters], 2)
        world.network.cut(one, other)
        world.network.cut(other, one)
        for _ in range(3 * TIMEOUT_TURNS):
            world.turn()
        before, committed = world.counts["elections"], len(world.books.committed)
        for _ in range(3 * TIMEOUT_TURNS):
            leader = self._leader(voters)
            if leader is not None:
                try:
                    propose_noop(leader, world.now)
                except NotLeaderError:
                    world.counts["handing_over_after_heal"] += 1
            world.turn()
        require(len(world.books.committed) > committed, f"no progress with {one}-{other} cut")
        require(world.counts["elections"] <= before + 1, f"no stable leader with {one}-{other} cut")
        world.network.heal()
