"""Every rule finds what it is for, all at once, by the path of the proto."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from gaia_grpc.config import LimitsConfig
from gaia_grpc.errors import FieldViolation, InvalidArgumentError
from gaia_grpc.services.registry import NOT_SERVED, SERVICES
from gaia_grpc.services.request_rules import build_rules, build_validator
from gaia_grpc.services.validation import Items, Part, Validator, duration, is_id, required_id, text
from tests.support.served_peer import TIMEOUT_S, ServedPeer, failure_of

LIMITS = LimitsConfig(
    max_payload_size_bytes=10,
    max_batch_items=3,
    max_metrics_per_batch=2,
    max_page_size=50,
    default_page_size=50,
)
VALIDATOR = build_validator(LIMITS)

GOOD_BATCH: dict[str, Any] = {
    "source_id": "app",
    "source_epoch": 1,
    "sequence": 1,
    "student_id": "ada",
    "app_name": "math",
    "metrics": [metrics_pb2.Metric(metric_type="t")],
}
CLAIM: dict[str, Any] = {"task_id": "t", "claim_token": 1, "session_id": "s"}
LONG = "x" * 129


def policy(**fields: Any) -> task_pb2.PutTaskPolicyRequest:
    return task_pb2.PutTaskPolicyRequest(policy=task_pb2.TaskPolicy(task_type="t", **fields))


BAD: list[tuple[Message, list[str]]] = [
    (session_pb2.RegisterSessionRequest(), ["name"]),
    (session_pb2.RegisterSessionRequest(name="x\ny"), ["name"]),
    (session_pb2.RegisterSessionRequest(name="x\u2028y"), ["name"]),
    (session_pb2.RegisterSessionRequest(name=LONG, specialty="no id"), ["name", "specialty"]),
    (
        session_pb2.RegisterSessionRequest(name="n", max_concurrent_tasks=1_001),
        ["max_concurrent_tasks"],
    ),
    (session_pb2.RegisterSessionRequest(name="n", max_concurrent_tasks=-1), ["max_conc"]),
    (
        session_pb2.RegisterSessionRequest(name="n", tier=session_pb2.Tier.ValueType(9)),
        ["tier"],
    ),
    (session_pb2.RegisterSessionRequest(name="n", request_id="?"), ["request_id"]),
    (
        session_pb2.RegisterSessionRequest(
            name="n", labels=[session_pb2.Label(key="a"), session_pb2.Label(key="a")]
        ),
        ["labels[1].key"],
    ),
    (session_pb2.HeartbeatRequest(incarnation=-1), ["session_id", "incarnation"]),
    (session_pb2.DeregisterSessionRequest(session_id="ä"), ["session_id"]),
    (session_pb2.GetSessionRequest(session_id="s", consistency=9), ["consistency"]),  # type: ignore[arg-type]  # a number that the contract does not know
    (session_pb2.ListSessionsRequest(page_size=51), ["page_size"]),
    (session_pb2.ListSessionsRequest(page_size=-1, page_token="t" * 1_025), ["page_s", "page_t"]),
    (session_pb2.ScoreSessionsRequest(affinity="a b"), ["affinity"]),
    (
        session_pb2.ListSessionsRequest(specialty="?", labels=[session_pb2.Label()]),
        ["specialty", "labels[0].key"],
    ),
    (session_pb2.WatchSessionsRequest(labels=[session_pb2.Label(key="a")] * 33), ["labels"]),
    (task_pb2.EnqueueTaskRequest(), ["task_type"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", payload=b"x" * 11), ["payload"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", priority=1_001), ["priority"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", max_retries=-1), ["max_retries"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", delay=Duration(seconds=-1)), ["delay"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", delay=Duration(nanos=-1)), ["delay"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", deadline=Duration(seconds=10**12)), ["deadline"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", depends_on=["a", "?"]), ["depends_on"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", depends_on=["a"] * 65), ["depends_on"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", idempotency_key="k" * 257), ["idempotency_key"]),
    (task_pb2.BatchEnqueueTasksRequest(), ["tasks"]),
    (task_pb2.BatchEnqueueTasksRequest(tasks=[task_pb2.NewTask(task_type="t")] * 4), ["tasks"]),
    (
        task_pb2.BatchEnqueueTasksRequest(
            tasks=[task_pb2.NewTask(task_type="t"), task_pb2.NewTask(priority=-1_001)]
        ),
        ["tasks[1].task_type", "tasks[1].priority"],
    ),
    (task_pb2.ClaimTasksRequest(max_tasks=4), ["session_id", "max_tasks"]),
    (task_pb2.ClaimTasksRequest(session_id="s", wait=Duration(seconds=61)), ["wait"]),
    (task_pb2.ClaimTasksRequest(session_id="s", task_types=[""]), ["task_types"]),
    (task_pb2.ClaimTasksRequest(session_id="s", incarnation=-1), ["incarnation"]),
    (task_pb2.ExtendClaimRequest(**CLAIM, progress=1.5), ["progress"]),
    (task_pb2.ExtendClaimRequest(**CLAIM, progress=float("nan")), ["progress"]),
    (task_pb2.CompleteTaskRequest(task_id="t", session_id="s"), ["claim_token"]),
    (task_pb2.BatchCompleteTasksRequest(session_id="s"), ["completions"]),
    (
        task_pb2.BatchCompleteTasksRequest(
            session_id="s", completions=[task_pb2.Completion(task_id="t")]
        ),
        ["completions[0].claim_token"],
    ),
    (task_pb2.FailTaskRequest(**CLAIM, error="e" * 4_097), ["error"]),
    (task_pb2.FailTaskRequest(**CLAIM, error="\x1b[2J"), ["error"]),
    (task_pb2.ReleaseTaskRequest(), ["task_id", "claim_token", "session_id"]),
    (task_pb2.CancelTaskRequest(), ["task_id"]),
    (task_pb2.FailTaskRequest(**CLAIM, retry_delay=Duration(seconds=-1)), ["retry_delay"]),
    (task_pb2.FailTaskRequest(**CLAIM, error_type="e" * 129), ["error_type"]),
    (task_pb2.FailTaskRequest(**CLAIM, error_type="a\nb"), ["error_type"]),
    (task_pb2.RequeueTaskRequest(), ["task_id"]),
    (task_pb2.PutTaskPolicyRequest(), ["policy.task_type"]),
    (policy(max_retries=1_001, retry_jitter=1.1), ["policy.max_retries", "policy.retry_jitter"]),
    (policy(retry_base=Duration(seconds=-1)), ["policy.retry_base"]),
    (policy(retry_max_delay=Duration(seconds=31 * 86_400)), ["policy.retry_max_delay"]),
    (policy(claim_timeout=Duration(nanos=1)), ["policy.claim_timeout"]),
    (policy(retention=Duration(seconds=366 * 86_400)), ["policy.retention"]),
    (policy(final_error_types=["e"] * 65), ["policy.final_error_types"]),
    (policy(final_error_types=[""]), ["policy.final_error_types"]),
    (task_pb2.DeleteTaskPolicyRequest(task_type="a b"), ["task_type"]),
    (task_pb2.ListTaskPoliciesRequest(page_size=51), ["page_size"]),
    (task_pb2.EnqueueTaskRequest(task_type="t", depends_on=["#0"]), ["depends_on"]),
    (
        task_pb2.BatchEnqueueTasksRequest(
            tasks=[
                task_pb2.NewTask(task_type="t", depends_on=["#0"]),
                task_pb2.NewTask(task_type="t", depends_on=["#0", "t-1", "#2"]),
            ]
        ),
        ["tasks[0].depends_on", "tasks[1].depends_on"],
    ),
    (
        task_pb2.BatchEnqueueTasksRequest(
            tasks=[task_pb2.NewTask(task_type="t", depends_on=["#01"])]
        ),
        ["tasks[0].depends_on"],
    ),
    (task_pb2.EnqueueTaskRequest(task_type="t", deadline=Duration()), ["deadline"]),
    (
        task_pb2.EnqueueTaskRequest(
            task_type="t", delay=Duration(seconds=2), deadline=Duration(seconds=1)
        ),
        ["delay"],
    ),
    (task_pb2.GetTaskRequest(), ["task_id"]),
    (task_pb2.ListTasksRequest(state=task_pb2.TaskState.ValueType(99)), ["state"]),
    (task_pb2.GetQueueStatsRequest(consistency=9), ["consistency"]),  # type: ignore[arg-type]  # as above
    (metrics_pb2.PublishMetricsRequest(), ["batches"]),
    (
        metrics_pb2.PublishMetricsRequest(
            batches=[
                metrics_pb2.MetricBatch(
                    **{**GOOD_BATCH, "sequence": 0, "source_epoch": -1, "sent_at_ms": -1}
                )
            ]
        ),
        ["batches[0].source_epoch", "batches[0].sequence", "batches[0].sent_at_ms"],
    ),
    (
        metrics_pb2.PublishMetricsRequest(
            batches=[
                metrics_pb2.MetricBatch(**{**GOOD_BATCH, "metrics": [metrics_pb2.Metric()] * 3})
            ]
        ),
        ["batches[0].metrics"],
    ),
    (
        metrics_pb2.StreamMetricsRequest(),
        [
            "batch.source_id",
            "batch.source_epoch",
            "batch.sequence",
            "batch.student_id",
            "batch.app_name",
        ],
    ),
    (
        metrics_pb2.StreamMetricsRequest(
            batch=metrics_pb2.MetricBatch(**{**GOOD_BATCH, "metrics": []})
        ),
        ["batch.metrics"],
    ),
    (
        metrics_pb2.PublishMetricsRequest(
            batches=[
                metrics_pb2.MetricBatch(**{**GOOD_BATCH, "metrics": []}),
                metrics_pb2.MetricBatch(**GOOD_BATCH),
                metrics_pb2.MetricBatch(**{**GOOD_BATCH, "metrics": []}),
            ]
        ),
        ["batches[0].metrics", "batches[2].metrics"],
    ),
    (
        metrics_pb2.PublishMetricsRequest(
            batches=[
                metrics_pb2.MetricBatch(
                    **GOOD_BATCH,
                    omissions=[
                        metrics_pb2.Omission(metric_type="?", count=1),
                        metrics_pb2.Omission(),
                        metrics_pb2.Omission(count=1_000_000_001, event_time_ms=-1),
                        metrics_pb2.Omission(
                            count=1, reason=metrics_pb2.OmissionReason.ValueType(9)
                        ),
                    ],
                )
            ]
        ),
        [
            "batches[0].omissions[0].metric_type",
            "batches[0].omissions[1].count",
            "batches[0].omissions[2].count",
            "batches[0].omissions[2].event_time_ms",
            "batches[0].omissions[3].reason",
        ],
    ),
    (
        metrics_pb2.PublishMetricsRequest(
            batches=[
                metrics_pb2.MetricBatch(
                    **GOOD_BATCH, omissions=[metrics_pb2.Omission(count=1)] * 101
                )
            ]
        ),
        ["batches[0].omissions"],
    ),
    (metrics_pb2.GetAggregateRequest(at_ms=-1), ["student_id", "app_name", "at_ms"]),
    (metrics_pb2.ListAggregatesRequest(), ["classroom_id"]),
    (metrics_pb2.WatchClassroomRequest(classroom_id="c", interval_ms=99), ["interval_ms"]),
    (metrics_pb2.WatchClassroomRequest(classroom_id="c", interval_ms=60_001), ["interval_ms"]),
    (
        alert_pb2.SubscribeAlertsRequest(
            filter=alert_pb2.AlertFilter(student_id="?"), after_sequence=-1
        ),
        ["after_sequence", "filter.student_id"],
    ),
    (alert_pb2.ListAlertsRequest(state=alert_pb2.AlertState.ValueType(77)), ["state"]),
    (alert_pb2.AcknowledgeAlertRequest(), ["alert_id", "teacher_id"]),
    (
        alert_pb2.ResolveAlertRequest(alert_id="a", teacher_id="t", note="n" * 4_097),
        ["note"],
    ),
    (cluster_pb2.GetStatusRequest(at_index=-1), ["at_index"]),
    (cluster_pb2.WatchStatusRequest(interval_ms=1), ["interval_ms"]),
    (cluster_pb2.ListLogEntriesRequest(page_size=10_001), ["page_size"]),
    (cluster_pb2.UpdateSettingsRequest(), ["changes"]),
    (
        cluster_pb2.UpdateSettingsRequest(
            changes=[cluster_pb2.SettingChange(name="a.b", value="1")] * 2
        ),
        ["changes[1].name"],
    ),
    (cluster_pb2.TransferLeadershipRequest(node_id="?"), ["node_id"]),
]


@pytest.mark.parametrize(("request_message", "fields"), BAD, ids=lambda value: type(value).__name__)
def test_what_is_wrong_is_found(request_message: Message, fields: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        VALIDATOR.check(request_message)
    found = [violation.field for violation in caught.value.violations]
    assert len(found) == len(fields)
    for field, expected in zip(found, fields, strict=True):
        assert field.startswith(expected)
    assert all(violation.description for violation in caught.value.violations)
    assert caught.value.message.startswith(found[0])


GOOD: list[Message] = [
    session_pb2.RegisterSessionRequest(name="Émile Zola"),
    session_pb2.RegisterSessionRequest(name="n" * 128, specialty="math:algebra-1.2_x"),
    task_pb2.EnqueueTaskRequest(task_type="t", payload=b"x" * 10, priority=-1_000),
    task_pb2.EnqueueTaskRequest(task_type="t", idempotency_key="Homework 4/2 (ä)"),
    task_pb2.FailTaskRequest(**CLAIM, error="Traceback\n\tline"),
    task_pb2.FailTaskRequest(**CLAIM, error_type="requests.Timeout", retry_delay=Duration()),
    policy(),
    policy(max_retries=0, retry_base=Duration(), retry_jitter=1.0, final_error_types=["E"] * 64),
    task_pb2.ListTaskPoliciesRequest(),
    task_pb2.EnqueueTaskRequest(task_type="t", depends_on=["t-000000000001"]),
    task_pb2.BatchEnqueueTasksRequest(
        tasks=[
            task_pb2.NewTask(task_type="t"),
            task_pb2.NewTask(task_type="t", depends_on=["#0", "t-1"]),
        ]
    ),
    task_pb2.ClaimTasksRequest(session_id="s", max_tasks=3, wait=Duration(seconds=60)),
    metrics_pb2.StreamMetricsRequest(batch=metrics_pb2.MetricBatch(**GOOD_BATCH)),
    alert_pb2.SubscribeAlertsRequest(),
    alert_pb2.SubscribeAlertsRequest(progress_interval_ms=100),
    cluster_pb2.GetStatusRequest(),
]


@pytest.mark.parametrize("request_message", GOOD, ids=lambda value: type(value).__name__)
def test_what_is_right_passes(request_message: Message) -> None:
    VALIDATOR.check(request_message)


def test_every_served_request_has_rules() -> None:
    for service in SERVICES.values():
        for method in service.methods:
            request = message_factory.GetMessageClass(method.input_type)
            if f"/{service.full_name}/{method.name}" not in NOT_SERVED:
                assert request in VALIDATOR.fields, method.full_name


def rules_of(message: type[Message]) -> Iterator[tuple[str, bool]]:
    """Every field of the requests with its path, and whether it has a rule."""
    known = set(VALIDATOR.fields[message])
    for field in message.DESCRIPTOR.fields:
        # Of a yes or no both answers are right.
        if field.type != FieldDescriptor.TYPE_BOOL:
            yield f"{message.DESCRIPTOR.full_name}.{field.name}", field.name in known


@pytest.mark.parametrize("package", ["session", "task", "lock", "classroom"])
def test_every_field_of_a_request_has_a_rule(package: str) -> None:
    prefix = f"gaia.{package}.v1."
    found = [
        entry
        for message in VALIDATOR.fields
        if message.DESCRIPTOR.full_name.startswith(prefix)
        for entry in rules_of(message)
    ]
    assert len(found) > 10
    assert [path for path, has_rule in found if not has_rule] == []


EXCESSES: dict[int, list[Any]] = {
    FieldDescriptor.TYPE_STRING: ["x" * 100_000],
    FieldDescriptor.TYPE_BYTES: [b"x" * 100],
    FieldDescriptor.TYPE_INT32: [-(2**31), 2**31 - 1],
    FieldDescriptor.TYPE_INT64: [-(2**63), 2**63 - 1],
    FieldDescriptor.TYPE_DOUBLE: [float("nan"), float("inf"), -1.0],
    FieldDescriptor.TYPE_ENUM: [99],
}


def excesses(field: Any) -> list[Any]:  # the stubs know two kinds of descriptors
    """Values that no field of this kind may take."""
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        values = EXCESSES[field.type]
        return [values * 10_001] if field.is_repeated else values
    kind = message_factory.GetMessageClass(field.message_type)
    if field.is_repeated:
        return [[kind()] * 10_001]
    return [Duration(seconds=10**11), Duration(seconds=-1)] if kind is Duration else [kind()]


@pytest.mark.parametrize("package", ["session", "task", "lock"])
def test_every_field_of_a_request_has_a_bound_that_is_told(package: str) -> None:
    """One value after the other that is too much; tokens and indexes have only a lower bound."""
    for message in VALIDATOR.fields:
        if not message.DESCRIPTOR.full_name.startswith(f"gaia.{package}.v1."):
            continue
        for field in message.DESCRIPTOR.fields:
            if field.type == FieldDescriptor.TYPE_BOOL:
                continue
            told = [
                violation.description
                for value in excesses(field)
                for violation in violations_of(message(**{field.name: value}))
                if violation.field.partition(".")[0] == field.name
            ]
            assert told, f"{message.DESCRIPTOR.full_name}.{field.name}"
            assert all(told)


def violations_of(request_message: Message) -> Sequence[FieldViolation]:
    try:
        VALIDATOR.check(request_message)
    except InvalidArgumentError as error:
        return error.violations
    return ()


NESTED: dict[str, tuple[type[Message], type[Message]]] = {
    "tasks": (task_pb2.BatchEnqueueTasksRequest, task_pb2.NewTask),
    "completions": (task_pb2.BatchCompleteTasksRequest, task_pb2.Completion),
    "labels": (session_pb2.RegisterSessionRequest, session_pb2.Label),
    "policy": (task_pb2.PutTaskPolicyRequest, task_pb2.TaskPolicy),
}
WRITTEN_BY_THE_CLUSTER = {"update_time"}


@pytest.mark.parametrize("name", NESTED)
def test_every_field_of_a_message_in_a_request_has_a_rule(name: str) -> None:
    outer, inner = NESTED[name]
    rules = build_rules(LIMITS)[outer][name]
    assert isinstance(rules, Items | Part)
    fields = {field.name for field in inner.DESCRIPTOR.fields} - WRITTEN_BY_THE_CLUSTER
    assert set(rules.rules) == fields


def test_every_rule_names_a_field_of_its_message() -> None:
    for message, fields in VALIDATOR.fields.items():
        known = {field.name for field in message.DESCRIPTOR.fields}
        assert set(fields) <= known, message


def test_the_number_of_violations_is_bounded() -> None:
    validator = build_validator(LimitsConfig(max_batch_items=5_000))
    request = task_pb2.BatchEnqueueTasksRequest(tasks=[task_pb2.NewTask()] * 5_000)
    with pytest.raises(InvalidArgumentError) as caught:
        validator.check(request)
    assert len(caught.value.violations) == 1_000


def test_text_may_have_a_least_length() -> None:
    assert text(5, least=2)("a") == "must have at least 2 characters"


@pytest.mark.parametrize("value", ["a", "A-1.b_c:d", "x" * 128])
def test_ids(value: str) -> None:
    assert is_id(value)


@pytest.mark.parametrize("value", ["", "a b", "a\n", "ä", "a/b", "x" * 129])
def test_no_ids(value: str) -> None:
    assert not is_id(value)
    assert required_id(value)


def test_a_type_without_rules_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Validator({}).check(task_pb2.GetTaskRequest())


@pytest.mark.parametrize(
    ("least_ms", "most_ms", "told"),
    [
        (1, 30 * 86_400_000, "must be 1ms to 30d"),
        (0, 60_000, "must be 0ms to 1m"),
        (1_000, 3_600_000, "must be 1s to 1h"),
        (50, 1_500, "must be 50ms to 1500ms"),
    ],
)
def test_bounds_of_durations_are_told_as_people_write_them(
    least_ms: int, most_ms: int, told: str
) -> None:
    assert duration(most_ms, least_ms=least_ms)(Duration(seconds=10**9)) == told


async def test_all_violations_reach_the_client(peer: ServedPeer) -> None:
    request = task_pb2.BatchEnqueueTasksRequest(
        tasks=[task_pb2.NewTask(), task_pb2.NewTask(task_type="t", priority=5_000)]
    )
    failure = await failure_of(peer.tasks.BatchEnqueueTasks(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INVALID_ARGUMENT"
    assert failure.violations == {
        "tasks[0].task_type": "is required",
        "tasks[1].priority": "must be -1000 to 1000, is 5000",
    }
    assert failure.message == "tasks[0].task_type is required (and 1 more)"
    assert peer.node.commands == []
