"""A task as a record of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from sys import intern

from gaia.command.v1 import snapshot_pb2

from gaia_grpc.state.task_record import Task

FinishedItem = tuple[int, tuple[int, int]]
"""(expire_ms, (number, finish_ms)), as in the sweep of finished tasks."""


def encode_task(number: int, task: Task) -> bytes:
    """The record of a task."""
    record = snapshot_pb2.TaskRecord(
        number=number,
        task_type=task.task_type,
        payload=task.payload,
        affinity=task.affinity,
        priority=task.priority,
        max_retries=task.max_retries,
        state=task.state,
        retry_count=task.retry_count,
        claim_token=task.claim_token,
        session_id=task.session_id,
        ended_by=task.ended_by,
        claim_expire_ms=task.claim_expire_ms,
        available_ms=task.available_ms,
        create_ms=task.create_ms,
        update_ms=task.update_ms,
    )
    # Most tasks have none of these: looking costs less than setting what is empty.
    if task.key is not None:
        record.has_key = True
        record.key_principal, record.key = task.key
        record.digest = task.digest
    if task.checkpoint:
        record.checkpoint = task.checkpoint
    if task.result:
        record.result = task.result
    if task.last_error:
        record.last_error = task.last_error
    if task.progress_micro:
        record.progress_micro = task.progress_micro
    for kind, time_ms, session_id, claim_token, error in task.history or ():
        record.history.add(
            kind=kind, time_ms=time_ms, session_id=session_id, claim_token=claim_token, error=error
        )
    return record.SerializeToString(deterministic=True)


def decode_task(data: bytes) -> Task:
    """The task of a record, without its timer."""
    record = snapshot_pb2.TaskRecord.FromString(data)
    task = Task(
        record.number,
        intern(record.task_type),
        record.payload,
        intern(record.affinity),
        record.priority,
        record.max_retries,
        record.create_ms,
    )
    if record.has_key:
        task.key = (intern(record.key_principal), record.key)
        task.digest = record.digest
    task.state = record.state
    task.retry_count = record.retry_count
    task.claim_token = record.claim_token
    task.session_id = intern(record.session_id)
    task.ended_by = record.ended_by
    task.claim_expire_ms = record.claim_expire_ms
    task.available_ms = record.available_ms
    task.update_ms = record.update_ms
    task.checkpoint = record.checkpoint
    task.result = record.result
    task.last_error = record.last_error
    task.progress_micro = record.progress_micro
    if record.history:
        task.history = [
            (event.kind, event.time_ms, intern(event.session_id), event.claim_token, event.error)
            for event in record.history
        ]
    return task


def encode_finished(items: Sequence[FinishedItem]) -> bytes:
    """A record of some of the finished tasks."""
    return snapshot_pb2.FinishedTasks(
        expire_ms=[expire_ms for expire_ms, _ in items],
        numbers=[number for _, (number, _) in items],
        finish_ms=[finish_ms for _, (_, finish_ms) in items],
    ).SerializeToString(deterministic=True)


def decode_finished(data: bytes) -> list[FinishedItem]:
    """The finished tasks of a record."""
    record = snapshot_pb2.FinishedTasks.FromString(data)
    columns = zip(record.expire_ms, record.numbers, record.finish_ms, strict=True)
    return [(expire_ms, (number, finish_ms)) for expire_ms, number, finish_ms in columns]
