"""The leader's side of Forward: the calls of one follower's stream, each a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import grpc
from gaia.raft.v1 import raft_pb2 as pb

from gaia_grpc.errors import (
    GaiaError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    UnavailableError,
)
from gaia_grpc.raft.types import NO_NODE, NodeId
from gaia_grpc.transport.api import (
    ForwardedCall,
    ForwardedOutcome,
    ForwardFailure,
    InboundHandler,
)
from gaia_grpc.transport.links import TaskSet, log
from gaia_grpc.transport.options import TransportOptions
from gaia_grpc.transport.wire_calls import call_from_proto, outcome_to_proto

Context = grpc.aio.ServicerContext

OVERLOAD_RETRY_MS = 50


class ForwardSession:
    """One inbound stream: `read` until it ends, then `close`."""

    def __init__(self, inbound: InboundHandler, options: TransportOptions) -> None:
        self._inbound = inbound
        self._options = options
        self._tasks = TaskSet()
        self._outcomes: deque[pb.ForwardedOutcome] = deque()
        self._changed = asyncio.Event()

    async def read(self, first: pb.ForwardRequest, context: Context[Any, Any]) -> None:
        """Starts calls until the stream ends; raises `InvalidArgumentError`."""
        self._tasks.spawn(self._write(context), "forward-outcomes")
        message: object = first
        while isinstance(message, pb.ForwardRequest):
            for call in message.calls:
                if len(self._tasks) > self._options.max_forwards_in_flight:
                    self._answer(call.call_id, _overloaded())
                else:
                    self._tasks.spawn(
                        self._run(call.call_id, call_from_proto(call)), "forwarded-call"
                    )
            message = await context.read()

    async def close(self) -> None:
        """Cancels what still runs: its caller is gone."""
        await self._tasks.close()

    def _answer(self, call_id: int, outcome: ForwardedOutcome) -> None:
        self._outcomes.append(outcome_to_proto(call_id, outcome))
        self._changed.set()

    async def _run(self, call_id: int, call: ForwardedCall) -> None:
        try:
            async with asyncio.timeout(call.timeout_ms / 1000):
                outcome = await self._inbound.on_forward(call)
        except GaiaError as error:
            leader = NodeId(error.leader_id) if isinstance(error, NotLeaderError) else NO_NODE
            outcome = ForwardFailure(
                error.instance_reason, error.message, leader, error.retry_after_ms or 0
            )
        except TimeoutError:
            outcome = _lost(call, "no outcome in time")
        except Exception as error:
            # A follower must hear of it; what it may not hear is the text of an unknown exception.
            log.error("forwarded call failed", exc_info=error)
            outcome = _lost(call, "internal error of the leader")
        self._answer(call_id, outcome)

    async def _write(self, context: Context[Any, Any]) -> None:
        # gRPC's own errors mean that the stream is gone, which ends the reading side too.
        with contextlib.suppress(grpc.aio.BaseError):
            while True:
                while self._outcomes:
                    await context.write(pb.ForwardResponse(outcomes=self._next_frame()))
                self._changed.clear()
                await self._changed.wait()

    def _next_frame(self) -> list[pb.ForwardedOutcome]:
        frame: list[pb.ForwardedOutcome] = []
        size_bytes = 0
        while self._outcomes and len(frame) < self._options.max_frame_calls:
            size_bytes += len(self._outcomes[0].applied.result)
            if frame and size_bytes > self._options.max_frame_size_bytes:
                break
            frame.append(self._outcomes.popleft())
        return frame


def _lost(call: ForwardedCall, message: str) -> ForwardFailure:
    """A read that was not answered is just that; a command may have been applied."""
    error = UnavailableError if call.is_read else OutcomeUnknownError
    return ForwardFailure(error.reason, message)


def _overloaded() -> ForwardFailure:
    return ForwardFailure(
        OverloadedError.reason,
        "the leader has too many calls of this peer in flight",
        retry_after_ms=OVERLOAD_RETRY_MS,
    )
