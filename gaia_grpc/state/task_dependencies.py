"""What becomes of the tasks that wait for others.

A task that ended is told to its dependents in the same entry of the log, those that end by it tell
theirs, and so on, up to `DEPENDENTS_PER_ENTRY` dependents: who is left hears of it in the next
AdvanceTime, a millisecond later. A task is told of whole, so that an entry has to do with less than
that and task.max_dependents together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from gaia.command.v1 import snapshot_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import refusal
from gaia_grpc.state.context import TASK_DEAD_LETTERED, Context
from gaia_grpc.state.refusal import Refused, refused
from gaia_grpc.state.snapshot import Part, Section
from gaia_grpc.state.task_flow import TaskFlow
from gaia_grpc.state.task_record import (
    BLOCKED,
    CANCELLED,
    COMPLETED,
    FAILED,
    OPEN_STATES,
    Task,
    state_name,
    task_id_of,
)
from gaia_grpc.state.task_store import TaskStore

DEPENDENTS_PER_ENTRY: Final = 1_000
LOOKS_PER_REQUEUE: Final = 50_000
"""Dependents that a requeue looks at, of all that fail together: 20 ms of every peer's time."""
ENDED_TIMER = "task.ended"
MOST_REASON_CHARACTERS: Final = 1_024
"""A chain of failures repeats the first reason, for a thousand dependents and theirs; all of it is
with the first."""


class TaskDependencies:
    """Unblocks and fails dependents."""

    def __init__(self, context: Context, store: TaskStore, flow: TaskFlow) -> None:
        self._context = context
        self._store = store
        self._flow = flow
        self._ended: deque[int] = deque()
        """Tasks whose dependents have not heard of it yet, each once."""
        self._completed: dict[int, bool] = {}
        """How each of them ended last. Who failed, began again and was completed before anybody
        heard of it must not fail others, also where it is no longer retained."""
        self._due_ms = 0
        self._spent = 0
        self._spent_index = 0
        self._settling = False
        context.timers.register(ENDED_TIMER, self._due)
        self.parts: Sequence[Part] = (Section("ended_tasks", self._freeze, self._load),)

    def ended(self, task: Task) -> None:
        """The task is finished: `settle` tells those that depend on it."""
        if not self._store.extras.dependent_count(task.number):
            return
        if task.number not in self._completed:
            self._ended.append(task.number)
        self._completed[task.number] = task.state == COMPLETED

    def settle(self) -> None:
        """Tells what is to be told, as far as one entry may."""
        if self._settling or not self._ended:
            return
        if self._spent_index != self._context.index:
            self._spent_index, self._spent = self._context.index, 0
        self._settling = True
        while self._ended and self._spent < DEPENDENTS_PER_ENTRY:
            number = self._ended.popleft()
            self._tell(number, completed=self._completed.pop(number))
        self._settling = False
        if self._ended and not self._due_ms:
            self._set(self._context.now_ms + 1)

    def requeue(self, task: Task) -> None:
        """A task that ended without success begins again: BLOCKED where a dependency is open."""
        extra = self._store.extras.get(task.number)
        self._store.reset_attempts(task)
        self._store.record(task, task_pb2.TASK_EVENT_KIND_REQUEUED)
        if extra is not None and extra.waiting_for:
            self._store.block(task)
        else:
            self._flow.enter(task)

    def check_requeue(self, task: Task) -> None:
        """Raises `Refused` where a dependency is neither COMPLETED nor open."""
        extra = self._store.extras.get(task.number)
        for number in extra.waiting_for if extra is not None else ():
            dependency = self._store.numbered(number)
            if dependency is None or dependency.state in (FAILED, CANCELLED):
                standing = "no longer retained"
                if dependency is not None:
                    standing = state_name(dependency.state)
                raise dependency_failed(task_id_of(number), standing, task_id=task.task_id)

    def failed_with(self, task: Task, most: int) -> list[Task]:
        """The tasks that FAILED because this one did, and because they did, and so on: ascending,
        so each behind those that it depends on.

        Raises `Refused` (RESOURCE_EXHAUSTED) where they are more than `most`, or too entangled.
        """
        found: dict[int, Task] = {}
        frontier = [task.number]
        looks = 0
        while frontier:
            cause = frontier.pop()
            dependents = self._store.extras.dependents_of(cause)
            looks += len(dependents)
            for number in dependents:
                dependent = self._store.numbered(number)
                extra = self._store.extras.get(number)
                if dependent is None or extra is None or number in found:
                    continue
                if dependent.state == FAILED and extra.failed_by == cause:
                    found[number] = dependent
                    frontier.append(number)
            if len(found) > most or looks > LOOKS_PER_REQUEUE:
                raise refused(
                    refusal.RESOURCE_EXHAUSTED,
                    "TOO_MANY_DEPENDENTS",
                    f"more than {most} tasks failed because {task.task_id} did "
                    "(task.max_dependents), or depend on those that did; "
                    "requeue it without them, and then each of them",
                    details={"task_id": task.task_id},
                )
        return [found[number] for number in sorted(found)]

    def requeue_all(self, tasks: Sequence[Task]) -> int:
        """Requeues those whose dependencies are all COMPLETED or open again; returns how many."""
        count = 0
        for task in tasks:
            try:
                self.check_requeue(task)
            except Refused:
                continue
            self.requeue(task)
            count += 1
        return count

    def _tell(self, number: int, *, completed: bool) -> None:
        cause = self._store.numbered(number)
        if cause is not None:
            if cause.state in OPEN_STATES:
                return  # requeued meanwhile: its dependents wait on
            completed = cause.state == COMPLETED
        reason = "" if completed else _reason(number, cause)
        dependents = self._store.extras.dependents_of(number)
        self._spent += len(dependents)
        for place in dependents:
            task = self._store.numbered(place)
            if task is None:
                continue  # dropped over task.max_finished by one of those before
            if completed:
                self._satisfied(task, number)
            elif task.state == BLOCKED:
                self._fail(task, number, reason)

    def _satisfied(self, task: Task, number: int) -> None:
        self._store.satisfied(task, number)
        extra = self._store.extras.get(task.number)
        if task.state != BLOCKED or extra is None or extra.waiting_for:
            return
        self._store.record(task, task_pb2.TASK_EVENT_KIND_UNBLOCKED)
        if extra.delay_ms:
            self._store.schedule(task, extra.delay_ms)
        else:
            self._flow.enter(task)

    def _fail(self, task: Task, number: int, reason: str) -> None:
        self._store.leave_queue(task, FAILED)
        self._store.extras.note_cause(task.number, number)
        self._store.note_error(task, reason)
        self._store.record(task, task_pb2.TASK_EVENT_KIND_DEPENDENCY_FAILED, reason)
        self._store.record(task, task_pb2.TASK_EVENT_KIND_DEAD_LETTERED, reason)
        self._context.report(TASK_DEAD_LETTERED, task.task_type)
        self.ended(task)
        self._store.retain(task)

    # --- what is left for later

    def _set(self, due_ms: int) -> None:
        self._due_ms = due_ms
        self._context.timers.schedule(due_ms, ENDED_TIMER, 0)

    def _due(self, key: int | str) -> None:
        del key
        self._due_ms = 0
        self.settle()

    def _freeze(self) -> Iterator[bytes]:
        # The timer outlives a backlog that other entries worked off: a restored peer has it too.
        if not self._due_ms:
            return iter(())
        record = snapshot_pb2.EndedTasks(
            numbers=self._ended,
            completed=[self._completed[number] for number in self._ended],
            due_ms=self._due_ms,
        )
        return iter((record.SerializeToString(deterministic=True),))

    def _load(self, record: bytes) -> None:
        ended = snapshot_pb2.EndedTasks.FromString(record)
        self._ended.extend(ended.numbers)
        self._completed.update(zip(ended.numbers, ended.completed, strict=True))
        self._set(ended.due_ms)


def _reason(number: int, cause: Task | None) -> str:
    """What a task that failed with this one says; one text for all of them."""
    standing = "is no longer retained" if cause is None else f"is {state_name(cause.state)}"
    reason = f"the dependency {task_id_of(number)} {standing}"
    if cause is not None and cause.last_error:
        reason = f"{reason}: {cause.last_error}"[:MOST_REASON_CHARACTERS]
    return reason


def dependency_failed(
    dependency_id: str, standing: str, *, task_id: str = "", field: str = ""
) -> Refused:
    """FAILED_PRECONDITION: the task would wait for what can't be COMPLETED as it stands."""
    details = {"dependency_id": dependency_id, "dependency_state": standing}
    if task_id:
        details["task_id"] = task_id
    return refused(
        refusal.FAILED_PRECONDITION,
        "DEPENDENCY_FAILED",
        f"the dependency {dependency_id} is {standing}: requeue it first",
        field=field,
        details=details,
    )
