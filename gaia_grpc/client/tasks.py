"""TaskService, typed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

from gaia.task.v1 import task_pb2

from gaia_grpc.client.codecs import BYTES, Codec
from gaia_grpc.client.resources import duration
from gaia_grpc.client.task_reads import TaskReads
from gaia_grpc.client.task_results import finished, result_of
from gaia_grpc.client.task_specs import (
    TaskRef,
    new_tasks,
    optional_duration,
    task_id_of,
    task_ids_of,
)

MAX_ERROR_CHARACTERS = 4_096
MAX_ERROR_TYPE_CHARACTERS = 128

Result = TypeVar("Result")


class TasksApi(TaskReads):
    """TaskService: enqueue, wait for the result; claim with a fencing token, complete or fail."""

    async def enqueue(
        self,
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
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.EnqueueTaskResponse:
        """Adds one task; the same `idempotency_key` and content returns the task that exists.

        Args:
            task_type: chooses the handler.
            payload: its input: bytes, or what `codec` takes; at most 1 MiB.
            codec: how the payload becomes bytes; `JSON`, or one of your own.
            affinity: the specialty that fits best; empty is "general".
            priority: higher goes first; -1,000 to 1,000.
            idempotency_key: the caller's key.
            max_retries: failed attempts after which one more is final; None is the policy's.
            delay: seconds of log time before it may be claimed.
            deadline: seconds of log time after which it fails if it is not completed.
            depends_on: tasks that must be completed first; at most 64. Where one of them fails
                for good or is cancelled, this one fails too.
            request_id: makes a repeated call safe; one is made where it is empty.
            timeout: seconds for the whole call.
        """
        request = task_pb2.EnqueueTaskRequest(
            task_type=task_type,
            payload=codec.encode(payload),
            affinity=affinity,
            priority=priority,
            idempotency_key=idempotency_key,
            max_retries=max_retries,
            delay=optional_duration(delay),
            deadline=optional_duration(deadline),
            depends_on=task_ids_of(depends_on),
            request_id=request_id,
        )
        return await self._connection.call(
            lambda peer: peer.tasks.EnqueueTask, request, timeout=timeout
        )

    @overload
    async def result(self, task: TaskRef, *, timeout: float | None = None) -> bytes: ...

    @overload
    async def result(
        self, task: TaskRef, *, codec: Codec[Result], timeout: float | None = None
    ) -> Result: ...

    async def result(
        self, task: TaskRef, *, codec: Codec[Any] = BYTES, timeout: float | None = None
    ) -> Any:
        """Waits for the task and returns its result, as `codec` reads it.

        Raises:
            TaskFailedError: it is a dead letter; the error says of what kind and what to do.
            TaskCancelledError: somebody called it off.
            TaskNotDoneError: it is still open after `timeout` seconds; None waits for ever.
            NotFoundError: there is no such task, or it is no longer retained.
            UndecodableError: the codec can't read the result.
        """
        return codec.decode(result_of(await self.wait(task, timeout=timeout)))

    async def run(
        self,
        task_type: str,
        payload: Any = b"",
        *,
        codec: Codec[Any] = BYTES,
        affinity: str = "",
        priority: int = 0,
        idempotency_key: str = "",
        max_retries: int | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Enqueues a task and waits for its result: a call that another worker answers.

        `timeout` ends the waiting and not the task: give a `deadline` where nobody wants a late
        result, and an `idempotency_key` where the same work may be asked for again. Raises what
        `enqueue` and `result` do.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        enqueued = await self.enqueue(
            task_type,
            payload,
            codec=codec,
            affinity=affinity,
            priority=priority,
            idempotency_key=idempotency_key,
            max_retries=max_retries,
            deadline=deadline,
            timeout=timeout,
        )
        left = None if timeout is None else max(began + timeout - loop.time(), 0.0)
        return await self.result(enqueued, codec=codec, timeout=left)

    async def wait(self, task: TaskRef, *, timeout: float | None = None) -> task_pb2.Task:
        """The task once it is COMPLETED, FAILED or CANCELLED, with result and history.

        Raises:
            TaskNotDoneError: it is still open after `timeout` seconds; None waits for ever.
            NotFoundError: there is no such task, or it is no longer retained.
            UnavailableError: the cluster can't be asked.
        """
        task_id = task_id_of(task)

        async def get() -> task_pb2.Task:
            # An outage is worth the wait that the caller grants; the connection has less patience.
            return (await self.get(task_id, timeout=timeout)).task

        return await finished(get, lambda: self.watch(task_id=task_id), task_id, timeout)

    async def enqueue_batch(
        self,
        tasks: Iterable[task_pb2.NewTask | str],
        *,
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.BatchEnqueueTasksResponse:
        """Adds up to 1,000 tasks in one log entry: all of them or, on an error, none."""
        return await self._connection.call(
            lambda peer: peer.tasks.BatchEnqueueTasks,
            task_pb2.BatchEnqueueTasksRequest(tasks=new_tasks(tasks), request_id=request_id),
            timeout=timeout,
        )

    async def claim(
        self,
        session_id: str,
        *,
        max_tasks: int = 1,
        wait: float = 0.0,
        task_types: Sequence[str] = (),
        include_unmatched: bool = False,
        incarnation: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.ClaimTasksResponse:
        """Takes up to `max_tasks`, waiting up to `wait` seconds (60 at most) for the first.

        With the session's `incarnation`, one that has registered anew since gets nothing here.
        """
        request = task_pb2.ClaimTasksRequest(
            session_id=session_id,
            max_tasks=max_tasks,
            wait=duration(wait) if wait else None,
            task_types=task_types,
            include_unmatched=include_unmatched,
            incarnation=incarnation,
            request_id=request_id,
        )
        return await self._connection.call(
            lambda peer: peer.tasks.ClaimTasks,
            request,
            timeout=(self._connection.timeout if timeout is None else timeout) + wait,
            attempt_timeout=self._connection.attempt_timeout + wait,
        )

    async def extend(
        self,
        task: task_pb2.Task,
        *,
        progress: float = 0.0,
        checkpoint: bytes = b"",
        timeout: float | None = None,
    ) -> task_pb2.ExtendClaimResponse:
        """Renews a claim; `StaleClaimError` where it is no longer held."""
        return await self._connection.call(
            lambda peer: peer.tasks.ExtendClaim,
            task_pb2.ExtendClaimRequest(
                task_id=task.task_id,
                claim_token=task.claim_token,
                session_id=task.claimed_by,
                progress=progress,
                checkpoint=checkpoint,
            ),
            timeout=timeout,
        )

    async def complete(
        self, task: task_pb2.Task, result: bytes = b"", *, timeout: float | None = None
    ) -> task_pb2.CompleteTaskResponse:
        """Ends a claimed task with its result; `StaleClaimError` where it is no longer held."""
        return await self._connection.call(
            lambda peer: peer.tasks.CompleteTask,
            task_pb2.CompleteTaskRequest(
                task_id=task.task_id,
                claim_token=task.claim_token,
                session_id=task.claimed_by,
                result=result,
            ),
            timeout=timeout,
        )

    async def complete_batch(
        self,
        session_id: str,
        completions: Iterable[task_pb2.Completion],
        *,
        timeout: float | None = None,
    ) -> task_pb2.BatchCompleteTasksResponse:
        """Ends up to 1,000 tasks in one log entry; each has an outcome of its own."""
        return await self._connection.call(
            lambda peer: peer.tasks.BatchCompleteTasks,
            task_pb2.BatchCompleteTasksRequest(
                session_id=session_id, completions=list(completions)
            ),
            timeout=timeout,
        )

    async def fail(
        self,
        task: task_pb2.Task,
        error: str,
        *,
        permanent: bool = False,
        error_type: str = "",
        retry_delay: float | None = None,
        timeout: float | None = None,
    ) -> task_pb2.FailTaskResponse:
        """Reports a failed attempt: it is tried again later, unless it is the last or permanent.

        `error_type` is the kind of the error (`TaskPolicy.final_error_types`); `retry_delay` the
        seconds before the retry, instead of the backoff.
        """
        return await self._connection.call(
            lambda peer: peer.tasks.FailTask,
            task_pb2.FailTaskRequest(
                task_id=task.task_id,
                claim_token=task.claim_token,
                session_id=task.claimed_by,
                error=error[:MAX_ERROR_CHARACTERS],
                permanent=permanent,
                error_type=error_type[:MAX_ERROR_TYPE_CHARACTERS],
                retry_delay=optional_duration(retry_delay),
            ),
            timeout=timeout,
        )

    async def release(
        self, task: task_pb2.Task, *, timeout: float | None = None
    ) -> task_pb2.ReleaseTaskResponse:
        """Gives a claimed task back without counting an attempt."""
        return await self._connection.call(
            lambda peer: peer.tasks.ReleaseTask,
            task_pb2.ReleaseTaskRequest(
                task_id=task.task_id, claim_token=task.claim_token, session_id=task.claimed_by
            ),
            timeout=timeout,
        )

    async def cancel(
        self,
        task_id: TaskRef,
        reason: str = "",
        *,
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.CancelTaskResponse:
        """Calls a task off."""
        return await self._connection.call(
            lambda peer: peer.tasks.CancelTask,
            task_pb2.CancelTaskRequest(
                task_id=task_id_of(task_id), reason=reason, request_id=request_id
            ),
            timeout=timeout,
        )

    async def requeue(
        self,
        task_id: TaskRef,
        *,
        include_dependents: bool = False,
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.RequeueTaskResponse:
        """Makes a FAILED or CANCELLED task pending again, with all its retries.

        With `include_dependents` also the tasks that failed because this one did.
        """
        return await self._connection.call(
            lambda peer: peer.tasks.RequeueTask,
            task_pb2.RequeueTaskRequest(
                task_id=task_id_of(task_id),
                request_id=request_id,
                include_dependents=include_dependents,
            ),
            timeout=timeout,
        )
