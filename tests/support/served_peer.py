"""One peer's client port on a real grpc.aio server over a `FakeNode`, and how its errors read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import grpc
import pytest
from gaia.alert.v1 import alert_pb2_grpc
from gaia.classroom.v1 import classroom_pb2_grpc
from gaia.cluster.v1 import cluster_pb2_grpc
from gaia.lock.v1 import lock_pb2_grpc
from gaia.metrics.v1 import metrics_pb2_grpc
from gaia.session.v1 import session_pb2, session_pb2_grpc
from gaia.task.v1 import task_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc

from gaia_grpc.config import LimitsConfig, PeerConfig
from gaia_grpc.services.client_port import ClientPort
from tests.support.fake_node import FakeControl, FakeNode
from tests.support.handled_log import HandledLog

TIMEOUT_S = 5.0


def peer_config(**limits: int) -> PeerConfig:
    """A configuration on a free port; nothing of it touches a disk."""
    return PeerConfig(
        node_id="n1",
        listen="127.0.0.1:0",
        peer_listen="127.0.0.1:0",
        peers=(("n1", "127.0.0.1:7001"),),
        data_dir="unused",
        limits=replace(LimitsConfig(), **limits),
    )


class ServedPeer:
    """The port, its log and a client with every stub."""

    def __init__(
        self, node: HandledLog, control: FakeControl, port: ClientPort, channel: grpc.aio.Channel
    ) -> None:
        self.node = node
        self.control = control
        """Of the twin only; the embedded log is served without control."""
        self.port = port
        self.channel = channel
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.tasks = task_pb2_grpc.TaskServiceStub(channel)
        self.locks = lock_pb2_grpc.LockServiceStub(channel)
        self.metrics = metrics_pb2_grpc.MetricsServiceStub(channel)
        self.alerts = alert_pb2_grpc.AlertServiceStub(channel)
        self.classrooms = classroom_pb2_grpc.ClassroomServiceStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)  # its type stub has no methods

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port.port}"

    async def register(self, name: str = "worker", **fields: Any) -> session_pb2.Session:
        request = session_pb2.RegisterSessionRequest(
            name=name, max_concurrent_tasks=fields.pop("max_concurrent_tasks", 100), **fields
        )
        return (await self.sessions.RegisterSession(request, timeout=TIMEOUT_S)).session


class Serve(Protocol):
    """Serves a peer with these limits and first settings, over the log of this run."""

    def __call__(
        self, settings: Mapping[str, str] | None = None, **limits: int
    ) -> AbstractAsyncContextManager[ServedPeer]: ...


@asynccontextmanager
async def serve_peer(
    node: HandledLog | None = None,
    channel_options: Sequence[tuple[str, Any]] = (),
    *,
    controlled: bool = True,
    **limits: int,
) -> AsyncIterator[ServedPeer]:
    """A served peer and a channel to it, both closed at the end.

    `controlled=False` is a log that brings no control of its own.
    """
    node = node or FakeNode()
    control = FakeControl(node if isinstance(node, FakeNode) else FakeNode())
    controlled = controlled and isinstance(node, FakeNode)
    port = ClientPort(node, peer_config(**limits), control if controlled else None)
    await port.start()
    options = [("grpc.use_local_subchannel_pool", 1), *channel_options]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port.port}", options=options)
    try:
        yield ServedPeer(node, control, port, channel)
    finally:
        await channel.close(None)
        await port.stop()


@dataclass
class Failure:
    """What a failed call tells its caller."""

    code: grpc.StatusCode
    message: str
    domain: str = ""
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: dict[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None
    leader: str | None = None


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    """The status details of an error."""
    failure = Failure(error.code(), error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == "gaia-leader":
            failure.leader = str(value)
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            _read_details(failure, status_pb2.Status.FromString(value))
    return failure


def _read_details(failure: Failure, status: status_pb2.Status) -> None:
    assert status.code == failure.code.value[0]
    assert status.message == failure.message
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            failure.domain, failure.reason = info.domain, info.reason
            failure.metadata = dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            failure.violations = {item.field: item.description for item in bad.field_violations}
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            failure.retry_after_ms = retry.retry_delay.ToMilliseconds()


async def failure_of(call: Any) -> Failure:
    """Awaits a call, or reads a stream, that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (_read_all(call) if hasattr(call, "__aiter__") else call)
    return read_failure(caught.value)


async def _read_all(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def eventually(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; each look is one turn of the loop."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # what is looked at has no event of its own
            await asyncio.sleep(0.001)
