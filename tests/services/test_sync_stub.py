"""The contract through pytest-grpc and a synchronous stub, as most users' tests will call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from gaia.task.v1 import task_pb2, task_pb2_grpc

from gaia_grpc.config import ConsensusConfig, LimitsConfig
from gaia_grpc.services.drain import Drain
from gaia_grpc.services.interceptor import CallInterceptor
from gaia_grpc.services.leader_hint import LeaderHint
from gaia_grpc.services.registry import NOT_SERVED, PublicServices
from tests.support.fake_node import FakeNode
from tests.support.served_peer import peer_config


@pytest.fixture(scope="module")
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture(scope="module")
def grpc_interceptors(node: FakeNode) -> tuple[grpc.aio.ServerInterceptor, ...]:
    interceptor = CallInterceptor(
        leader_address=LeaderHint(node),
        drain=Drain(),
        limits=LimitsConfig(),
        consensus=ConsensusConfig(),
        not_served=NOT_SERVED,
    )
    return (interceptor,)


@pytest.fixture(scope="module")
def grpc_add_to_server() -> Callable[[PublicServices, grpc.aio.Server], None]:
    return PublicServices.add_to


@pytest.fixture(scope="module")
def grpc_servicer(node: FakeNode) -> PublicServices:
    return PublicServices(node, peer_config())


@pytest.fixture(scope="module")
def grpc_stub_cls() -> type[task_pb2_grpc.TaskServiceStub]:
    return task_pb2_grpc.TaskServiceStub


def test_a_task_is_enqueued_and_read(grpc_stub: Any) -> None:
    request = task_pb2.EnqueueTaskRequest(task_type="grade", payload=b"essay")
    response, call = grpc_stub.EnqueueTask.with_call(request, timeout=5)
    assert dict(call.trailing_metadata())["gaia-leader"] == "127.0.0.1:5001"
    read = grpc_stub.GetTask(task_pb2.GetTaskRequest(task_id=response.task.task_id), timeout=5)
    assert read.task.payload == b"essay"


def test_what_is_missing_is_an_invalid_argument(grpc_stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.EnqueueTask(task_pb2.EnqueueTaskRequest(), timeout=5)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "task_type is required"


def test_a_stream_is_read(grpc_stub: Any) -> None:
    task_id = grpc_stub.EnqueueTask(
        task_pb2.EnqueueTaskRequest(task_type="watched"), timeout=5
    ).task.task_id
    watch = grpc_stub.WatchTasks(task_pb2.WatchTasksRequest(task_type="watched"), timeout=5)
    assert [task.task_id for task in next(watch).tasks] == [task_id]
    assert next(watch).kind == task_pb2.WATCH_KIND_COMPLETE
    watch.cancel()
