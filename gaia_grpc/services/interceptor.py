"""The one server interceptor: what every call has in common, so that servicers hold only their job.

It wraps all four kinds of handlers and

* turns malformed or too large requests into INVALID_ARGUMENT (grpcio alone would answer INTERNAL,
  or without details);
* maps errors by `error_table`, and hides what is a bug behind an error id;
* names the leader's client address in the trailer `gaia-leader`, on success and on errors;
* limits calls and streams separately, so that a crowd of watchers can't starve calls;
* answers before the client's deadline, whatever a servicer does;
* ends a stream whose client does not read, and all streams when the peer stops, with the cursor to
  go on from.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
import structlog
from gaia.alert.v1 import alert_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.message import DecodeError

from gaia_grpc import errors
from gaia_grpc.config import ConsensusConfig, LimitsConfig
from gaia_grpc.services.deadlines import Context, handler_timeout_s
from gaia_grpc.services.drain import Drain, OpenStream
from gaia_grpc.services.error_table import (
    STATUS_DETAILS_KEY,
    WireError,
    find_row,
    internal_error,
    to_wire,
)

LEADER_KEY = "gaia-leader"
THROUGH_SEQUENCE_KEY = "through_sequence"
THROUGH_INDEX_KEY = "through_index"
OVERLOAD_RETRY_MS = 200
REFUSAL_LOG_INTERVAL_S = 1.0
ABORT_TIMEOUT_S = 1.0
"""A status queues behind what a stalled client does not read: not waited for any longer."""

Behavior = Callable[[Any, Context], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Deserializer = Callable[[bytes], Any]

_LEVELS: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.INTERNAL: "error",
    grpc.StatusCode.UNAVAILABLE: "warning",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "warning",
}


class Unreadable:
    """Stands for a request that could not be read, so that the error can be raised in the call."""

    def __init__(self, reason: str, violation: str) -> None:
        self.reason = reason
        self.violation = violation

    def error(self) -> errors.InvalidArgumentError:
        """What the caller is told."""
        return errors.InvalidArgumentError(
            f"the request is not readable: {self.violation}",
            [errors.FieldViolation("", self.violation)],
            reason=self.reason,
        )


MALFORMED = Unreadable("MALFORMED_PROTOBUF", "malformed protobuf")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """See the module; one per server. `calls` and `streams` count what is running."""

    def __init__(
        self,
        *,
        leader_address: Callable[[], str],
        drain: Drain,
        limits: LimitsConfig,
        consensus: ConsensusConfig,
        not_served: Mapping[str, str] | None = None,
        bypass_prefix: str = "",
    ) -> None:
        """`not_served` maps full method names to what to say; `bypass_prefix` is left unwrapped."""
        self.calls = 0
        self.streams = 0
        self.idle = asyncio.Event()
        """Set once a drain has begun and nothing is running any more."""
        self._leader_address = leader_address
        self._drain = drain
        self._limits = limits
        self._consensus = consensus
        self._not_served = not_served or {}
        self._bypass_prefix = bypass_prefix
        self._wrapped: dict[str, Handler] = {}
        self._refusals = RefusalLog()
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger("services").bind()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The wrapped handler of the method; wrapped once, since methods don't change."""
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            # Not kept: a stranger could fill the memory with names.
            return grpc.stream_stream_rpc_method_handler(self._unknown_method(method))
        if not self._bypass_prefix or not method.startswith(self._bypass_prefix):
            handler = self._wrap(method, handler)
        self._wrapped[method] = handler
        return handler

    # --- wrapping ----------------------------------------------------------------------------

    def _wrap(self, method: str, handler: Handler) -> Handler:
        parse = _tolerant(handler.request_deserializer, self._limits.max_message_size_bytes)
        serialize = handler.response_serializer
        message = self._not_served.get(method)
        refusal = None if message is None else _refuse(message)
        if handler.response_streaming:
            behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
            serve = self._streaming(method, refusal or behavior)
            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(serve, parse, serialize)
            return grpc.unary_stream_rpc_method_handler(serve, parse, serialize)
        behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
        serve = self._unary(method, refusal or behavior)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(serve, parse, serialize)
        return grpc.unary_unary_rpc_method_handler(serve, parse, serialize)

    def _unary(self, method: str, behavior: Any) -> Behavior:
        """A handler with one answer. Health checks are answered whatever the load is."""
        limited = not method.startswith("/grpc.")
        consensus = self._consensus

        async def serve(request: Any, context: Context) -> Any:
            started_s = time.monotonic()
            try:
                if limited:
                    self._admit_call()
                self.calls += 1
                try:
                    async with asyncio.timeout(handler_timeout_s(context, consensus)) as scope:
                        response = await behavior(_checked(request), context)
                except TimeoutError as error:
                    if not scope.expired():
                        raise
                    raise errors.OutcomeUnknownError(
                        "no answer in time; repeat the call with the same request_id"
                    ) from error
                finally:
                    self.calls -= 1
                    self._note_idle()
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await self._abort(method, context, error, started_s)
            context.set_trailing_metadata(((LEADER_KEY, self._leader_address()),))
            self._log.debug("call", method=method, duration_ms=_since_ms(started_s))
            return response

        return serve

    def _streaming(self, method: str, behavior: Any) -> Behavior:
        """A handler with many answers. It writes them itself: a generator could not tell how long
        its caller takes to write."""

        async def serve(request: Any, context: Context) -> None:
            started_s = time.monotonic()
            sent: list[Any] = [None]
            try:
                with self._admit_stream(), self._drain.stream() as stream:
                    await self._pump(behavior(_checked(request), context), context, stream, sent)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._drain.started or task is None:
                    raise
                task.uncancel()
                await self._abort(method, context, _draining_error(sent[0]), started_s)
            except Exception as error:
                await self._abort(method, context, error, started_s)
            context.set_trailing_metadata(((LEADER_KEY, self._leader_address()),))
            self._log.debug("stream", method=method, duration_ms=_since_ms(started_s))

        return serve

    async def _pump(
        self, answers: Any, context: Context, stream: OpenStream, sent: list[Any]
    ) -> None:
        """Writes what the servicer yields; `sent[0]` is the last message that was written."""
        if not hasattr(answers, "__aiter__"):
            await answers  # a handler that writes to the context itself
            return
        write_timeout_s = self._limits.subscriber_write_timeout_ms / 1000
        async with aclosing(answers):
            async for answer in answers:
                stream.writing = True
                try:
                    if sent[0] is None:
                        # Alone, since flow control does not hold headers up: a first message that
                        # stalls would be cancelled together with them, and see `drain`.
                        await context.send_initial_metadata(())
                    async with asyncio.timeout(write_timeout_s):
                        await context.write(answer)
                except TimeoutError as error:
                    raise errors.ResourceExhaustedError(
                        "the client does not read its stream; go on from the last message read",
                        metadata=_cursor(sent[0]),
                        reason="SUBSCRIBER_TOO_SLOW",
                    ) from error
                finally:
                    stream.writing = False
                sent[0] = answer
                if self._drain.started:
                    raise _draining_error(answer)

    def _unknown_method(self, method: str) -> Behavior:
        async def serve(request: Any, context: Context) -> None:
            error = errors.UnimplementedError(f"no such method: {method[:200]}")
            await self._abort("unknown", context, error, time.monotonic())

        return serve

    def _note_idle(self) -> None:
        if self._drain.started and not self.calls and not self.streams:
            self.idle.set()

    # --- limits ------------------------------------------------------------------------------

    def _admit_call(self) -> None:
        """Raises where a call with one answer can't be taken now."""
        if self._drain.started:
            raise errors.DrainingError("the peer is stopping; another one will answer")
        if self.calls >= self._limits.max_concurrent_calls:
            raise errors.OverloadedError(
                f"{self._limits.max_concurrent_calls} calls are in flight at this peer",
                retry_after_ms=OVERLOAD_RETRY_MS,
            )

    @contextmanager
    def _admit_stream(self) -> Iterator[None]:
        if self._drain.started:
            raise errors.DrainingError("the peer is stopping; another one will answer")
        if self.streams >= self._limits.max_concurrent_streams:
            raise errors.OverloadedError(
                f"{self._limits.max_concurrent_streams} streams are open at this peer",
                retry_after_ms=OVERLOAD_RETRY_MS,
            )
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1
            self._note_idle()

    # --- errors ------------------------------------------------------------------------------

    async def _abort(
        self, method: str, context: Context, error: Exception, started_s: float
    ) -> None:
        """Ends the call with what the table says; always raises."""
        leader = self._leader_address()
        wire = self._describe(method, context, error, started_s, leader)
        trailers = ((STATUS_DETAILS_KEY, wire.details), (LEADER_KEY, leader))
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await context.abort(wire.code, wire.message, trailers)
        except TimeoutError:
            # The status is on its way. grpcio takes no other AbortError than its own for an end.
            raise asyncio.CancelledError from error

    def _describe(
        self, method: str, context: Context, error: Exception, started_s: float, leader: str
    ) -> WireError:
        """The error for the wire; logs it, one line a failed call."""
        row = find_row(error)
        fields = {"method": method, "peer": context.peer(), "duration_ms": _since_ms(started_s)}
        if row is None or not isinstance(error, errors.GaiaError):
            error_id = uuid.uuid4().hex[:12]
            self._log.error("call failed", error_id=error_id, **fields, exc_info=error)
            return internal_error(error_id)
        wire = to_wire(error, row, leader)
        # A peer that stops says so to every stream, which is no news in the log.
        name = (
            "debug" if isinstance(error, errors.DrainingError) else _LEVELS.get(wire.code, "info")
        )
        if wire.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            unsaid = self._refusals.take(method, wire.reason)
            if unsaid is None:
                return wire
            fields["not_logged"] = unsaid
        level = getattr(self._log, name)
        level("call failed", code=wire.code.name, reason=wire.reason, error=wire.message, **fields)
        return wire


class RefusalLog:
    """One line a second for each kind of refusal: thousands of them would cost more than the calls
    that are refused, at the moment in which there is the least to spare."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def take(self, method: str, reason: str) -> int | None:
        """How many were not logged since the last one that was; None for one that is not."""
        now_s = self._now_s()
        quiet_until_s, unsaid = self._kinds.get((method, reason), (0.0, 0))
        if now_s < quiet_until_s:
            self._kinds[method, reason] = (quiet_until_s, unsaid + 1)
            return None
        self._kinds[method, reason] = (now_s + REFUSAL_LOG_INTERVAL_S, 0)
        return unsaid


def _tolerant(parse: Deserializer | None, most_bytes: int) -> Deserializer | None:
    """A deserializer that gives an `Unreadable` where the original raises, or is given too much.

    gRPC's own limit lies higher: what exceeds it is refused without details.
    """
    if parse is None:
        return None

    def deserialize(data: bytes) -> Any:
        if len(data) > most_bytes:
            violation = f"has {len(data)} bytes, at most {most_bytes} are allowed"
            return Unreadable("MESSAGE_TOO_LARGE", violation)
        try:
            return parse(data)
        except DecodeError:
            return MALFORMED

    return deserialize


def _checked(request: Any) -> Any:
    """The request, or the stream of requests, with `Unreadable` turned into its error."""
    if isinstance(request, Unreadable):
        raise request.error()
    return _checked_stream(request) if hasattr(request, "__aiter__") else request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Unreadable):
            raise request.error()
        yield request


def _refuse(message: str) -> Behavior:
    async def refuse(request: Any, context: Context) -> None:
        raise errors.UnimplementedError(message)

    return refuse


def _draining_error(last_sent: object) -> errors.DrainingError:
    return errors.DrainingError(
        "the peer is stopping; go on at another one", metadata=_cursor(last_sent)
    )


def _cursor(last_sent: object) -> dict[str, str]:
    """Where a stream of alerts or a watch can be gone on with."""
    if isinstance(last_sent, alert_pb2.SubscribeAlertsResponse):
        return {THROUGH_SEQUENCE_KEY: str(last_sent.through_sequence)}
    watches = (task_pb2.WatchTasksResponse, session_pb2.WatchSessionsResponse)
    if isinstance(last_sent, watches) and last_sent.through_index:
        return {THROUGH_INDEX_KEY: str(last_sent.through_index)}
    return {}


def _since_ms(started_s: float) -> float:
    return round((time.monotonic() - started_s) * 1000, 1)
