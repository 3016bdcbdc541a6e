"""Snapshots between peers: the file that is sent, and the one that arrives."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

import structlog

from gaia_grpc.errors import (
    NotFoundError,
    StorageDamagedError,
    StorageFailedError,
    UnavailableError,
)
from gaia_grpc.node.api import SnapshotSummary
from gaia_grpc.node.disk_thread import DiskThread
from gaia_grpc.node.engine import Engine
from gaia_grpc.raft.messages import Envelope, SnapshotRequest
from gaia_grpc.raft.types import NodeId, SnapshotMeta, Term
from gaia_grpc.storage.api import IncomingSnapshot, SnapshotReader, SnapshotStore

STALE_TERM = "STALE_TERM"

log = structlog.get_logger("gaia.node")


class OutgoingFile:
    """`OutgoingSnapshot` over a file of the own store."""

    def __init__(
        self, reader: SnapshotReader, disk: DiskThread, on_damaged: Callable[[], None]
    ) -> None:
        """`on_damaged` is called where the content does not have its digest any more."""
        self._reader = reader
        self._disk = disk
        self._on_damaged = on_damaged

    @property
    def meta(self) -> SnapshotMeta:
        """See `OutgoingSnapshot.meta`."""
        return self._reader.info.meta

    @property
    def size_bytes(self) -> int:
        """See `OutgoingSnapshot.size_bytes`."""
        return self._reader.info.size_bytes

    @property
    def sha256(self) -> bytes:
        """See `OutgoingSnapshot.sha256`."""
        return self._reader.info.sha256

    async def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """See `OutgoingSnapshot.read`."""
        try:
            return await self._disk.run(partial(self._reader.read, offset_bytes, size_bytes))
        except StorageDamagedError as error:
            log.error("snapshot_damaged", message=error.message)
            self._on_damaged()
            raise

    async def close(self) -> None:
        """See `OutgoingSnapshot.close`."""
        with suppress(UnavailableError):  # the peer has ended, and its files with it
            await self._disk.run(self._reader.close)


class SnapshotContent:
    """`SnapshotStream`: a file for somebody outside, checked again as a whole."""

    def __init__(self, file: OutgoingFile, state_hash: bytes, chunk_size_bytes: int) -> None:
        meta = file.meta
        self.summary = SnapshotSummary(
            meta.index, meta.term, file.size_bytes, file.sha256, state_hash
        )
        self._file = file
        self._chunk_size_bytes = chunk_size_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """All of it, in order; raises `StorageDamagedError` at the end where the digest differs."""
        digest = hashlib.sha256()
        offset = 0
        while chunk := await self._file.read(offset, self._chunk_size_bytes):
            offset += len(chunk)
            digest.update(chunk)
            yield chunk
        if offset != self._file.size_bytes or digest.digest() != self._file.sha256:
            raise StorageDamagedError(f"snapshot {self.summary.index} was read with another digest")

    async def close(self) -> None:
        """See `SnapshotStream.close`."""
        await self._file.close()


class IncomingFile:
    """`SnapshotSink` into the own store."""

    def __init__(
        self,
        engine: Engine,
        disk: DiskThread,
        incoming: IncomingSnapshot,
        from_node: NodeId,
        term: Term,
        meta: SnapshotMeta,
    ) -> None:
        self._engine = engine
        self._disk = disk
        self._incoming = incoming
        self._from_node = from_node
        self._term = term
        self._meta = meta

    @property
    def stored_size_bytes(self) -> int:
        """See `SnapshotSink.stored_size_bytes`."""
        return self._incoming.stored_size_bytes

    async def append(self, data: bytes) -> None:
        """See `SnapshotSink.append`; `UnavailableError` where another leader is known by now."""
        check_leader(self._engine, self._from_node, self._term)
        try:
            await self._disk.run(partial(self._incoming.append, data))
        except StorageFailedError as error:
            self._engine.fail(error)
            raise

    async def finish(self) -> None:
        """See `SnapshotSink.finish`."""
        try:
            await self._disk.run(self._incoming.finish)
        except StorageFailedError as error:
            self._engine.fail(error)
            raise
        log.info("snapshot_received", index=self._meta.index, leader=self._from_node)
        core = self._engine.core
        self._engine.on_message(
            Envelope(self._from_node, core.node_id, self._term, SnapshotRequest(self._meta))
        )

    async def close(self) -> None:
        """See `SnapshotSink.close`."""
        with suppress(UnavailableError):  # the peer has ended, and its files with it
            await self._disk.run(self._incoming.close)


class SnapshotTransfer:
    """Opens both ends; all methods are called on the loop."""

    def __init__(
        self,
        engine: Engine,
        store: SnapshotStore,
        disk: DiskThread,
        on_damaged: Callable[[], None],
    ) -> None:
        """`on_damaged`: the newest own snapshot can't be read."""
        self._on_damaged = on_damaged
        self._engine = engine
        self._store = store
        self._disk = disk

    async def open(self, at_least: int = 0) -> OutgoingFile | None:
        """The newest complete snapshot; None where there is none at or after that index."""
        info = self._store.latest()
        if info is None or info.meta.index < at_least:
            return None
        try:
            reader = await self._disk.run(partial(self._store.open, info.meta))
        except NotFoundError:
            return None  # a newer one has just taken its place: the core asks again
        except StorageDamagedError as error:
            log.error("snapshot_damaged", message=error.message)
            self._on_damaged()
            return None
        return OutgoingFile(reader, self._disk, self._on_damaged)

    async def receive(
        self, from_node: NodeId, term: Term, meta: SnapshotMeta, size_bytes: int, sha256: bytes
    ) -> IncomingFile:
        """Begins or resumes a transfer; raises `UnavailableError` where it is not wanted."""
        check_leader(self._engine, from_node, term)
        if meta.index <= self._engine.core.commit_index:
            raise UnavailableError(f"the log is committed up to {self._engine.core.commit_index}")
        if self._engine.core.is_installing:
            # The file that it waits for would be dropped for the new one.
            raise UnavailableError("another snapshot is being installed", retry_after_ms=100)
        incoming = await self._disk.run(partial(self._store.incoming, meta, size_bytes, sha256))
        return IncomingFile(self._engine, self._disk, incoming, from_node, term, meta)


def check_leader(engine: Engine, from_node: NodeId, term: Term) -> None:
    """Only the leader of the current term may replace what is here; raises `UnavailableError`."""
    core = engine.core
    if engine.stopped:
        raise UnavailableError("the peer is stopping")
    if term < core.term:
        raise UnavailableError(f"term {term} is over, this is term {core.term}", reason=STALE_TERM)
    if term > core.term or core.leader_id != from_node:
        raise UnavailableError(f"{from_node} is not known here as the leader of term {term}")
