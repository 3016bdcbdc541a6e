"""A new task as the log holds it."""

from __future__ import annotations

import hashlib
import json

from gaia.command.v1 import command_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration

GENERAL = "general"


def task_spec(task: task_pb2.NewTask | task_pb2.EnqueueTaskRequest) -> command_pb2.TaskSpec:
    """The spec of a checked task; both messages hold the same fields."""
    spec = command_pb2.TaskSpec(
        task_type=task.task_type,
        payload=task.payload,
        affinity=task.affinity or GENERAL,
        priority=task.priority,
        idempotency_key=task.idempotency_key,
        depends_on=task.depends_on,
    )
    if task.HasField("delay"):
        spec.delay_ms = milliseconds(task.delay)
    if task.HasField("deadline"):
        spec.deadline_ms = milliseconds(task.deadline)
    if task.HasField("max_retries"):
        spec.max_retries = task.max_retries
    if spec.idempotency_key:
        spec.content_digest = content_digest(spec)
    return spec


def content_digest(spec: command_pb2.TaskSpec) -> bytes:
    """SHA-256 over all but the key, in an encoding of our own.

    It is compared for as long as the task is retained, by peers of other versions too, and protobuf
    promises no stable bytes between versions.
    """
    header = json.dumps(
        [
            spec.task_type,
            spec.affinity,
            spec.priority,
            spec.max_retries if spec.HasField("max_retries") else None,
            spec.delay_ms,
            spec.deadline_ms,
            list(spec.depends_on),
        ],
        separators=(",", ":"),
    )
    # The header is ASCII without line breaks, so the first one ends it.
    return hashlib.sha256(header.encode("ascii") + b"\n" + spec.payload).digest()


def milliseconds(duration: Duration) -> int:
    """A checked duration in whole milliseconds, rounded up: a wait is never cut short."""
    return duration.seconds * 1000 + -(-duration.nanos // 1_000_000)
