"""A scripted peer: a real grpc.aio server on port 0 whose answers the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Never, Self

import grpc
from gaia.alert.v1 import alert_pb2_grpc
from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gaia.lock.v1 import lock_pb2_grpc
from gaia.metrics.v1 import metrics_pb2_grpc
from gaia.session.v1 import session_pb2_grpc
from gaia.task.v1 import task_pb2, task_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Message]]
Stream = Callable[[Any, Context], AsyncIterator[Message]]


async def refuse(
    context: Context,
    code: grpc.StatusCode,
    reason: str = "",
    *,
    message: str = "refused",
    retry_after_ms: int | None = None,
    leader: str = "",
    metadata: dict[str, str] | None = None,
    violations: tuple[tuple[str, str], ...] = (),
) -> Never:
    """Ends the call as the services do: a code, and google.rpc details where there is a reason."""
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message)
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="gaia", metadata=metadata or {})
        status.details.add().Pack(info)
    if retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(retry_after_ms)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if violations:
        bad = error_details_pb2.BadRequest()
        for name, description in violations:
            bad.field_violations.add(field=name, description=description)
        status.details.add().Pack(bad)
    trailers: list[tuple[str, str | bytes]] = []
    if reason or retry_after_ms is not None or violations:
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    if leader:
        trailers.append(("gaia-leader", leader))
    await context.abort(code, message, tuple(trailers))


class FakePeer:
    """Serves what `answers` (unary) and `streams` say, by method name; keeps every request."""

    def __init__(self) -> None:
        self.answers: dict[str, Unary] = {}
        self.streams: dict[str, Stream] = {}
        self.requests: list[tuple[str, Message, str]] = []
        """(method, request, client id) of every call, in the order of arrival."""
        self.status = cluster_pb2.GetStatusResponse(node_id="fake")
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> Self:
        """Serves on `address`; with the old address it stands for the same peer, restarted."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        port = server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        task_pb2_grpc.add_TaskServiceServicer_to_server(_Tasks(self), server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(_Sessions(self), server)
        lock_pb2_grpc.add_LockServiceServicer_to_server(_Locks(self), server)
        metrics_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), server)
        alert_pb2_grpc.add_AlertServiceServicer_to_server(_Alerts(self), server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(_Cluster(self), server)
        await server.start()
        self._server = server
        return self

    async def stop(self) -> None:
        """Cuts every call, as a killed process does."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def of(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [request for name, request, _ in self.requests if name == method]

    async def answer(self, method: str, request: Message, context: Context) -> Any:
        self._note(method, request, context)
        if method not in self.answers:
            await refuse(context, grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")
        return await self.answers[method](request, context)

    async def stream(self, method: str, request: Message, context: Context) -> AsyncIterator[Any]:
        self._note(method, request, context)
        async for message in self.streams[method](request, context):
            yield message

    def _note(self, method: str, request: Message, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self.requests.append((method, request, str(metadata.get("gaia-client", ""))))


class _Tasks(task_pb2_grpc.TaskServiceServicer):
    def __init__(self, peer: FakePeer) -> None:
        self._peer = peer

    async def EnqueueTask(self, request: Message, context: Any) -> task_pb2.EnqueueTaskResponse:
        return await self._peer.answer("EnqueueTask", request, context)  # type: ignore[no-any-return]

    async def ClaimTasks(self, request: Message, context: Any) -> task_pb2.ClaimTasksResponse:
        return await self._peer.answer("ClaimTasks", request, context)  # type: ignore[no-any-return]

    async def ExtendClaim(self, request: Message, context: Any) -> task_pb2.ExtendClaimResponse:
        return await self._peer.answer("ExtendClaim", request, context)  # type: ignore[no-any-return]

    async def CompleteTask(self, request: Message, context: Any) -> task_pb2.CompleteTaskResponse:
        return await self._peer.answer("CompleteTask", request, context)  # type: ignore[no-any-return]

    async def FailTask(self, request: Message, context: Any) -> task_pb2.FailTaskResponse:
        return await self._peer.answer("FailTask", request, context)  # type: ignore[no-any-return]

    async def ReleaseTask(self, request: Message, context: Any) -> task_pb2.ReleaseTaskResponse:
        return await self._peer.answer("ReleaseTask", request, context)  # type: ignore[no-any-return]

    async def WatchTasks(self, request: Message, context: Any) -> AsyncIterator[Any]:
        if "WatchTasks" not in self._peer.streams:
            await refuse(context, grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")
        async for message in self._peer.stream("WatchTasks", request, context):
            yield message

    async def GetTask(self, request: Message, context: Any) -> task_pb2.GetTaskResponse:
        return await self._peer.answer("GetTask", request, context)  # type: ignore[no-any-return]

    async def ListTasks(self, request: Message, context: Any) -> task_pb2.ListTasksResponse:
        return await self._peer.answer("ListTasks", request, context)  # type: ignore[no-any-return]


class _Sessions(session_pb2_grpc.SessionServiceServicer):
    def __init__(self, peer: FakePeer) -> None:
        self._peer = peer

    async def WatchSessions(self, request: Message, context: Any) -> AsyncIterator[Any]:
        async for message in self._peer.stream("WatchSessions", request, context):
            yield message

    async def RegisterSession(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("RegisterSession", request, context)

    async def Heartbeat(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("Heartbeat", request, context)

    async def DeregisterSession(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("DeregisterSession", request, context)


class _Locks(lock_pb2_grpc.LockServiceServicer):
    def __init__(self, peer: FakePeer) -> None:
        self._peer = peer

    async def AcquireLock(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("AcquireLock", request, context)

    async def RenewLock(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("RenewLock", request, context)

    async def ReleaseLock(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("ReleaseLock", request, context)

    async def GetLock(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("GetLock", request, context)

    async def ListLocks(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("ListLocks", request, context)


class _Metrics(metrics_pb2_grpc.MetricsServiceServicer):
    def __init__(self, peer: FakePeer) -> None:
        self._peer = peer

    async def PublishMetrics(self, request: Message, context: Any) -> Any:
        return await self._peer.answer("PublishMetrics", request, context)


class _Alerts(alert_pb2_grpc.AlertServiceServicer):
    def __init__(self, peer: FakePeer) -> None:
        self._peer = peer

    async def SubscribeAlerts(self, request: Message, context: Any) -> AsyncIterator[Any]:
        async for message in self._peer.stream("SubscribeAlerts", request, context):
            yield message


class _Cluster(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, peer: FakePeer) -> None:
        self._peer = peer

    async def GetStatus(self, request: Message, context: Any) -> cluster_pb2.GetStatusResponse:
        if "GetStatus" in self._peer.answers:
            return await self._peer.answer("GetStatus", request, context)  # type: ignore[no-any-return]
        self._peer._note("GetStatus", request, context)
        return self._peer.status

    async def WatchStatus(self, request: Message, context: Any) -> AsyncIterator[Any]:
        async for message in self._peer.stream("WatchStatus", request, context):
            yield message


async def never(request: Any, context: Context) -> Any:
    """Answers nothing until the caller's deadline."""
    await asyncio.Event().wait()
    return request
