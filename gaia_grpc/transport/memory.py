"""The in-memory twins of the network: `MemoryNetwork` moves envelopes, `MemoryTransport` is the
peer transport on top of it.

All chance comes from one `random.Random`, and messages due at the same tick arrive in the order in
which they were sent, so a run is a function of its seed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random

from gaia_grpc.errors import OutcomeUnknownError, UnavailableError, invariant
from gaia_grpc.raft.messages import AppendResponse, Envelope, PreVoteResponse, VoteResponse
from gaia_grpc.raft.types import NodeId
from gaia_grpc.transport.api import (
    ForwardedCall,
    ForwardedOutcome,
    Hello,
    IdentifyRequest,
    IdentifyResponse,
    InboundHandler,
    PeerStats,
)


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """Rates from 0 to 1, delays in ticks. Unequal delays reorder by themselves."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_ticks_min: int = 0
    delay_ticks_max: int = 0


class MemoryNetwork:
    """Links between named peers: each direction of each pair can be cut on its own."""

    def __init__(self, random: Random, faults: NetworkFaults | None = None) -> None:
        self._random = random
        self.faults = faults or NetworkFaults()
        self.now_ticks = 0
        self.counts: Counter[str] = Counter()
        self._cuts: dict[tuple[NodeId, NodeId], None] = {}
        self._queue: list[tuple[int, int, Envelope]] = []
        self._sent = 0

    def cut(self, from_node: NodeId, to_node: NodeId) -> None:
        """Nothing gets from one to the other any more, not even what is under way."""
        self._cuts[(from_node, to_node)] = None

    def isolate(self, node: NodeId, others: Iterable[NodeId]) -> None:
        """Cuts both directions between `node` and the others."""
        for other in others:
            if other != node:
                self.cut(node, other)
                self.cut(other, node)

    def heal(self) -> None:
        """Removes all cuts."""
        self._cuts.clear()

    def connected(self, from_node: NodeId, to_node: NodeId) -> bool:
        """Whether that direction is open."""
        return (from_node, to_node) not in self._cuts

    def send(self, envelope: Envelope) -> None:
        """Takes a message in; it arrives never, once or twice."""
        self.counts["sent"] += 1
        faults = self.faults
        if faults.loss and self._random.random() < faults.loss:
            self.counts["lost"] += 1
            return
        copies = 1
        if faults.duplicate and self._random.random() < faults.duplicate:
            self.counts["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            delay = faults.delay_ticks_min
            if faults.delay_ticks_max > delay:
                delay = self._random.randint(delay, faults.delay_ticks_max)
            self._sent += 1
            heapq.heappush(self._queue, (self.now_ticks + delay, self._sent, envelope))

    def take_due(self) -> list[Envelope]:
        """What arrives by now, over links that are open now."""
        due: list[Envelope] = []
        while self._queue and self._queue[0][0] <= self.now_ticks:
            _, _, envelope = heapq.heappop(self._queue)
            if self.connected(envelope.from_node, envelope.to_node):
                due.append(envelope)
            else:
                self.counts["cut"] += 1
        return due

    @property
    def has_due(self) -> bool:
        """Whether `take_due` would return or drop anything."""
        return bool(self._queue) and self._queue[0][0] <= self.now_ticks

    def advance(self, ticks: int = 1) -> None:
        """Lets time pass."""
        self.now_ticks += ticks


class MemoryHub:
    """What the transports of one event loop share: the network and who is listening."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self._inbound: dict[NodeId, InboundHandler] = {}
        self._stats: dict[NodeId, dict[NodeId, PeerStats]] = {}
        self._addresses: dict[NodeId, str] = {}
        self._introduced: dict[tuple[NodeId, NodeId], Hello] = {}
        self._pump_scheduled = False

    def transport(self, node_id: NodeId, address: str = "") -> MemoryTransport:
        """The transport of one peer; with an `address` it is reached by that one only."""
        return MemoryTransport(self, node_id, address)

    def advance(self, ticks: int = 1) -> None:
        """Lets network time pass; only needed where the network delays."""
        self.network.advance(ticks)
        self.schedule()

    def schedule(self) -> None:
        """Delivers what is due in a later turn of the loop, never inside `send`."""
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def attach(self, node_id: NodeId, inbound: InboundHandler, address: str = "") -> None:
        self._inbound[node_id] = inbound
        self._addresses[node_id] = address
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
        elif self.admitted(speaker, sender, listener, receiver):
            self.count(listener, speaker, lambda s: replace(s, received=s.received + 1))
            receiver.on_message(envelope)

    def admitted(
        self, speaker: NodeId, sender: InboundHandler, listener: NodeId, receiver: InboundHandler
    ) -> bool:
        """Whether the listener accepts the speaker; then each knows who the other is."""
        hello = sender.hello(listener)
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


class MemoryTransport:
    """A `PeerTransport` without sockets."""

    def __init__(self, hub: MemoryHub, node_id: NodeId, address: str = "") -> None:
        self._hub = hub
        self._node_id = node_id
        self._address = address
        self._peers: dict[NodeId, str] | None = None

    async def start(self, inbound: InboundHandler) -> None:
        self._hub.attach(self._node_id, inbound, self._address)

    def set_peers(self, addresses: Mapping[NodeId, str]) -> None:
        """See `PeerTransport.set_peers`; before the first call everybody is a peer."""
        self._peers = dict(sorted(addresses.items()))

    def cancel_snapshots(self) -> None:
        """See `PeerTransport.cancel_snapshots`."""

    def send(self, envelope: Envelope) -> None:
        invariant(envelope.from_node == self._node_id, "a peer speaks only for itself")
        peer = envelope.to_node
        answers = isinstance(envelope.payload, AppendResponse | VoteResponse | PreVoteResponse)
        if not answers and not self._knows(peer):
            self._hub.count(self._node_id, peer, lambda s: replace(s, dropped=s.dropped + 1))
            return
        self._hub.count(self._node_id, peer, lambda s: replace(s, sent=s.sent + 1))
        self._hub.network.send(envelope)
        self._hub.schedule()

    def _knows(self, peer: NodeId) -> bool:
        if self._peers is None:
            return True
        return peer in self._peers and self._hub.meets(peer, self._peers[peer])

    async def forward(
        self, peer: NodeId, call: ForwardedCall, timeout_s: float
    ) -> ForwardedOutcome:
        inbound = self._reach(peer)
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
