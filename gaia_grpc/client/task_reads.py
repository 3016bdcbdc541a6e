"""The reads of TaskService, typed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gaia.task.v1 import task_pb2

from gaia_grpc.client.resources import LINEARIZABLE, Consistency
from gaia_grpc.client.task_policies import TaskPolicies
from gaia_grpc.client.task_specs import TaskRef, task_id_of
from gaia_grpc.client.watches import DEFAULT_INTERVAL_S, TaskWatch, watch_tasks


class TaskReads(TaskPolicies):
    """The part of `TasksApi` that changes nothing."""

    async def get(
        self,
        task_id: TaskRef,
        *,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> task_pb2.GetTaskResponse:
        """Reads one task with payload, result and history."""
        return await self._connection.call(
            lambda peer: peer.tasks.GetTask,
            task_pb2.GetTaskRequest(task_id=task_id_of(task_id), consistency=consistency),
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
        task_id: TaskRef,
        *,
        page_size: int = 100,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> task_pb2.ExplainAssignmentResponse:
        """Why each session would or would not get the task, the nearest first."""
        return await self._connection.call(
            lambda peer: peer.tasks.ExplainAssignment,
            task_pb2.ExplainAssignmentRequest(
                task_id=task_id_of(task_id), page_size=page_size, consistency=consistency
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
