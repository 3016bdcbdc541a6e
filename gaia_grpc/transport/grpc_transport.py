"""`GrpcTransport`: the peer transport over gRPC.

One channel a peer carries everything that this peer says: an append stream, a forward stream and
votes. What others say comes in through `RaftServicer` on this peer's own server, and answers go
back the way the question came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc

from gaia_grpc.errors import InvalidArgumentError, UnavailableError, invariant
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
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
from gaia_grpc.transport.wire import (
    hello_to_proto,
    vote_request_to_proto,
    vote_response_from_proto,
)
from gaia_grpc.transport.wire_calls import (
    identify_request_to_proto,
    identify_response_from_proto,
)


@dataclass(slots=True)
class _Link:
    """Everything that goes to one peer."""

    inbound: InboundHandler
    channel: grpc.aio.Channel
    stub: raft_pb2_grpc.RaftServiceAsyncStub
    appends: AppendStream
    forwards: ForwardStream
    counters: Counters
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
        self._servicer = RaftServicer(node_id, self._addresses, self._options)
        self._started = False
        self._links: dict[NodeId, _Link] = {}
        self._streams = TaskSet()
        self._unary = TaskSet()
        self._closed = False

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Registers `RaftService`."""
        raft_pb2_grpc.add_RaftServiceServicer_to_server(self._servicer, server)

    async def start(self, inbound: InboundHandler) -> None:
        """Begins to deliver; connections open lazily."""
        invariant(not self._started, "the transport was started twice")
        self._started = True
        for peer, address in self._addresses.items():
            if peer != self._node_id:
                self._links[peer] = self._open_link(peer, address, inbound)
        self._servicer.start(inbound, {peer: link.counters for peer, link in self._links.items()})

    def _open_link(self, peer: NodeId, address: str, inbound: InboundHandler) -> _Link:
        channel = grpc.aio.insecure_channel(address, options=channel_arguments(self._options))
        stub = raft_pb2_grpc.RaftServiceStub(channel)
        counters = Counters()
        appends = AppendStream(self._node_id, peer, stub, inbound, self._options, counters)
        forwards = ForwardStream(peer, stub, inbound, self._options)
        self._streams.spawn(appends.run(), f"appends-to-{peer}")
        self._streams.spawn(forwards.run(), f"forwards-to-{peer}")
        return _Link(inbound, channel, stub, appends, forwards, counters)

    def send(self, envelope: Envelope) -> None:
        """Queues a message; never blocks. What can't be sent is dropped and counted."""
        link = self._links.get(envelope.to_node)
        if link is None or self._closed:
            return
        payload = envelope.payload
        match payload:
            case AppendRequest():
                kept = link.appends.send(envelope.term, payload)
            case AppendResponse():
                kept = self._servicer.answer_append(envelope.to_node, envelope.term, payload)
                link.counters.sent += kept
            case PreVoteResponse() | VoteResponse():
                kept = self._servicer.answer_vote(envelope.to_node, envelope.term, payload)
                link.counters.sent += kept
            case PreVoteRequest() | VoteRequest() | TimeoutNow():
                kept = link.unary_in_flight < self._options.max_votes_in_flight
                if kept:
                    link.unary_in_flight += 1
                    self._unary.spawn(
                        self._send_unary(envelope.to_node, link, envelope.term, payload),
                        f"unary-to-{envelope.to_node}",
                    )
        link.counters.dropped += not kept

    async def _send_unary(
        self,
        peer: NodeId,
        link: _Link,
        term: Term,
        payload: PreVoteRequest | VoteRequest | TimeoutNow,
    ) -> None:
        inbound = link.inbound
        hello = inbound.hello(peer)
        # Waiting for a connection is part of the deadline: the peer may be just coming up.
        timeout_s = self._options.vote_timeout_ms / 1000
        link.counters.sent += 1
        try:
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
        except InvalidArgumentError as error:
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
        try:
            message = await link.stub.Identify(
                identify_request_to_proto(request), timeout=timeout_s, wait_for_ready=True
            )
            return identify_response_from_proto(message)
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(f"peer {peer} does not answer: {error.code().name}") from error
        except InvalidArgumentError as error:
            raise UnavailableError(f"peer {peer}: {error.message}") from error

    async def close(self) -> None:
        """Ends open streams with a CLOSING frame and awaits every task; idempotent."""
        if self._closed:
            return
        self._closed = True
        for link in self._links.values():
            link.appends.close()
            link.forwards.close()
        await self._servicer.close()
        await self._unary.close()
        await self._streams.join(2 * self._options.closing_timeout_ms / 1000)
        await self._streams.close()
        await asyncio.gather(*(link.channel.close(None) for link in self._links.values()))

    def stats(self) -> Mapping[NodeId, PeerStats]:
        """Counters by peer, in node id order."""
        return {
            peer: link.counters.snapshot(link.appends.queued) for peer, link in self._links.items()
        }
