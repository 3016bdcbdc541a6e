"""The tasks and the moves between their states; every index, counter and timer moves along here.

PENDING <-> SCHEDULED      PENDING -> CLAIMED -> COMPLETED
CLAIMED -> PENDING (released) | SCHEDULED (counted attempt) | FAILED (no retry left)
BLOCKED -> PENDING | SCHEDULED (all dependencies COMPLETED) | FAILED (one can't be)
each of these -> CANCELLED | FAILED (deadline)      FAILED | CANCELLED -> PENDING | BLOCKED

No other module sets a field of a task: a snapshot under way must hear of each change first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gaia.command.v1 import snapshot_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import refusal, topics
from gaia_grpc.state.changes import ChangeLog
from gaia_grpc.state.context import Context
from gaia_grpc.state.number_runs import NumberRuns
from gaia_grpc.state.session_record import Session
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.snapshot import FrozenInOrder, Part, records_section, single_section
from gaia_grpc.state.task_age import AgeClock
from gaia_grpc.state.task_extra import TaskExtras
from gaia_grpc.state.task_index import PendingIndex
from gaia_grpc.state.task_policies import TaskPolicies
from gaia_grpc.state.task_record import (
    BLOCKED,
    CANCELLED,
    CLAIM_EVENTS,
    CLAIMED,
    COMPLETED,
    FAILED,
    FINISHED_STATES,
    NO_EVENT,
    OPEN_STATES,
    PENDING,
    SCHEDULED,
    EventKind,
    State,
    Stub,
    Task,
    task_number_of,
)
from gaia_grpc.state.task_retention import FinishedTasks
from gaia_grpc.state.task_snapshot import decode_task, encode_task
from gaia_grpc.state.task_totals import TaskTotals

DROPS_PER_FINISH: Final = 10
"""Of finished tasks for each that finishes: an entry may finish 1,000."""
CLAIM_TIMER = "task.claim"
AVAILABLE_TIMER = "task.available"

RULES_LEVEL: Final = 3
"""The feature level that has policies, ageing, deadlines, dependencies and their counters."""


class TaskStore:
    """Retained tasks by number. Who gets a task is decided elsewhere (task_claims.py)."""

    def __init__(self, context: Context, sessions: SessionTable, policies: TaskPolicies) -> None:
        self._context = context
        self._sessions = sessions
        self._policies = policies
        self._tasks: dict[int, Task] = {}
        self._by_key: dict[tuple[str, str], Task] = {}
        self._last_number = 0
        self._last_token = 0
        self.index = PendingIndex(self._tasks)
        self.counts: dict[State, int] = dict.fromkeys((*OPEN_STATES, *FINISHED_STATES), 0)
        self.changes = ChangeLog[State, Stub](context)
        self.totals = TaskTotals()
        self.age = AgeClock(context)
        self.finished = FinishedTasks(context, self._purge)
        self._runs = NumberRuns()
        self._frozen = FrozenInOrder(self._tasks, self._encode)
        self.extras = TaskExtras(context, self._frozen.changing)
        self.parts: Sequence[Part] = (
            single_section("task_counters", self._encode_counters, self._load_counters),
            records_section("task", self._frozen, self._load),
            *self.finished.parts,
            *self.age.parts,
        )

    # --- reading

    def find(self, task_id: str) -> Task | None:
        """The task, or None."""
        return self._tasks.get(task_number_of(task_id))

    def existing(self, task_id: str) -> Task:
        """The task. Raises `Refused` (NOT_FOUND)."""
        task = self.find(task_id)
        if task is None:
            raise refusal.not_found("task", task_id)
        return task

    def numbered(self, number: int) -> Task | None:
        """The task with this number, or None."""
        return self._tasks.get(number)

    def with_key(self, key: tuple[str, str]) -> Task | None:
        """The task of an idempotency key (principal, key), or None."""
        return self._by_key.get(key)

    def open_count(self) -> int:
        """Tasks that are not finished."""
        return sum(self.counts[state] for state in OPEN_STATES)

    def after(self, number: int) -> Iterator[Task]:
        """Tasks with higher numbers, in their order."""
        for candidate in self._runs.candidates_after(number):
            task = self._tasks.get(candidate)
            if task is not None:
                yield task

    def message(
        self, task: Task, *, payload: bool = False, result: bool = False, history_most: int = 0
    ) -> task_pb2.Task:
        """The task as callers see it, with what it has beside."""
        message = task.message(payload=payload, result=result, history_most=history_most)
        extra = self.extras.get(task.number)
        if extra is not None:
            extra.show(message)
        return message

    @property
    def has_rules(self) -> bool:
        """Whether the cluster has the rules of `RULES_LEVEL`."""
        return self._context.feature_level >= RULES_LEVEL

    # --- moves

    def add(
        self,
        task_type: str,
        payload: bytes,
        affinity: str,
        priority: int,
        max_retries: int,
        key: tuple[str, str] | None,
        digest: bytes,
    ) -> Task:
        """A new task, PENDING and not yet in the index: `make_pending` or `schedule` follows."""
        self._last_number += 1
        task = Task(
            self._last_number,
            task_type,
            payload,
            affinity,
            priority,
            max_retries,
            self._context.now_ms,
        )
        task.key = key
        task.digest = digest
        task.epoch = self.age.first_epoch()
        self._insert(task)
        self.totals.enqueued += 1
        self.counts[PENDING] += 1
        self._changed(task, None)
        return task

    def make_pending(self, task: Task) -> None:
        """The task waits for a claim, at the place of its age."""
        self._move(task, PENDING)
        task.available_ms = self._context.now_ms
        if task.epoch < 0:
            task.epoch = self.age.epoch()
        self.index.add(task)

    def schedule(self, task: Task, delay_ms: int) -> None:
        """The task waits for its time."""
        self._move(task, SCHEDULED)
        task.available_ms = self._context.now_ms + delay_ms
        task.timer = self._context.timers.schedule(task.available_ms, AVAILABLE_TIMER, task.number)

    def block(self, task: Task) -> None:
        """The task waits for others."""
        self._move(task, BLOCKED)

    def claim(self, task: Task, session: Session) -> None:
        """The session holds the pending task under a new token."""
        self._move(task, CLAIMED)
        self.index.remove(task)
        self._last_token += 1
        task.claim_token = self._last_token
        task.session_id = session.session_id
        task.ended_by = NO_EVENT
        task.progress_micro = 0
        session.claims.add(task.number)
        self._sessions.claims_changed(session)
        self.totals.claims += 1
        self._set_claim_timer(task)
        self.record(task, task_pb2.TASK_EVENT_KIND_CLAIMED)

    def extend(self, task: Task, progress_micro: int, checkpoint: bytes) -> None:
        """The claim is renewed; an empty checkpoint leaves the one before."""
        self._frozen.changing(task.number)
        self._set_claim_timer(task)
        task.progress_micro = progress_micro
        if checkpoint:
            task.checkpoint = checkpoint
        self.record(task, task_pb2.TASK_EVENT_KIND_EXTENDED)
        task.update_ms = self._context.now_ms
        self._changed(task, task.state)

    def end_claim(
        self,
        task: Task,
        holder: Session | None,
        kind: EventKind,
        error: str = "",
        error_type: str = "",
    ) -> None:
        """The claim is over; the caller moves the task on to its next state."""
        self._frozen.changing(task.number)
        self._drop_timer(task)
        task.claim_expire_ms = 0
        task.ended_by = kind
        if holder is not None:
            holder.claims.discard(task.number)
            self._sessions.claims_changed(holder)
        self.record(task, kind, error, error_type)

    def leave_queue(self, task: Task, state: State) -> None:
        """A task that nobody holds moves to `state`."""
        was_pending = task.state == PENDING
        self._drop_timer(task)
        self._move(task, state)
        if was_pending:
            self.index.remove(task)

    def finish(self, task: Task, state: State) -> None:
        """A task whose claim has ended moves to a finished state."""
        self._move(task, state)

    def complete(self, task: Task, result: bytes) -> None:
        """A task whose claim has ended is done."""
        self._move(task, COMPLETED)
        task.result = result
        self.totals.completed += 1

    def count_attempt(self, task: Task, error: str, error_type: str = "") -> None:
        """One attempt more has failed."""
        self._frozen.changing(task.number)
        task.retry_count += 1
        task.last_error = error
        if self.has_rules:
            self.totals.failed_attempts += 1
        self.extras.set_error_type(task.number, error_type)

    def reset_attempts(self, task: Task) -> None:
        """The task has all its retries again, no deadline, and no age."""
        self._frozen.changing(task.number)
        task.retry_count = 0
        task.epoch = self.age.first_epoch()
        self.extras.reset(task.number)

    def note_error(self, task: Task, error: str) -> None:
        """What went wrong last, or why the task was called off."""
        self._frozen.changing(task.number)
        task.last_error = error

    def retain(self, task: Task) -> None:
        """The task is finished: kept for its type's time, while task.max_finished allows."""
        retention_ms = self._policies.of(task.task_type).retention_ms
        self.finished.add((task.number, task.update_ms), retention_ms)
        most = self._context.settings.integer("task.max_finished")
        # Where the limit was lowered, a few more go each time until it is reached.
        drops = DROPS_PER_FINISH if self.has_rules else len(self.finished)
        while drops and self.finished_count() > most:
            self.finished.drop_next()
            drops -= 1
        if self.has_rules:
            self.finished.forget_stale(self.finished_count(), self._is_finish)

    def record(self, task: Task, kind: EventKind, error: str = "", error_type: str = "") -> None:
        """Adds to the task's history."""
        self._frozen.changing(task.number)
        in_claim = kind in CLAIM_EVENTS
        claim = (task.session_id, task.claim_token) if in_claim else ("", 0)
        event = (kind, self._context.now_ms, *claim, error)
        most = self._context.settings.integer("task.max_history")
        task.record((*event, error_type) if error_type else event, most)

    def timer_fired(self, task: Task) -> None:
        """The task's timer is gone: it fired."""
        task.timer = None

    def satisfied(self, task: Task, dependency: int) -> None:
        """The task waits for this one no more."""
        self.extras.satisfied(task.number, dependency)
        self._changed(task, task.state)

    def finished_count(self) -> int:
        """Finished tasks that are retained."""
        return self.counts[COMPLETED] + self.counts[FAILED] + self.counts[CANCELLED]

    def _move(self, task: Task, state: State) -> None:
        self._frozen.changing(task.number)
        before = task.state
        self.counts[before] -= 1
        self.counts[state] += 1
        task.state = state
        task.update_ms = self._context.now_ms
        if state in FINISHED_STATES:
            self.extras.disarm(task.number)
            if state == FAILED and self.has_rules:
                self.totals.dead_letters += 1
        self._changed(task, before)

    def _changed(self, task: Task, before: State | None) -> None:
        self.changes.note(task.number, before, task.state)
        self._context.touch(topics.TASKS)

    def _set_claim_timer(self, task: Task) -> None:
        """The claim ends a claim timeout from now."""
        timeout_ms = self._policies.claim_timeout_ms(task.task_type)
        self._drop_timer(task)
        task.claim_expire_ms = self._context.now_ms + timeout_ms
        task.timer = self._context.timers.schedule(task.claim_expire_ms, CLAIM_TIMER, task.number)

    def _drop_timer(self, task: Task) -> None:
        if task.timer is not None:
            self._context.timers.cancel(task.timer)
            task.timer = None

    def _is_finish(self, finish: tuple[int, int]) -> bool:
        """Whether the task is still as it was when it finished then: a task that was requeued since
        is in the queue again, or finished again later."""
        task = self._tasks.get(finish[0])
        return task is not None and task.state in FINISHED_STATES and task.update_ms == finish[1]

    def _purge(self, finish: tuple[int, int]) -> None:
        if not self._is_finish(finish):
            return
        number = finish[0]
        self._frozen.changing(number)
        task = self._tasks.pop(number)
        self.counts[task.state] -= 1
        if self.has_rules:
            self.totals.purged += 1
        if task.key is not None:
            del self._by_key[task.key]
        self.extras.drop(number)
        self._runs.remove(number, self._last_number)
        self.changes.note(number, task.state, None, task.stub)
        self._context.touch(topics.TASKS)

    def _insert(self, task: Task) -> None:
        self._tasks[task.number] = task
        self._runs.add(task.number)
        if task.key is not None:
            self._by_key[task.key] = task

    # --- snapshots

    def _encode(self, number: int, task: Task) -> bytes:
        return encode_task(number, task, self.extras.get(number))

    def _encode_counters(self) -> bytes:
        return snapshot_pb2.TaskCounters(
            last_number=self._last_number,
            last_token=self._last_token,
            finished_due_ms=self.finished.due_ms,
            policy_due_ms=self.finished.policy_due_ms,
            **self.totals.by_field(),
        ).SerializeToString(deterministic=True)

    def _load_counters(self, record: bytes) -> None:
        counters = snapshot_pb2.TaskCounters.FromString(record)
        self._last_number = counters.last_number
        self._last_token = counters.last_token
        self.totals.restore(counters)
        self.finished.set_due(counters.finished_due_ms, counters.policy_due_ms)
        self.changes.restored()

    def _load(self, record: bytes) -> None:
        task, extra = decode_task(record)
        if task.number in self._tasks or task.number > self._last_number:
            raise ValueError(f"the task {task.task_id} is there twice or was never added")
        self._insert(task)
        self.counts[task.state] += 1
        if extra is not None:
            self.extras.restore(task.number, extra, is_open=task.state in OPEN_STATES)
        timers = self._context.timers
        if task.state == PENDING:
            self.index.add(task)
        elif task.state == SCHEDULED:
            task.timer = timers.schedule(task.available_ms, AVAILABLE_TIMER, task.number)
        elif task.state == CLAIMED:
            holder = self._sessions.find(task.session_id)
            if holder is None:
                raise ValueError(f"the task {task.task_id} is claimed by no session")
            holder.claims.add(task.number)
            task.timer = timers.schedule(task.claim_expire_ms, CLAIM_TIMER, task.number)
