"""A task as a record of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from sys import intern

from gaia.command.v1 import snapshot_pb2

from gaia_grpc.state.task_extra import TaskExtra
from gaia_grpc.state.task_record import Event, Task

FinishedItem = tuple[int, tuple[int, int]]
"""(expire_ms, (number, finish_ms)), as in the sweep of finished tasks."""


def encode_task(number: int, task: Task, extra: TaskExtra | None) -> bytes:
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
        epoch=task.epoch,
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
    if extra is not None:
        _put_extra(record, extra)
    for event in task.history or ():
        line = record.history.add(
            kind=event[0],
            time_ms=event[1],
            session_id=event[2],
            claim_token=event[3],
            error=event[4],
        )
        if len(event) > 5:
            line.error_type = event[5]
    return record.SerializeToString(deterministic=True)


def decode_task(data: bytes) -> tuple[Task, TaskExtra | None]:
    """The task of a record and what it has beside, without their timers."""
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
    task.epoch = record.epoch
    if record.history:
        task.history = [_event(event) for event in record.history]
    return task, _extra(record)


def _put_extra(record: snapshot_pb2.TaskRecord, extra: TaskExtra) -> None:
    record.deadline_ms = extra.deadline_ms
    record.last_error_type = extra.error_type
    record.depends_on.extend(extra.depends_on)
    record.waiting_for.extend(extra.waiting_for)
    record.delay_ms = extra.delay_ms
    record.failed_by = extra.failed_by


def _extra(record: snapshot_pb2.TaskRecord) -> TaskExtra | None:
    """None where it would say nothing: what was, and is no more, leaves no trace."""
    if not (record.deadline_ms or record.last_error_type or record.depends_on):
        return None
    extra = TaskExtra()
    extra.deadline_ms = record.deadline_ms
    extra.error_type = intern(record.last_error_type)
    extra.depends_on = tuple(record.depends_on)
    extra.waiting_for = tuple(record.waiting_for)
    extra.delay_ms = record.delay_ms
    extra.failed_by = record.failed_by
    return extra


def _event(event: snapshot_pb2.TaskEventRecord) -> Event:
    plain = (event.kind, event.time_ms, intern(event.session_id), event.claim_token, event.error)
    return (*plain, intern(event.error_type)) if event.error_type else plain


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
