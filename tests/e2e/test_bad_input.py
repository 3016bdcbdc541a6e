"""What a client may do wrong, on the wire: a code that says so, and a peer that goes on."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from gaia.metrics.v1 import metrics_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client
from gaia_grpc.client.rpc_errors import to_gaia_error
from gaia_grpc.errors import InvalidArgumentError, NotFoundError
from gaia_grpc.testing import Cluster

METHODS = [
    "gaia.session.v1.SessionService/RegisterSession",
    "gaia.task.v1.TaskService/EnqueueTask",
    "gaia.task.v1.TaskService/ClaimTasks",
    "gaia.metrics.v1.MetricsService/PublishMetrics",
    "gaia.alert.v1.AlertService/AcknowledgeAlert",
    "gaia.cluster.v1.ClusterService/GetStatus",
]


async def send(
    client: Client, method: str, body: bytes, timeout: float = 5
) -> grpc.aio.AioRpcError:
    """The error that raw bytes are answered with."""
    call: Any = client.peer().channel.unary_unary(
        f"/{method}", request_serializer=None, response_deserializer=None
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(body, timeout=timeout)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
async def test_malformed_protobuf_is_an_invalid_argument(client3: Client, method: str) -> None:
    error = await send(client3, method, b"\xff\xff\xff")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in (error.details() or "")


async def test_an_unknown_method_is_unimplemented(client3: Client) -> None:
    error = await send(client3, "gaia.task.v1.TaskService/NoSuchMethod", b"")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_and_the_peer_lives(
    cluster3: Cluster, client3: Client
) -> None:
    error = await send(client3, METHODS[1], bytes(17 << 20), timeout=20)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # no retry will help
    await client3.tasks.enqueue("after-too-much")
    assert len(cluster3.statuses()) == 3


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (task_pb2.EnqueueTaskRequest(), "task_type"),
        (task_pb2.EnqueueTaskRequest(task_type="with space"), "task_type"),
        (task_pb2.EnqueueTaskRequest(task_type="x" * 129), "task_type"),
        (task_pb2.EnqueueTaskRequest(task_type="x", priority=1_001), "priority"),
        (task_pb2.EnqueueTaskRequest(task_type="x", payload=bytes((1 << 20) + 1)), "payload"),
        (task_pb2.EnqueueTaskRequest(task_type="x", max_retries=-1), "max_retries"),
        (task_pb2.EnqueueTaskRequest(task_type="x", request_id="\n"), "request_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_field_is_named(
    client3: Client, request_message: task_pb2.EnqueueTaskRequest, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        await client3.call(lambda peer: peer.tasks.EnqueueTask, request_message)
    assert [violation.field for violation in refusal.value.violations] == [field]


async def test_too_many_items_are_refused(client3: Client) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        await client3.tasks.enqueue_batch(["x"] * 1_001)
    assert [violation.field for violation in refusal.value.violations] == ["tasks"]
    with pytest.raises(InvalidArgumentError):
        await client3.metrics.publish([])
    with pytest.raises(InvalidArgumentError):
        await client3.metrics.publish([metrics_pb2.MetricBatch()])


async def test_a_bad_page_token_is_refused(client3: Client) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        await client3.call(
            lambda peer: peer.tasks.ListTasks, task_pb2.ListTasksRequest(page_token="garbage")
        )
    assert [violation.field for violation in refusal.value.violations] == ["page_token"]


async def test_every_refusal_carries_its_reason_and_domain(client3: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client3.peer().tasks.GetTask(task_pb2.GetTaskRequest(task_id="none"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert to_gaia_error(caught.value).instance_reason == "NOT_FOUND"


async def test_a_bad_task_of_a_batch_and_an_unknown_one_are_named(client3: Client) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        await client3.tasks.enqueue("")
    assert [violation.field for violation in refusal.value.violations] == ["task_type"]
    with pytest.raises(InvalidArgumentError) as refusal:
        await client3.tasks.enqueue_batch([task_pb2.NewTask(task_type="ok"), task_pb2.NewTask()])
    assert [violation.field for violation in refusal.value.violations] == ["tasks[1].task_type"]
    with pytest.raises(NotFoundError):
        await client3.tasks.get("no-such-task")
    with pytest.raises(NotFoundError):
        await client3.tasks.claim("no-such-session")
