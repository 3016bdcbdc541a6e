"""The task queue's table: exactly-once claims by token, at-least-once execution.

At any log index at most one attempt owns a task, each attempt has a token that only grows, and a
completion is accepted at most once and only with the current token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sys import intern

from gaia.command.v1 import command_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import refusal
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.refusal import Refused, refused
from gaia_grpc.state.session_record import Session
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.snapshot import Part
from gaia_grpc.state.task_claims import TaskClaims
from gaia_grpc.state.task_dependencies import TaskDependencies
from gaia_grpc.state.task_endings import TaskEndings
from gaia_grpc.state.task_enqueue import TaskEnqueue
from gaia_grpc.state.task_explain import TaskExplainer
from gaia_grpc.state.task_flow import TaskFlow
from gaia_grpc.state.task_policies import TaskPolicies
from gaia_grpc.state.task_queries import TaskQueries
from gaia_grpc.state.task_record import (
    CANCELLED,
    CLAIMED,
    FAILED,
    FINISHED_STATES,
    EventKind,
    Task,
    state_name,
)
from gaia_grpc.state.task_store import TaskStore
from gaia_grpc.state.task_watch import TaskWatch

MAX_RETRY_DELAY_MS = 365 * 24 * 3_600_000
MAX_PROGRESS_MICRO = 1_000_000


class TaskTable:
    """Commands and queries of the queue over its parts."""

    def __init__(self, context: Context, sessions: SessionTable) -> None:
        self._policies = TaskPolicies(context)
        self._store = TaskStore(context, sessions, self._policies)
        self._flow = flow = TaskFlow(context, sessions, self._store)
        self._dependencies = TaskDependencies(context, self._store, flow)
        self._endings = TaskEndings(
            context, sessions, self._policies, self._store, flow, self._dependencies
        )
        self._adding = TaskEnqueue(context, self._policies, self._store, flow)
        self._context = context
        self.claims = TaskClaims(context, sessions, self._store, flow, self._endings)
        self.parts: Sequence[Part] = (
            *self._store.parts,
            *self._policies.parts,
            *self._dependencies.parts,
            *flow.parts,
        )
        queries = TaskQueries(context, sessions, self._store, flow.waits)
        self.commands: Mapping[str, CommandHandler] = {
            "enqueue_tasks": self._adding.enqueue,
            "claim_tasks": self.claims.claim,
            "cancel_claim_wait": self.claims.cancel_wait,
            "extend_claim": self.extend,
            "complete_tasks": self.complete,
            "fail_task": self.fail,
            "release_task": self.release,
            "cancel_task": self.cancel,
            "requeue_task": self.requeue,
            **self._policies.commands,
        }
        self.queries: Mapping[str, QueryHandler] = {
            "get_task": queries.get,
            "list_tasks": queries.list_page,
            "get_queue_stats": queries.stats,
            "claim_wait": self.claims.wait_state,
            "explain_assignment": TaskExplainer(sessions, self._store).explain,
            "watch_tasks": TaskWatch(context, self._store).next,
            **self._policies.queries,
        }

    def settings_changed(self) -> None:
        """Claims and waits keep the times that they began with; the ageing goes on by them."""
        self._store.age.follow()

    # --- with a claim

    def extend(self, body: command_pb2.ExtendClaim) -> command_pb2.CommandResult:
        """Renews the claim; the checkpoint stays for the next claimant."""
        task = self._claimed(body.task_id, body.claim_token, body.session_id)
        if not 0 <= body.progress_micro <= MAX_PROGRESS_MICRO:
            raise refusal.invalid("progress", "progress is not within 0 to 1")
        self._store.extend(task, body.progress_micro, body.checkpoint)
        return self._result(task)

    def complete(self, body: command_pb2.CompleteTasks) -> command_pb2.CommandResult:
        """Each completion has an outcome of its own."""
        outcomes = []
        holder: Session | None = None
        # Nobody reads more of a batch than what was refused; whole tasks are a third of its cost.
        whole = len(body.completions) == 1 or not self._store.has_rules
        for completion in body.completions:
            try:
                task = self._store.existing(completion.task_id)
                token = completion.claim_token
                if not _ended_so(task, token, body.session_id, task_pb2.TASK_EVENT_KIND_COMPLETED):
                    self._check_claim(task, token, body.session_id)
                    holder = self._endings.complete(task, completion.result)
                shown = self._store.message(task) if whole else task_pb2.Task(task_id=task.task_id)
                outcomes.append(command_pb2.CompletionResult(task=shown))
            except Refused as no:
                outcomes.append(command_pb2.CompletionResult(refusal=no.refusal))
        # Once for all: each of a thousand completions would look at each of its waits.
        self._endings.served(holder)
        results = command_pb2.CompletionResults(outcomes=outcomes)
        return command_pb2.CommandResult(completions=results)

    def fail(self, body: command_pb2.FailTask) -> command_pb2.CommandResult:
        """Ends the attempt; repeating it with the same token changes nothing."""
        task = self._store.existing(body.task_id)
        kind = task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED
        if not _ended_so(task, body.claim_token, body.session_id, kind):
            self._check_claim(task, body.claim_token, body.session_id)
            self._fail(task, kind, body)
        return self._result(task)

    def release(self, body: command_pb2.ReleaseTask) -> command_pb2.CommandResult:
        """Gives the task back; repeating it with the same token changes nothing."""
        task = self._store.existing(body.task_id)
        kind = task_pb2.TASK_EVENT_KIND_RELEASED
        if not _ended_so(task, body.claim_token, body.session_id, kind):
            self._check_claim(task, body.claim_token, body.session_id)
            self._endings.release(task)
        return self._result(task)

    # --- without a claim

    def cancel(self, body: command_pb2.CancelTask) -> command_pb2.CommandResult:
        """Calls the task off; one that is called off already stays as it is."""
        task = self._store.existing(body.task_id)
        if task.state in FINISHED_STATES and task.state != CANCELLED:
            raise _illegal(task, "cancelled")
        if task.state != CANCELLED:
            self._endings.cancel(task, body.reason)
        return self._result(task)

    def requeue(self, body: command_pb2.RequeueTask) -> command_pb2.CommandResult:
        """A FAILED or CANCELLED task begins again with all its retries."""
        task = self._store.existing(body.task_id)
        if task.state not in (FAILED, CANCELLED):
            raise _illegal(task, "requeued")
        self._dependencies.check_requeue(task)
        others: Sequence[Task] = ()
        if body.include_dependents and self._store.has_rules:
            most = self._context.settings.integer("task.max_dependents")
            others = self._dependencies.failed_with(task, most)
        self._adding.check_room(1 + len(others))
        self._dependencies.requeue(task)
        result = self._result(task)
        result.tasks.requeued_dependents = self._dependencies.requeue_all(others)
        return result

    def _fail(self, task: Task, kind: EventKind, body: command_pb2.FailTask) -> None:
        """Below their feature level what the error is and when to try again is not looked at."""
        if not self._store.has_rules:
            self._endings.end_attempt(task, kind, body.error, permanent=body.permanent)
            return
        retry_delay_ms = body.retry_delay_ms if body.HasField("retry_delay_ms") else None
        if retry_delay_ms is not None and not 0 <= retry_delay_ms <= MAX_RETRY_DELAY_MS:
            raise refusal.invalid("retry_delay", "retry_delay is not within 0 to 365 days")
        self._endings.end_attempt(
            task,
            kind,
            body.error,
            permanent=body.permanent,
            retry_delay_ms=retry_delay_ms,
            error_type=intern(body.error_type),
        )

    def _result(self, task: Task) -> command_pb2.CommandResult:
        """One task as a command's result."""
        results = command_pb2.TaskResults(tasks=[self._store.message(task)], existing=[True])
        return command_pb2.CommandResult(tasks=results)

    # --- checks

    def _claimed(self, task_id: str, token: int, session_id: str) -> Task:
        task = self._store.existing(task_id)
        self._check_claim(task, token, session_id)
        return task

    def _check_claim(self, task: Task, token: int, session_id: str) -> None:
        if task.state == CLAIMED and task.claim_token == token and task.session_id == session_id:
            return
        holder = task.session_id if task.state == CLAIMED else ""
        standing = f"held by {holder} under the claim {task.claim_token}"
        if not holder:
            standing = f"{state_name(task.state)} and held by nobody"
        raise refused(
            refusal.FAILED_PRECONDITION,
            "STALE_CLAIM",
            f"the claim {token} of {session_id} on task {task.task_id} is not current: "
            f"the task is {standing}",
            details={
                "task_id": task.task_id,
                "claimed_by": holder,
                "claim_token": str(task.claim_token),
                "state": state_name(task.state),
                **self._ended(task, token),
            },
        )

    def _ended(self, task: Task, token: int) -> dict[str, str]:
        """How the claim of this token ended, where the task still knows."""
        if not self._store.has_rules or token != task.claim_token or not task.ended_by:
            return {}
        name = task_pb2.TaskEventKind.Name(task.ended_by)
        return {"ended_by": name.removeprefix("TASK_EVENT_KIND_")}


def _ended_so(task: Task, token: int, session_id: str, kind: EventKind) -> bool:
    """The claim ended this way before: the caller, or a peer for it, repeats what was accepted.

    Another may hold the task by then; the history tells it all the same.
    """
    if token == task.claim_token:
        return task.ended_by == kind and task.session_id == session_id
    return any((kind, session_id, token) == (at[0], at[2], at[3]) for at in task.history or ())


def _illegal(task: Task, verb: str) -> Refused:
    name = state_name(task.state)
    return refused(
        refusal.FAILED_PRECONDITION,
        "ILLEGAL_TRANSITION",
        f"task {task.task_id} is {name} and can't be {verb}",
        details={"task_id": task.task_id, "state": name},
    )
