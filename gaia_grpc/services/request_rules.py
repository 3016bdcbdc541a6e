"""The rules of every request that is served, by message type. See `validation`."""

from __future__ import annotations

from collections.abc import Mapping

from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.common.v1 import common_pb2
from gaia.lock.v1 import lock_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.message import Message

from gaia_grpc.config import LimitsConfig
from gaia_grpc.services.validation import (
    Items,
    Part,
    Rule,
    Rules,
    Validator,
    at_least,
    duration,
    each,
    enum,
    fraction,
    host_and_port,
    optional_id,
    required_id,
    size,
    text,
    whole,
    zero_or,
)
from gaia_grpc.state.packing import MAX_TIME_MS

MAX_NAME_CHARACTERS = 128
MAX_KEY_CHARACTERS = 256
MAX_NOTE_CHARACTERS = 4_096
MAX_TOKEN_CHARACTERS = 1_024
MAX_TASK_DELAY_MS = 30 * 24 * 3_600_000
MAX_WAIT_MS = 60_000
MAX_LEASE_MS = 7 * 24 * 3_600_000
MAX_DEPENDENCIES = 64
MAX_LABELS = 32
MAX_TASK_TYPES = 100
MAX_SETTING_CHANGES = 100
MAX_LOG_PAGE_SIZE = 10_000
MAX_CONCURRENT_TASKS = 1_000
MAX_RETRIES = 1_000

_CONSISTENCY = enum(common_pb2.Consistency.values())
_INTERVAL = zero_or(100, 60_000)
_NOTE = text(MAX_NOTE_CHARACTERS, lines=True)
_TOKEN = text(MAX_TOKEN_CHARACTERS)
_POSITIVE = at_least(1)
_NOT_NEGATIVE = at_least(0)
_WATCH: Rules = {
    "after_index": _NOT_NEGATIVE,
    "cluster_id": optional_id,
    "interval_ms": _INTERVAL,
}


def build_validator(limits: LimitsConfig) -> Validator:
    """The validator of all public services."""
    page = whole(0, limits.max_page_size)
    table: dict[type[Message], Rules] = {}
    table.update(_session_rules(page))
    table.update(_task_rules(limits))
    table.update(_task_read_rules(page))
    table.update(_metric_rules(limits, page))
    table.update(_alert_rules(page))
    table.update(_lock_rules(page))
    table.update(_cluster_rules())
    return Validator(table)


def _session_rules(page: Rule) -> Mapping[type[Message], Rules]:
    tier = enum(session_pb2.Tier.values())
    by_id: Rules = {"session_id": required_id, "incarnation": _NOT_NEGATIVE}
    label: Rules = {"key": required_id, "value": text(MAX_KEY_CHARACTERS)}
    return {
        session_pb2.RegisterSessionRequest: {
            "name": text(MAX_NAME_CHARACTERS, least=1),
            "specialty": optional_id,
            "max_concurrent_tasks": whole(0, MAX_CONCURRENT_TASKS),
            "tier": tier,
            "provider": text(MAX_NAME_CHARACTERS),
            "request_id": optional_id,
            "labels": Items(label, MAX_LABELS, unique="key"),
        },
        session_pb2.HeartbeatRequest: by_id,
        session_pb2.DeregisterSessionRequest: {**by_id, "request_id": optional_id},
        session_pb2.GetSessionRequest: {"session_id": required_id, "consistency": _CONSISTENCY},
        session_pb2.ListSessionsRequest: {
            "page_size": page,
            "page_token": _TOKEN,
            "health": enum(session_pb2.Health.values()),
            "tier": tier,
            "provider": text(MAX_NAME_CHARACTERS),
            "consistency": _CONSISTENCY,
        },
        session_pb2.WatchSessionsRequest: {
            "tier": tier,
            "provider": text(MAX_NAME_CHARACTERS),
            "health": enum(session_pb2.Health.values()),
            **_WATCH,
        },
        session_pb2.ScoreSessionsRequest: {
            "affinity": optional_id,
            "page_size": page,
            "consistency": _CONSISTENCY,
        },
    }


def _task_rules(limits: LimitsConfig) -> Mapping[type[Message], Rules]:
    payload = size(limits.max_payload_size_bytes)
    new_task: Rules = {
        "task_type": required_id,
        "payload": payload,
        "affinity": optional_id,
        "priority": whole(-1_000, 1_000),
        "idempotency_key": text(MAX_KEY_CHARACTERS),
        "max_retries": whole(0, MAX_RETRIES),
        "delay": duration(MAX_TASK_DELAY_MS),
        "deadline": duration(MAX_TASK_DELAY_MS),
        "depends_on": each(required_id, MAX_DEPENDENCIES),
    }
    claim: Rules = {
        "task_id": required_id,
        "claim_token": _POSITIVE,
        "session_id": required_id,
    }
    completion: Rules = {"task_id": required_id, "claim_token": _POSITIVE, "result": payload}
    return {
        task_pb2.EnqueueTaskRequest: {**new_task, "request_id": optional_id},
        task_pb2.BatchEnqueueTasksRequest: {
            "tasks": Items(new_task, limits.max_batch_items, 1),
            "request_id": optional_id,
        },
        task_pb2.ClaimTasksRequest: {
            "session_id": required_id,
            "max_tasks": whole(0, limits.max_batch_items),
            "wait": duration(MAX_WAIT_MS),
            "request_id": optional_id,
            "task_types": each(required_id, MAX_TASK_TYPES),
        },
        task_pb2.ExtendClaimRequest: {
            **claim,
            "progress": fraction,
            "checkpoint": payload,
            "request_id": optional_id,
        },
        task_pb2.CompleteTaskRequest: {**claim, "result": payload},
        task_pb2.BatchCompleteTasksRequest: {
            "session_id": required_id,
            "completions": Items(completion, limits.max_batch_items, 1),
        },
        task_pb2.FailTaskRequest: {**claim, "error": _NOTE},
        task_pb2.ReleaseTaskRequest: claim,
        task_pb2.CancelTaskRequest: {
            "task_id": required_id,
            "reason": _NOTE,
            "request_id": optional_id,
        },
        task_pb2.RequeueTaskRequest: {"task_id": required_id, "request_id": optional_id},
    }


def _task_read_rules(page: Rule) -> Mapping[type[Message], Rules]:
    return {
        task_pb2.GetTaskRequest: {"task_id": required_id, "consistency": _CONSISTENCY},
        task_pb2.ListTasksRequest: {
            "page_size": page,
            "page_token": _TOKEN,
            "state": enum(task_pb2.TaskState.values()),
            "task_type": optional_id,
            "claimed_by": optional_id,
            "consistency": _CONSISTENCY,
        },
        task_pb2.GetQueueStatsRequest: {"consistency": _CONSISTENCY},
        task_pb2.WatchTasksRequest: {
            "task_id": optional_id,
            "task_type": optional_id,
            "affinity": optional_id,
            "state": enum(task_pb2.TaskState.values()),
            **_WATCH,
        },
        task_pb2.ExplainAssignmentRequest: {
            "task_id": required_id,
            "page_size": page,
            "consistency": _CONSISTENCY,
        },
    }


def _metric_rules(limits: LimitsConfig, page: Rule) -> Mapping[type[Message], Rules]:
    # The metrics themselves are checked while they are packed: a bad one is listed, not refused.
    batch: Rules = {
        "source_id": required_id,
        "source_epoch": _POSITIVE,
        "sequence": _POSITIVE,
        "sent_at_ms": whole(0, MAX_TIME_MS),
        "timeline_id": optional_id,
        "classroom_id": optional_id,
        "student_id": required_id,
        "app_name": required_id,
        "metrics": Items({}, limits.max_metrics_per_batch, 1),
    }
    return {
        metrics_pb2.PublishMetricsRequest: {"batches": Items(batch, limits.max_batch_items, 1)},
        metrics_pb2.StreamMetricsRequest: {"batch": Part(batch)},
        metrics_pb2.GetAggregateRequest: {
            "student_id": required_id,
            "app_name": required_id,
            "timeline_id": optional_id,
            "at_ms": whole(0, MAX_TIME_MS),
            "consistency": _CONSISTENCY,
        },
        metrics_pb2.ListAggregatesRequest: {
            "classroom_id": required_id,
            "timeline_id": optional_id,
            "page_size": page,
            "page_token": _TOKEN,
            "consistency": _CONSISTENCY,
        },
        metrics_pb2.WatchClassroomRequest: {
            "classroom_id": required_id,
            "timeline_id": optional_id,
            "interval_ms": _INTERVAL,
        },
    }


def _alert_rules(page: Rule) -> Mapping[type[Message], Rules]:
    alert_filter = Part(
        {
            "classroom_id": optional_id,
            "student_id": optional_id,
            "teacher_id": optional_id,
            "min_severity": enum(alert_pb2.Severity.values()),
            "timeline_id": optional_id,
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
            "after_sequence": _NOT_NEGATIVE,
            "cluster_id": optional_id,
            "progress_interval_ms": _INTERVAL,
        },
        alert_pb2.ListAlertsRequest: {
            "filter": alert_filter,
            "state": enum(alert_pb2.AlertState.values()),
            "page_size": page,
            "page_token": _TOKEN,
            "consistency": _CONSISTENCY,
        },
        alert_pb2.AcknowledgeAlertRequest: change,
        alert_pb2.ResolveAlertRequest: {**change, "note": _NOTE},
    }


def _lock_rules(page: Rule) -> Mapping[type[Message], Rules]:
    lease = duration(MAX_LEASE_MS)
    wanted: Rules = {"name": required_id, "holder": text(MAX_NAME_CHARACTERS, least=1)}
    held: Rules = {**wanted, "fencing_token": _POSITIVE}
    return {
        lock_pb2.AcquireLockRequest: {
            **wanted,
            "lease": lease,
            "wait": duration(MAX_WAIT_MS),
            "request_id": optional_id,
        },
        lock_pb2.RenewLockRequest: {**held, "lease": lease},
        lock_pb2.ReleaseLockRequest: {**held, "request_id": optional_id},
        lock_pb2.GetLockRequest: {"name": required_id, "consistency": _CONSISTENCY},
        lock_pb2.ListLocksRequest: {
            "page_size": page,
            "page_token": _TOKEN,
            "holder": text(MAX_NAME_CHARACTERS),
            "consistency": _CONSISTENCY,
        },
    }


def _cluster_rules() -> Mapping[type[Message], Rules]:
    change: Rules = {"name": required_id, "value": text(MAX_NAME_CHARACTERS, least=1)}
    return {
        cluster_pb2.GetStatusRequest: {"at_index": _NOT_NEGATIVE},
        cluster_pb2.WatchStatusRequest: {"interval_ms": _INTERVAL},
        cluster_pb2.ListLogEntriesRequest: {
            "start_index": _NOT_NEGATIVE,
            "page_size": whole(0, MAX_LOG_PAGE_SIZE),
            "page_token": _TOKEN,
        },
        cluster_pb2.GetSettingsRequest: {"consistency": _CONSISTENCY},
        cluster_pb2.UpdateSettingsRequest: {
            "changes": Items(change, MAX_SETTING_CHANGES, 1, unique="name"),
            "expected_version": _NOT_NEGATIVE,
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
