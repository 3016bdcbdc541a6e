"""The client port as a whole: what it serves, health, reflection, raw bytes, deadlines, drain."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from gaia_grpc.errors import OutcomeUnknownError, OverloadedError, StartupError, UnavailableError
from gaia_grpc.services.client_port import HEALTH_NAME, ClientPort
from gaia_grpc.services.leader_hint import LeaderHint
from gaia_grpc.services.registry import NOT_SERVED, SERVICES
from gaia_grpc.services.settings_cache import SettingsCache
from tests.support.fake_node import FakeNode
from tests.support.served_peer import (
    TIMEOUT_S,
    Failure,
    Serve,
    ServedPeer,
    eventually,
    failure_of,
    peer_config,
    serve_peer,
)

health: Any = health_pb2  # the published type stubs do not know List yet
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
METHODS = [method for service in SERVICES.values() for method in service.methods]


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def call_raw(peer: ServedPeer, method: MethodDescriptor, data: bytes) -> Failure:
    """How a call with raw bytes fails, for a method of any kind."""
    channel: Any = peer.channel
    path = path_of(method)
    if method.client_streaming:
        return await failure_of(channel.stream_stream(path)(iter([data]), timeout=TIMEOUT_S))
    if method.server_streaming:
        return await failure_of(channel.unary_stream(path)(data, timeout=TIMEOUT_S))
    return await failure_of(channel.unary_unary(path)(data, timeout=TIMEOUT_S))


@pytest.mark.twin_only  # no log is asked
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
async def test_malformed_protobuf_is_refused_by_every_method(
    peer: ServedPeer, method: MethodDescriptor
) -> None:
    failure = await call_raw(peer, method, b"\xff\xff\xff")
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "MALFORMED_PROTOBUF"


@pytest.mark.twin_only  # no log is asked
@pytest.mark.parametrize(
    "method",
    [method for method in METHODS if path_of(method) in NOT_SERVED],
    ids=lambda method: method.full_name,
)
async def test_what_is_not_served_yet_says_so(peer: ServedPeer, method: MethodDescriptor) -> None:
    failure = await call_raw(peer, method, b"")
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "UNIMPLEMENTED",
    )
    assert f"{method.containing_service.full_name}/{method.name}" in failure.message
    assert "not served yet" in failure.message


def test_every_method_that_is_not_served_exists() -> None:
    assert set(NOT_SERVED) <= {path_of(method) for method in METHODS}


async def test_an_unknown_method_of_a_known_service(peer: ServedPeer) -> None:
    call: Any = peer.channel.unary_unary("/gaia.task.v1.TaskService/Nothing")
    failure = await failure_of(call(b"", timeout=TIMEOUT_S))
    assert (failure.code, failure.domain) == (grpc.StatusCode.UNIMPLEMENTED, "gaia")


# --- errors of the log -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (UnavailableError("no quorum"), grpc.StatusCode.UNAVAILABLE, "NO_QUORUM"),
        (OutcomeUnknownError("lost"), grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN"),
        (OverloadedError("full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    ],
)
async def test_failures_of_the_log(
    peer: ServedPeer, error: Any, code: grpc.StatusCode, reason: str
) -> None:
    peer.node.error = error
    failure = await failure_of(peer.register())
    assert (failure.code, failure.reason) == (code, reason)
    assert failure.retry_after_ms
    assert failure.leader == peer.node.status().leader_address


async def test_a_write_without_answer_ends_within_its_deadline(peer: ServedPeer) -> None:
    peer.node.answers.clear()
    request = task_pb2.EnqueueTaskRequest(task_type="t")
    failure = await failure_of(peer.tasks.EnqueueTask(request, timeout=0.5))
    # A late answer would be DEADLINE_EXCEEDED, which the client makes itself.
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "OUTCOME_UNKNOWN",
    )
    peer.node.answers.set()


async def test_a_call_without_deadline_gets_the_default() -> None:
    node = FakeNode()
    seen: list[float] = []

    async def propose(command: bytes, *, timeout_s: float) -> Any:
        seen.append(timeout_s)
        raise UnavailableError("no quorum")

    node.propose = propose  # type: ignore[method-assign]  # what it is asked with is the point
    async with serve_peer(node) as peer:
        request = task_pb2.EnqueueTaskRequest(task_type="t")
        await failure_of(peer.tasks.EnqueueTask(request))
        await failure_of(peer.tasks.EnqueueTask(request, timeout=1_000))
        await failure_of(peer.tasks.EnqueueTask(request, timeout=1))
    assert seen[0] == 5.0
    assert seen[1] == 60.0
    assert 0.5 < seen[2] < 0.99


# --- health ------------------------------------------------------------------------------------


async def check_health(peer: ServedPeer, service: str = "") -> object:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await peer.health.Check(request, timeout=TIMEOUT_S)).status


async def test_health_follows_whether_writes_can_succeed(peer: ServedPeer) -> None:
    for service in ("", HEALTH_NAME, *SERVICES):
        assert await check_health(peer, service) == SERVING
    watch = peer.health.Watch(health_pb2.HealthCheckRequest(service="gaia.task.v1.TaskService"))
    statuses: Any = watch
    assert (await statuses.read()).status == SERVING
    peer.node.set_status(writable=False)
    assert (await statuses.read()).status == NOT_SERVING
    assert await check_health(peer) == NOT_SERVING
    peer.node.set_status(writable=True)
    assert (await statuses.read()).status == SERVING
    peer.port.health.drain()
    assert (await statuses.read()).status == NOT_SERVING
    peer.node.set_status(writable=True)
    assert await check_health(peer) == NOT_SERVING
    assert not peer.port.health.serving
    watch.cancel()


async def test_health_of_an_unknown_service(peer: ServedPeer) -> None:
    failure = await failure_of(
        peer.health.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=TIMEOUT_S)
    )
    assert failure.code is grpc.StatusCode.NOT_FOUND
    watch: Any = peer.health.Watch(health_pb2.HealthCheckRequest(service="no.such"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_health_lists_every_service(peer: ServedPeer) -> None:
    stub: Any = peer.health
    response = await stub.List(health.HealthListRequest(), timeout=TIMEOUT_S)
    assert set(response.statuses) == {"", HEALTH_NAME, *SERVICES}
    assert {entry.status for entry in response.statuses.values()} == {SERVING}


async def test_health_is_answered_when_all_calls_are_taken(serve: Serve) -> None:
    async with serve(max_concurrent_calls=1) as peer:
        peer.node.answers.clear()
        held = peer.tasks.EnqueueTask(task_pb2.EnqueueTaskRequest(task_type="t"), timeout=5)
        await eventually(lambda: peer.port.interceptor.calls == 1)
        assert await check_health(peer) == SERVING
        status = cluster_pb2.GetStatusRequest()
        failure = await failure_of(peer.cluster.GetStatus(status, timeout=TIMEOUT_S))
        assert failure.reason == "OVERLOADED"
        peer.node.answers.set()
        await held


# --- reflection --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_every_service(peer: ServedPeer, version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    channel: Any = peer.channel
    call = channel.stream_stream(
        path,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    requests += [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in SERVICES
    ]
    listed, *described = [answer async for answer in call(iter(requests), timeout=TIMEOUT_S)]
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {*SERVICES, HEALTH_NAME}
    assert len(described) == len(SERVICES)
    for answer in described:
        assert answer.file_descriptor_response.file_descriptor_proto


# --- life --------------------------------------------------------------------------------------


async def test_a_used_port_is_refused(peer: ServedPeer) -> None:
    taken = peer_config()
    other = ClientPort(FakeNode(), taken)
    object.__setattr__(taken, "listen", peer.address)
    with pytest.raises(StartupError, match="in use"):
        other.bind()


async def test_calls_in_flight_finish_and_new_ones_go_elsewhere(serve: Serve) -> None:
    async with serve() as peer:
        peer.node.answers.clear()
        held = peer.tasks.EnqueueTask(task_pb2.EnqueueTaskRequest(task_type="t"), timeout=5)
        await eventually(lambda: peer.port.interceptor.calls == 1)
        stopping = asyncio.ensure_future(peer.port.stop())
        await eventually(lambda: peer.port.drain.started)
        failure = await failure_of(peer.register())
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        peer.node.answers.set()
        assert (await held).task.task_id
        await stopping


async def test_a_heartbeat_that_was_collected_is_sent_before_the_end(serve: Serve) -> None:
    async with serve(heartbeat_collect_ms=100) as peer:
        session = await peer.register()
        beat = peer.sessions.Heartbeat(
            session_pb2.HeartbeatRequest(session_id=session.session_id), timeout=TIMEOUT_S
        )
        await eventually(lambda: peer.port.interceptor.calls == 1)
        await peer.port._services.close()
        assert (await beat).session.session_id == session.session_id
        late = session_pb2.HeartbeatRequest(session_id=session.session_id)
        failure = await failure_of(peer.sessions.Heartbeat(late, timeout=TIMEOUT_S))
        assert failure.reason == "DRAINING"


async def test_a_drain_gives_up_on_commands_that_never_end(serve: Serve) -> None:
    async with serve(drain_timeout_ms=100, heartbeat_collect_ms=0) as peer:
        session = await peer.register()
        peer.node.answers.clear()
        beat = peer.sessions.Heartbeat(
            session_pb2.HeartbeatRequest(session_id=session.session_id), timeout=TIMEOUT_S
        )
        await eventually(lambda: bool(peer.node.commands[-1].HasField("record_heartbeats")))
        await peer.port.stop()
        failure = await failure_of(beat)
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        peer.node.answers.set()


async def test_the_leader_hint_is_renewed() -> None:
    node = FakeNode()
    hint = LeaderHint(node)
    assert hint() == "127.0.0.1:5001"
    node.set_status(leader="n2")
    await eventually(lambda: hint() == "127.0.0.1:5002")


async def test_settings_are_read_once_a_version() -> None:
    node = FakeNode({"metrics.max_future": "5s"})
    cache = SettingsCache(node)
    assert await cache.milliseconds("metrics.max_future") == 5_000
    assert await cache.milliseconds("session.heartbeat_interval") == 10_000
    assert len(node.reads) == 1


async def test_a_crowd_that_comes_at_once_is_served(serve: Serve) -> None:
    """gRPC itself throws calls out at random, with a bare CANCELLED, where 1,000 are new."""
    async with serve() as peer:
        request = alert_pb2.SubscribeAlertsRequest(from_now=True)
        calls = [peer.alerts.SubscribeAlerts(request, timeout=30) for _ in range(2_500)]
        first = await asyncio.gather(*(call.read() for call in calls))
        assert all(isinstance(message, alert_pb2.SubscribeAlertsResponse) for message in first)
        for call in calls:
            call.cancel()
