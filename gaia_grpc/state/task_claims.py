"""ClaimTasks: takes tasks at once or waits in the log; a repeated request gets the same claim."""

from __future__ import annotations

from collections.abc import Iterable

from gaia.command.v1 import command_pb2, query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import refusal
from gaia_grpc.state.context import Context
from gaia_grpc.state.refusal import refused
from gaia_grpc.state.session_record import DEGRADED, FAILED, Session
from gaia_grpc.state.sessions import SessionTable, session_failed
from gaia_grpc.state.task_endings import TaskEndings
from gaia_grpc.state.task_flow import TaskFlow
from gaia_grpc.state.task_record import Task, task_number_of
from gaia_grpc.state.task_store import TaskStore

FULL_RETRY_MS = 1_000
INCARNATION_LEVEL = 3
"""Older peers do not look at the incarnation of a claim."""


class TaskClaims:
    """The commands and the query of claiming; also tells a kept claim again (`Replay`)."""

    def __init__(
        self,
        context: Context,
        sessions: SessionTable,
        store: TaskStore,
        flow: TaskFlow,
        endings: TaskEndings,
    ) -> None:
        self._context = context
        self._sessions = sessions
        self._store = store
        self._flow = flow
        self._endings = endings

    def claim(self, body: command_pb2.ClaimTasks) -> command_pb2.CommandResult:
        """Claims the best tasks for the session; where there are none, waits for `wait_ms`."""
        if self._context.feature_level >= INCARNATION_LEVEL:
            self._sessions.current(body.session_id, body.incarnation)
        session = self._claimant(body.session_id)
        if body.max_tasks < 1:
            raise refusal.invalid("max_tasks", "max_tasks is less than 1")
        settings = self._context.settings
        wait_ms = min(body.wait_ms, settings.milliseconds("task.max_wait"))
        tasks = self._flow.take(
            session, body.max_tasks, body.task_types, include_unmatched=body.include_unmatched
        )
        if tasks or wait_ms <= 0:
            return self._result(tasks)
        if self._flow.waits.count >= settings.integer("task.max_waiters"):
            raise refused(
                refusal.RESOURCE_EXHAUSTED,
                "TOO_MANY_WAITERS",
                "too many claims wait (task.max_waiters)",
                retry_after_ms=FULL_RETRY_MS,
            )
        waiter = self._flow.wait(
            session,
            body.max_tasks,
            body.task_types,
            wait_ms,
            include_unmatched=body.include_unmatched,
        )
        return self._result((), waiter.waiter_id)

    def cancel_wait(self, body: command_pb2.CancelClaimWait) -> command_pb2.CommandResult:
        """Ends a wait; what it was granted and nobody fetched goes back, uncounted."""
        waiter = self._flow.waits.find(body.waiter_id)
        if waiter is not None and not waiter.grants:
            self._flow.end_wait(waiter)
        elif waiter is not None:
            self._flow.waits.forget(waiter)
            for task in self._flow.live_grants(waiter.grants):
                self._endings.release(task)
        return command_pb2.CommandResult(done=command_pb2.Done())

    def wait_state(self, body: query_pb2.ClaimWaitQuery, now_ms: int) -> query_pb2.QueryResult:
        """What became of a wait. An id that this state has not reached yet counts as waiting."""
        del now_ms
        waits = self._flow.waits
        waiter = waits.find(body.waiter_id)
        answer = query_pb2.ClaimWaitResult(
            waiting=body.waiter_id > waits.last_id or (waiter is not None and not waiter.grants)
        )
        if waiter is not None:
            answer.tasks.extend(self._granted(self._flow.live_grants(waiter.grants)))
        return query_pb2.QueryResult(claim_wait=answer)

    # --- Replay

    def kept(self, result: command_pb2.CommandResult) -> bytes:
        """Ids and tokens only: the payloads are with the tasks."""
        slim = result
        if result.claim.tasks:
            slim = command_pb2.CommandResult()
            slim.claim.tasks.extend(
                task_pb2.Task(task_id=task.task_id, claim_token=task.claim_token)
                for task in result.claim.tasks
            )
        return slim.SerializeToString(deterministic=True)

    def again(self, outcome: bytes) -> command_pb2.CommandResult:
        """The same claim as far as it lives, or the same wait; nothing where both are over.

        A wait passes to the caller that repeats the request: when the first caller's peer notices
        that its caller has gone and cancels, it must not take the claim from the second.
        """
        result = command_pb2.CommandResult.FromString(outcome)
        if result.WhichOneof("body") != "claim":
            return result
        if not result.claim.waiter_id:
            grants = [(task_number_of(t.task_id), t.claim_token) for t in result.claim.tasks]
            return self._result(self._flow.live_grants(grants))
        waiter = self._flow.waits.find(result.claim.waiter_id)
        if waiter is None:
            return self._result(())
        if waiter.grants:
            self._flow.waits.forget(waiter)
            return self._result(self._flow.live_grants(waiter.grants))
        self._flow.rename_wait(waiter)
        return self._result((), waiter.waiter_id)

    def _claimant(self, session_id: str) -> Session:
        session = self._sessions.existing(session_id)
        if session.health == FAILED:
            raise session_failed(session)
        if session.health == DEGRADED:
            raise refused(
                refusal.FAILED_PRECONDITION,
                "SESSION_DEGRADED",
                f"session {session_id} gets no task until it sends a heartbeat",
                details={"session_id": session_id},
                transient=True,
            )
        return session

    def _granted(self, tasks: Iterable[Task]) -> list[task_pb2.Task]:
        """Tasks as their claimant gets them."""
        return [self._store.message(task, payload=True) for task in tasks]

    def _result(self, tasks: Iterable[Task], waiter_id: int = 0) -> command_pb2.CommandResult:
        claim = command_pb2.ClaimResult(tasks=self._granted(tasks), waiter_id=waiter_id)
        return command_pb2.CommandResult(claim=claim)
