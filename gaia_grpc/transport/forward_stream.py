"""The follower's side of Forward: many calls in flight on one stream to one peer.

A call that was handed to a stream which then broke may or may not have been applied; one that was
not is definitely not applied. To be able to tell, calls are written only after the peer has
accepted the stream (its initial metadata came): a refused connection is then never a doubt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc

from gaia_grpc.errors import (
    GaiaError,
    IdentityRefusedError,
    InvalidArgumentError,
    OutcomeUnknownError,
    OverloadedError,
    UnavailableError,
)
from gaia_grpc.raft.types import NodeId
from gaia_grpc.transport.api import ForwardedCall, ForwardedOutcome, InboundHandler
from gaia_grpc.transport.links import accepted, end_call, log, pause
from gaia_grpc.transport.options import TransportOptions
from gaia_grpc.transport.wire import hello_to_proto
from gaia_grpc.transport.wire_calls import call_to_proto, outcome_from_proto

if TYPE_CHECKING:
    ForwardCall = grpc.aio.StreamStreamCall[pb.ForwardRequest, pb.ForwardResponse]

OVERLOAD_RETRY_MS = 50


@dataclass(slots=True)
class _Pending:
    call: ForwardedCall
    outcome: asyncio.Future[ForwardedOutcome]
    sent: bool = False


class ForwardStream:
    """One peer's stream; `run` is its task for the life of the transport."""

    def __init__(
        self,
        peer: NodeId,
        stub: raft_pb2_grpc.RaftServiceAsyncStub,
        inbound: InboundHandler,
        options: TransportOptions,
    ) -> None:
        self._peer = peer
        self._stub = stub
        self._inbound = inbound
        self._options = options
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[int] = deque()
        self._changed = asyncio.Event()
        self._next_id = 0
        self._broken = False
        self._closing = asyncio.Event()
        self._reason = "the peer can't be reached"

    async def call(self, call: ForwardedCall, timeout_s: float) -> ForwardedOutcome:
        """See `PeerTransport.forward`; also raises `OverloadedError`."""
        if self._closing.is_set():
            raise UnavailableError("this peer is stopping")
        if len(self._pending) >= self._options.max_forwards_in_flight:
            raise OverloadedError(
                f"too many calls wait for {self._peer}", retry_after_ms=OVERLOAD_RETRY_MS
            )
        self._next_id += 1
        call_id = self._next_id
        pending = _Pending(call, asyncio.get_running_loop().create_future())
        self._pending[call_id] = pending
        self._unsent.append(call_id)
        self._changed.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await pending.outcome
        except TimeoutError:
            raise self._lost(pending, "no answer in time") from None
        finally:
            self._pending.pop(call_id, None)

    def _lost(self, pending: _Pending, why: str) -> GaiaError:
        if pending.sent and not pending.call.is_read:
            return OutcomeUnknownError(f"{self._peer}: {why}")
        return UnavailableError(f"{self._peer}: {why}")

    def close(self) -> None:
        """Ends `run`; calls in flight end as lost."""
        self._closing.set()
        self._changed.set()

    async def run(self) -> None:
        """Connects whenever a call waits."""
        try:
            while True:
                await self._wait_for_calls()
                if self._closing.is_set():
                    return
                await self._serve()
                if self._closing.is_set():
                    return
                self._fail_all()
                await pause(self._options.backoff_min_ms, self._closing)
        finally:
            self._closing.set()
            self._reason = "this peer is stopping"
            self._fail_all()

    async def _wait_for_calls(self) -> None:
        while not self._unsent and not self._closing.is_set() and not self._broken:
            self._changed.clear()
            await self._changed.wait()

    def _fail_all(self) -> None:
        self._unsent.clear()
        for pending in self._pending.values():
            if not pending.outcome.done():
                pending.outcome.set_exception(self._lost(pending, self._reason))
        self._broken = False

    async def _serve(self) -> None:
        self._broken = False
        self._reason = "the peer can't be reached"
        call: ForwardCall = self._stub.Forward()
        reader = asyncio.create_task(self._read(call), name=f"forward-answers-{self._peer}")
        try:
            async with asyncio.timeout(self._options.connect_timeout_ms / 1000):
                hello = hello_to_proto(self._inbound.hello(self._peer))
                await call.write(pb.ForwardRequest(hello=hello))
                if not await accepted(call, self._peer, self._inbound):
                    await asyncio.wait([reader])
                    return
            while not self._broken and not self._closing.is_set():
                if frame := self._next_frame():
                    await call.write(pb.ForwardRequest(calls=frame))
                else:
                    await self._wait_for_calls()
        except IdentityRefusedError as error:
            self._reason = error.message
        except (TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
            # What ended the call is its status, which the reader notes.
            pass
        finally:
            await end_call(call, reader)

    def _next_frame(self) -> list[pb.ForwardedCall]:
        frame: list[pb.ForwardedCall] = []
        size_bytes = 0
        while self._unsent and len(frame) < self._options.max_frame_calls:
            pending = self._pending.get(self._unsent[0])
            if pending is not None:
                size_bytes += len(pending.call.command or b"")
                if frame and size_bytes > self._options.max_frame_size_bytes:
                    break
                pending.sent = True
                frame.append(call_to_proto(self._unsent[0], pending.call))
            self._unsent.popleft()
        return frame

    async def _read(self, call: ForwardCall) -> None:
        try:
            while True:
                message = await call.read()
                if not isinstance(message, pb.ForwardResponse):
                    self._reason = "the peer ended the stream"
                    return
                for outcome in message.outcomes:
                    pending = self._pending.get(outcome.call_id)
                    if pending is not None and not pending.outcome.done():
                        pending.outcome.set_result(outcome_from_proto(outcome))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self._reason = f"the peer refuses us: {error.details()}"
                log.warning("peer refuses our calls", peer=self._peer, reason=error.details())
        except InvalidArgumentError as error:
            log.warning("forward stream broken", peer=self._peer, error=error.message)
        finally:
            self._broken = True
            self._changed.set()
