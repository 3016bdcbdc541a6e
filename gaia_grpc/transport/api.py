"""The transport seam: how a driver reaches the other peers, and how they reach it.

`GrpcTransport` is the production side, `MemoryTransport` the twin with loss, delay and cuts. Both
move the same plain values: protobuf and gRPC stay inside this package.

Everything runs on one event loop. `send` and the `on_...` methods without `async` never block; the
transport calls the handler from its own tasks, one call at a time, in the order of arrival a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.types import NO_NODE, Entry, Index, NodeId, SnapshotMeta, Term


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks to whom: goes before every message of a stream, and with every unary one.

    The receiver refuses unless all of it fits; because `to_peer_uuid` names the data directory
    that is meant, a wiped peer refuses votes and entries that its former self was asked for.
    """

    cluster_id: str
    from_node: NodeId
    from_peer_uuid: str
    to_node: NodeId
    to_peer_uuid: str
    client_address: str = ""
    feature_level: int = 0
    software_version: str = ""
    configuration_index: int = 0
    """Of an entry by which the speaker's configuration was in force; 0 where it has none."""
    configuration_term: int = 0
    """Of that entry."""


@dataclass(frozen=True, slots=True)
class Member:
    """One peer of a configuration; the shape of `gaia.raft.v1.Member`."""

    node_id: NodeId
    peer_uuid: str
    peer_address: str
    client_address: str
    learner: bool = False


@dataclass(frozen=True, slots=True)
class Founding:
    """What the founding peer wrote and every other founding peer takes over."""

    cluster_id: str
    members: tuple[Member, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class IdentifyRequest:
    """Introduces a peer that may not know its cluster yet; all lists are sorted by name.

    `listed_peers` are the asker's `--peer` (node id, peer address), `settings` its `--set` pairs.
    """

    node_id: NodeId
    peer_uuid: str
    listed_peers: tuple[tuple[NodeId, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class IdentifyResponse:
    """Who answers; `empty` is true for a data directory that holds no log and no vote."""

    node_id: NodeId
    peer_uuid: str
    client_address: str
    empty: bool
    bootstrapping: bool
    listed_peers: tuple[tuple[NodeId, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    founding: Founding | None = None
    feature_level: int = 0
    software_version: str = ""


@dataclass(frozen=True, slots=True)
class MemberChange:
    """A change of the members that an operator asks for: adds one, or removes it."""

    remove: bool
    node_id: NodeId
    peer_uuid: str = ""
    peer_address: str = ""


@dataclass(frozen=True, slots=True)
class ForwardedCall:
    """One call on its way to the leader. `timeout_ms` is what is left of the caller's deadline.

    With `command` the leader proposes it and answers once it is applied; with `change` it changes
    the members, and the result of its answer is a serialized `gaia.raft.v1.Configuration`; without
    either it confirms its leadership and answers with a read index (thesis 6.4).
    """

    command: bytes | None
    timeout_ms: int
    change: MemberChange | None = None

    @property
    def is_read(self) -> bool:
        """Whether nothing is to be applied: without an answer it is just not answered."""
        return self.command is None and self.change is None


@dataclass(frozen=True, slots=True)
class AppliedCommand:
    """Where a forwarded command stands in the log and what applying it gave."""

    term: Term
    index: Index
    result: bytes


@dataclass(frozen=True, slots=True)
class ReadIndexGrant:
    """A peer that has applied `index` may answer; `elapsed_ms` is the leader's log time."""

    index: Index
    elapsed_ms: int = 0


@dataclass(frozen=True, slots=True)
class ForwardFailure:
    """The call failed in the cluster, not in the state machine.

    `reason` is that of an error class of `gaia_grpc.errors`; only OUTCOME_UNKNOWN may have been
    applied. `leader_id` names a better peer where one is known, `message` is for people.
    """

    reason: str
    message: str
    leader_id: NodeId = NO_NODE
    retry_after_ms: int = 0


ForwardedOutcome = AppliedCommand | ReadIndexGrant | ForwardFailure


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


class OutgoingSnapshot(Protocol):
    """A snapshot that is being sent; the driver reads it from its store."""

    @property
    def meta(self) -> SnapshotMeta:
        """What it stands for; may be newer than what was asked for."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of the whole content."""
        ...

    @property
    def sha256(self) -> bytes:
        """Digest of the whole content."""
        ...

    async def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` of the content from `offset_bytes` on."""
        ...

    async def close(self) -> None:
        """Gives it free; idempotent."""
        ...


class SnapshotSink(Protocol):
    """Takes in one transfer, chunk by chunk."""

    @property
    def stored_size_bytes(self) -> int:
        """How far the content has come: where the sender goes on."""
        ...

    async def append(self, data: bytes) -> None:
        """Stores the next chunk, whose CRC was right; raises `StorageFullError`."""
        ...

    async def finish(self) -> None:
        """All is there: checks the digest, syncs, and hands the snapshot to the core.

        Raises `StorageDamagedError` where the digest differs: the sender begins anew.
        """
        ...

    async def close(self) -> None:
        """Ends the transfer; what is stored stays for the next one. Idempotent."""
        ...


class InboundHandler(Protocol):
    """What the driver implements. No method may block; exceptions end the call that caused them."""

    def hello(self, peer: NodeId) -> Hello:
        """How to introduce ourselves to `peer`; asked at each stream and each unary call.

        Asked also for a peer that we have just accepted and don't know: `to_peer_uuid` is then "".
        """
        ...

    def accepts(self, hello: Hello) -> str | None:
        """None if that speaker may be heard, otherwise one line that says why not.

        The transport then answers FAILED_PRECONDITION (IDENTITY_REFUSED) and logs it once. A stream
        of ours whose acceptor is refused here is ended.
        """
        ...

    def on_hello(self, hello: Hello) -> None:
        """`hello.from_node` has introduced itself: its feature level and software version.

        Comes after each `accepts` that returned None, for both directions: a peer that accepts a
        stream of ours introduces itself too (one of the first release does not, there).
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

    async def open_snapshot(self, meta: SnapshotMeta) -> OutgoingSnapshot | None:
        """The newest complete snapshot at or after `meta.index`; None where there is none.

        Neither this nor the snapshot's methods are cancelled while they run; `close` comes once.
        """
        ...

    async def receive_snapshot(
        self, from_node: NodeId, term: Term, meta: SnapshotMeta, size_bytes: int, sha256: bytes
    ) -> SnapshotSink:
        """Begins or resumes a transfer from the leader of `term`.

        Where another one is under way, that is closed first. Raises `SnapshotRefusedError` (reason
        STALE_TERM where that leader is deposed) or `UnavailableError` where it is not wanted; so
        may the sink's `append`, when the term changes meanwhile. None of the sink's methods is
        cancelled while it runs, and `close` comes once in the end.
        """
        ...

    def on_snapshot_sent(self, peer: NodeId, meta: SnapshotMeta, delivered: bool) -> None:
        """How a transfer to `peer` that a `SnapshotRequest` asked for ended: once for each.

        `meta` is that of the snapshot which was sent, or the requested one where there was none.
        Comes in a turn of its own, also while `PeerTransport.close` or a removal of the peer waits.
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
        """Queues a message; never blocks. A full queue drops it and counts it (Raft resends).

        A `SnapshotRequest` starts a transfer (one at a time a peer; another one is ignored while it
        runs), which ends in `InboundHandler.on_snapshot_sent`.
        """
        ...

    def set_peers(self, addresses: Mapping[NodeId, str]) -> None:
        """The other members from now on, with their peer addresses (host:port).

        Links to new ones open lazily; those to removed ones and to old addresses end, also their
        transfers. What is already open from peers that `InboundHandler.accepts` refuses by now is
        ended too. Our own name is passed over; never blocks.

        `send` to who is not among them drops the message and counts it, but answers (AppendResponse
        and votes) reach whoever asked: a joiner knows nobody yet.
        """
        ...

    def cancel_snapshots(self) -> None:
        """We lead no more: transfers under way end soon, each reported as not delivered."""
        ...

    async def forward(
        self, peer: NodeId, call: ForwardedCall, timeout_s: float
    ) -> ForwardedOutcome:
        """Hands a call to `peer`, which should be the leader.

        Raises `UnavailableError` where it was definitely not applied (not sent, or refused) and
        `OutcomeUnknownError` where a sent command got no answer; a read index without an answer
        is `UnavailableError` too, since nothing was to be applied. `timeout_s` covers everything.
        """
        ...

    async def identify(
        self, peer: NodeId, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        """Asks who answers at the address of `peer`; raises `UnavailableError`."""
        ...

    async def identify_at(
        self, address: str, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        """Asks who answers at an address that need not be a member's; raises like `identify`."""
        ...

    async def close(self) -> None:
        """Ends open streams with a CLOSING frame and awaits every task; idempotent."""
        ...

    def stats(self) -> Mapping[NodeId, PeerStats]:
        """Counters by peer, in node id order."""
        ...
