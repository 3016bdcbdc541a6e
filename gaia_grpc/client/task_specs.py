"""New tasks, and how calls name tasks that exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.client.codecs import BYTES, Codec
from gaia_grpc.client.resources import duration
from gaia_grpc.errors import InvalidArgumentError

TaskRef: TypeAlias = "str | task_pb2.Task | task_pb2.EnqueueTaskResponse"
"""A task by its id, as a message, or as enqueueing returned it."""


def optional_duration(seconds: float | None) -> Duration | None:
    """Seconds as a protobuf Duration; None stays unset."""
    return None if seconds is None else duration(seconds)


def task_id_of(task: TaskRef) -> str:
    """The id that is meant. Raises `InvalidArgumentError` where there is none."""
    if isinstance(task, task_pb2.EnqueueTaskResponse):
        task = task.task
    task_id = task if isinstance(task, str) else task.task_id
    if not task_id:
        raise InvalidArgumentError("the task has no id: enqueue it first")
    return task_id


def task_ids_of(tasks: TaskRef | Iterable[TaskRef]) -> list[str]:
    """The ids that are meant, of one task too: an id is no list of its letters."""
    if isinstance(tasks, str | task_pb2.Task | task_pb2.EnqueueTaskResponse):
        tasks = [tasks]
    return [task_id_of(task) for task in tasks]


def new_task(
    task_type: str,
    payload: Any = b"",
    *,
    codec: Codec[Any] = BYTES,
    affinity: str = "",
    priority: int = 0,
    idempotency_key: str = "",
    max_retries: int | None = None,
    delay: float | None = None,
    deadline: float | None = None,
    depends_on: TaskRef | Iterable[TaskRef] = (),
) -> task_pb2.NewTask:
    """One task of a batch; see `TasksApi.enqueue` for the arguments.

    In a batch `depends_on` may also name an earlier task by its place: "#0" is the first.
    """
    return task_pb2.NewTask(
        task_type=task_type,
        payload=codec.encode(payload),
        affinity=affinity,
        priority=priority,
        idempotency_key=idempotency_key,
        max_retries=max_retries,
        delay=optional_duration(delay),
        deadline=optional_duration(deadline),
        depends_on=task_ids_of(depends_on),
    )


def new_tasks(tasks: Iterable[task_pb2.NewTask | str]) -> list[task_pb2.NewTask]:
    """NewTask messages; a bare string is a task_type."""
    return [task_pb2.NewTask(task_type=task) if isinstance(task, str) else task for task in tasks]
