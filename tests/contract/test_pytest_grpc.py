"""The fixtures of pytest-grpc work with our asyncio servicers, through a blocking stub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc
import pytest
from gaia.session.v1 import session_pb2, session_pb2_grpc
from gaia.task.v1 import task_pb2, task_pb2_grpc

from gaia_grpc.services.drain import Drain
from gaia_grpc.services.interceptor import CallInterceptor
from gaia_grpc.services.registry import NOT_SERVED, PublicServices
from tests.support.fake_node import FakeNode
from tests.support.served_peer import peer_config

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Peer:
    """The services of one peer and what stands before them."""

    services: PublicServices
    interceptor: CallInterceptor


@pytest.fixture(scope="module")
def grpc_servicer() -> Peer:
    config = peer_config()
    interceptor = CallInterceptor(
        leader_address=str,
        drain=Drain(),
        limits=config.limits,
        consensus=config.consensus,
        not_served=NOT_SERVED,
    )
    return Peer(PublicServices(FakeNode(), config), interceptor)


@pytest.fixture(scope="module")
def grpc_interceptors(grpc_servicer: Peer) -> tuple[grpc.aio.ServerInterceptor, ...]:
    return (grpc_servicer.interceptor,)


@pytest.fixture(scope="module")
def grpc_add_to_server() -> Callable[[Peer, grpc.aio.Server], None]:
    return lambda peer, server: peer.services.add_to(server)


@pytest.fixture(scope="module")
def grpc_stub_cls() -> type[task_pb2_grpc.TaskServiceStub]:
    return task_pb2_grpc.TaskServiceStub


def test_a_task_goes_through_its_life(
    grpc_stub: task_pb2_grpc.TaskServiceStub, grpc_channel: grpc.Channel
) -> None:
    sessions = session_pb2_grpc.SessionServiceStub(grpc_channel)
    registration = session_pb2.RegisterSessionRequest(name="grader", max_concurrent_tasks=1)
    session = sessions.RegisterSession(registration, timeout=TIMEOUT_S).session
    new = task_pb2.EnqueueTaskRequest(task_type="grade", payload=b"essay")
    task = grpc_stub.EnqueueTask(new, timeout=TIMEOUT_S).task
    claim = task_pb2.ClaimTasksRequest(session_id=session.session_id)
    (claimed,) = grpc_stub.ClaimTasks(claim, timeout=TIMEOUT_S).tasks
    assert (claimed.task_id, claimed.payload) == (task.task_id, b"essay")
    completion = task_pb2.CompleteTaskRequest(
        task_id=task.task_id,
        claim_token=claimed.claim_token,
        session_id=session.session_id,
        result=b"A",
    )
    grpc_stub.CompleteTask(completion, timeout=TIMEOUT_S)
    found = grpc_stub.GetTask(task_pb2.GetTaskRequest(task_id=task.task_id), timeout=TIMEOUT_S).task
    assert (found.state, found.result) == (task_pb2.TASK_STATE_COMPLETED, b"A")


def test_an_error_has_its_code(grpc_stub: task_pb2_grpc.TaskServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.GetTask(task_pb2.GetTaskRequest(task_id="unknown"), timeout=TIMEOUT_S)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_stream_comes_through(grpc_stub: task_pb2_grpc.TaskServiceStub) -> None:
    watch = grpc_stub.WatchTasks(
        task_pb2.WatchTasksRequest(task_type="nothing-of-it"), timeout=TIMEOUT_S
    )
    assert next(watch).kind == task_pb2.WATCH_KIND_COMPLETE
    watch.cancel()
