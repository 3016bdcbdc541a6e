"""What becomes of a task when its claim, its wait or its time ends.

CLAIMED: a retry after its wait, COMPLETED, FAILED, or back in the queue. A deadline ends every open
state. Whoever depends on a task that ended hears of it before its session is served again.
"""

from __future__ import annotations

from typing import Final

from gaia.task.v1 import task_pb2

from gaia_grpc.state.context import TASK_DEAD_LETTERED, Context
from gaia_grpc.state.session_record import Session
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.task_dependencies import TaskDependencies
from gaia_grpc.state.task_extra import DEADLINE_TIMER
from gaia_grpc.state.task_flow import TaskFlow
from gaia_grpc.state.task_policies import TaskPolicies
from gaia_grpc.state.task_record import (
    CANCELLED,
    CLAIMED,
    FAILED,
    OPEN_STATES,
    SCHEDULED,
    EventKind,
    State,
    Task,
)
from gaia_grpc.state.task_store import AVAILABLE_TIMER, CLAIM_TIMER, TaskStore

EXPIRED_TEXT: Final = "the claim ran out (task.claim_timeout)"
LOST_TEXT: Final = "the session that held the task failed"
DEADLINE_TEXT: Final = "the deadline passed"
NO_TIME_TEXT: Final = "no retry would begin before the deadline"


class TaskEndings:
    """Ends claims, tasks and waits for a time."""

    def __init__(
        self,
        context: Context,
        sessions: SessionTable,
        policies: TaskPolicies,
        store: TaskStore,
        flow: TaskFlow,
        dependencies: TaskDependencies,
    ) -> None:
        self._context = context
        self._sessions = sessions
        self._policies = policies
        self._store = store
        self._flow = flow
        self._dependencies = dependencies
        context.timers.register(CLAIM_TIMER, self._claim_due)
        context.timers.register(AVAILABLE_TIMER, self._available_due)
        context.timers.register(DEADLINE_TIMER, self._deadline_due)
        sessions.listen(self)

    def complete(self, task: Task, result: bytes) -> Session | None:
        """The task is done; `served` follows, once for all of an entry."""
        holder = self._end_claim(task, task_pb2.TASK_EVENT_KIND_COMPLETED)
        self._store.complete(task, result)
        self._finished(task)
        return holder

    def served(self, holder: Session | None) -> None:
        """Dependents hear of what ended, and the session that held it may have room for more."""
        self._dependencies.settle()
        self._flow.serve(holder)

    def end_attempt(
        self,
        task: Task,
        kind: EventKind,
        error: str,
        *,
        permanent: bool = False,
        retry_delay_ms: int | None = None,
        error_type: str = "",
    ) -> None:
        """A counted attempt is over: another one after its wait, or the task is FAILED."""
        holder = self._end_claim(task, kind, error, error_type)
        self._store.count_attempt(task, error, error_type)
        if error_type in self._policies.of(task.task_type).final_error_types:
            permanent = True
        if permanent or task.retry_count > task.max_retries:
            self._dead(task, error)
        else:
            self._again(task, error, retry_delay_ms)
        self.served(holder)

    def release(self, task: Task) -> None:
        """The claim is given back; no attempt is counted."""
        holder = self._end_claim(task, task_pb2.TASK_EVENT_KIND_RELEASED)
        self._flow.enter(task)
        self._flow.serve(holder)

    def cancel(self, task: Task, reason: str) -> None:
        """The task is called off, in whichever open state it is."""
        holder = self._end(task, CANCELLED, task_pb2.TASK_EVENT_KIND_CANCELLED, reason)
        self._store.note_error(task, reason)
        self._finished(task)
        self.served(holder)

    # --- sessions

    def session_lost(self, session: Session, *, counted: bool) -> int:
        """Takes all claims and waits from the session; returns how many claims it held."""
        waits = self._flow.end_waits(session)
        held = sorted(session.claims)
        if self._store.has_rules:
            # All workers may fail at one instant, and what they hold and wait for ends with them.
            self._context.timers.spend(waits + len(held))
        for number in held:
            task = self._store.numbered(number)
            if task is None:
                continue
            if counted:
                self.end_attempt(task, task_pb2.TASK_EVENT_KIND_SESSION_LOST, LOST_TEXT)
            else:
                self.release(task)
        return len(held)

    def session_changed(self, session: Session) -> None:
        """The session's readiness may have changed."""
        self._flow.session_changed(session)

    # --- parts

    def _again(self, task: Task, error: str, retry_delay_ms: int | None) -> None:
        """A retry after its wait; FAILED where the deadline would come first."""
        delay_ms = self._policies.backoff_ms(task) if retry_delay_ms is None else retry_delay_ms
        deadline_ms = self._store.extras.deadline_of(task.number)
        if deadline_ms is not None and self._context.now_ms + delay_ms >= deadline_ms:
            self._dead(task, f"{NO_TIME_TEXT}: {error}" if error else NO_TIME_TEXT)
        elif delay_ms:
            self._store.schedule(task, delay_ms)
        else:
            self._flow.enter(task)

    def _dead(self, task: Task, why: str) -> None:
        """The claim has ended, and the task with it."""
        self._store.finish(task, FAILED)
        self._store.record(task, task_pb2.TASK_EVENT_KIND_DEAD_LETTERED, why)
        self._context.report(TASK_DEAD_LETTERED, task.task_type)
        self._finished(task)

    def _finished(self, task: Task) -> None:
        # Before it is retained: that may drop it at once.
        self._dependencies.ended(task)
        self._store.retain(task)

    def _end(self, task: Task, state: State, kind: EventKind, reason: str) -> Session | None:
        """An open task ends without an attempt of its own; returns who held it."""
        if task.state == CLAIMED:
            holder = self._end_claim(task, kind, reason)
            self._store.finish(task, state)
            return holder
        self._store.leave_queue(task, state)
        self._store.record(task, kind, reason)
        return None

    def _end_claim(
        self, task: Task, kind: EventKind, error: str = "", error_type: str = ""
    ) -> Session | None:
        holder = self._sessions.find(task.session_id)
        self._store.end_claim(task, holder, kind, error, error_type)
        if holder is not None:
            self._flow.waits.session_changed(holder)
        return holder

    # --- timers: each looks at its record again

    def _claim_due(self, key: int | str) -> None:
        task = self._store.numbered(int(key))
        if task is None or task.state != CLAIMED or task.claim_expire_ms > self._context.now_ms:
            return
        self._store.timer_fired(task)
        self.end_attempt(task, task_pb2.TASK_EVENT_KIND_CLAIM_EXPIRED, EXPIRED_TEXT)

    def _available_due(self, key: int | str) -> None:
        task = self._store.numbered(int(key))
        if task is None or task.state != SCHEDULED:
            return
        self._store.timer_fired(task)
        self._store.record(task, task_pb2.TASK_EVENT_KIND_AVAILABLE)
        self._flow.enter(task)

    def _deadline_due(self, key: int | str) -> None:
        task = self._store.numbered(int(key))
        if task is None or task.state not in OPEN_STATES:
            return
        self._store.extras.deadline_fired(task.number)
        holder = self._end(task, FAILED, task_pb2.TASK_EVENT_KIND_DEADLINE_PASSED, DEADLINE_TEXT)
        self._store.note_error(task, DEADLINE_TEXT)
        self._store.record(task, task_pb2.TASK_EVENT_KIND_DEAD_LETTERED, DEADLINE_TEXT)
        self._context.report(TASK_DEAD_LETTERED, task.task_type)
        self._finished(task)
        self.served(holder)
