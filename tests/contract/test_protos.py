"""The contracts keep the names that the design fixes, and nothing in them is left unserved."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import Default

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"

RPCS = {
    "gaia.session.v1.SessionService": (
        "RegisterSession Heartbeat DeregisterSession GetSession ListSessions WatchSessions* "
        "ScoreSessions"
    ),
    "gaia.task.v1.TaskService": (
        "EnqueueTask BatchEnqueueTasks ClaimTasks ExtendClaim CompleteTask BatchCompleteTasks "
        "FailTask ReleaseTask CancelTask RequeueTask GetTask ListTasks GetQueueStats WatchTasks* "
        "ExplainAssignment"
    ),
    "gaia.lock.v1.LockService": "AcquireLock RenewLock ReleaseLock GetLock",
    "gaia.classroom.v1.ClassroomService": (
        "PutClassroom GetClassroom ListClassrooms DeleteStudentData"
    ),
    "gaia.metrics.v1.MetricsService": (
        "PublishMetrics *StreamMetrics* GetAggregate ListAggregates GetHistory "
        "ListDetectorInputs WatchClassroom*"
    ),
    "gaia.alert.v1.AlertService": (
        "SubscribeAlerts* ListAlerts AcknowledgeAlert SnoozeAlert ResolveAlert RecordIntervention "
        "ListInterventions"
    ),
    "gaia.cluster.v1.ClusterService": (
        "GetStatus WatchStatus* ListLogEntries GetSettings UpdateSettings TransferLeadership "
        "AddPeer RemovePeer TakeSnapshot"
    ),
    "gaia.raft.v1.RaftService": "RequestVote *AppendEntries* *InstallSnapshot TimeoutNow Forward",
}
"""Design section 8; a star marks the side that streams (Forward may be unary or a stream)."""

FIELDS = {
    "gaia.session.v1.Session": (
        "session_id name tier provider specialty max_concurrent_tasks health incarnation "
        "last_heartbeat_time"
    ),
    "gaia.session.v1.RegisterSessionRequest": "name specialty max_concurrent_tasks tier provider",
    "gaia.session.v1.RegisterSessionResponse": "session",
    "gaia.task.v1.Task": (
        "task_id task_type payload affinity priority idempotency_key state retry_count "
        "max_retries claim_token claimed_by claim_expire_time available_time checkpoint result "
        "last_error"
    ),
    "gaia.task.v1.NewTask": "task_type payload affinity priority idempotency_key max_retries",
    "gaia.task.v1.EnqueueTaskResponse": "task",
    "gaia.task.v1.BatchEnqueueTasksRequest": "tasks request_id",
    "gaia.task.v1.ClaimTasksRequest": "session_id max_tasks wait request_id",
    "gaia.task.v1.ClaimTasksResponse": "tasks",
    "gaia.task.v1.CompleteTaskRequest": "task_id claim_token session_id result",
    "gaia.task.v1.GetTaskRequest": "task_id",
    "gaia.metrics.v1.MetricBatch": (
        "source_id source_epoch sequence sent_at_ms timeline_id classroom_id student_id app_name "
        "metrics"
    ),
    "gaia.metrics.v1.Metric": "metric_type value event_time_ms",
    "gaia.metrics.v1.PublishMetricsRequest": "batches",
    "gaia.metrics.v1.Aggregate": "student_id app_name window_start_ms window_end_ms metrics",
    "gaia.metrics.v1.MetricAggregate": "metric_type count sum mean min max stddev p50 p95 p99",
    "gaia.metrics.v1.GetAggregateRequest": "student_id app_name timeline_id",
    "gaia.metrics.v1.GetAggregateResponse": "aggregate",
    "gaia.alert.v1.Alert": (
        "alert_id classroom_id student_id app_name timeline_id pattern severity confidence state "
        "evidence explanation"
    ),
    "gaia.alert.v1.AlertEvent": "sequence change alert",
    "gaia.alert.v1.SubscribeAlertsRequest": "from_now after_sequence cluster_id",
    "gaia.alert.v1.SubscribeAlertsResponse": "event through_sequence",
    "gaia.alert.v1.Intervention": "student_id teacher_id",
    "gaia.lock.v1.Lock": "name holder fencing_token",
    "gaia.classroom.v1.Classroom": "classroom_id teacher_ids student_ids",
    "gaia.cluster.v1.GetStatusResponse": (
        "node_id role term leader_id commit_index applied_index state_hash peers"
    ),
    "gaia.cluster.v1.GetStatusRequest": "at_index",
    "gaia.cluster.v1.PeerStatus": "node_id peer_uuid",
    "gaia.cluster.v1.ClusterSettings": "settings version",
}

BYTES = {"payload", "result", "checkpoint", "state_hash"}
INT64 = {"sequence", "source_epoch", "claim_token", "incarnation", "fencing_token"}
PUBLIC_AREAS = ("session", "task", "lock", "classroom", "metrics", "alert", "cluster")


def proto_names() -> list[str]:
    return sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def files() -> Iterator[FileDescriptor]:
    for name in proto_names():
        importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        yield Default().FindFileByName(name)


def services() -> dict[str, dict[str, str]]:
    """Full service name -> method -> the method with its stars."""
    return {
        service.full_name: {
            method.name: "*" * method.client_streaming + method.name + "*" * method.server_streaming
            for method in service.methods
        }
        for file in files()
        for service in file.services_by_name.values()
    }


def messages() -> Iterator[Descriptor]:
    for file in files():
        pending = list(file.message_types_by_name.values())
        while pending:
            message = pending.pop()
            yield message
            pending.extend(message.nested_types)


def public_messages() -> list[Descriptor]:
    return [m for m in messages() if m.file.package.split(".")[1] in PUBLIC_AREAS]


def public_requests() -> Iterator[tuple[str, Descriptor, Descriptor]]:
    """(full method name, request, response) of each unary public RPC."""
    for file in files():
        for service in file.services_by_name.values():
            if file.package.split(".")[1] not in PUBLIC_AREAS:
                continue
            for method in service.methods:
                if not (method.client_streaming or method.server_streaming):
                    name = f"{service.full_name}/{method.name}"
                    yield name, method.input_type, method.output_type


@pytest.mark.parametrize("service", sorted(RPCS))
def test_service_has_the_rpcs_of_the_design(service: str) -> None:
    served = services()[service]
    wanted = RPCS[service].split()
    for method in wanted:
        name = method.strip("*")
        assert name in served
        if name != "Forward":
            assert served[name] == method


@pytest.mark.parametrize("message", sorted(FIELDS))
def test_message_has_the_fields_of_the_design(message: str) -> None:
    assert list(files())
    present = set(Default().FindMessageTypeByName(message).fields_by_name)
    assert set(FIELDS[message].split()) <= present


def test_an_enqueue_holds_the_fields_of_a_new_task_inline() -> None:
    assert list(files())
    inline = Default().FindMessageTypeByName("gaia.task.v1.EnqueueTaskRequest").fields_by_name
    for name, field in (
        Default().FindMessageTypeByName("gaia.task.v1.NewTask").fields_by_name.items()
    ):
        assert inline[name].number == field.number
        assert inline[name].type == field.type


def test_types_follow_the_names() -> None:
    wrong: list[str] = []
    for message in public_messages():
        for field in message.fields:
            kind = {
                **dict.fromkeys(BYTES, FieldDescriptor.TYPE_BYTES),
                **dict.fromkeys(INT64, FieldDescriptor.TYPE_INT64),
            }.get(field.name)
            if kind not in (None, field.type) and field.message_type is None:
                wrong.append(f"{field.full_name}: type")
            holds = "" if field.message_type is None else field.message_type.full_name
            if field.name.endswith("_time") and holds != "google.protobuf.Timestamp":
                wrong.append(f"{field.full_name}: not a Timestamp")
            if field.name.endswith("_index") and field.type != FieldDescriptor.TYPE_INT64:
                wrong.append(f"{field.full_name}: not int64")
    assert wrong == []


def test_lists_have_pages() -> None:
    for name, request, response in public_requests():
        if name.partition("/")[2].startswith("List"):
            assert {"page_size", "page_token"} <= set(request.fields_by_name), name
            assert "next_page_token" in response.fields_by_name, name


def test_reads_say_how_fresh_they_must_be() -> None:
    local = {
        "gaia.cluster.v1.ClusterService/GetStatus",
        "gaia.cluster.v1.ClusterService/ListLogEntries",
    }
    for name, request, _ in public_requests():
        if name.partition("/")[2].startswith(("Get", "List")) and name not in local:
            assert "consistency" in request.fields_by_name, name


def test_nothing_that_is_stored_or_hashed_has_a_map() -> None:
    """The order of a map on the wire is not fixed, so it has no place in the log or a snapshot."""
    assert [
        field.full_name
        for message in messages()
        for field in message.fields
        if field.message_type is not None and field.message_type.GetOptions().map_entry
    ] == []


def test_protos_need_nothing_but_well_known_types() -> None:
    """A client in another language copies protos/ and is done."""
    ours = set(proto_names())
    for file in files():
        for dependency in file.dependencies:
            assert dependency.name in ours or dependency.name.startswith("google/protobuf/")
