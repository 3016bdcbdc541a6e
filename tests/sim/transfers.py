"""Snapshots on their way from a leader to a follower: chunk by chunk, over connections that break.

What a transport and the two drivers at its ends do (`gaia_grpc.node.snapshot_transfer`): the newest
snapshot is sent, the receiver goes on where an earlier transfer ended, the message to its core
comes with the last chunk and may be late, and the sender's core hears of the end once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gaia_grpc.errors import (
    NotFoundError,
    StorageDamagedError,
    StorageFailedError,
    StorageFullError,
)
from gaia_grpc.raft.messages import Envelope, SnapshotRequest
from gaia_grpc.raft.types import NodeId, SnapshotMeta, Term
from gaia_grpc.storage.api import IncomingSnapshot, SnapshotReader
from tests.sim.identity import Packet, accepts
from tests.sim.peer import SimPeer

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


@dataclass(slots=True)
class Transfer:
    """One connection."""

    sender: SimPeer
    boot: int
    packet: Packet
    reader: SnapshotReader | None = None
    receiver: SimPeer | None = None
    receiver_boot: int = 0
    incoming: IncomingSnapshot | None = None


class Transfers:
    """All transfers under way."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._under_way: list[Transfer] = []
        self._late: list[tuple[int, int, SimPeer, int, Packet]] = []
        self._reports: list[tuple[int, SimPeer, int, NodeId, bool]] = []

    def begin(self, sender: SimPeer, packet: Packet) -> None:
        """The core asked for it."""
        self._world.counts["transfers_begun"] += 1
        self._under_way.append(Transfer(sender, sender.boots, packet))

    def receives(self, peer: SimPeer) -> bool:
        """Whether a part of a snapshot has come, or all of it and its core does not know yet."""
        return any(each.receiver is peer for each in self._under_way) or any(
            each[2] is peer for each in self._late
        )

    def run(self) -> None:
        """One turn: a chunk of each, and what was delayed."""
        world = self._world
        going, self._under_way = self._under_way, []
        for transfer in going:
            delivered = self._go_on(transfer)
            if delivered is None:
                self._under_way.append(transfer)
            else:
                self._end(transfer, delivered)
        late = [each for each in self._late if each[0] <= world.now]
        self._late = [each for each in self._late if each[0] > world.now]
        for _, _, receiver, boot, packet in late:
            if receiver.is_up and receiver.boots == boot:
                world.backlog[receiver.node_id].append(packet)
        reports = [each for each in self._reports if each[0] <= world.now]
        self._reports = [each for each in self._reports if each[0] > world.now]
        for _, sender, boot, peer, delivered in reports:
            if sender.is_up and sender.boots == boot:
                sender.node.report_snapshot(peer, delivered)

    # --- one of them ------------------------------------------------------------------------------

    def _go_on(self, transfer: Transfer) -> bool | None:
        """None while it goes on, then whether all of it arrived."""
        world, sender = self._world, transfer.sender
        from_node, to_node = transfer.packet.from_node, transfer.packet.to_node
        receiver = world.peers.get(to_node)
        if not sender.is_up or sender.boots != transfer.boot or receiver is None:
            return False
        is_same = transfer.receiver in (None, receiver) and (
            transfer.receiver is None or transfer.receiver_boot == receiver.boots
        )
        connected = world.network.connected(from_node, to_node) and world.network.connected(
            to_node, from_node
        )
        if not receiver.is_up or not is_same or not connected:
            return False
        if world.chance(world.options.break_transfer):
            world.counts["transfers_broken"] += 1
            return False
        if world.is_paused(sender) or world.is_paused(receiver):
            return None
        try:
            if transfer.incoming is None:
                return None if self._open(transfer, receiver) else False
            return self._chunk(transfer, receiver)
        except (StorageDamagedError, NotFoundError, StorageFullError):
            return False
        except StorageFailedError:
            world.crash(receiver)
            return False

    def _open(self, transfer: Transfer, receiver: SimPeer) -> bool:
        world, term = self._world, transfer.packet.envelope.term
        if receiver.installing or not accepts(receiver.identity, receiver.members, transfer.packet):
            return False
        newest = transfer.sender.store.latest()
        if newest is None or not self._is_wanted(receiver, transfer.packet.from_node, term):
            return False
        if self._is_late(receiver, newest.meta):
            return False  # a driver hands over what is complete before it takes in the next one
        if newest.meta.index <= receiver.node.commit_index:
            world.counts["transfers_needless"] += 1
            return False
        reader = transfer.sender.store.open(newest.meta)
        transfer.reader = reader
        transfer.incoming = receiver.store.incoming(newest.meta, newest.size_bytes, newest.sha256)
        world.counts["transfers_resumed"] += transfer.incoming.stored_size_bytes > 0
        transfer.receiver, transfer.receiver_boot = receiver, receiver.boots
        return True

    def _is_late(self, receiver: SimPeer, meta: SnapshotMeta) -> bool:
        """Whether that snapshot is complete, and its message on the way to the core."""
        return any(
            late[2] is receiver and late[4].payload == SnapshotRequest(meta) for late in self._late
        )

    @staticmethod
    def _is_wanted(receiver: SimPeer, from_node: NodeId, term: Term) -> bool:
        node = receiver.node
        return node.term == term and node.leader_id == from_node

    def _chunk(self, transfer: Transfer, receiver: SimPeer) -> bool | None:
        world, incoming, reader = self._world, transfer.incoming, transfer.reader
        assert incoming is not None
        assert reader is not None
        envelope = transfer.packet.envelope
        if not self._is_wanted(receiver, envelope.from_node, envelope.term):
            return False
        data = reader.read(incoming.stored_size_bytes, world.options.chunk_bytes)
        if data:
            incoming.append(data)
        if incoming.stored_size_bytes < reader.info.size_bytes:
            return None
        incoming.finish()
        world.note("received", receiver.identity, reader.info.meta.index)
        arrived = Envelope(
            envelope.from_node,
            envelope.to_node,
            envelope.term,
            SnapshotRequest(reader.info.meta),
        )
        self._hand_over(receiver, Packet(arrived, transfer.sender.identity, receiver.identity))
        return True

    def _hand_over(self, receiver: SimPeer, packet: Packet) -> None:
        """To the core, sometimes late or twice."""
        world, random = self._world, self._world.random
        for _ in range(2 if world.chance(world.options.duplicate) else 1):
            delay = random.randint(0, 2 * world.options.delay_ticks_max)
            self._late.append(
                (world.now + delay, len(self._late), receiver, receiver.boots, packet)
            )

    def _end(self, transfer: Transfer, delivered: bool) -> None:
        world = self._world
        if transfer.reader is not None:
            transfer.reader.close()
        receiver = transfer.receiver
        if transfer.incoming is not None and receiver is not None and not delivered:
            is_same = receiver.is_up and receiver.boots == transfer.receiver_boot
            if is_same:
                transfer.incoming.close()
        world.counts["transfers_delivered"] += delivered
        delay = world.random.randint(0, world.options.delay_ticks_max)
        self._reports.append(
            (world.now + delay, transfer.sender, transfer.boot, transfer.packet.to_node, delivered)
        )
