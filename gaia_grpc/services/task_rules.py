"""The rules of TaskService's requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from gaia_grpc.config import LimitsConfig
from gaia_grpc.errors import FieldViolation
from gaia_grpc.services.rule_parts import (
    CONSISTENCY,
    MAX_KEY_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_WAIT_MS,
    NOT_NEGATIVE,
    NOTE,
    POSITIVE,
    TOKEN,
    WATCH,
)
from gaia_grpc.services.validation import (
    Check,
    Items,
    Part,
    Rule,
    Rules,
    WhenSet,
    duration,
    each,
    enum,
    fraction,
    is_id,
    optional_id,
    required_id,
    size,
    text,
    whole,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MAX_TASK_DELAY_MS = 30 * DAY_MS
MAX_DEPENDENCIES = 64
MAX_TASK_TYPES = 100
MAX_RETRIES = 1_000
MAX_FINAL_ERROR_TYPES = 64

_EARLIER = re.compile(r"#(0|[1-9][0-9]{0,5})")


def task_rules(limits: LimitsConfig) -> Mapping[type[Message], Rules]:
    """Of the requests that change the queue."""
    payload = size(limits.max_payload_size_bytes)
    new_task = _new_task(payload)
    in_batch: Rules = {**new_task, "depends_on": each(_dependency, MAX_DEPENDENCIES)}
    claim: Rules = {
        "task_id": required_id,
        "claim_token": POSITIVE,
        "session_id": required_id,
    }
    completion: Rules = {"task_id": required_id, "claim_token": POSITIVE, "result": payload}
    return {
        task_pb2.EnqueueTaskRequest: {**new_task, "request_id": optional_id},
        task_pb2.BatchEnqueueTasksRequest: {
            "tasks": Items(in_batch, limits.max_batch_items, 1),
            "request_id": optional_id,
        },
        task_pb2.ClaimTasksRequest: {
            "session_id": required_id,
            "max_tasks": whole(0, limits.max_batch_items),
            "wait": duration(MAX_WAIT_MS),
            "request_id": optional_id,
            "task_types": each(required_id, MAX_TASK_TYPES),
            "incarnation": NOT_NEGATIVE,
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
        task_pb2.FailTaskRequest: {
            **claim,
            "error": NOTE,
            "retry_delay": duration(MAX_TASK_DELAY_MS),
            "error_type": text(MAX_NAME_CHARACTERS),
        },
        task_pb2.ReleaseTaskRequest: claim,
        task_pb2.CancelTaskRequest: {
            "task_id": required_id,
            "reason": NOTE,
            "request_id": optional_id,
        },
        task_pb2.RequeueTaskRequest: {"task_id": required_id, "request_id": optional_id},
        task_pb2.PutTaskPolicyRequest: {"policy": Part(_policy()), "request_id": optional_id},
        task_pb2.DeleteTaskPolicyRequest: {"task_type": required_id, "request_id": optional_id},
    }


def _new_task(payload: Rule) -> Rules:
    return {
        "task_type": required_id,
        "payload": payload,
        "affinity": optional_id,
        "priority": whole(-1_000, 1_000),
        "idempotency_key": text(MAX_KEY_CHARACTERS),
        "max_retries": whole(0, MAX_RETRIES),
        "delay": duration(MAX_TASK_DELAY_MS),
        "deadline": WhenSet(duration(MAX_TASK_DELAY_MS, least_ms=1)),
        "depends_on": each(required_id, MAX_DEPENDENCIES),
    }


def _policy() -> Rules:
    """The bounds are those of the settings that a policy stands in for."""
    return {
        "task_type": required_id,
        "max_retries": whole(0, MAX_RETRIES),
        "retry_base": duration(HOUR_MS),
        "retry_max_delay": WhenSet(duration(7 * DAY_MS, least_ms=1)),
        "retry_jitter": fraction,
        "claim_timeout": WhenSet(duration(7 * DAY_MS, least_ms=50)),
        "final_error_types": each(text(MAX_NAME_CHARACTERS, least=1), MAX_FINAL_ERROR_TYPES),
        "retention": WhenSet(duration(365 * DAY_MS, least_ms=1_000)),
    }


def task_read_rules(page: Rule) -> Mapping[type[Message], Rules]:
    """Of the requests that read it."""
    return {
        task_pb2.GetTaskRequest: {"task_id": required_id, "consistency": CONSISTENCY},
        task_pb2.ListTasksRequest: {
            "page_size": page,
            "page_token": TOKEN,
            "state": enum(task_pb2.TaskState.values()),
            "task_type": optional_id,
            "claimed_by": optional_id,
            "consistency": CONSISTENCY,
        },
        task_pb2.GetQueueStatsRequest: {"consistency": CONSISTENCY},
        task_pb2.WatchTasksRequest: {
            "task_id": optional_id,
            "task_type": optional_id,
            "affinity": optional_id,
            "state": enum(task_pb2.TaskState.values()),
            **WATCH,
        },
        task_pb2.ExplainAssignmentRequest: {
            "task_id": required_id,
            "page_size": page,
            "consistency": CONSISTENCY,
        },
        task_pb2.ListTaskPoliciesRequest: {
            "page_size": page,
            "page_token": TOKEN,
            "consistency": CONSISTENCY,
        },
    }


def _dependency(value: str) -> str:
    """The id of a task, or `#n`, an earlier position of the same batch."""
    if is_id(value) or _EARLIER.fullmatch(value) is not None:
        return ""
    return "must be the id of a task, or #0, #1, ... for an earlier task of the batch"


def _check_task(
    task: task_pb2.NewTask | task_pb2.EnqueueTaskRequest, prefix: str
) -> Iterator[FieldViolation]:
    if not task.HasField("deadline") or not task.HasField("delay"):
        return
    if _exact(task.delay) >= _exact(task.deadline):
        yield FieldViolation(f"{prefix}delay", "must be shorter than the deadline")


def _check_enqueue(request: task_pb2.EnqueueTaskRequest) -> Iterator[FieldViolation]:
    return _check_task(request, "")


def _check_batch(request: task_pb2.BatchEnqueueTasksRequest) -> Iterator[FieldViolation]:
    for position, task in enumerate(request.tasks):
        yield from _check_task(task, f"tasks[{position}].")
        for item, named in enumerate(task.depends_on):
            if named.startswith("#") and int(named[1:]) >= position:
                wrong = f"item {item} is {named}: only tasks before #{position} can be named"
                yield FieldViolation(f"tasks[{position}].depends_on", wrong)
                break


def _exact(value: Duration) -> tuple[int, int]:
    return value.seconds, value.nanos


TASK_CHECKS: Mapping[type[Message], Check] = {
    task_pb2.EnqueueTaskRequest: _check_enqueue,
    task_pb2.BatchEnqueueTasksRequest: _check_batch,
}
"""What the fields of a request must be to each other."""
