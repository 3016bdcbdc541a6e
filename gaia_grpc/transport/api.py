"""The transport seam: how a driver reaches the other peers, and how they reach it.

`GrpcTransport` is the production side, `MemoryTransport` the twin with loss, delay and cuts. Both
move the same plain values: protobuf and gRPC stay inside this package.

Everything runs on one event loop. `send` and the `on_...` methods without `async` never block; the
transport calls the handler from its own tasks, one call at a time, in the order of arrival a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.types import Index, NodeId, Term


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks: goes before every message of a connection, and with every unary one.

    `cluster_id` is empty where the peer was not founded yet. The other fields tell the members
    each other's client address, program version and highest level of commands understood.
    """

    node_id: NodeId
    peer_uuid: str
    cluster_id: str
    boot: int = 0
    client_address: str = ""
    version: str = ""
    feature_level: int = 0


@dataclass(frozen=True, slots=True)
class IdentifyRequest:
    """Asked before founding and at each start: who are you, and whom do you list as peers?

    `peer_list` is the asker's `--peer` list as sorted (node id, address) pairs.
    """

    hello: Hello
    peer_list: tuple[tuple[NodeId, str], ...] = ()


@dataclass(frozen=True, slots=True)
class IdentifyResponse:
    """The answer: `empty` is true for a data directory that holds no log and no vote."""

    hello: Hello
    empty: bool
    peer_list: tuple[tuple[NodeId, str], ...] = ()


class ForwardKind(StrEnum):
    """What a follower asks of the leader."""

    COMMAND = "command"
    """Propose `ForwardedCall.data`, answer with the result of its apply."""
    READ_INDEX = "read_index"
    """Confirm leadership (thesis 6.4), answer with an index that the follower then waits for."""


@dataclass(frozen=True, slots=True)
class ForwardedCall:
    """One call on its way to the leader. `timeout_ms` is what is left of the caller's deadline."""

    kind: ForwardKind
    data: bytes = b""
    timeout_ms: int = 0


class ForwardStatus(StrEnum):
    """How a forwarded call ended; all but `DONE` and `OUTCOME_UNKNOWN`: definitely not applied."""

    DONE = "done"
    NOT_LEADER = "not_leader"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    OUTCOME_UNKNOWN = "outcome_unknown"


@dataclass(frozen=True, slots=True)
class ForwardedOutcome:
    """The leader's answer. `index` is the applied index of the command, or the read index.

    `leader_id` is set with `NOT_LEADER` where the answering peer knows a better one;
    `retry_after_ms` with `OVERLOADED`; `message` (one line, for people) with every failure.
    """

    status: ForwardStatus
    index: Index = Index(0)
    term: Term = Term(0)
    result: bytes = b""
    message: str = ""
    leader_id: NodeId = NodeId("")
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class PeerStats:
    """Counters of one peer since the start; `queued` is a current value."""

    sent: int = 0
    received: int = 0
    dropped: int = 0
    queued: int = 0
    connects: int = 0
    breaks: int = 0
    refused: int = 0
    """Messages and connections turned away because of a wrong identity."""


class InboundHandler(Protocol):
    """What the driver implements. No method may block; exceptions end the call that caused them."""

    def hello(self) -> Hello:
        """Who we are now; asked at each connection, since `cluster_id` may come later."""
        ...

    def accepts(self, hello: Hello) -> str | None:
        """None if messages of that speaker may be heard, otherwise one line that says why not.

        Asked for requests and for answers alike: a wiped peer's vote must not count either.
        """
        ...

    def on_message(self, envelope: Envelope) -> None:
        """A message arrived; it may be old, repeated or out of order."""
        ...

    def on_stream_broken(self, peer: NodeId) -> None:
        """Our append stream to `peer` broke: what was sent and not answered may be lost."""
        ...

    def on_leader_gone(self, peer: NodeId, term: Term) -> None:
        """The append stream from `peer` ended without CLOSING and its port refuses connections.

        `term` is the highest term seen on that stream. Its process is gone (design section 4).
        """
        ...

    async def on_forward(self, call: ForwardedCall) -> ForwardedOutcome:
        """A follower's call; cancelled when the follower or its deadline is gone."""
        ...

    def on_identify(self, request: IdentifyRequest) -> IdentifyResponse:
        """Answers also strangers: founding asks before anyone has a cluster id."""
        ...


class PeerTransport(Protocol):
    """The way to the other peers."""

    async def start(self, inbound: InboundHandler) -> None:
        """Begins to deliver; connections open lazily."""
        ...

    def send(self, envelope: Envelope) -> None:
        """Queues a message; never blocks. A full queue drops it and counts it (Raft resends)."""
        ...

    async def forward(
        self, peer: NodeId, call: ForwardedCall, timeout_s: float
    ) -> ForwardedOutcome:
        """Hands a call to `peer`, which should be the leader.

        Raises `UnavailableError` where it was definitely not applied (not sent, or refused) and
        `OutcomeUnknownError` where a sent command got no answer; a sent READ_INDEX without an
        answer is `UnavailableError` too, since a read applies nothing.
        """
        ...

    async def identify(
        self, peer: NodeId, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        """Asks who answers at the address of `peer`; raises `UnavailableError`."""
        ...

    async def close(self) -> None:
        """Ends open streams with a CLOSING frame and awaits every task; idempotent."""
        ...

    def stats(self) -> Mapping[NodeId, PeerStats]:
        """Counters by peer, in node id order."""
        ...
