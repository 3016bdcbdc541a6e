"""The messages of a watch over the tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gaia.command.v1 import query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state.context import Context
from gaia_grpc.state.task_record import State, Task, task_id_of, task_number_of
from gaia_grpc.state.task_store import TaskStore
from gaia_grpc.state.watching import Event, Kind, Selection, next_step

MOST_PER_STEP = 1_000


class TaskWatch:
    """Answers `WatchTasksQuery`."""

    def __init__(self, context: Context, store: TaskStore) -> None:
        self._context = context
        self._store = store

    def next(self, body: query_pb2.WatchTasksQuery, now_ms: int) -> query_pb2.QueryResult:
        """What a watch is sent next."""
        del now_ms
        step = next_step(
            self._store.changes,
            self._context.index,
            body.place if body.HasField("place") else None,
            min(body.limit, MOST_PER_STEP) or 1,
            self._selection(body.filter),
        )
        result = query_pb2.WatchTasksResult(
            messages=[self._message(event) for event in step.events],
            place=step.place,
            more=step.more,
        )
        return query_pb2.QueryResult(watch_tasks=result)

    def _selection(self, select: task_pb2.WatchTasksRequest) -> Selection[Task, State]:
        only = task_number_of(select.task_id)

        def in_state(state: State) -> bool:
            return select.state in (task_pb2.TASK_STATE_UNSPECIFIED, state)

        def of_kind(task_type: str, affinity: str) -> bool:
            return select.task_type in ("", task_type) and select.affinity in ("", affinity)

        def matched(number: int, state: State) -> bool:
            if not in_state(state) or (select.task_id and number != only):
                return False
            if not select.task_type and not select.affinity:
                return True
            task = self._store.numbered(number)
            stub = self._store.changes.stub_of(number) if task is None else task.stub
            return stub is not None and of_kind(*stub)

        records_after: Callable[[int], Iterable[Task]] = self._store.after
        if select.task_id:
            records_after = self._only(only)
        return Selection(
            records_after=records_after,
            number_of=lambda task: task.number,
            matches=lambda task: matched(task.number, task.state),
            matched=matched,
        )

    def _only(self, number: int) -> Callable[[int], Iterable[Task]]:
        """One task as all that there is: the rest need not be walked."""

        def records_after(after: int) -> Iterable[Task]:
            task = self._store.numbered(number)
            return () if task is None or number <= after else (task,)

        return records_after

    def _message(self, event: Event) -> task_pb2.WatchTasksResponse:
        message = task_pb2.WatchTasksResponse(
            kind=task_pb2.WatchKind.Value(f"WATCH_KIND_{event.kind.name}"),
            applied_index=event.index,
            through_index=event.through_index,
            resync=event.kind is Kind.RESYNC,
        )
        if event.kind is Kind.COMPLETE:
            message.cluster_id = self._context.cluster_id
        for number in event.numbers:
            task = self._shown(number)
            if event.kind is Kind.EXISTING:
                message.tasks.append(task)
            else:
                message.task.CopyFrom(task)
        return message

    def _shown(self, number: int) -> task_pb2.Task:
        task = self._store.numbered(number)
        if task is not None:
            return self._store.message(task)
        task_type, affinity = self._store.changes.stub_of(number) or ("", "")
        return task_pb2.Task(task_id=task_id_of(number), task_type=task_type, affinity=affinity)
