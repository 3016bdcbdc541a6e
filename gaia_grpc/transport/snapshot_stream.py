"""InstallSnapshot over gRPC: the sender's stream and the receiver's session.

The sender uses a connection of its own: chunks in the socket of the log's stream would stand before
the next heartbeat. How much is on its way is bounded by that connection's flow control, since the
receiver reads a chunk only when the one before is stored.
"""

from __future__ import annotations

import asyncio
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc
from google.protobuf.message import DecodeError

from gaia_grpc.errors import UnavailableError
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.transport.api import Hello, InboundHandler, OutgoingSnapshot
from gaia_grpc.transport.links import acceptance, accepted, unbroken
from gaia_grpc.transport.options import TransportOptions, channel_arguments
from gaia_grpc.transport.snapshot_intake import IDLE, SIZE, SUPERSEDED, SnapshotIntake, refused
from gaia_grpc.transport.wire import hello_to_proto
from gaia_grpc.transport.wire_calls import offer_from_proto, offer_to_proto

if TYPE_CHECKING:
    SnapshotCall = grpc.aio.StreamUnaryCall[pb.InstallSnapshotRequest, pb.InstallSnapshotResponse]

Context = grpc.aio.ServicerContext

STORED_KEY = "gaia-snapshot-bin"


class SnapshotStream:
    """Carries snapshots to one peer."""

    def __init__(
        self, peer: NodeId, address: str, inbound: InboundHandler, options: TransportOptions
    ) -> None:
        self._peer = peer
        self._address = address
        self._inbound = inbound
        self._options = options

    async def carry(self, term: Term, snapshot: OutgoingSnapshot) -> None:
        """Sends one; raises `grpc.aio.AioRpcError`, `TimeoutError` or a `GaiaError`."""
        arguments = channel_arguments(self._options)
        async with grpc.aio.insecure_channel(self._address, options=arguments) as channel:
            call: SnapshotCall = raft_pb2_grpc.RaftServiceStub(channel).InstallSnapshot()
            try:
                await self._send(call, term, snapshot)
            except asyncio.InvalidStateError:
                # The receiver has ended the call; its status says why.
                await call
                raise UnavailableError(f"{self._peer} ended the transfer early") from None
            finally:
                call.cancel()

    async def _send(self, call: SnapshotCall, term: Term, snapshot: OutgoingSnapshot) -> None:
        options = self._options
        async with asyncio.timeout(options.snapshot_open_timeout_ms / 1000):
            offer = offer_to_proto(term, snapshot.meta, snapshot.size_bytes, snapshot.sha256)
            offer.hello.CopyFrom(hello_to_proto(self._inbound.hello(self._peer)))
            await call.write(offer)
            if not await accepted(call, self._peer, self._inbound):
                await call  # raises what it was refused with
                raise UnavailableError(f"{self._peer} did not accept")
            offset_bytes = await _stored_size_bytes(call)
        if offset_bytes > snapshot.size_bytes:
            raise refused(SIZE, f"{self._peer} claims to hold {offset_bytes} bytes")
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while offset_bytes < snapshot.size_bytes:
            async with asyncio.timeout(options.snapshot_chunk_timeout_ms / 1000):
                size_bytes = await self._send_chunk(call, snapshot, offset_bytes)
            offset_bytes += size_bytes
            due_s = max(due_s + size_bytes / options.snapshot_rate_size_bytes_per_s, loop.time())
            await asyncio.sleep(due_s - loop.time())
        async with asyncio.timeout(options.snapshot_finish_timeout_ms / 1000):
            await call.done_writing()
            response = await call
        if not response.installed:
            raise UnavailableError(f"{self._peer} holds {response.stored_size_bytes} bytes only")

    async def _send_chunk(
        self, call: SnapshotCall, snapshot: OutgoingSnapshot, offset_bytes: int
    ) -> int:
        data = await unbroken(snapshot.read(offset_bytes, self._options.snapshot_chunk_size_bytes))
        if not data:
            raise UnavailableError(f"the snapshot ends at {offset_bytes}, before its size")
        await call.write(
            pb.InstallSnapshotRequest(offset_bytes=offset_bytes, data=data, crc32=zlib.crc32(data))
        )
        return len(data)


async def _stored_size_bytes(call: SnapshotCall) -> int:
    for key, value in tuple(await call.initial_metadata() or ()):
        if key == STORED_KEY and isinstance(value, bytes):
            try:
                return pb.InstallSnapshotResponse.FromString(value).stored_size_bytes
            except DecodeError as error:
                raise UnavailableError("the receiver does not say how much it holds") from error
    raise UnavailableError("the receiver does not say how much it holds")


class SnapshotSession:
    """The receiver's side of one stream: `run` until it ends, in a task of its own."""

    def __init__(
        self,
        inbound: InboundHandler,
        intake: SnapshotIntake,
        hello: Hello,
        options: TransportOptions,
    ) -> None:
        self._inbound = inbound
        self._intake = intake
        self._hello = hello
        self._options = options
        self.response = pb.InstallSnapshotResponse()

    async def run(self, first: pb.InstallSnapshotRequest, context: Context[Any, Any]) -> None:
        """Stores chunks until the stream ends; raises a `GaiaError` that says what was wrong."""
        offer = offer_from_proto(first, self._hello.from_node)
        task = asyncio.current_task()
        transfer = await self._intake.begin(self._inbound, offer, partial(_cancel, task))
        response = self.response
        response.term = offer.term
        try:
            response.stored_size_bytes = transfer.stored_size_bytes
            stored = (STORED_KEY, response.SerializeToString())
            await context.send_initial_metadata(acceptance(self._inbound, self._hello, stored))
            while isinstance(chunk := await self._next(context), pb.InstallSnapshotRequest):
                await transfer.append(chunk.offset_bytes, chunk.data, chunk.crc32)
            await transfer.finish()
            response.stored_size_bytes = offer.size_bytes
            response.installed = True
        except asyncio.CancelledError:
            if not transfer.superseded:
                raise
            raise refused(SUPERSEDED, "a newer transfer has begun") from None
        finally:
            await unbroken(transfer.close())

    async def _next(self, context: Context[Any, Any]) -> object:
        try:
            async with asyncio.timeout(self._options.snapshot_chunk_timeout_ms / 1000):
                return await context.read()
        except TimeoutError:
            raise refused(IDLE, "no chunk came in time") from None


def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
