"""Small parts that both directions share: counters, bounded queues, tracked tasks, the probe."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import structlog
from gaia.raft.v1 import raft_pb2 as pb
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gaia_grpc.errors import IdentityRefusedError
from gaia_grpc.raft.messages import AppendRequest, AppendResponse
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.transport.api import Hello, InboundHandler, PeerStats
from gaia_grpc.transport.wire import hello_from_proto, hello_to_proto

if TYPE_CHECKING:
    AnyStream = grpc.aio.StreamStreamCall[Any, Any] | grpc.aio.StreamUnaryCall[Any, Any]

log = structlog.get_logger("gaia.transport")

Result = TypeVar("Result")
FramePayload = TypeVar("FramePayload", AppendRequest, AppendResponse)

_UNBROKEN_WAIT_S = 2.0
_STATUS_WAIT_S = 0.1
_PROBE_WAIT_S = 0.1
_PROBE_TRIES = 5
_PROBE_PAUSE_S = 0.005


@dataclass(slots=True)
class Counters:
    """What `PeerStats` shows of one peer."""

    sent: int = 0
    received: int = 0
    dropped: int = 0
    connects: int = 0
    breaks: int = 0
    refused: int = 0

    def snapshot(self, queued: int) -> PeerStats:
        """The values now."""
        return PeerStats(
            self.sent,
            self.received,
            self.dropped,
            queued,
            self.connects,
            self.breaks,
            self.refused,
        )


class FrameQueue(Generic[FramePayload]):
    """Messages that wait for one stream, bounded by number and by the bytes of their entries."""

    def __init__(self, max_frames: int, max_size_bytes: int) -> None:
        self._frames: deque[tuple[Term, FramePayload, int]] = deque()
        self._max_frames = max_frames
        self._max_size_bytes = max_size_bytes
        self._size_bytes = 0
        self.changed = asyncio.Event()
        """Set by each `put`; whoever waits clears it first and looks at the queue again."""

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, term: Term, payload: FramePayload, size_bytes: int = 0) -> bool:
        """False if the queue is full; a message larger than the bound passes through alone."""
        frames = self._frames
        if len(frames) >= self._max_frames:
            return False
        if frames and self._size_bytes + size_bytes > self._max_size_bytes:
            return False
        frames.append((term, payload, size_bytes))
        self._size_bytes += size_bytes
        self.changed.set()
        return True

    def pop(self) -> tuple[Term, FramePayload]:
        """The oldest message; there must be one."""
        term, payload, size_bytes = self._frames.popleft()
        self._size_bytes -= size_bytes
        return term, payload

    def clear(self) -> int:
        """Drops all; returns how many."""
        dropped = len(self._frames)
        self._frames.clear()
        self._size_bytes = 0
        return dropped


class TaskSet:
    """Tasks that are kept until they end and awaited at `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Starts a task; an exception of it is logged, since nobody awaits its result."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", task=task.get_name(), exc_info=error)

    async def join(self, timeout_s: float) -> None:
        """Waits for those that end by themselves."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)

    async def close(self) -> None:
        """Cancels what still runs and waits for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def pause(duration_ms: int, ended_by: asyncio.Event) -> None:
    """Sleeps, unless the event comes first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(duration_ms / 1000):
            await ended_by.wait()


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancels a task, waits for its end and logs what it died of."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task failed", task=task.get_name(), exc_info=error)


async def unbroken(work: Awaitable[Result]) -> Result:
    """Awaits what must not be cut in two; a cancellation is raised once it has ended.

    Half a write to a file would go on in its thread while the file is being closed. A disk that
    hangs must not keep the peer from ending, though: then the work is cancelled after all.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task], timeout=_UNBROKEN_WAIT_S if cancelled else None)
            if not task.done():
                task.cancel()
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # looked at: the cancellation is what counts
        raise asyncio.CancelledError
    return task.result()


ACCEPTED = ("gaia-raft", "accepted")
"""In the initial metadata of an accepted stream. A refused one has initial metadata too, as gRPC
clients see it (empty, a moment before its status), so only this word tells them apart."""

HELLO_KEY = "gaia-hello-bin"
"""Initial metadata in which the accepting peer introduces itself: a serialized `Hello`."""


def acceptance(
    inbound: InboundHandler, hello: Hello, *more: tuple[str, bytes]
) -> tuple[tuple[str, str | bytes], ...]:
    """The initial metadata of a stream from `hello`, which was accepted."""
    # A joiner does not know its leader from any configuration, but from what it has just accepted.
    answer = replace(inbound.hello(hello.from_node), to_peer_uuid=hello.from_peer_uuid)
    return (ACCEPTED, (HELLO_KEY, hello_to_proto(answer).SerializeToString()), *more)


async def accepted(call: AnyStream, peer: NodeId, inbound: InboundHandler) -> bool:
    """Waits until the other side has accepted or ended a stream of ours, and hears who it is.

    Raises `IdentityRefusedError` where that is not a peer whom we accept.
    """
    metadata = tuple(await call.initial_metadata() or ())
    if ACCEPTED not in metadata:
        return False
    for key, value in metadata:
        if key == HELLO_KEY and isinstance(value, bytes):
            hello = hello_from_proto(_parsed_hello(value))
            reason = inbound.accepts(hello) if hello.from_node == peer else f"it is not {peer}"
            if reason is not None:
                raise IdentityRefusedError(reason)
            inbound.on_hello(hello)
    return True


def _parsed_hello(data: bytes) -> pb.Hello:
    try:
        return pb.Hello.FromString(data)
    except DecodeError as error:
        raise IdentityRefusedError("a peer introduced itself in bytes that are no Hello") from error


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of the `google.rpc.ErrorInfo` that came with a status, or the name of its code."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # aio errors work too
    info = error_details_pb2.ErrorInfo()
    for detail in () if status is None else status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return error.code().name


async def end_call(call: AnyStream, reader: asyncio.Task[None]) -> None:
    """Ends a stream and the task that reads its answers.

    Where the other side has ended it, the reader first comes to see how: it reports a refusal.
    """
    if call.done():
        await asyncio.wait([reader], timeout=_STATUS_WAIT_S)
    call.cancel()
    await end_task(reader)


async def refuses_connections(address: str) -> bool:
    """Whether nobody listens at `address` (host:port) any more.

    A process that is being killed may close its connections a moment before its listening socket,
    and then a connect still succeeds and ends at once: such an end is asked again. A paused process
    accepts and says nothing: it is alive. So is a host that does not answer at all, as far as
    anyone can tell from here.
    """
    host, _, port = address.rpartition(":")
    for _ in range(_PROBE_TRIES):
        try:
            async with asyncio.timeout(_PROBE_WAIT_S):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                try:
                    if await reader.read(1):
                        return False
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        except OSError:
            # Reset, or no route: only a refusal proves that the process is gone.
            pass
        await asyncio.sleep(_PROBE_PAUSE_S)
    return False
