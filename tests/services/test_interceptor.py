"""The interceptor on a real server: every kind of handler, errors, limits, deadlines, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2
from structlog.testing import capture_logs

from gaia_grpc import errors
from gaia_grpc.config import ConsensusConfig, LimitsConfig
from gaia_grpc.services.drain import Drain
from gaia_grpc.services.error_table import ERROR_TABLE, find_row, refusal_error
from gaia_grpc.services.interceptor import CallInterceptor, RefusalLog
from tests.support.served_peer import TIMEOUT_S, Failure, eventually, failure_of, read_failure

Message = alert_pb2.SubscribeAlertsResponse
METHODS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


class Probe:
    """A service of all four kinds whose behaviour is a function."""

    def __init__(self) -> None:
        self.behave: Callable[[grpc.aio.ServicerContext[Any, Any]], Awaitable[None]] = self.pass_on
        self.repeat = 1
        self.answer_size_bytes = 0

    async def pass_on(self, context: object) -> None:
        return

    def answer(self, number: int) -> Message:
        message = Message(through_sequence=number)
        if self.answer_size_bytes:
            message.event.alert.explanation = "x" * self.answer_size_bytes
        return message

    async def unary_unary(self, request: Message, context: Any) -> Message:
        await self.behave(context)
        return self.answer(request.through_sequence)

    async def unary_stream(self, request: Message, context: Any) -> AsyncIterator[Message]:
        for number in range(self.repeat):
            yield self.answer(number + 1)
        await self.behave(context)

    async def stream_unary(self, requests: AsyncIterator[Message], context: Any) -> Message:
        total = 0
        async for request in requests:
            total += request.through_sequence
        await self.behave(context)
        return self.answer(total)

    async def stream_stream(
        self, requests: AsyncIterator[Message], context: Any
    ) -> AsyncIterator[Message]:
        async for request in requests:
            yield self.answer(request.through_sequence)
        await self.behave(context)

    def add_to(self, server: grpc.aio.Server) -> None:
        parse, serialize = Message.FromString, Message.SerializeToString
        handlers = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.unary_unary, parse, serialize),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(
                self.unary_stream, parse, serialize
            ),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(
                self.stream_unary, parse, serialize
            ),
            "StreamStream": grpc.stream_stream_rpc_method_handler(
                self.stream_stream, parse, serialize
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Probe", handlers),)
        )


class Served:
    """The probe's server, its interceptor, and calls of raw bytes."""

    def __init__(
        self, probe: Probe, interceptor: CallInterceptor, drain: Drain, channel: grpc.aio.Channel
    ) -> None:
        self.probe = probe
        self.interceptor = interceptor
        self.drain = drain
        self.channel = channel

    def call(self, method: str, data: bytes = b"", timeout: float | None = TIMEOUT_S) -> Any:
        """A call with one request of raw bytes."""
        path = f"/test.Probe/{method}"
        parse = Message.FromString
        channel: Any = self.channel  # raw bytes in, which the types do not know
        if method == "UnaryUnary":
            return channel.unary_unary(path, None, parse)(data, timeout=timeout)
        if method == "UnaryStream":
            return channel.unary_stream(path, None, parse)(data, timeout=timeout)
        if method == "StreamUnary":
            return channel.stream_unary(path, None, parse)(iter([data]), timeout=timeout)
        return channel.stream_stream(path, None, parse)(iter([data]), timeout=timeout)


@asynccontextmanager
async def serve(
    channel_options: list[tuple[str, Any]] | None = None,
    not_served: dict[str, str] | None = None,
    bypass_prefix: str = "",
    **limits: int,
) -> AsyncIterator[Served]:
    probe, drain = Probe(), Drain()
    interceptor = CallInterceptor(
        leader_address=lambda: "10.0.0.1:5000",
        drain=drain,
        limits=replace(LimitsConfig(), **limits),
        consensus=ConsensusConfig(),
        not_served=not_served,
        bypass_prefix=bypass_prefix,
    )
    server = grpc.aio.server(interceptors=(interceptor,))
    probe.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.use_local_subchannel_pool", 1), *(channel_options or [])]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
    try:
        yield Served(probe, interceptor, drain, channel)
    finally:
        await channel.close(None)
        await server.stop(None)


async def finish(call: Any) -> list[Message]:
    """All answers of a call of any kind."""
    if hasattr(call, "__aiter__"):
        return [message async for message in call]
    return [await call]


def raising(error: BaseException) -> Callable[[Any], Awaitable[None]]:
    async def behave(context: Any) -> None:
        raise error

    return behave


@pytest.mark.parametrize("method", METHODS)
async def test_every_kind_answers_with_the_leader_in_its_trailers(method: str) -> None:
    async with serve() as served:
        served.probe.repeat = 3
        call = served.call(method, Message(through_sequence=7).SerializeToString())
        answers = await finish(call)
        expected = [1, 2, 3] if method == "UnaryStream" else [7]
        assert [answer.through_sequence for answer in answers] == expected
        trailers = dict(await call.trailing_metadata())
        assert trailers["gaia-leader"] == "10.0.0.1:5000"
        await eventually(lambda: (served.interceptor.calls, served.interceptor.streams) == (0, 0))


@pytest.mark.parametrize("method", METHODS)
async def test_malformed_protobuf_is_an_invalid_argument(method: str) -> None:
    async with serve() as served:
        failure = await failure_of(served.call(method, b"\xff\xff\xff\xff"))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.reason == "MALFORMED_PROTOBUF"
        assert failure.violations == {"": "malformed protobuf"}
        assert failure.leader == "10.0.0.1:5000"


@pytest.mark.parametrize("method", METHODS)
async def test_a_request_that_is_too_large_says_how_large(method: str) -> None:
    async with serve(max_message_size_bytes=100) as served:
        failure = await failure_of(served.call(method, b"x" * 101))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.reason == "MESSAGE_TOO_LARGE"
        assert failure.violations == {"": "has 101 bytes, at most 100 are allowed"}


@pytest.mark.parametrize("method", METHODS)
async def test_text_that_is_not_utf8_is_an_invalid_argument(method: str) -> None:
    async with serve() as served:
        failure = await failure_of(served.call(method, b"\x1a\x02\xc3\x28"))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", METHODS)
async def test_a_bug_says_nothing_but_an_error_id_that_is_logged(method: str) -> None:
    async with serve() as served:
        served.probe.behave = raising(KeyError("student 4711"))
        with capture_logs() as logs:
            failure = await failure_of(served.call(method))
        assert failure.code is grpc.StatusCode.INTERNAL
        assert failure.reason == "INTERNAL"
        error_id = failure.metadata["error_id"]
        assert error_id in failure.message
        assert "4711" not in failure.message
        assert "KeyError" not in failure.message
        (line,) = [line for line in logs if line.get("error_id") == error_id]
        assert isinstance(line["exc_info"], KeyError)
        assert line["method"] == f"/test.Probe/{method}"
        assert line["log_level"] == "error"


@pytest.mark.parametrize("method", METHODS)
async def test_an_explicit_abort_passes(method: str) -> None:
    async def behave(context: Any) -> None:
        await context.abort(grpc.StatusCode.ABORTED, "as asked")

    async with serve() as served:
        served.probe.behave = behave
        failure = await failure_of(served.call(method))
        assert (failure.code, failure.message) == (grpc.StatusCode.ABORTED, "as asked")


@pytest.mark.parametrize("kind", list(ERROR_TABLE), ids=lambda kind: kind.__name__)
async def test_every_row_of_the_table_goes_over_the_wire(kind: type[errors.GaiaError]) -> None:
    row = ERROR_TABLE[kind]
    async with serve() as served:
        served.probe.behave = raising(kind("said"))
        with capture_logs() as logs:
            failure = await failure_of(served.call("UnaryUnary"))
    assert failure.code is row.code
    assert (failure.domain, failure.reason, failure.message) == ("gaia", kind.reason, "said")
    needs_retry = row.code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert (failure.retry_after_ms or 0) == row.retry_after_ms
    assert bool(failure.retry_after_ms) == needs_retry
    if row.code is grpc.StatusCode.UNAVAILABLE:
        assert failure.metadata["leader_address"] == "10.0.0.1:5000"
    assert [line["code"] for line in logs] == [row.code.name]


def test_every_error_class_that_a_service_may_raise_has_a_row() -> None:
    internal = {
        errors.GaiaError,
        errors.InvariantError,
        errors.ConfigError,
        errors.StartupError,
        errors.StorageError,
        errors.StorageDamagedError,
        errors.StorageFailedError,
        errors.DomainError,
        errors.SnapshotRefusedError,
    }
    pending = [errors.GaiaError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__module__ == errors.__name__:
            row = find_row(kind.__new__(kind))
            assert (row is None) == (kind in internal), kind


def test_a_subclass_takes_the_row_of_its_nearest_ancestor() -> None:
    class LocalError(errors.DrainingError):
        pass

    assert find_row(LocalError("x")) is ERROR_TABLE[errors.DrainingError]
    assert find_row(errors.InvariantError("x")) is None
    assert find_row(ValueError("x")) is None


async def test_details_of_an_error_travel() -> None:
    error = errors.OverloadedError("full", metadata={"queue": "tasks"}, retry_after_ms=1_234)
    async with serve() as served:
        served.probe.behave = raising(error)
        failure = await failure_of(served.call("UnaryUnary"))
    assert failure.metadata == {"queue": "tasks"}
    assert failure.retry_after_ms == 1_234


@pytest.mark.parametrize("text", ["is wrong ", "ist faläch ", "% \n", "\U0001f9ea"])
async def test_trailers_stay_far_below_what_a_client_accepts(text: str) -> None:
    violations = [
        errors.FieldViolation(f"tasks[{number}].task_type", text * 100) for number in range(1_000)
    ]
    metadata = {f"k{number:03}": text * 100 for number in range(100)}
    error = errors.InvalidArgumentError(text * 1_000, violations, metadata=metadata)
    async with serve() as served:
        served.probe.behave = raising(error)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.call("UnaryUnary")
    failure = read_failure(caught.value)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "tasks[0].task_type" in failure.violations
    left_out = failure.violations[""]
    assert left_out == f"and {1_000 - (len(failure.violations) - 1)} more violations"
    message = quote(failure.message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~")
    size_bytes = len(message) + sum(
        len(key) + len(value) * 4 // 3 + 32 for key, value in caught.value.trailing_metadata() or ()
    )
    assert size_bytes < 7_000
    assert len(message) > 500


@pytest.mark.parametrize(
    ("kind", "reason", "expected"),
    [
        ("INVALID_ARGUMENT", "BAD", errors.InvalidArgumentError),
        ("NOT_FOUND", "NOT_FOUND", errors.NotFoundError),
        ("ALREADY_EXISTS", "NAME_TAKEN", errors.AlreadyExistsError),
        ("FAILED_PRECONDITION", "SESSION_FAILED", errors.FailedPreconditionError),
        ("FAILED_PRECONDITION", "STALE_CLAIM", errors.StaleClaimError),
        ("OUT_OF_RANGE", "OUT_OF_RANGE", errors.OutOfRangeError),
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL", errors.ResourceExhaustedError),
        ("UNIMPLEMENTED", "UNIMPLEMENTED", errors.UnimplementedError),
        ("UNSPECIFIED", "", errors.InvariantError),
    ],
)
def test_refusals_become_errors(kind: str, reason: str, expected: type[errors.GaiaError]) -> None:
    refusal = command_pb2.Refusal(
        kind=command_pb2.RefusalKind.Value(f"REFUSAL_KIND_{kind}"),
        reason=reason,
        message="no",
        details=[command_pb2.RefusalDetail(key="holder", value="s-2")],
        field="task_id",
        retry_after_ms=250,
    )
    error = refusal_error(refusal)
    assert type(error) is expected
    assert (error.message, error.metadata) == ("no", {"holder": "s-2"})
    assert error.instance_reason == (reason or expected.reason)
    if isinstance(error, errors.InvalidArgumentError):
        assert error.violations == (errors.FieldViolation("task_id", "no"),)
    else:
        assert error.retry_after_ms == 250


async def test_unknown_methods_are_unimplemented_and_not_remembered() -> None:
    async with serve() as served:
        for number in range(3):
            failure = await failure_of(served.call(f"Nothing{number}"))
            assert failure.code is grpc.StatusCode.UNIMPLEMENTED
            assert f"Nothing{number}" in failure.message
        assert served.interceptor._wrapped == {}


@pytest.mark.parametrize("method", METHODS)
async def test_methods_that_are_not_served_yet_say_so(method: str) -> None:
    async with serve(not_served={f"/test.Probe/{method}": "not yet"}) as served:
        failure = await failure_of(served.call(method))
    assert (failure.code, failure.message) == (grpc.StatusCode.UNIMPLEMENTED, "not yet")
    assert failure.reason == "UNIMPLEMENTED"


async def test_a_bypassed_service_is_not_touched() -> None:
    async with serve(bypass_prefix="/test.Probe/") as served:
        call = served.call("UnaryUnary")
        await call
        assert "gaia-leader" not in dict(await call.trailing_metadata())


# --- limits ------------------------------------------------------------------------------------


def blocking(gate: asyncio.Event) -> Callable[[Any], Awaitable[None]]:
    async def behave(context: Any) -> None:
        await gate.wait()

    return behave


async def test_streams_and_calls_are_limited_apart() -> None:
    gate = asyncio.Event()
    async with serve(max_concurrent_calls=2, max_concurrent_streams=1) as served:
        served.probe.behave = blocking(gate)
        stream = served.call("UnaryStream")
        assert (await stream.read()).through_sequence == 1
        failure = await failure_of(served.call("StreamStream"))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "OVERLOADED",
        )
        assert failure.retry_after_ms == 200
        calls = [served.call("UnaryUnary"), served.call("StreamUnary")]
        await eventually(lambda: served.interceptor.calls == 2)
        failure = await failure_of(served.call("UnaryUnary"))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "OVERLOADED",
        )
        gate.set()
        for call in calls:
            await call
        assert await stream.read() is grpc.aio.EOF
        await served.call("UnaryUnary")


async def test_a_caller_that_goes_away_gives_its_place_free() -> None:
    async with serve(max_concurrent_calls=1) as served:
        served.probe.behave = blocking(asyncio.Event())
        call = served.call("UnaryUnary")
        await eventually(lambda: served.interceptor.calls == 1)
        call.cancel()
        await eventually(lambda: served.interceptor.calls == 0)


# --- deadlines ---------------------------------------------------------------------------------


async def test_a_servicer_that_hangs_is_answered_before_the_deadline() -> None:
    async with serve() as served:
        served.probe.behave = blocking(asyncio.Event())
        failure = await failure_of(served.call("UnaryUnary", timeout=0.5))
        # A late answer would be DEADLINE_EXCEEDED, which the client makes itself.
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "OUTCOME_UNKNOWN",
        )


async def test_a_timeout_of_the_servicer_itself_is_a_bug() -> None:
    async with serve() as served:
        served.probe.behave = raising(TimeoutError())
        failure = await failure_of(served.call("UnaryUnary"))
        assert failure.code is grpc.StatusCode.INTERNAL


# --- slow subscribers and drain ------------------------------------------------------------------


async def read_to_the_end(stream: Any) -> tuple[int, Failure]:
    """The last number of a stream that was read up to 1 and fails, and how it fails."""
    seen = 1
    while True:
        try:
            message = await stream.read()
        except grpc.aio.AioRpcError as error:
            return seen, read_failure(error)
        assert message.through_sequence == seen + 1
        seen = message.through_sequence


async def test_a_subscriber_that_does_not_read_is_closed_with_its_cursor() -> None:
    options = [("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]
    async with serve(options, subscriber_write_timeout_ms=200) as served:
        served.probe.repeat = 100_000
        served.probe.answer_size_bytes = 50_000
        stream = served.call("UnaryStream", timeout=None)
        assert (await stream.read()).through_sequence == 1
        await eventually(lambda: served.interceptor.streams == 1)
        await eventually(lambda: served.interceptor.streams == 0)
        seen, failure = await read_to_the_end(stream)
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "SUBSCRIBER_TOO_SLOW",
        )
        assert 0 <= seen - int(failure.metadata["through_sequence"]) <= 1


@pytest.mark.parametrize("method", ["UnaryStream", "StreamStream"])
async def test_streams_end_with_their_cursor_when_the_peer_stops(method: str) -> None:
    async with serve() as served:
        served.probe.behave = blocking(asyncio.Event())
        request = Message(through_sequence=1).SerializeToString()
        stream = served.call(method, request, timeout=None)
        assert (await stream.read()).through_sequence == 1
        assert served.drain.begin() == 1
        assert served.drain.begin() == 0
        failure = await failure_of(stream)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert failure.metadata["through_sequence"] == "1"


@pytest.mark.parametrize("method", ["UnaryStream", "StreamStream"])
async def test_no_stream_is_left_open_when_the_peer_stops_while_it_writes(method: str) -> None:
    """grpc never closes a stream whose first write was cancelled; seen in 3 of 100."""
    request = Message(through_sequence=1).SerializeToString()
    async with serve() as served:
        served.probe.behave = blocking(asyncio.Event())
        streams = [served.call(method, request, timeout=None) for _ in range(100)]
        await streams[0].read()
        served.drain.begin()
        async with asyncio.timeout(TIMEOUT_S):
            failures = await asyncio.gather(*(failure_of(stream) for stream in streams))
        assert {failure.reason for failure in failures} == {"DRAINING"}
        await eventually(lambda: served.interceptor.streams == 0)


async def test_calls_in_flight_finish_and_new_ones_are_refused_while_draining() -> None:
    gate = asyncio.Event()
    async with serve() as served:
        served.probe.behave = blocking(gate)
        call = served.call("UnaryUnary")
        await eventually(lambda: served.interceptor.calls == 1)
        served.drain.begin()
        refused: list[Failure] = [
            await failure_of(served.call(method)) for method in ("UnaryUnary", "UnaryStream")
        ]
        assert {failure.reason for failure in refused} == {"DRAINING"}
        assert {failure.code for failure in refused} == {grpc.StatusCode.UNAVAILABLE}
        gate.set()
        await call


async def test_a_client_that_cancels_a_stream_is_not_told_anything() -> None:
    async with serve() as served:
        served.probe.behave = blocking(asyncio.Event())
        stream = served.call("UnaryStream", timeout=None)
        await stream.read()
        with capture_logs() as logs:
            stream.cancel()
            await eventually(lambda: served.interceptor.streams == 0)
        assert logs == []


def test_a_flood_of_refusals_is_one_line_a_second() -> None:
    """Each had a line of its own, which cost a flooded peer more than to refuse them."""
    now_s = 10.0
    lines = RefusalLog(lambda: now_s)
    assert [lines.take("/a", "OVERLOADED") for _ in range(4)] == [0, None, None, None]
    assert lines.take("/b", "OVERLOADED") == 0
    now_s += 1.0
    assert lines.take("/a", "OVERLOADED") == 3
    assert lines.take("/a", "OVERLOADED") is None
