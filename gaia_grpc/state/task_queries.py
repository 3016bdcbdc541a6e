"""Reads of the task queue."""

from __future__ import annotations

from collections.abc import Iterable

from gaia.command.v1 import query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import page_tokens
from gaia_grpc.state.context import Context
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.task_record import (
    BLOCKED,
    CANCELLED,
    CLAIMED,
    COMPLETED,
    FAILED,
    PENDING,
    SCHEDULED,
    Task,
    task_number_of,
)
from gaia_grpc.state.task_store import TaskStore
from gaia_grpc.state.task_waits import WaitList

EXAMINED_PER_PAGE = 5_000
"""A page of rare tasks ends here, short and with a token, instead of walking through all."""
PAGE_SIZE_BYTES = 3 << 20
"""And one of tasks with much to tell: gRPC clients take 4 MiB unless they are told otherwise."""


class TaskQueries:
    """Handlers of the queries about tasks."""

    def __init__(
        self, context: Context, sessions: SessionTable, store: TaskStore, waits: WaitList
    ) -> None:
        self._context = context
        self._sessions = sessions
        self._store = store
        self._waits = waits

    def get(self, body: task_pb2.GetTaskRequest, now_ms: int) -> query_pb2.QueryResult:
        """One task with payload, result and history."""
        del now_ms
        history_most = self._context.settings.integer("task.max_history")
        task = self._store.existing(body.task_id)
        message = self._store.message(task, payload=True, result=True, history_most=history_most)
        return query_pb2.QueryResult(get_task=task_pb2.GetTaskResponse(task=message))

    def list_page(self, body: task_pb2.ListTasksRequest, now_ms: int) -> query_pb2.QueryResult:
        """One page in the order of the ids; it may be short and still have a next one."""
        del now_ms
        size = page_tokens.page_size(body.page_size)
        after = task_number_of(page_tokens.decode(body, body.page_token))
        answer = task_pb2.ListTasksResponse()
        last_id = ""
        size_bytes = 0
        for examined, task in enumerate(self._candidates(body, after)):
            full = len(answer.tasks) == size or size_bytes >= PAGE_SIZE_BYTES
            if full or examined == EXAMINED_PER_PAGE:
                answer.next_page_token = page_tokens.encode(body, last_id)
                break
            last_id = task.task_id
            if _selected(task, body):
                message = self._store.message(task)
                size_bytes += message.ByteSize()
                answer.tasks.append(message)
        return query_pb2.QueryResult(list_tasks=answer)

    def stats(self, body: task_pb2.GetQueueStatsRequest, now_ms: int) -> query_pb2.QueryResult:
        """Counts; kept up with each move, so never a walk."""
        del body, now_ms
        store = self._store
        answer = task_pb2.GetQueueStatsResponse(
            pending=store.counts[PENDING],
            scheduled=store.counts[SCHEDULED],
            claimed=store.counts[CLAIMED],
            completed=store.counts[COMPLETED],
            failed=store.counts[FAILED],
            cancelled=store.counts[CANCELLED],
            waiting_claims=self._waits.count,
            blocked=store.counts[BLOCKED],
            **store.totals.by_field(),
        )
        return query_pb2.QueryResult(get_queue_stats=answer)

    def _candidates(self, body: task_pb2.ListTasksRequest, after: int) -> Iterable[Task]:
        if not body.claimed_by:
            return self._store.after(after)
        session = self._sessions.find(body.claimed_by)
        held = sorted(session.claims) if session is not None else []
        tasks = (self._store.numbered(number) for number in held if number > after)
        return (task for task in tasks if task is not None)


def _selected(task: Task, body: task_pb2.ListTasksRequest) -> bool:
    return body.state in (task_pb2.TASK_STATE_UNSPECIFIED, task.state) and body.task_type in (
        "",
        task.task_type,
    )
