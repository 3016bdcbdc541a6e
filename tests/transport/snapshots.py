"""Snapshots in memory, for handlers of the transport tests: what is given out and what came in."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gaia_grpc.errors import StorageDamagedError
from gaia_grpc.raft.types import Index, NodeId, SnapshotMeta, Term

META = SnapshotMeta(Index(70), Term(2), b"configuration \xff")
NEWER = SnapshotMeta(Index(90), Term(2), b"configuration \xff")

Key = tuple[SnapshotMeta, int, bytes]


@dataclass
class Outgoing:
    """An `OutgoingSnapshot`."""

    owner: Snapshots
    meta: SnapshotMeta
    content: bytes
    sha256: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    async def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        self.owner.reads.append(offset_bytes)
        self.owner.changed.set()
        if self.owner.before_read is not None:
            await self.owner.before_read(offset_bytes)
        return self.content[offset_bytes : offset_bytes + size_bytes]

    async def close(self) -> None:
        self.owner.given_out -= 1
        self.owner.changed.set()


@dataclass
class Sink:
    """A `SnapshotSink` that keeps what came under the snapshot's name and digest."""

    owner: Snapshots
    from_node: NodeId
    term: Term
    key: Key
    busy: bool = False

    @property
    def stored_size_bytes(self) -> int:
        return len(self.owner.stored[self.key])

    async def append(self, data: bytes) -> None:
        assert not self.busy
        self.busy = True
        try:
            if self.owner.before_append is not None:
                await self.owner.before_append(self, data)
            self.owner.stored[self.key] += data
            self.owner.appended_size_bytes += len(data)
        except asyncio.CancelledError:
            self.owner.cut_in_two += 1
            raise
        finally:
            self.busy = False
            self.owner.changed.set()

    async def finish(self) -> None:
        self.busy = True
        try:
            if self.owner.before_finish is not None:
                await self.owner.before_finish()
            meta, size_bytes, sha256 = self.key
            content = bytes(self.owner.stored.pop(self.key))
            if len(content) != size_bytes or hashlib.sha256(content).digest() != sha256:
                self.owner.stored[self.key] = bytearray()
                raise StorageDamagedError("the digest differs")
            self.owner.installed.append((self.from_node, self.term, meta, content))
        except asyncio.CancelledError:
            self.owner.cut_in_two += 1
            raise
        finally:
            self.busy = False
            self.owner.changed.set()

    async def close(self) -> None:
        assert not self.busy
        self.owner.sinks -= 1
        self.owner.changed.set()


@dataclass
class Snapshots:
    """The snapshot part of an `InboundHandler`."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    content: bytes | None = None
    meta: SnapshotMeta = META
    sha256: bytes = b""
    """Claimed instead of the right one, where it is set."""
    given_out: int = 0
    reads: list[int] = field(default_factory=list)
    before_read: Callable[[int], Awaitable[None]] | None = None
    reports: list[tuple[NodeId, SnapshotMeta, bool]] = field(default_factory=list)
    stored: dict[Key, bytearray] = field(default_factory=dict)
    installed: list[tuple[NodeId, Term, SnapshotMeta, bytes]] = field(default_factory=list)
    refusal: Exception | None = None
    sinks: int = 0
    appended_size_bytes: int = 0
    cut_in_two: int = 0
    before_append: Callable[[Sink, bytes], Awaitable[None]] | None = None
    before_finish: Callable[[], Awaitable[None]] | None = None

    async def open_snapshot(self, meta: SnapshotMeta) -> Outgoing | None:
        if self.content is None:
            return None
        self.given_out += 1
        digest = self.sha256 or hashlib.sha256(self.content).digest()
        return Outgoing(self, self.meta, self.content, digest)

    async def receive_snapshot(
        self, from_node: NodeId, term: Term, meta: SnapshotMeta, size_bytes: int, sha256: bytes
    ) -> Sink:
        if self.refusal is not None:
            raise self.refusal
        assert self.sinks == 0, "the transport lets one transfer in at a time"
        self.sinks += 1
        key = (meta, size_bytes, sha256)
        self.stored = {key: self.stored.get(key, bytearray())}
        return Sink(self, from_node, term, key)

    def on_snapshot_sent(self, peer: NodeId, meta: SnapshotMeta, delivered: bool) -> None:
        self.reports.append((peer, meta, delivered))
        self.changed.set()

    @property
    def at_rest(self) -> bool:
        """Whether nothing is open."""
        return self.given_out == 0 and self.sinks == 0
