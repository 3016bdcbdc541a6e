"""TaskService, typed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from gaia.task.v1 import task_pb2

from gaia_grpc.client.connection import Connection
from gaia_grpc.client.resources import LINEARIZABLE, Consistency, duration, new_tasks
from gaia_grpc.client.watches import DEFAULT_INTERVAL_S, TaskWatch, watch_tasks


class TasksApi:
    """TaskService: enqueue, claim with a fencing token, complete or fail."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def enqueue(
        self,
        task_type: str,
        payload: bytes = b"",
        *,
        affinity: str = "",
        priority: int = 0,
        idempotency_key: str = "",
        max_retries: int | None = None,
        delay: float | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.EnqueueTaskResponse:
        """Adds one task; the same `idempotency_key` and content returns the task that exists."""
        request = task_pb2.EnqueueTaskRequest(
            task_type=task_type,
            payload=payload,
            affinity=affinity,
            priority=priority,
            idempotency_key=idempotency_key,
            max_retries=max_retries,
            delay=None if delay is None else duration(delay),
            request_id=request_id,
        )
        return await self._connection.call(
            lambda peer: peer.tasks.EnqueueTask, request, timeout=timeout
        )

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
        timeout: float | None = None,
    ) -> task_pb2.FailTaskResponse:
        """Reports a failed attempt: it is tried again later, unless it is the last or permanent."""
        return await self._connection.call(
            lambda peer: peer.tasks.FailTask,
            task_pb2.FailTaskRequest(
                task_id=task.task_id,
                claim_token=task.claim_token,
                session_id=task.claimed_by,
                error=error[:4_096],
                permanent=permanent,
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
        task_id: str,
        reason: str = "",
        *,
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.CancelTaskResponse:
        """Calls a task off."""
        return await self._connection.call(
            lambda peer: peer.tasks.CancelTask,
            task_pb2.CancelTaskRequest(task_id=task_id, reason=reason, request_id=request_id),
            timeout=timeout,
        )

    async def requeue(
        self, task_id: str, *, request_id: str = "", timeout: float | None = None
    ) -> task_pb2.RequeueTaskResponse:
        """Makes a FAILED or CANCELLED task pending again."""
        return await self._connection.call(
            lambda peer: peer.tasks.RequeueTask,
            task_pb2.RequeueTaskRequest(task_id=task_id, request_id=request_id),
            timeout=timeout,
        )

    async def get(
        self,
        task_id: str,
        *,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> task_pb2.GetTaskResponse:
        """Reads one task with payload, result and history."""
        return await self._connection.call(
            lambda peer: peer.tasks.GetTask,
            task_pb2.GetTaskRequest(task_id=task_id, consistency=consistency),
            timeout=timeout,
        )

    async def list(
        self,
        *,
        state: task_pb2.TaskState.ValueType = task_pb2.TASK_STATE_UNSPECIFIED,
        task_type: str = "",
        claimed_by: str = "",
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[task_pb2.Task]:
        """All matching tasks in the order of their ids, page by page."""
        request = task_pb2.ListTasksRequest(
            state=state,
            task_type=task_type,
            claimed_by=claimed_by,
            page_size=page_size,
            consistency=consistency,
        )
        while True:
            page = await self._connection.call(lambda peer: peer.tasks.ListTasks, request)
            for task in page.tasks:
                yield task
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def stats(
        self, *, consistency: Consistency = LINEARIZABLE, timeout: float | None = None
    ) -> task_pb2.GetQueueStatsResponse:
        """Counts of tasks by state, and of events since the founding."""
        return await self._connection.call(
            lambda peer: peer.tasks.GetQueueStats,
            task_pb2.GetQueueStatsRequest(consistency=consistency),
            timeout=timeout,
        )

    async def explain(
        self,
        task_id: str,
        *,
        page_size: int = 100,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> task_pb2.ExplainAssignmentResponse:
        """Why each session would or would not get the task, the nearest first."""
        return await self._connection.call(
            lambda peer: peer.tasks.ExplainAssignment,
            task_pb2.ExplainAssignmentRequest(
                task_id=task_id, page_size=page_size, consistency=consistency
            ),
            timeout=timeout,
        )

    def watch(
        self,
        *,
        task_id: str = "",
        task_type: str = "",
        affinity: str = "",
        state: task_pb2.TaskState.ValueType = task_pb2.TASK_STATE_UNSPECIFIED,
        interval: float = DEFAULT_INTERVAL_S,
        address: str | None = None,
        timeout: float | None = None,
    ) -> TaskWatch:
        """Every matching task and then each change, across reconnects; see `StateWatch`."""
        request = task_pb2.WatchTasksRequest(
            task_id=task_id, task_type=task_type, affinity=affinity, state=state
        )
        return watch_tasks(
            self._connection, request, interval=interval, address=address, timeout=timeout
        )
