"""A random operator: machines come, are promoted, removed and replaced while all else goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaia_grpc.errors import ConfigurationRefusedError, NotLeaderError
from gaia_grpc.raft.types import Index, NodeId
from tests.sim.identity import Membership, membership, name_of
from tests.sim.peer import SimPeer
from tests.support.checkers import require

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

MAX_VOTERS = 6


class Operator:
    """Never changes the members so that those that are left can't have a majority."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._caught_up_at: dict[str, int] = {}
        """Learner to the commit index that it must have reached before it is promoted."""

    def run(self) -> None:
        """Does one thing in this turn, or nothing."""
        world = self._world
        if not world.chance(world.options.operator):
            return
        if world.random.random() < 0.05:
            self._new_machine()
            return
        leaders = [peer for peer in world.running() if peer.is_leader]
        if leaders:
            self._act(world.random.choice(leaders))

    def _act(self, leader: SimPeer) -> None:
        members, random = leader.members, self._world.random
        lost = self._world.disks.names_lost(members)
        caught_up = [each for each in members.learners if self._caught_up(leader, each)]
        outside = self._outside(members)
        draw = random.random()
        if lost and draw < 0.6:
            self._remove(leader, random.choice(lost))
        elif caught_up and draw < 0.8 and len(members.voters) < MAX_VOTERS:
            self._promote(leader, random.choice(caught_up))
        elif outside and draw < 0.75:
            self._add(leader, random.choice(outside))
        elif draw < 0.9:
            self._remove(leader, random.choice((*members.voters, *members.learners)))
        elif draw < 0.96:
            self._demote(leader, random.choice(members.voters))
        else:
            self._forbidden(leader)

    def _outside(self, members: Membership) -> list[str]:
        """Machines that could join: their names are free."""
        world = self._world
        return [
            peer.identity
            for peer in world.peers.values()
            if not members.identity_of(peer.node_id) and peer.identity not in world.disks.lost
        ]

    def _new_machine(self) -> None:
        """One more, or the disk of a removed one is formatted: it is another member then."""
        world = self._world
        free = [peer for peer in world.peers.values() if not self._is_named(peer.identity)]
        if free and world.random.random() < 0.6:
            peer = world.random.choice(free)
            if peer.is_up:
                world.crash(peer)
            world.replace(peer)
            world.counts["formatted"] += 1
        elif len(world.peers) < world.options.peers + 2:
            world.add_machine(f"n{len(world.peers) + 1}.1")

    def _is_named(self, identity: str) -> bool:
        return any(identity in (*each.voters, *each.learners) for each in self._world.books.alive())

    # --- changes ----------------------------------------------------------------------------------

    def _caught_up(self, leader: SimPeer, identity: str) -> bool:
        wanted = self._caught_up_at.setdefault(identity, int(leader.node.commit_index))
        return (
            identity not in self._world.disks.lost
            and leader.node.match_index(NodeId(name_of(identity))) >= wanted
        )

    def _add(self, leader: SimPeer, identity: str) -> None:
        members = leader.members
        learners = tuple(sorted((*members.learners, identity)))
        if self._propose(leader, Membership(members.voters, learners), "added"):
            self._caught_up_at[identity] = int(leader.node.commit_index)

    def _promote(self, leader: SimPeer, identity: str) -> None:
        members = leader.members
        voters = tuple(sorted((*members.voters, identity)))
        learners = tuple(each for each in members.learners if each != identity)
        self._propose(leader, Membership(voters, learners), "promoted")

    def _remove(self, leader: SimPeer, identity: str) -> None:
        members = leader.members
        voters = tuple(each for each in members.voters if each != identity)
        learners = tuple(each for each in members.learners if each != identity)
        what = "removed"
        if identity == leader.identity:
            what = "removed_leader"
        elif not (peer := self._world.peers[NodeId(name_of(identity))]).is_up:
            what = "removed_while_down"
        elif not self._world.network.connected(leader.node_id, peer.node_id):
            what = "removed_while_cut"
        self._propose(leader, Membership(voters, learners), what)

    def _demote(self, leader: SimPeer, identity: str) -> None:
        members = leader.members
        voters = tuple(each for each in members.voters if each != identity)
        learners = tuple(sorted((*members.learners, identity)))
        self._propose(leader, Membership(voters, learners), "demoted")

    def _propose(self, leader: SimPeer, members: Membership, what: str) -> bool:
        world, node = self._world, leader.node
        if not members.voters or not world.disks.bears(members):
            return False
        if len(members.voters) < 3 and world.random.random() < 0.7:
            return False
        before = node.configuration
        try:
            entry_id = node.propose_configuration(members.encode())
        except NotLeaderError:
            return False
        except ConfigurationRefusedError:
            world.counts["changes_refused"] += 1
            return False
        (entry,) = node.entries(Index(entry_id.index), 1)
        world.books.on_configuration_proposed(leader, entry, before)
        world.counts[f"members_{what}"] += 1
        world.note("change", leader.identity, members)
        world.after(leader)
        return True

    def _forbidden(self, leader: SimPeer) -> None:
        """Two voters at once is always refused."""
        members = leader.members
        if len(members.voters) < 3:
            return
        after = Membership(members.voters[2:], members.learners)
        try:
            leader.node.propose_configuration(after.encode())
        except (NotLeaderError, ConfigurationRefusedError):
            self._world.counts["changes_refused"] += 1
        else:
            require(False, f"{membership(leader.node.configuration)} became {after} at once")
