"""`MemoryTransport`: the peer transport without sockets, on top of `MemoryNetwork`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from gaia_grpc.errors import (
    IdentityRefusedError,
    OutcomeUnknownError,
    UnavailableError,
    invariant,
)
from gaia_grpc.raft.messages import (
    AppendResponse,
    Envelope,
    PreVoteResponse,
    SnapshotRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.transport.api import (
    ForwardedCall,
    ForwardedOutcome,
    Hello,
    IdentifyRequest,
    IdentifyResponse,
    InboundHandler,
    OutgoingSnapshot,
    PeerStats,
)
from gaia_grpc.transport.links import TaskSet, unbroken
from gaia_grpc.transport.memory_network import MemoryNetwork, NetworkFaults
from gaia_grpc.transport.snapshot_intake import IncomingTransfer, SnapshotIntake, SnapshotOffer
from gaia_grpc.transport.snapshot_outbox import SnapshotOutbox

__all__ = ["MemoryHub", "MemoryNetwork", "MemoryTransport", "NetworkFaults"]

CHUNK_SIZE_BYTES = 256 << 10


class MemoryHub:
    """What the transports of one event loop share: the network and who is listening."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self._inbound: dict[NodeId, InboundHandler] = {}
        self._stats: dict[NodeId, dict[NodeId, PeerStats]] = {}
        self._addresses: dict[NodeId, str] = {}
        self._introduced: dict[tuple[NodeId, NodeId], Hello] = {}
        self._pump_scheduled = False
        self._intakes: dict[NodeId, SnapshotIntake] = {}
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def transport(self, node_id: NodeId, address: str = "") -> MemoryTransport:
        """The transport of one peer; with an `address` it is reached by that one only."""
        return MemoryTransport(self, node_id, address)

    def advance(self, ticks: int = 1) -> None:
        """Lets network time pass; only needed where the network delays."""
        self.network.advance(ticks)
        now_ticks = self.network.now_ticks
        for due_ticks, future in self._waiting:
            if due_ticks <= now_ticks and not future.done():
                future.set_result(None)
        self._waiting = [pair for pair in self._waiting if not pair[1].done()]
        self.schedule()

    async def pass_ticks(self, delay_ticks: int, interrupted: asyncio.Event) -> None:
        """Waits for `advance`, or for the event."""
        if not delay_ticks:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self.network.now_ticks + delay_ticks, future))
        stop = asyncio.create_task(interrupted.wait())
        try:
            either: list[asyncio.Future[Any]] = [future, stop]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            future.cancel()
            stop.cancel()

    def intake(self, node_id: NodeId) -> SnapshotIntake:
        """Where the snapshots for one peer come in."""
        return self._intakes.setdefault(node_id, SnapshotIntake())

    def schedule(self) -> None:
        """Delivers what is due in a later turn of the loop, never inside `send`."""
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def attach(self, node_id: NodeId, inbound: InboundHandler, address: str = "") -> None:
        self._inbound[node_id] = inbound
        self._addresses[node_id] = address
        self._intakes.pop(node_id, None)
        self._stats.setdefault(node_id, {})
        self._forget(node_id)

    def detach(self, node_id: NodeId) -> None:
        self._inbound.pop(node_id, None)
        self._forget(node_id)

    def _forget(self, node_id: NodeId) -> None:
        """Whoever comes back introduces itself anew."""
        for pair in [pair for pair in self._introduced if node_id in pair]:
            del self._introduced[pair]

    def introduce(self, speaker: NodeId, hello: Hello, listener: InboundHandler) -> None:
        """Tells `listener` who speaks, as often as something about it is new."""
        pair = (speaker, hello.to_node)
        if self._introduced.get(pair) != hello:
            self._introduced[pair] = hello
            listener.on_hello(hello)

    def meets(self, node_id: NodeId, address: str) -> bool:
        """Whether `node_id` is where somebody believes it to be."""
        actual = self._addresses.get(node_id, "")
        return not actual or not address or actual == address

    def at(self, address: str) -> NodeId | None:
        """Who listens at an address."""
        for node_id, actual in sorted(self._addresses.items()):
            if actual == address and node_id in self._inbound:
                return node_id
        return None

    def reachable(self, from_node: NodeId, to_node: NodeId) -> InboundHandler | None:
        """Who listens at `to_node`, if the way there is open."""
        if not self.network.connected(from_node, to_node):
            return None
        return self._inbound.get(to_node)

    def stats(self, node_id: NodeId) -> Mapping[NodeId, PeerStats]:
        return dict(sorted(self._stats.get(node_id, {}).items()))

    def count(
        self, node_id: NodeId, peer: NodeId, change: Callable[[PeerStats], PeerStats]
    ) -> None:
        mine = self._stats.setdefault(node_id, {})
        mine[peer] = change(mine.get(peer, PeerStats()))

    def _pump(self) -> None:
        self._pump_scheduled = False
        for envelope in self.network.take_due():
            self._deliver(envelope)
        if self.network.has_due:
            self.schedule()

    def _deliver(self, envelope: Envelope) -> None:
        speaker, listener = envelope.from_node, envelope.to_node
        sender, receiver = self._inbound.get(speaker), self._inbound.get(listener)
        if sender is None or receiver is None:
            self.count(speaker, listener, lambda s: replace(s, dropped=s.dropped + 1))
        elif self.admitted(speaker, sender, listener, receiver, answers=_answers(envelope)):
            self.count(listener, speaker, lambda s: replace(s, received=s.received + 1))
            receiver.on_message(envelope)

    def admitted(
        self,
        speaker: NodeId,
        sender: InboundHandler,
        listener: NodeId,
        receiver: InboundHandler,
        *,
        answers: bool = False,
    ) -> bool:
        """Whether the listener accepts the speaker; then each knows who the other is.

        An answer goes to the very machine that asked, as on its stream.
        """
        hello = sender.hello(listener)
        if answers:
            hello = replace(hello, to_peer_uuid=receiver.hello(speaker).from_peer_uuid)
        if receiver.accepts(hello) is not None:
            self.count(listener, speaker, lambda s: replace(s, refused=s.refused + 1))
            return False
        answer = replace(receiver.hello(speaker), to_peer_uuid=hello.from_peer_uuid)
        if sender.accepts(answer) is not None:
            self.count(speaker, listener, lambda s: replace(s, refused=s.refused + 1))
            return False
        self.introduce(speaker, hello, receiver)
        if self.network.connected(listener, speaker):
            self.introduce(listener, answer, sender)
        return True


def _answers(envelope: Envelope) -> bool:
    return isinstance(envelope.payload, AppendResponse | VoteResponse | PreVoteResponse)


class MemoryTransport:
    """A `PeerTransport` without sockets."""

    def __init__(self, hub: MemoryHub, node_id: NodeId, address: str = "") -> None:
        self._hub = hub
        self._node_id = node_id
        self._address = address
        self.chunk_size_bytes = CHUNK_SIZE_BYTES
        self._peers: dict[NodeId, str] | None = None
        self._inbound: InboundHandler | None = None
        self._outboxes: dict[NodeId, SnapshotOutbox] = {}
        self._retiring = TaskSet()

    async def start(self, inbound: InboundHandler) -> None:
        self._inbound = inbound
        self._hub.attach(self._node_id, inbound, self._address)

    def set_peers(self, addresses: Mapping[NodeId, str]) -> None:
        """See `PeerTransport.set_peers`; before the first call everybody is a peer."""
        before, self._peers = self._peers, dict(sorted(addresses.items()))
        for peer in list(self._outboxes):
            if peer not in self._peers or (before or {}).get(peer) != self._peers[peer]:
                self._retiring.spawn(self._outboxes.pop(peer).close(), f"retire-outbox-{peer}")

    def cancel_snapshots(self) -> None:
        """See `PeerTransport.cancel_snapshots`."""
        for outbox in self._outboxes.values():
            outbox.cancel()

    def send(self, envelope: Envelope) -> None:
        invariant(envelope.from_node == self._node_id, "a peer speaks only for itself")
        peer = envelope.to_node
        if not _answers(envelope) and not self._knows(peer):
            self._hub.count(self._node_id, peer, lambda s: replace(s, dropped=s.dropped + 1))
            return
        if isinstance(envelope.payload, SnapshotRequest):
            if not self._outbox(peer).request(envelope.term, envelope.payload.meta):
                self._hub.count(self._node_id, peer, lambda s: replace(s, dropped=s.dropped + 1))
            return
        self._hub.count(self._node_id, peer, lambda s: replace(s, sent=s.sent + 1))
        self._hub.network.send(envelope)
        self._hub.schedule()

    def _outbox(self, peer: NodeId) -> SnapshotOutbox:
        if peer not in self._outboxes:
            invariant(self._inbound is not None, "the transport was not started")
            self._outboxes[peer] = SnapshotOutbox(
                peer, cast(InboundHandler, self._inbound), partial(self._carry, peer)
            )
        return self._outboxes[peer]

    async def _carry(self, peer: NodeId, term: Term, snapshot: OutgoingSnapshot) -> None:
        """A `Carrier`: the chunks of one transfer, each with the faults of the network."""
        receiver = self._reach(peer)
        sender = cast(InboundHandler, self._inbound)
        if not self._hub.admitted(self._node_id, sender, peer, receiver):
            raise IdentityRefusedError(f"{peer} refuses us")
        offer = SnapshotOffer(
            self._node_id, term, snapshot.meta, snapshot.size_bytes, snapshot.sha256
        )
        interrupted = asyncio.Event()
        transfer = await self._hub.intake(peer).begin(receiver, offer, interrupted.set)
        # The receiver lets go at once, whatever this side is waiting for.
        watch = asyncio.create_task(_close_when(interrupted, transfer))
        try:
            while transfer.stored_size_bytes < snapshot.size_bytes:
                data = await unbroken(
                    snapshot.read(transfer.stored_size_bytes, self.chunk_size_bytes)
                )
                await self._carry_chunk(peer, receiver, transfer, data, interrupted)
            self._check_way(peer, receiver)
            await transfer.finish()
            self._check_way(peer, receiver)
        finally:
            interrupted.set()
            await unbroken(watch)

    async def _carry_chunk(
        self,
        peer: NodeId,
        receiver: InboundHandler,
        transfer: IncomingTransfer,
        data: bytes,
        interrupted: asyncio.Event,
    ) -> None:
        offset_bytes = transfer.stored_size_bytes
        delays = self._hub.network.draw_delays(is_snapshot=True)
        if not delays:
            raise UnavailableError("a chunk was lost, and with it the stream")
        for delay_ticks in delays:
            await self._hub.pass_ticks(delay_ticks, interrupted)
            self._check_way(peer, receiver)
            await transfer.append(offset_bytes, data, zlib.crc32(data))

    def _check_way(self, peer: NodeId, receiver: InboundHandler) -> None:
        """A cut in either direction breaks the stream, and so does the end of the other side."""
        way_back = self._hub.network.connected(peer, self._node_id)
        if self._hub.reachable(self._node_id, peer) is not receiver or not way_back:
            raise UnavailableError(f"the stream to {peer} broke")

    def _knows(self, peer: NodeId) -> bool:
        if self._peers is None:
            return True
        return peer in self._peers and self._hub.meets(peer, self._peers[peer])

    async def forward(
        self, peer: NodeId, call: ForwardedCall, timeout_s: float
    ) -> ForwardedOutcome:
        inbound = self._reach(peer)
        sender = cast(InboundHandler, self._inbound)
        if not self._hub.admitted(self._node_id, sender, peer, inbound):
            raise UnavailableError(f"{peer} does not want us")
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await inbound.on_forward(call)
        except TimeoutError as error:
            raise self._no_answer(peer, call) from error
        if not self._hub.network.connected(peer, self._node_id):
            raise self._no_answer(peer, call)
        return outcome

    async def identify(
        self, peer: NodeId, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        response = self._reach(peer).on_identify(request)
        if not self._hub.network.connected(peer, self._node_id):
            raise UnavailableError(f"{peer} did not answer within {timeout_s} s")
        return response

    async def identify_at(
        self, address: str, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        """See `PeerTransport.identify_at`; finds peers that were made with an address."""
        peer = self._hub.at(address)
        inbound = None if peer is None else self._hub.reachable(self._node_id, peer)
        if peer is None or inbound is None or not self._hub.network.connected(peer, self._node_id):
            raise UnavailableError(f"nobody answers at {address}")
        return inbound.on_identify(request)

    async def close(self) -> None:
        self._hub.detach(self._node_id)
        for outbox in self._outboxes.values():
            await outbox.close()
        await self._retiring.close()

    def stats(self) -> Mapping[NodeId, PeerStats]:
        return self._hub.stats(self._node_id)

    def _reach(self, peer: NodeId) -> InboundHandler:
        inbound = self._hub.reachable(self._node_id, peer) if self._knows(peer) else None
        if inbound is None:
            raise UnavailableError(f"{peer} can't be reached")
        return inbound

    def _no_answer(
        self, peer: NodeId, call: ForwardedCall
    ) -> UnavailableError | OutcomeUnknownError:
        if call.is_read:
            return UnavailableError(f"{peer} did not answer")
        return OutcomeUnknownError(f"{peer} took the command and did not answer")


async def _close_when(interrupted: asyncio.Event, transfer: IncomingTransfer) -> None:
    await interrupted.wait()
    await transfer.close()
