"""The receiving side of `gaia.raft.v1.RaftService`.

Every stream and every unary call but Identify begins with a Hello that the handler must accept;
otherwise it ends with FAILED_PRECONDITION (reason IDENTITY_REFUSED), logged once a speaker and
reason. Handlers hand messages to the driver as they come and send what the driver answers later;
they hold no rule of consensus.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, Never

import grpc
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gaia_grpc.errors import (
    DOMAIN,
    GaiaError,
    IdentityRefusedError,
    InvalidArgumentError,
    InvariantError,
    SnapshotRefusedError,
    StorageFullError,
    UnavailableError,
)
from gaia_grpc.raft.messages import AppendResponse, PreVoteResponse, VoteResponse
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.transport.api import Hello, InboundHandler
from gaia_grpc.transport.forward_session import ForwardSession
from gaia_grpc.transport.links import (
    Counters,
    FrameQueue,
    TaskSet,
    acceptance,
    end_task,
    log,
    refuses_connections,
)
from gaia_grpc.transport.options import TransportOptions
from gaia_grpc.transport.snapshot_intake import SnapshotIntake
from gaia_grpc.transport.snapshot_stream import SnapshotSession
from gaia_grpc.transport.wire import (
    append_request_from_proto,
    append_response_to_proto,
    hello_from_proto,
    timeout_now_from_proto,
    vote_request_from_proto,
    vote_response_to_proto,
)
from gaia_grpc.transport.wire_calls import identify_request_from_proto, identify_response_to_proto

Context = grpc.aio.ServicerContext

MAX_NOTED_REFUSALS = 1_000


class RaftServicer(raft_pb2_grpc.RaftServiceServicer):
    """Serves the other peers; answers UNAVAILABLE before `start` and after `close`."""

    def __init__(
        self,
        node_id: NodeId,
        addresses: Mapping[NodeId, str],
        counters: Mapping[NodeId, Counters],
        options: TransportOptions,
    ) -> None:
        """`addresses` and `counters` are the transport's own: they change with the members."""
        self._node_id = node_id
        self._addresses = addresses
        self._options = options
        self._inbound: InboundHandler | None = None
        self._counters = counters
        self._append_answers: dict[NodeId, FrameQueue[AppendResponse]] = {}
        self._votes: dict[tuple[NodeId, bool], deque[asyncio.Future[pb.RequestVoteResponse]]] = {}
        self._streams: dict[asyncio.Task[None], Hello] = {}
        self._probes = TaskSet()
        self._refusals: dict[tuple[NodeId, str], None] = {}
        self._intake = SnapshotIntake()
        self._closing = False

    def start(self, inbound: InboundHandler) -> None:
        """From now on calls are answered."""
        self._inbound = inbound

    def recheck(self) -> None:
        """Ends streams from those that the driver does not accept any more.

        A name may belong to another data directory by now, whose old owner still has its streams.
        """
        for task, hello in list(self._streams.items()):
            if self._inbound is not None and self._inbound.accepts(hello) is not None:
                task.cancel()

    async def close(self) -> None:
        """Ends open streams, so that a server's stop need not wait for them."""
        self._closing = True
        for task in list(self._streams):
            task.cancel()
        await self._probes.close()

    # --- what the driver answers ---------------------------------------------------------------

    def answer_append(self, peer: NodeId, term: Term, payload: AppendResponse) -> bool:
        """Puts an answer on the newest stream of `peer`; False if there is none."""
        queue = self._append_answers.get(peer)
        return queue is not None and queue.put(term, payload)

    def answer_vote(
        self, peer: NodeId, term: Term, payload: PreVoteResponse | VoteResponse
    ) -> bool:
        """Answers the oldest open call of that kind; False if the caller is gone.

        Which call it is does not matter: the answer names its term, and the candidate counts it
        only in that term.
        """
        waiting = self._votes.get((peer, isinstance(payload, PreVoteResponse)))
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(vote_response_to_proto(term, payload))
                return True
        return False

    # --- RPCs ------------------------------------------------------------------------------------

    async def RequestVote(
        self, request: pb.RequestVoteRequest, context: Context[Any, Any]
    ) -> pb.RequestVoteResponse:
        inbound, hello = await self._accept(request.hello, context)
        peer = hello.from_node
        try:
            envelope = vote_request_from_proto(request, peer, self._node_id)
        except InvalidArgumentError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        key = (peer, request.pre_vote)
        waiting = self._votes.setdefault(key, deque())
        future: asyncio.Future[pb.RequestVoteResponse] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        try:
            inbound.on_message(envelope)
            async with asyncio.timeout(self._options.vote_timeout_ms / 1000):
                return await future
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no vote in time")
        finally:
            if future in waiting:
                waiting.remove(future)
            if not waiting and self._votes.get(key) is waiting:
                del self._votes[key]

    async def TimeoutNow(
        self, request: pb.TimeoutNowRequest, context: Context[Any, Any]
    ) -> pb.TimeoutNowResponse:
        inbound, hello = await self._accept(request.hello, context)
        peer = hello.from_node
        try:
            inbound.on_message(timeout_now_from_proto(request, peer, self._node_id))
        except InvalidArgumentError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        return pb.TimeoutNowResponse(term=request.term)

    async def Identify(
        self, request: pb.IdentifyRequest, context: Context[Any, Any]
    ) -> pb.IdentifyResponse:
        inbound = await self._started(context)
        response = inbound.on_identify(identify_request_from_proto(request))
        return identify_response_to_proto(response)

    async def InstallSnapshot(
        self, request_iterator: object, context: Context[Any, Any]
    ) -> pb.InstallSnapshotResponse:
        first = await context.read()
        if not isinstance(first, pb.InstallSnapshotRequest):
            return pb.InstallSnapshotResponse()
        inbound, hello = await self._accept(first.hello, context)
        session = SnapshotSession(inbound, self._intake, hello, self._options)
        await self._run_stream(session.run(first, context), hello, context)
        return session.response

    async def AppendEntries(  # type: ignore[override]  # aio handlers may write through the context
        self, request_iterator: object, context: Context[Any, Any]
    ) -> None:
        first = await context.read()
        if not isinstance(first, pb.AppendEntriesRequest):
            return
        inbound, hello = await self._accept(first.hello, context)
        peer = hello.from_node
        await context.send_initial_metadata(acceptance(inbound, hello))
        answers: FrameQueue[AppendResponse] = FrameQueue(self._options.max_queue_frames, 0)
        self._append_answers[peer] = answers
        stream = _AppendSession(
            inbound, self._node_id, peer, self._counters.get(peer) or Counters()
        )
        writer = asyncio.create_task(_write_answers(answers, context), name=f"answers-to-{peer}")
        try:
            await self._run_stream(stream.read(first, context), hello, context)
        finally:
            if self._append_answers.get(peer) is answers:
                del self._append_answers[peer]
            await end_task(writer)
            refused = inbound.accepts(hello) is not None
            if not (stream.closed_by_leader or self._closing or refused):
                self._probes.spawn(self._probe(inbound, peer, stream.term), f"probe-{peer}")

    async def Forward(  # type: ignore[override]  # aio handlers may write through the context
        self, request_iterator: object, context: Context[Any, Any]
    ) -> None:
        first = await context.read()
        if not isinstance(first, pb.ForwardRequest):
            return
        inbound, hello = await self._accept(first.hello, context)
        await context.send_initial_metadata(acceptance(inbound, hello))
        session = ForwardSession(inbound, self._options)
        try:
            await self._run_stream(session.read(first, context), hello, context)
        finally:
            await session.close()

    # --- shared ----------------------------------------------------------------------------------

    async def _run_stream(
        self, reading: Coroutine[Any, Any, None], hello: Hello, context: Context[Any, Any]
    ) -> None:
        """Reads to the end in a task of its own, which `close` and `recheck` can end."""
        reader = asyncio.create_task(reading)
        self._streams[reader] = hello
        try:
            await asyncio.wait([reader])
            if reader.cancelled():
                if not self._closing:
                    await self._accept_hello(hello, context)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "this peer is stopping")
            error = reader.exception()
            if isinstance(error, GaiaError):
                await _end_with(_code_of(error), error.instance_reason, error.message, context)
            if error is not None and not isinstance(error, grpc.aio.BaseError):
                raise error
        finally:
            self._streams.pop(reader, None)
            reader.cancel()
            await asyncio.wait([reader])

    async def _started(self, context: Context[Any, Any]) -> InboundHandler:
        if self._inbound is None or self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this peer is not serving peers now")
        return self._inbound

    async def _accept(
        self, message: pb.Hello, context: Context[Any, Any]
    ) -> tuple[InboundHandler, Hello]:
        hello = hello_from_proto(message)
        inbound = await self._accept_hello(hello, context)
        inbound.on_hello(hello)
        return inbound, hello

    async def _accept_hello(self, hello: Hello, context: Context[Any, Any]) -> InboundHandler:
        inbound = await self._started(context)
        reason = inbound.accepts(hello)
        if reason is not None:
            await self._refuse(hello.from_node, reason, context)
        return inbound

    async def _refuse(self, peer: NodeId, reason: str, context: Context[Any, Any]) -> Never:
        counters = self._counters.get(peer)
        if counters is not None:
            counters.refused += 1
        if (peer, reason) not in self._refusals and len(self._refusals) < MAX_NOTED_REFUSALS:
            self._refusals[(peer, reason)] = None
            log.warning("peer refused", peer=peer, reason=reason, address=context.peer())
        code = grpc.StatusCode.FAILED_PRECONDITION
        await _end_with(code, IdentityRefusedError.reason, reason, context)

    async def _probe(self, inbound: InboundHandler, peer: NodeId, term: Term) -> None:
        address = self._addresses.get(peer)
        if address is not None and await refuses_connections(address):
            inbound.on_leader_gone(peer, term)


_CODES: Mapping[type[GaiaError], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    SnapshotRefusedError: grpc.StatusCode.ABORTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    StorageFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def _code_of(error: GaiaError) -> grpc.StatusCode:
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


async def _end_with(
    code: grpc.StatusCode, reason: str, message: str, context: Context[Any, Any]
) -> Never:
    """Ends a call with a status that names its reason as `google.rpc.ErrorInfo` does."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))
    raise InvariantError("abort_with_status has returned")


class _AppendSession:
    """What one inbound append stream has brought so far."""

    def __init__(
        self, inbound: InboundHandler, node_id: NodeId, peer: NodeId, counters: Counters
    ) -> None:
        self._inbound = inbound
        self._node_id = node_id
        self._peer = peer
        self._counters = counters
        self.term = Term(0)
        self.closed_by_leader = False

    async def read(self, first: pb.AppendEntriesRequest, context: Context[Any, Any]) -> None:
        """Delivers frames until the stream ends; raises `InvalidArgumentError`."""
        message: object = first
        while isinstance(message, pb.AppendEntriesRequest):
            if message.closing:
                self.closed_by_leader = True
                return
            envelope = append_request_from_proto(message, self._peer, self._node_id)
            self.term = max(self.term, envelope.term)
            self._counters.received += 1
            self._inbound.on_message(envelope)
            message = await context.read()


async def _write_answers(answers: FrameQueue[AppendResponse], context: Context[Any, Any]) -> None:
    # gRPC's own errors mean that the stream is gone, which ends the reading side too.
    with contextlib.suppress(grpc.aio.BaseError):
        while True:
            while answers:
                await context.write(append_response_to_proto(*answers.pop()))
            answers.changed.clear()
            await answers.changed.wait()
