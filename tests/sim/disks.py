"""What the disks of the peers do in a turn: writes, snapshots of the own state, and faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaia_grpc.errors import StorageFailedError, StorageFullError
from gaia_grpc.raft.types import Index, SnapshotMeta
from tests.sim.identity import Membership
from tests.sim.peer import Making, SimPeer, Submitted
from tests.support.checkers import require

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

PAUSE_TURNS = 20
"""After a snapshot that found no space."""


class Disks:
    """The disks of all peers."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self.lost: dict[str, None] = {}
        """Identities whose disk is gone or damaged: they never come back."""

    # --- work -------------------------------------------------------------------------------------

    def run(self, peer: SimPeer) -> None:
        """One turn of one disk; an error that leaves it in doubt ends the process (faults B23)."""
        world = self._world
        if peer.stalled_until > world.now:
            return
        try:
            self._write(peer)
            if peer.is_up:
                self._snapshots(peer)
        except StorageFailedError:
            world.counts["failed_disks"] += 1
            world.crash(peer)

    def _write(self, peer: SimPeer) -> None:
        world, options = self._world, self._world.options
        while peer.is_up and (peer.under_way or peer.queue):
            if not peer.under_way:
                if not world.chance(options.persist):
                    return
                latency = world.random.randint(0, options.latency_turns)
                if not peer.begin_write(options.group, world.now + latency):
                    world.counts["writes_without_space"] += 1
                    return
            if peer.done_at > world.now:
                return
            self._done(peer, peer.end_write())

    def _done(self, peer: SimPeer, writes: list[Submitted]) -> None:
        world = self._world
        for write in writes:
            world.note("persist", peer.identity, write.batch.write_number)
            world.books.on_synced(peer, write.batch)
        for write in writes:
            peer.node.persisted(write.batch.write_number)
            for envelope in write.messages:
                world.send(peer, envelope)
            if write.install is not None:
                delay = world.random.randint(0, world.options.restore_turns)
                peer.restoring = (write.install, world.now + delay)
        world.books.check(peer)

    def _snapshots(self, peer: SimPeer) -> None:
        self._restore(peer)
        self._make(peer)
        if peer.compact_to is not None and not peer.installing:
            base, peer.compact_to = peer.compact_to, None
            try:
                peer.disk.compact(base)
                peer.disk.maintain()
            except StorageFullError:
                peer.compact_to = base
                return
            if base.index > self._world.books.disks[peer.node_id].base.index:
                self._world.books.on_compacted(peer, base)
            self._world.counts["compactions"] += 1

    # --- a snapshot that was installed ------------------------------------------------------------

    def _restore(self, peer: SimPeer) -> None:
        world = self._world
        if peer.restoring is None or peer.restoring[1] > world.now:
            return
        meta, _ = peer.restoring
        peer.restoring = None
        if peer.installing:
            return  # a newer one is on its way into the log
        content = peer.read_snapshot(meta)
        peer.replace_state(meta, content)
        require(peer.machine.index == meta.index, "the content is of another index")
        self.check_restored(peer, content)
        world.counts["snapshots_installed"] += 1
        if peer.making is not None:
            peer.making.writer.abort()
            peer.making = None
        self._drop_older(peer, meta)

    def check_restored(self, peer: SimPeer, content: bytes) -> None:
        """What was stored equals what the log gives."""
        oracle = self._world.oracle
        oracle.follow(self._world.books.committed)
        oracle.check_state(peer.identity, peer.machine)
        oracle.check_content(peer.identity, peer.machine.index, content)

    def _drop_older(self, peer: SimPeer, meta: SnapshotMeta) -> None:
        chosen = peer.node.snapshot
        if chosen is not None and chosen.index <= meta.index:
            peer.store.drop_older(meta)

    # --- a snapshot of the own state --------------------------------------------------------------

    def _make(self, peer: SimPeer) -> None:
        world, options = self._world, self._world.options
        if peer.making is None:
            if (
                peer.machine.index - peer.snapshot_index >= options.snapshot_every
                and not peer.holding
                and world.now >= peer.pause_making_until
            ):
                self._begin(peer)
            return
        making = peer.making
        try:
            if making.written < len(making.content):
                data = making.content[making.written : making.written + options.making_bytes]
                making.writer.write(data)
                making.written += len(data)
            elif peer.node.durable_index >= making.meta.index:
                self._complete(peer, making)
        except StorageFullError:
            self._give_up(peer)

    def _begin(self, peer: SimPeer) -> None:
        index = Index(peer.machine.index)
        meta = SnapshotMeta(index, peer.applied_term, peer.configuration)
        content = peer.machine.save()
        self._world.oracle.check_content(peer.identity, index, content)
        try:
            peer.making = Making(meta, content, peer.store.create(meta))
        except StorageFullError:
            self._give_up(peer)

    def _give_up(self, peer: SimPeer) -> None:
        world = self._world
        world.counts["snapshots_without_space"] += 1
        peer.pause_making_until = world.now + PAUSE_TURNS
        if peer.making is not None:
            peer.making.writer.abort()
            peer.making = None

    def _complete(self, peer: SimPeer, making: Making) -> None:
        world = self._world
        making.writer.commit()
        peer.making = None
        world.counts["snapshots_made"] += 1
        world.note("snapshot", peer.identity, making.meta.index)
        peer.snapshot_index = max(peer.snapshot_index, int(making.meta.index))
        was_overtaken = (known := peer.node.snapshot) is not None and (
            known.index >= making.meta.index
        )
        base = peer.node.compact(making.meta, world.options.keep_entries)
        if was_overtaken:
            world.counts["own_snapshot_overtaken"] += 1
            return
        peer.compact_to = base
        if world.random.random() < 0.5:  # else a crash may find both
            self._drop_older(peer, making.meta)

    # --- faults -----------------------------------------------------------------------------------

    def faults(self) -> None:
        """Draws what happens to disks in this turn."""
        world, options = self._world, self._world.options
        if world.chance(options.stall):
            peer = world.victim()
            peer.stalled_until = world.now + world.random.randint(10, 100)
            world.counts["disk_stalls"] += 1
        if world.chance(options.eio) and (peer := world.victim()).is_up:
            peer.disk.fail()
            world.counts["eio"] += 1
        if world.chance(options.full):
            peer = world.victim()
            peer.disk.set_full(True)
            world.full_until[peer.identity] = world.now + world.random.randint(5, 60)
            world.counts["disk_full"] += 1
        for peer in world.peers.values():
            if 0 < world.full_until.get(peer.identity, 0) <= world.now:
                del world.full_until[peer.identity]
                peer.disk.set_full(False)
        if world.chance(options.damage):
            self._damage(world.victim())
        if world.chance(options.wipe):
            peer = world.victim()
            if self.may_lose(peer.identity):
                self.lose(peer)
                world.counts["wiped"] += 1
                world.replace(peer)

    def may_lose(self, identity: str) -> bool:
        """The fault budget: each configuration that may count keeps a majority of good disks."""
        if identity in self.lost:
            return False
        return all(self.bears(members, identity) for members in self._world.books.alive())

    def bears(self, members: Membership, more: str = "") -> bool:
        """Whether a majority of these voters have good disks, also without one more of them."""
        bad = [each for each in members.voters if each in self.lost or each == more]
        return len(bad) <= (len(members.voters) - 1) // 2

    def lose(self, peer: SimPeer) -> None:
        """The process ends, and the disk is of no use any more."""
        if peer.is_up:
            self._world.crash(peer)
        self.lost[peer.identity] = None

    def _damage(self, peer: SimPeer) -> None:
        """Flips bits in what a stopped peer has stored; it must find that at its start."""
        world, random = self._world, self._world.random
        if not self.may_lose(peer.identity):
            return
        book = world.books.disks[peer.node_id]
        newest = peer.store.latest()
        if book.entries and (newest is None or random.random() < 0.5):
            self.lose(peer)
            if not book.entries:
                return
            peer.disk.damage(random.choice(book.entries).index)
            world.counts["damaged_entries"] += 1
        elif newest is not None:
            self.lose(peer)
            names = [name for name in peer.store.files.names() if name.startswith("snapshot-")]
            if not names:
                return
            name = random.choice(names)
            file = peer.store.files.open(name)
            peer.store.files.corrupt(
                name, random.randrange(file.size_bytes), 1 << random.randrange(8)
            )
            world.counts["damaged_snapshots"] += 1
        else:
            return
        peer.is_damaged = True

    def refused(self, peer: SimPeer, found: Exception) -> None:
        """A start that ended in `StorageDamagedError`; right only where something was damaged."""
        require(peer.is_damaged, f"{peer.identity} can't start: {found}")
        if not peer.is_refused:
            self._world.counts["damage_refused"] += 1
        peer.is_refused = True

    @staticmethod
    def require_whole(peer: SimPeer) -> None:
        """A damaged disk must have been refused (faults B21, B22)."""
        require(not peer.is_damaged, f"{peer.identity} started from a damaged disk")

    def names_lost(self, members: Membership) -> list[str]:
        """The members that will never come back."""
        return [each for each in members.voters + members.learners if each in self.lost]
