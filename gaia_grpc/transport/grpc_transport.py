"""`GrpcTransport`: the peer transport over gRPC.

One channel a peer carries everything that this peer says: an append stream, a forward stream and
votes. What others say comes in through `RaftServicer` on this peer's own server, and answers go
back the way the question came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc

from gaia_grpc.errors import IdentityRefusedError, InvalidArgumentError, UnavailableError, invariant
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    SnapshotRequest,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.transport.api import (
    ForwardedCall,
    ForwardedOutcome,
    IdentifyRequest,
    IdentifyResponse,
    InboundHandler,
    PeerStats,
)
from gaia_grpc.transport.append_stream import AppendStream
from gaia_grpc.transport.forward_stream import ForwardStream
from gaia_grpc.transport.links import Counters, TaskSet, log
from gaia_grpc.transport.options import TransportOptions, channel_arguments
from gaia_grpc.transport.servicer import RaftServicer
from gaia_grpc.transport.snapshot_outbox import SnapshotOutbox
from gaia_grpc.transport.snapshot_stream import SnapshotStream
from gaia_grpc.transport.wire import (
    hello_to_proto,
    vote_request_to_proto,
    vote_response_from_proto,
)
from gaia_grpc.transport.wire_calls import (
    identify_request_to_proto,
    identify_response_from_proto,
)

Request = AppendRequest | PreVoteRequest | VoteRequest | TimeoutNow | SnapshotRequest

MAX_STRANGERS = 64


@dataclass(slots=True)
class _Link:
    """Everything that goes to one peer."""

    inbound: InboundHandler
    channel: grpc.aio.Channel
    stub: raft_pb2_grpc.RaftServiceAsyncStub
    appends: AppendStream
    forwards: ForwardStream
    snapshots: SnapshotOutbox
    counters: Counters
    address: str
    streams: TaskSet = field(default_factory=TaskSet)
    unary: TaskSet = field(default_factory=TaskSet)
    unary_in_flight: int = 0
    refusal: str = ""


class GrpcTransport:
    """`PeerTransport` over gRPC. Add it to the peer-port server before that server starts."""

    def __init__(
        self,
        node_id: NodeId,
        addresses: Mapping[NodeId, str],
        options: TransportOptions | None = None,
    ) -> None:
        """`addresses` are the peer addresses (host:port) of all peers, also of this one."""
        self._node_id = node_id
        self._addresses = dict(sorted(addresses.items()))
        self._options = options or TransportOptions()
        self._counters: dict[NodeId, Counters] = {}
        self._servicer = RaftServicer(node_id, self._addresses, self._counters, self._options)
        self._inbound: InboundHandler | None = None
        self._links: dict[NodeId, _Link] = {}
        self._retiring = TaskSet()
        self._strangers: dict[NodeId, Counters] = {}
        self._closed = False

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Registers `RaftService`."""
        raft_pb2_grpc.add_RaftServiceServicer_to_server(self._servicer, server)

    async def start(self, inbound: InboundHandler) -> None:
        """Begins to deliver; connections open lazily."""
        invariant(self._inbound is None, "the transport was started twice")
        self._inbound = inbound
        self._open_links(inbound)
        self._servicer.start(inbound)

    def set_peers(self, addresses: Mapping[NodeId, str]) -> None:
        """See `PeerTransport.set_peers`."""
        if self._closed:
            return
        # The servicer looks into the same dict when it probes a leader that went silent.
        self._addresses.clear()
        self._addresses.update(sorted(addresses.items()))
        for peer, link in list(self._links.items()):
            if self._addresses.get(peer) != link.address:
                del self._links[peer]
                # At once: what its owner still answers must not pass for an answer of the next one.
                link.appends.close()
                self._retiring.spawn(self._retire(link), f"retire-link-to-{peer}")
            if peer not in self._addresses:
                self._counters.pop(peer, None)
        if self._inbound is not None:
            self._open_links(self._inbound)
            self._servicer.recheck()

    def _open_links(self, inbound: InboundHandler) -> None:
        for peer, address in self._addresses.items():
            if peer != self._node_id and peer not in self._links:
                self._links[peer] = self._open_link(peer, address, inbound)
        self._links = dict(sorted(self._links.items()))

    def _open_link(self, peer: NodeId, address: str, inbound: InboundHandler) -> _Link:
        channel = grpc.aio.insecure_channel(address, options=channel_arguments(self._options))
        stub = raft_pb2_grpc.RaftServiceStub(channel)
        counters = self._counters.get(peer) or self._strangers.pop(peer, None) or Counters()
        self._counters[peer] = counters
        appends = AppendStream(self._node_id, peer, stub, inbound, self._options, counters)
        forwards = ForwardStream(peer, stub, inbound, self._options)
        carrier = SnapshotStream(peer, address, inbound, self._options)
        snapshots = SnapshotOutbox(peer, inbound, carrier.carry)
        link = _Link(inbound, channel, stub, appends, forwards, snapshots, counters, address)
        link.streams.spawn(appends.run(), f"appends-to-{peer}")
        link.streams.spawn(forwards.run(), f"forwards-to-{peer}")
        return link

    def cancel_snapshots(self) -> None:
        """See `PeerTransport.cancel_snapshots`."""
        for link in self._links.values():
            link.snapshots.cancel()

    async def _retire(self, link: _Link) -> None:
        """Ends a link; its append stream says CLOSING, which is true: this is no crash."""
        link.appends.close()
        link.forwards.close()
        await link.snapshots.close()
        await link.unary.close()
        await link.streams.join(2 * self._options.closing_timeout_ms / 1000)
        await link.streams.close()
        await link.channel.close(None)

    def send(self, envelope: Envelope) -> None:
        """Queues a message; never blocks. What can't be sent is dropped and counted."""
        if self._closed:
            return
        peer, term, payload = envelope.to_node, envelope.term, envelope.payload
        counters = self._counters.get(peer)
        if counters is None:
            counters = self._counters_of_stranger(peer)
        kept = False
        match payload:
            case AppendResponse():
                kept = self._servicer.answer_append(peer, term, payload)
                counters.sent += kept
            case PreVoteResponse() | VoteResponse():
                kept = self._servicer.answer_vote(peer, term, payload)
                counters.sent += kept
            case _:
                link = self._links.get(peer)
                if link is not None:
                    kept = self._send_request(link, peer, term, payload)
        counters.dropped += not kept

    def _send_request(self, link: _Link, peer: NodeId, term: Term, payload: Request) -> bool:
        match payload:
            case AppendRequest():
                return link.appends.send(term, payload)
            case SnapshotRequest(meta):
                return link.snapshots.request(term, meta)
            case _:
                if link.unary_in_flight >= self._options.max_votes_in_flight:
                    return False
                link.unary_in_flight += 1
                link.unary.spawn(self._send_unary(peer, link, term, payload), f"unary-to-{peer}")
                return True

    def _counters_of_stranger(self, peer: NodeId) -> Counters:
        """Of a peer that is no member as we know it; a few of them only, for `stats`."""
        if peer not in self._strangers and len(self._strangers) >= MAX_STRANGERS:
            self._strangers.pop(next(iter(self._strangers)))
        return self._strangers.setdefault(peer, Counters())

    async def _send_unary(
        self,
        peer: NodeId,
        link: _Link,
        term: Term,
        payload: PreVoteRequest | VoteRequest | TimeoutNow,
    ) -> None:
        inbound = link.inbound
        # Waiting for a connection is part of the deadline: the peer may be just coming up.
        timeout_s = self._options.vote_timeout_ms / 1000
        link.counters.sent += 1
        try:
            hello = inbound.hello(peer)
            if isinstance(payload, TimeoutNow):
                request = pb.TimeoutNowRequest(hello=hello_to_proto(hello), term=term)
                await link.stub.TimeoutNow(request, timeout=timeout_s, wait_for_ready=True)
                return
            answer = await link.stub.RequestVote(
                vote_request_to_proto(term, payload, hello),
                timeout=timeout_s,
                wait_for_ready=True,
            )
            envelope = vote_response_from_proto(answer, peer, self._node_id)
        except grpc.aio.AioRpcError as error:
            self._note_refusal(peer, link, error)
        except (IdentityRefusedError, InvalidArgumentError) as error:
            log.warning("vote ignored", peer=peer, error=error.message)
        else:
            link.counters.received += 1
            inbound.on_message(envelope)
        finally:
            link.unary_in_flight -= 1

    def _note_refusal(self, peer: NodeId, link: _Link, error: grpc.aio.AioRpcError) -> None:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            return
        link.counters.refused += 1
        details = error.details() or ""
        if link.refusal != details:
            link.refusal = details
            log.warning("peer refuses us", peer=peer, reason=details)

    async def forward(
        self, peer: NodeId, call: ForwardedCall, timeout_s: float
    ) -> ForwardedOutcome:
        """See `PeerTransport.forward`; also raises `OverloadedError`."""
        link = self._links.get(peer)
        if link is None or self._closed:
            raise UnavailableError(f"no way to peer {peer}")
        return await link.forwards.call(call, timeout_s)

    async def identify(
        self, peer: NodeId, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        """Waits for the peer to come up, within the timeout; raises `UnavailableError`."""
        link = self._links.get(peer)
        if link is None or self._closed:
            raise UnavailableError(f"no way to peer {peer}")
        return await _identify(link.stub, f"peer {peer}", request, timeout_s)

    async def identify_at(
        self, address: str, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        """See `PeerTransport.identify_at`; over a connection of its own."""
        if self._closed:
            raise UnavailableError("this peer is stopping")
        arguments = channel_arguments(self._options)
        async with grpc.aio.insecure_channel(address, options=arguments) as channel:
            stub = raft_pb2_grpc.RaftServiceStub(channel)
            return await _identify(stub, f"the peer at {address}", request, timeout_s)

    async def close(self) -> None:
        """Ends open streams with a CLOSING frame and awaits every task; idempotent."""
        if self._closed:
            return
        self._closed = True
        links = list(self._links.values())
        for link in links:
            link.appends.close()
            link.forwards.close()
        await self._servicer.close()
        await asyncio.gather(*(self._retire(link) for link in links))
        await self._retiring.join(2 * self._options.closing_timeout_ms / 1000)
        await self._retiring.close()

    def stats(self) -> Mapping[NodeId, PeerStats]:
        """Counters by peer, in node id order; also of some that are no members."""
        queued = {peer: link.appends.queued for peer, link in self._links.items()}
        known = {**self._strangers, **self._counters}
        return {peer: known[peer].snapshot(queued.get(peer, 0)) for peer in sorted(known)}


async def _identify(
    stub: raft_pb2_grpc.RaftServiceAsyncStub, who: str, request: IdentifyRequest, timeout_s: float
) -> IdentifyResponse:
    try:
        message = await stub.Identify(
            identify_request_to_proto(request), timeout=timeout_s, wait_for_ready=True
        )
        return identify_response_from_proto(message)
    except grpc.aio.AioRpcError as error:
        raise UnavailableError(f"{who} does not answer: {error.code().name}") from error
    except InvalidArgumentError as error:
        raise UnavailableError(f"{who}: {error.message}") from error
    except asyncio.CancelledError:
        # A channel that is closed cancels its calls; only our own task's cancellation goes on.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise UnavailableError(f"the link to {who} was ended") from None
