"""Waiting for a task: its result, or a typed error that says how it ended and what to do next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gaia.task.v1 import task_pb2

from gaia_grpc.client.watches import TaskWatch
from gaia_grpc.errors import (
    NotFoundError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotDoneError,
    TaskOutcomeError,
)

FINISHED = (
    task_pb2.TASK_STATE_COMPLETED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELLED,
)
GONE = task_pb2.TASK_STATE_UNSPECIFIED
"""In a watch: the task is no longer retained."""

Get = Callable[[], Awaitable[task_pb2.Task]]
Watch = Callable[[], TaskWatch]


async def finished(get: Get, watch: Watch, task_id: str, timeout: float | None) -> task_pb2.Task:
    """The task once it is COMPLETED, FAILED or CANCELLED, with its result.

    The state is read, then watched from a peer that may lag, then read again: what counts is what
    a linearizable read says, and the watch only tells when to look.

    Raises:
        TaskNotDoneError: it is still open after `timeout` seconds.
        NotFoundError: it never was, or is no longer retained.
    """
    last: list[task_pb2.Task] = []
    try:
        async with asyncio.timeout(timeout) as limit:
            return await _finished(get, watch, last)
    except TimeoutError as error:
        if not limit.expired():
            raise
        state = state_word(last[0]) if last else "unknown: no peer said"
        raise TaskNotDoneError(
            f"task {task_id} is not done after {timeout:g} s (it is {state}): wait again, or ask "
            f"`gaia tasks explain {task_id}` what it waits for",
            **_fields(last[0] if last else task_pb2.Task(task_id=task_id)),
        ) from error
    except NotFoundError as error:
        raise NotFoundError(
            f"{error.message}: it never was, or is no longer kept (task.retention)",
            metadata=error.metadata,
        ) from error


async def _finished(get: Get, watch: Watch, last: list[task_pb2.Task]) -> task_pb2.Task:
    while True:
        task = await get()
        last[:] = [task]
        if task.state in FINISHED:
            return task
        async with watch() as changes:
            async for change in changes:
                seen = [*change.tasks, *([change.task] if change.HasField("task") else [])]
                # A peer that lags tells of the past: it may not even know the task yet.
                if any(one.state in FINISHED or one.state == GONE for one in seen):
                    break
                last[:] = seen[-1:] or last


def result_of(task: task_pb2.Task) -> bytes:
    """The result of a finished task.

    Raises:
        TaskFailedError: it is a dead letter.
        TaskCancelledError: it was called off.
    """
    if task.state == task_pb2.TASK_STATE_COMPLETED:
        return task.result
    raise outcome_error(task)


def outcome_error(task: task_pb2.Task) -> TaskOutcomeError:
    """Why a finished task has no result."""
    named = f"task {task.task_id} ({task.task_type})"
    again = f"requeue it (tasks.requeue, `gaia tasks requeue {task.task_id}`)"
    if task.state == task_pb2.TASK_STATE_CANCELLED:
        why = f": {task.last_error}" if task.last_error else ""
        return TaskCancelledError(
            f"{named} was cancelled{why}; where it is wanted after all, {again}", **_fields(task)
        )
    kind = f"{task.last_error_type}: " if task.last_error_type else ""
    why = task.last_error.removeprefix(kind) or "no reason was given"
    return TaskFailedError(
        f"{named} failed for good after {task.retry_count} failed attempts: {kind}{why}; see its "
        f"history (`gaia tasks get {task.task_id}`), put right what failed, then {again}",
        **_fields(task),
    )


def _fields(task: task_pb2.Task) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "task_type": task.task_type,
        "state": state_word(task),
        "error_type": task.last_error_type,
        "last_error": task.last_error,
        "retry_count": task.retry_count,
    }


def state_word(task: task_pb2.Task) -> str:
    """The state without its prefix; a number where this version has no name for it."""
    known = task_pb2.TaskState.values()
    name = task_pb2.TaskState.Name(task.state) if task.state in known else str(task.state)
    return name.removeprefix("TASK_STATE_")
