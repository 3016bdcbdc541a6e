"""The leader's side of AppendEntries: one stream to one follower.

It is opened when there is something to send and kept while it works.

Frames leave in the order of `send`, without waiting for answers (pipelining); answers go to the
handler as they come. When the stream breaks, everything that waits is dropped: the core learns of
it (`on_stream_broken`) and probes from what the follower has acknowledged, so old frames would only
be in the way.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc

from gaia_grpc.errors import IdentityRefusedError, InvalidArgumentError
from gaia_grpc.raft.messages import AppendRequest
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.transport.api import InboundHandler
from gaia_grpc.transport.links import Counters, FrameQueue, accepted, end_call, log, pause
from gaia_grpc.transport.options import TransportOptions
from gaia_grpc.transport.wire import (
    append_request_to_proto,
    append_response_from_proto,
    hello_to_proto,
)

if TYPE_CHECKING:
    AppendCall = grpc.aio.StreamStreamCall[pb.AppendEntriesRequest, pb.AppendEntriesResponse]


class AppendStream:
    """One follower's stream; `run` is its task for the life of the transport."""

    def __init__(
        self,
        node_id: NodeId,
        peer: NodeId,
        stub: raft_pb2_grpc.RaftServiceAsyncStub,
        inbound: InboundHandler,
        options: TransportOptions,
        counters: Counters,
    ) -> None:
        self._node_id = node_id
        self._peer = peer
        self._stub = stub
        self._inbound = inbound
        self._options = options
        self._counters = counters
        self._queue: FrameQueue[AppendRequest] = FrameQueue(
            options.max_queue_frames, options.max_queue_size_bytes
        )
        self._established = False
        self._broken = False
        self._closing = asyncio.Event()
        self._refusal = ""

    @property
    def queued(self) -> int:
        """Messages that wait."""
        return len(self._queue)

    def send(self, term: Term, payload: AppendRequest) -> bool:
        """False if the message was dropped."""
        size_bytes = 0
        for entry in payload.entries:
            size_bytes += len(entry.data)
        return not self._closing.is_set() and self._queue.put(term, payload, size_bytes)

    def close(self) -> None:
        """Lets `run` end, after a CLOSING frame where a stream is open; answers count no more."""
        self._closing.set()
        self._queue.changed.set()

    async def run(self) -> None:
        """Connects whenever something waits, with growing pauses while that fails."""
        backoff_ms = self._options.backoff_min_ms
        while True:
            await self._wait_for_frames()
            if self._closing.is_set():
                return
            await self._serve()
            if self._closing.is_set():
                return
            self._broken = False  # that stream is gone: only frames are a reason to connect
            self._counters.breaks += 1
            self._counters.dropped += self._queue.clear()
            self._inbound.on_stream_broken(self._peer)
            if self._established:
                backoff_ms = self._options.backoff_min_ms
            await pause(backoff_ms, self._closing)
            backoff_ms = min(2 * backoff_ms, self._options.backoff_max_ms)

    async def _wait_for_frames(self) -> None:
        while not self._queue and not self._closing.is_set() and not self._broken:
            self._queue.changed.clear()
            await self._queue.changed.wait()

    async def _serve(self) -> None:
        """One life of the stream; returns when it broke or was closed."""
        self._established = self._broken = False
        call: AppendCall = self._stub.AppendEntries()
        reader = asyncio.create_task(self._read(call), name=f"append-answers-{self._peer}")
        try:
            async with asyncio.timeout(self._options.connect_timeout_ms / 1000):
                await call.write(self._frame(first=True))
                if not await accepted(call, self._peer, self._inbound):
                    await asyncio.wait([reader])
                    return
            self._established = True
            self._counters.connects += 1
            self._refusal = ""
            await self._write(call)
        except IdentityRefusedError as error:
            self._note_refusal(error.message)
        except (TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
            # What ended the call is its status, which the reader reports.
            pass
        finally:
            await end_call(call, reader)

    async def _write(self, call: AppendCall) -> None:
        queue = self._queue
        while not self._broken:
            while queue:
                await call.write(self._frame())
                self._counters.sent += 1
            if self._closing.is_set():
                async with asyncio.timeout(self._options.closing_timeout_ms / 1000):
                    await call.write(pb.AppendEntriesRequest(closing=True))
                    await call.done_writing()
                    while not self._broken:
                        queue.changed.clear()
                        await queue.changed.wait()
                return
            await self._wait_for_frames()

    def _frame(self, *, first: bool = False) -> pb.AppendEntriesRequest:
        frame = append_request_to_proto(*self._queue.pop())
        if first:
            self._counters.sent += 1
            frame.hello.CopyFrom(hello_to_proto(self._inbound.hello(self._peer)))
        return frame

    async def _read(self, call: AppendCall) -> None:
        try:
            while True:
                message = await call.read()
                if not isinstance(message, pb.AppendEntriesResponse):
                    return
                self._counters.received += 1
                # After `close` the name may be that of another directory, without these entries.
                if not self._closing.is_set():
                    self._inbound.on_message(
                        append_response_from_proto(message, self._peer, self._node_id)
                    )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self._note_refusal(error.details() or "")
        except InvalidArgumentError as error:
            log.warning("append stream broken", peer=self._peer, error=error.message)
        finally:
            self._broken = True
            self._queue.changed.set()

    def _note_refusal(self, details: str) -> None:
        self._counters.refused += 1
        if details != self._refusal:
            self._refusal = details
            log.warning("peer refuses our log entries", peer=self._peer, reason=details)
