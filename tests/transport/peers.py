"""Real peers on loopback: a transport each, on a grpc.aio server each, with a recording handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc

from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Entry, EntryKind, Index, NodeId, Term
from gaia_grpc.transport.api import (
    AppliedCommand,
    ForwardedCall,
    ForwardedOutcome,
    Hello,
    IdentifyRequest,
    IdentifyResponse,
    PeerTransport,
    ReadIndexGrant,
)
from gaia_grpc.transport.grpc_transport import GrpcTransport
from gaia_grpc.transport.options import TransportOptions, server_arguments
from tests.transport.snapshots import Snapshots

WAIT_S = 10.0


@dataclass(kw_only=True)
class Recorder(Snapshots):
    """A driver that answers at once and remembers everything; tests change its answers."""

    node_id: NodeId
    peer_uuid: str = ""
    cluster_id: str = "cluster"
    accepted: dict[NodeId, str] = field(default_factory=dict)
    transport: PeerTransport | None = None
    answering: bool = True
    envelopes: list[Envelope] = field(default_factory=list)
    broken: list[NodeId] = field(default_factory=list)
    gone: list[tuple[NodeId, Term]] = field(default_factory=list)
    calls: list[ForwardedCall] = field(default_factory=list)
    cancelled_calls: int = 0
    on_call: Callable[[ForwardedCall], Awaitable[ForwardedOutcome]] | None = None
    refused: list[str] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    feature_level: int = 2

    def hello(self, peer: NodeId) -> Hello:
        return Hello(
            self.cluster_id, self.node_id, self.peer_uuid, peer, self.accepted.get(peer, ""),
            f"{self.node_id}:1", self.feature_level, f"version of {self.node_id}",
        )  # fmt: skip

    def on_hello(self, hello: Hello) -> None:
        self.hellos.append(hello)
        self.changed.set()

    def accepts(self, hello: Hello) -> str | None:
        if hello.cluster_id != self.cluster_id:
            return f"{hello.from_node} is of cluster {hello.cluster_id}"
        if hello.from_peer_uuid in self.refused:
            return f"{self.node_id} does not want {hello.from_peer_uuid}"
        if hello.from_node not in self.accepted:
            return f"{hello.from_node} is no member"
        if hello.from_peer_uuid != self.accepted[hello.from_node]:
            return f"{hello.from_node} has another data directory"
        if (hello.to_node, hello.to_peer_uuid) != (self.node_id, self.peer_uuid):
            return f"{hello.from_node} wants another peer"
        return None

    def on_message(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)
        self.changed.set()
        payload = envelope.payload
        if self.answering and self.transport is not None:
            answer: AppendResponse | PreVoteResponse | VoteResponse
            if isinstance(payload, AppendRequest):
                match_index = Index(payload.previous_index + len(payload.entries))
                answer = AppendResponse(
                    True, match_index, Index(0), Index(0), Term(0), payload.round
                )
            elif isinstance(payload, PreVoteRequest):
                answer = PreVoteResponse(True)
            elif isinstance(payload, VoteRequest):
                answer = VoteResponse(False)
            else:
                return
            self.transport.send(Envelope(self.node_id, envelope.from_node, envelope.term, answer))

    def on_stream_broken(self, peer: NodeId) -> None:
        self.broken.append(peer)
        self.changed.set()

    def on_leader_gone(self, peer: NodeId, term: Term) -> None:
        self.gone.append((peer, term))
        self.changed.set()

    async def on_forward(self, call: ForwardedCall) -> ForwardedOutcome:
        self.calls.append(call)
        self.changed.set()
        try:
            if self.on_call is not None:
                return await self.on_call(call)
        except asyncio.CancelledError:
            self.cancelled_calls += 1
            self.changed.set()
            raise
        if call.command is None:
            return ReadIndexGrant(Index(len(self.calls)))
        return AppliedCommand(Term(1), Index(len(self.calls)), call.command.upper())

    def on_identify(self, request: IdentifyRequest) -> IdentifyResponse:
        return IdentifyResponse(
            self.node_id, self.peer_uuid, "", empty=True, bootstrapping=True,
            listed_peers=request.listed_peers,
        )  # fmt: skip

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what the handler calls bring about."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def payloads(self, kind: type) -> list[object]:
        return [e.payload for e in self.envelopes if isinstance(e.payload, kind)]


class Peer:
    """One peer that can be stopped, cleanly or not, and started again on its port."""

    def __init__(self, node_id: str, options: TransportOptions) -> None:
        self.node_id = NodeId(node_id)
        self.options = options
        self.recorder = Recorder(node_id=self.node_id, peer_uuid=f"uuid-{node_id}")
        self.address = ""
        self.addresses: dict[NodeId, str] = {}
        self.server: grpc.aio.Server | None = None
        self.transport: GrpcTransport | None = None

    def bind(self) -> None:
        """Takes a port (the same one again after a stop)."""
        self.server = grpc.aio.server(options=server_arguments(self.options))
        port = self.server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"

    async def start(self) -> None:
        assert self.server is not None
        self.transport = GrpcTransport(self.node_id, self.addresses, self.options)
        self.transport.add_to_server(self.server)
        self.recorder.transport = self.transport
        await self.transport.start(self.recorder)
        await self.server.start()

    async def stop(self) -> None:
        """A clean stop."""
        if self.transport is not None:
            await self.transport.close()
        await self.cut_off()

    async def cut_off(self) -> None:
        """Ends the server alone, as a crash would: no CLOSING, connections reset."""
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    def append(self, to: str, *, term: int = 1, round_number: int = 0, data: bytes = b"") -> None:
        assert self.transport is not None
        entry = Entry(Term(term), Index(1), EntryKind.COMMAND, data)
        payload = AppendRequest(Index(0), Term(0), (entry,) if data else (), Index(0), round_number)
        self.transport.send(Envelope(self.node_id, NodeId(to), Term(term), payload))


Cluster = Callable[..., Awaitable[list[Peer]]]
