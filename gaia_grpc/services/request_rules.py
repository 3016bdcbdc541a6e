"""The rules of every request that is served, by message type. See `validation`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gaia.alert.v1 import alert_pb2
from gaia.classroom.v1 import classroom_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.lock.v1 import lock_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.session.v1 import session_pb2
from google.protobuf.message import Message

from gaia_grpc.config import LimitsConfig
from gaia_grpc.errors import FieldViolation
from gaia_grpc.services.rule_parts import (
    CONSISTENCY,
    INTERVAL,
    MAX_KEY_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_WAIT_MS,
    NOT_NEGATIVE,
    NOTE,
    POSITIVE,
    TOKEN,
    WATCH,
)
from gaia_grpc.services.task_rules import TASK_CHECKS, task_read_rules, task_rules
from gaia_grpc.services.validation import (
    Check,
    Items,
    Part,
    Rule,
    Rules,
    Validator,
    duration,
    each,
    enum,
    host_and_port,
    optional_id,
    required_id,
    text,
    whole,
)
from gaia_grpc.state.packing import MAX_OMITTED, MAX_TIME_MS
from gaia_grpc.state.rosters import MAX_STUDENTS, MAX_TEACHERS

MAX_LEASE_MS = 7 * 24 * 3_600_000
MAX_SNOOZE_MS = 24 * 3_600_000
MAX_OMISSIONS = 100
MAX_LABELS = 32
MAX_SETTING_CHANGES = 100
MAX_SETTING_CHARACTERS = 4_000
"""Enough for a list of retentions."""
MAX_LOG_PAGE_SIZE = 10_000
MAX_CONCURRENT_TASKS = 1_000


def build_validator(limits: LimitsConfig) -> Validator:
    """The validator of all public services."""
    return Validator(build_rules(limits), {**TASK_CHECKS, **METRIC_CHECKS})


def build_rules(limits: LimitsConfig) -> Mapping[type[Message], Rules]:
    """The rules of every request that is served."""
    page = whole(0, limits.max_page_size)
    table: dict[type[Message], Rules] = {}
    table.update(_session_rules(page))
    table.update(task_rules(limits))
    table.update(task_read_rules(page))
    table.update(_metric_rules(limits, page))
    table.update(_alert_rules(page))
    table.update(_lock_rules(page))
    table.update(_classroom_rules(page))
    table.update(_cluster_rules())
    return table


def _session_rules(page: Rule) -> Mapping[type[Message], Rules]:
    tier = enum(session_pb2.Tier.values())
    by_id: Rules = {"session_id": required_id, "incarnation": NOT_NEGATIVE}
    label: Rules = {"key": required_id, "value": text(MAX_KEY_CHARACTERS)}
    labels = Items(label, MAX_LABELS, unique="key")
    return {
        session_pb2.RegisterSessionRequest: {
            "name": text(MAX_NAME_CHARACTERS, least=1),
            "specialty": optional_id,
            "max_concurrent_tasks": whole(0, MAX_CONCURRENT_TASKS),
            "tier": tier,
            "provider": text(MAX_NAME_CHARACTERS),
            "request_id": optional_id,
            "labels": labels,
        },
        session_pb2.HeartbeatRequest: by_id,
        session_pb2.DeregisterSessionRequest: {**by_id, "request_id": optional_id},
        session_pb2.GetSessionRequest: {"session_id": required_id, "consistency": CONSISTENCY},
        session_pb2.ListSessionsRequest: {
            "page_size": page,
            "page_token": TOKEN,
            "health": enum(session_pb2.Health.values()),
            "tier": tier,
            "provider": text(MAX_NAME_CHARACTERS),
            "specialty": optional_id,
            "labels": labels,
            "consistency": CONSISTENCY,
        },
        session_pb2.WatchSessionsRequest: {
            "tier": tier,
            "provider": text(MAX_NAME_CHARACTERS),
            "health": enum(session_pb2.Health.values()),
            "specialty": optional_id,
            "labels": labels,
            **WATCH,
        },
        session_pb2.ScoreSessionsRequest: {
            "affinity": optional_id,
            "page_size": page,
            "consistency": CONSISTENCY,
        },
    }


def _metric_rules(limits: LimitsConfig, page: Rule) -> Mapping[type[Message], Rules]:
    # The metrics themselves are checked while they are packed: a bad one is listed, not refused.
    omission: Rules = {
        "metric_type": optional_id,
        "count": whole(1, MAX_OMITTED),
        "event_time_ms": whole(0, MAX_TIME_MS),
        "reason": enum(metrics_pb2.OmissionReason.values()),
    }
    batch: Rules = {
        "source_id": required_id,
        "source_epoch": POSITIVE,
        "sequence": POSITIVE,
        "sent_at_ms": whole(0, MAX_TIME_MS),
        "timeline_id": optional_id,
        "classroom_id": optional_id,
        "student_id": required_id,
        "app_name": required_id,
        "metrics": Items({}, limits.max_metrics_per_batch),
        "omissions": Items(omission, MAX_OMISSIONS),
    }
    room: Rules = {
        "classroom_id": required_id,
        "timeline_id": optional_id,
        "page_size": page,
        "page_token": TOKEN,
        "consistency": CONSISTENCY,
    }
    return {
        metrics_pb2.PublishMetricsRequest: {"batches": Items(batch, limits.max_batch_items, 1)},
        metrics_pb2.StreamMetricsRequest: {"batch": Part(batch)},
        metrics_pb2.GetAggregateRequest: {
            "student_id": required_id,
            "app_name": required_id,
            "timeline_id": optional_id,
            "at_ms": whole(0, MAX_TIME_MS),
            "consistency": CONSISTENCY,
        },
        metrics_pb2.ListDetectorInputsRequest: {**room, "start_ms": whole(0, MAX_TIME_MS)},
        metrics_pb2.GetHistoryRequest: {
            "student_id": required_id,
            "app_name": required_id,
            "timeline_id": optional_id,
            "start_ms": whole(0, MAX_TIME_MS),
            "end_ms": whole(0, MAX_TIME_MS),
            "page_size": page,
            "page_token": TOKEN,
            "consistency": CONSISTENCY,
        },
        metrics_pb2.ListAggregatesRequest: room,
        metrics_pb2.WatchClassroomRequest: {
            "classroom_id": required_id,
            "timeline_id": optional_id,
            "interval_ms": INTERVAL,
        },
    }


def _check_publish(request: metrics_pb2.PublishMetricsRequest) -> Iterator[FieldViolation]:
    for place, batch in enumerate(request.batches):
        yield from _check_batch(batch, f"batches[{place}]")


def _check_stream(request: metrics_pb2.StreamMetricsRequest) -> Iterator[FieldViolation]:
    yield from _check_batch(request.batch, "batch")


def _check_batch(batch: metrics_pb2.MetricBatch, path: str) -> Iterator[FieldViolation]:
    if not batch.metrics and not batch.omissions:
        yield FieldViolation(f"{path}.metrics", "is required where nothing was omitted")


METRIC_CHECKS: Mapping[type[Message], Check] = {
    metrics_pb2.PublishMetricsRequest: _check_publish,
    metrics_pb2.StreamMetricsRequest: _check_stream,
}
"""What the fields of a request must be to each other."""


def _alert_rules(page: Rule) -> Mapping[type[Message], Rules]:
    alert_filter = Part(
        {
            "classroom_id": optional_id,
            "student_id": optional_id,
            "teacher_id": optional_id,
            "min_severity": enum(alert_pb2.Severity.values()),
            "timeline_id": optional_id,
            "kind": enum(alert_pb2.AlertKind.values()),
        }
    )
    change: Rules = {
        "alert_id": required_id,
        "teacher_id": required_id,
        "request_id": optional_id,
    }
    return {
        alert_pb2.SubscribeAlertsRequest: {
            "filter": alert_filter,
            "after_sequence": NOT_NEGATIVE,
            "cluster_id": optional_id,
            "progress_interval_ms": INTERVAL,
        },
        alert_pb2.ListAlertsRequest: {
            "filter": alert_filter,
            "state": enum(alert_pb2.AlertState.values()),
            "page_size": page,
            "page_token": TOKEN,
            "consistency": CONSISTENCY,
        },
        alert_pb2.AcknowledgeAlertRequest: change,
        alert_pb2.ResolveAlertRequest: {**change, "note": NOTE},
        alert_pb2.SnoozeAlertRequest: {**change, "duration": duration(MAX_SNOOZE_MS, least_ms=1)},
        alert_pb2.RecordInterventionRequest: {
            **change,
            "alert_id": optional_id,
            "student_id": required_id,
            "kind": required_id,
            "note": NOTE,
            "app_name": optional_id,
            "timeline_id": optional_id,
        },
        alert_pb2.ListInterventionsRequest: {
            "student_id": optional_id,
            "alert_id": optional_id,
            "teacher_id": optional_id,
            "classroom_id": optional_id,
            "page_size": page,
            "page_token": TOKEN,
            "consistency": CONSISTENCY,
        },
    }


def _lock_rules(page: Rule) -> Mapping[type[Message], Rules]:
    lease = duration(MAX_LEASE_MS)
    wanted: Rules = {"name": required_id, "holder": text(MAX_NAME_CHARACTERS, least=1)}
    held: Rules = {**wanted, "fencing_token": POSITIVE}
    return {
        lock_pb2.AcquireLockRequest: {
            **wanted,
            "lease": lease,
            "wait": duration(MAX_WAIT_MS),
            "request_id": optional_id,
        },
        lock_pb2.RenewLockRequest: {**held, "lease": lease},
        lock_pb2.ReleaseLockRequest: {**held, "request_id": optional_id},
        lock_pb2.GetLockRequest: {"name": required_id, "consistency": CONSISTENCY},
        lock_pb2.ListLocksRequest: {
            "page_size": page,
            "page_token": TOKEN,
            "holder": text(MAX_NAME_CHARACTERS),
            "consistency": CONSISTENCY,
        },
    }


def _classroom_rules(page: Rule) -> Mapping[type[Message], Rules]:
    return {
        classroom_pb2.PutClassroomRequest: {
            "classroom_id": required_id,
            "name": text(MAX_NAME_CHARACTERS),
            "teacher_ids": each(required_id, MAX_TEACHERS),
            "student_ids": each(required_id, MAX_STUDENTS),
            "request_id": optional_id,
        },
        classroom_pb2.GetClassroomRequest: {
            "classroom_id": required_id,
            "consistency": CONSISTENCY,
        },
        classroom_pb2.ListClassroomsRequest: {
            "page_size": page,
            "page_token": TOKEN,
            "teacher_id": optional_id,
            "consistency": CONSISTENCY,
        },
        classroom_pb2.DeleteStudentDataRequest: {
            "student_id": required_id,
            "request_id": optional_id,
        },
    }


def _cluster_rules() -> Mapping[type[Message], Rules]:
    change: Rules = {"name": required_id, "value": text(MAX_SETTING_CHARACTERS, least=1)}
    return {
        cluster_pb2.GetStatusRequest: {"at_index": NOT_NEGATIVE},
        cluster_pb2.WatchStatusRequest: {"interval_ms": INTERVAL},
        cluster_pb2.ListLogEntriesRequest: {
            "start_index": NOT_NEGATIVE,
            "page_size": whole(0, MAX_LOG_PAGE_SIZE),
            "page_token": TOKEN,
        },
        cluster_pb2.GetSettingsRequest: {"consistency": CONSISTENCY},
        cluster_pb2.UpdateSettingsRequest: {
            "changes": Items(change, MAX_SETTING_CHANGES, 1, unique="name"),
            "expected_version": NOT_NEGATIVE,
            "request_id": optional_id,
        },
        cluster_pb2.TransferLeadershipRequest: {"node_id": optional_id},
        cluster_pb2.AddPeerRequest: {
            "node_id": required_id,
            "peer_uuid": optional_id,
            "peer_address": host_and_port,
        },
        cluster_pb2.RemovePeerRequest: {"node_id": required_id},
        cluster_pb2.TakeSnapshotRequest: {},
        cluster_pb2.DownloadSnapshotRequest: {},
    }
