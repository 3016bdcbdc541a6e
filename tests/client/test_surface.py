"""The public names, and that every public RPC is reachable."""

from __future__ import annotations

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.classroom.v1 import classroom_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.lock.v1 import lock_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.descriptor import FileDescriptor

import gaia_grpc.client as sdk
from gaia_grpc.client.channels import Peer


def test_the_public_names_are_pinned() -> None:
    assert sorted(sdk.__all__) == [
        "AlertListener",
        "AlertsApi",
        "BYTES",
        "BlockingClient",
        "BlockingJob",
        "ClassroomsApi",
        "Client",
        "ClusterApi",
        "Codec",
        "ComprehensionApp",
        "Connection",
        "Fail",
        "HeldLock",
        "JSON",
        "Job",
        "LINEARIZABLE",
        "LOCAL",
        "LocksApi",
        "MathApp",
        "MetricsApi",
        "MetricsBuffer",
        "MetricsCounters",
        "Peer",
        "PermanentTaskError",
        "PianoApp",
        "ReadingApp",
        "Release",
        "Retry",
        "SessionsApi",
        "Spool",
        "StateWatch",
        "TaskRef",
        "TasksApi",
        "TypingApp",
        "Worker",
        "WorkerCounters",
        "connect_blocking",
        "current_job",
        "new_task",
    ]
    assert all(hasattr(sdk, name) for name in sdk.__all__)


@pytest.mark.parametrize(
    ("area", "contract"),
    [
        ("alerts", alert_pb2.DESCRIPTOR),
        ("classrooms", classroom_pb2.DESCRIPTOR),
        ("cluster", cluster_pb2.DESCRIPTOR),
        ("locks", lock_pb2.DESCRIPTOR),
        ("metrics", metrics_pb2.DESCRIPTOR),
        ("sessions", session_pb2.DESCRIPTOR),
        ("tasks", task_pb2.DESCRIPTOR),
    ],
)
async def test_every_rpc_has_a_stub_on_the_peer(area: str, contract: FileDescriptor) -> None:
    peer = Peer("127.0.0.1:1")
    [service] = contract.services_by_name.values()
    stub = getattr(peer, area)
    assert [method.name for method in service.methods if not hasattr(stub, method.name)] == []
    await peer.channel.close()
