"""Taking in a snapshot: what both transports check before the driver's sink sees a chunk.

One transfer at a time: a newer one (of the same or a later term) ends the older, since a leader
that begins anew has given its former stream up, whether we have noticed or not.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from gaia_grpc.errors import SnapshotRefusedError, StorageDamagedError
from gaia_grpc.raft.types import NodeId, SnapshotMeta, Term
from gaia_grpc.transport.api import InboundHandler, SnapshotSink
from gaia_grpc.transport.links import unbroken

CRC = "SNAPSHOT_CRC"
OFFSET = "SNAPSHOT_OFFSET"
SIZE = "SNAPSHOT_SIZE"
DIGEST = "SNAPSHOT_DIGEST"
INCOMPLETE = "SNAPSHOT_INCOMPLETE"
SUPERSEDED = "SNAPSHOT_SUPERSEDED"
BUSY = "SNAPSHOT_BUSY"
IDLE = "SNAPSHOT_IDLE"
STALE_TERM = "STALE_TERM"

MAX_CHUNK_SIZE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """What a leader wants to send."""

    from_node: NodeId
    term: Term
    meta: SnapshotMeta
    size_bytes: int
    sha256: bytes


def refused(reason: str, message: str) -> SnapshotRefusedError:
    """The error that ends a transfer."""
    return SnapshotRefusedError(message, reason=reason)


class SnapshotIntake:
    """Of one peer: lets one transfer in."""

    def __init__(self) -> None:
        self._current: IncomingTransfer | None = None

    async def begin(
        self, inbound: InboundHandler, offer: SnapshotOffer, interrupt: Callable[[], None]
    ) -> IncomingTransfer:
        """Opens the driver's sink; the caller must `close` the transfer.

        `interrupt` ends what the transfer is waiting for, when a newer one takes its place. Raises
        `SnapshotRefusedError`, and what the driver refuses with.
        """
        while (current := self._current) is not None:
            if offer.term < current.offer.term:
                raise refused(STALE_TERM, f"a leader of term {current.offer.term} is sending")
            if current.finishing:
                raise refused(BUSY, "another snapshot is just being checked")
            current.supersede()
            await current.closed.wait()
        transfer = self._current = IncomingTransfer(offer, interrupt, self._ended)
        try:
            await transfer.open(inbound)
        except BaseException:
            await unbroken(transfer.close())
            raise
        return transfer

    def _ended(self, transfer: IncomingTransfer) -> None:
        if self._current is transfer:
            self._current = None


class IncomingTransfer:
    """One transfer, from its offer to its end."""

    def __init__(
        self,
        offer: SnapshotOffer,
        interrupt: Callable[[], None],
        on_closed: Callable[[IncomingTransfer], None],
    ) -> None:
        self.offer = offer
        self.finishing = False
        self.superseded = False
        self.stored_size_bytes = 0
        """Where the next chunk must begin."""
        self.closed = asyncio.Event()
        self._interrupt = interrupt
        self._on_closed = on_closed
        self._sink: SnapshotSink | None = None
        self._in_turn = asyncio.Lock()

    def supersede(self) -> None:
        """A newer transfer waits for our end."""
        if not self.superseded:
            self.superseded = True
            self._interrupt()

    async def open(self, inbound: InboundHandler) -> None:
        """Asks the driver for its sink."""
        await unbroken(self._open(inbound))
        self._check(
            self.stored_size_bytes <= self.offer.size_bytes, SIZE, "more is stored than is offered"
        )

    async def _open(self, inbound: InboundHandler) -> None:
        offer = self.offer
        self._sink = await inbound.receive_snapshot(
            offer.from_node, offer.term, offer.meta, offer.size_bytes, offer.sha256
        )
        self.stored_size_bytes = self._sink.stored_size_bytes

    async def append(self, offset_bytes: int, data: bytes, crc32: int) -> None:
        """Stores a chunk that fits; raises `SnapshotRefusedError`, and what the sink raises."""
        async with self._in_turn:
            sink, stored = self._open_sink(), self.stored_size_bytes
            self._check(
                offset_bytes == stored, OFFSET, f"a chunk at {offset_bytes}, where {stored} was due"
            )
            self._check(
                0 < len(data) <= MAX_CHUNK_SIZE_BYTES, SIZE, f"a chunk of {len(data)} bytes"
            )
            self._check(
                stored + len(data) <= self.offer.size_bytes, SIZE, "more data than was offered"
            )
            self._check(zlib.crc32(data) == crc32, CRC, f"the chunk at {offset_bytes} is damaged")
            await unbroken(sink.append(data))
            self.stored_size_bytes = sink.stored_size_bytes

    async def finish(self) -> None:
        """All has come: the driver checks the digest and takes it over."""
        async with self._in_turn:
            sink, stored, size_bytes = (
                self._open_sink(),
                self.stored_size_bytes,
                self.offer.size_bytes,
            )
            self._check(
                stored == size_bytes, INCOMPLETE, f"{stored} of {size_bytes} bytes have come"
            )
            self.finishing = True
            try:
                await unbroken(sink.finish())
            except StorageDamagedError as error:
                raise refused(DIGEST, error.message) from error

    def _open_sink(self) -> SnapshotSink:
        sink = self._sink
        if sink is None or self.superseded or self.closed.is_set():
            raise refused(SUPERSEDED, "a newer transfer has begun")
        return sink

    async def close(self) -> None:
        """Ends the transfer, after what is just being stored; that stays. Idempotent."""
        async with self._in_turn:
            if self.closed.is_set():
                return
            try:
                if self._sink is not None:
                    await unbroken(self._sink.close())
            finally:
                self._on_closed(self)
                self.closed.set()

    def _check(self, condition: bool, reason: str, message: str) -> None:
        if not condition:
            raise refused(reason, message)
