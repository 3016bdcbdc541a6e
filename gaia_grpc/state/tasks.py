"""The task queue's table: exactly-once claims by token, at-least-once execution.

At any log index at most one attempt owns a task, each attempt has a token that only grows, and a
completion is accepted at most once and only with the current token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from sys import intern

from gaia.command.v1 import command_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import refusal
from gaia_grpc.state.affinity import GENERAL
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.refusal import Refused, refused
from gaia_grpc.state.session_record import Session
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.snapshot import Part
from gaia_grpc.state.task_claims import TaskClaims
from gaia_grpc.state.task_explain import TaskExplainer
from gaia_grpc.state.task_flow import TaskFlow
from gaia_grpc.state.task_index import MAX_PRIORITY
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

FULL_RETRY_MS = 1_000
MAX_PROGRESS_MICRO = 1_000_000


class TaskTable:
    """Commands and queries of the queue over its parts."""

    def __init__(self, context: Context, sessions: SessionTable) -> None:
        self._context = context
        self._store = TaskStore(context, sessions)
        self._flow = TaskFlow(context, sessions, self._store)
        self.claims = TaskClaims(context, sessions, self._flow)
        self.parts: Sequence[Part] = (*self._store.parts, *self._flow.parts)
        queries = TaskQueries(context, sessions, self._store, self._flow.waits)
        self.commands: Mapping[str, CommandHandler] = {
            "enqueue_tasks": self.enqueue,
            "claim_tasks": self.claims.claim,
            "cancel_claim_wait": self.claims.cancel_wait,
            "extend_claim": self.extend,
            "complete_tasks": self.complete,
            "fail_task": self.fail,
            "release_task": self.release,
            "cancel_task": self.cancel,
            "requeue_task": self.requeue,
        }
        self.queries: Mapping[str, QueryHandler] = {
            "get_task": queries.get,
            "list_tasks": queries.list_page,
            "get_queue_stats": queries.stats,
            "claim_wait": self.claims.wait_state,
            "explain_assignment": TaskExplainer(sessions, self._store).explain,
            "watch_tasks": TaskWatch(context, self._store).next,
        }

    def settings_changed(self) -> None:
        """Claims and waits keep the times that they began with."""

    # --- enqueue

    def enqueue(self, body: command_pb2.EnqueueTasks) -> command_pb2.CommandResult:
        """Adds all tasks or none. A known key with the same content is the task that exists."""
        planned = self._plan(body.tasks)
        added: dict[tuple[str, str], Task] = {}
        tasks: list[Task] = []
        existing: list[bool] = []
        for spec, key, digest, known in planned:
            task = known if known is not None or key is None else added.get(key)
            existing.append(task is not None)
            if task is None:
                task = self._add(spec, key, digest)
                if key is not None:
                    added[key] = task
            tasks.append(task)
        # All stand in the queue before the first is offered: a waiter gets the best of the batch.
        for task, existed in zip(tasks, existing, strict=True):
            if not existed:
                self._flow.offer(task)
        results = command_pb2.TaskResults(
            tasks=[task.message() for task in tasks], existing=existing
        )
        return command_pb2.CommandResult(tasks=results)

    def _plan(
        self, specs: Sequence[command_pb2.TaskSpec]
    ) -> list[tuple[command_pb2.TaskSpec, tuple[str, str] | None, bytes, Task | None]]:
        if not specs:
            raise refusal.invalid("tasks", "no tasks")
        planned: list[tuple[command_pb2.TaskSpec, tuple[str, str] | None, bytes, Task | None]] = []
        digests: dict[tuple[str, str], bytes] = {}
        new = 0
        for position, spec in enumerate(specs):
            field = f"tasks[{position}]"
            _check_spec(spec, field)
            if not spec.idempotency_key:
                planned.append((spec, None, b"", None))
                new += 1
                continue
            key = (self._context.principal, spec.idempotency_key)
            digest = spec.content_digest or _content_digest(spec)
            known = self._store.with_key(key)
            before = known.digest if known is not None else digests.get(key)
            if before is not None and before != digest:
                raise _key_reused(spec.idempotency_key, known, field)
            if before is None:
                digests[key] = digest
                new += 1
            planned.append((spec, key, digest, known))
        self._check_room(new)
        return planned

    def _add(self, spec: command_pb2.TaskSpec, key: tuple[str, str] | None, digest: bytes) -> Task:
        max_retries = spec.max_retries
        if not spec.HasField("max_retries"):
            max_retries = self._context.settings.integer("task.max_retries")
        task = self._store.add(
            intern(spec.task_type),
            spec.payload,
            intern(spec.affinity or GENERAL),
            spec.priority,
            max_retries,
            key,
            digest,
        )
        if spec.delay_ms:
            self._store.schedule(task, spec.delay_ms)
        else:
            self._store.make_pending(task)
        return task

    def _check_room(self, new: int) -> None:
        most = self._context.settings.integer("task.max_pending")
        if self._store.open_count() + new > most:
            raise refused(
                refusal.RESOURCE_EXHAUSTED,
                "QUEUE_FULL",
                f"the queue may hold {most} tasks that are not finished (task.max_pending)",
                retry_after_ms=FULL_RETRY_MS,
            )

    # --- with a claim

    def extend(self, body: command_pb2.ExtendClaim) -> command_pb2.CommandResult:
        """Renews the claim; the checkpoint stays for the next claimant."""
        task = self._claimed(body.task_id, body.claim_token, body.session_id)
        if not 0 <= body.progress_micro <= MAX_PROGRESS_MICRO:
            raise refusal.invalid("progress", "progress is not within 0 to 1")
        self._store.extend(task, body.progress_micro, body.checkpoint)
        return task_result(task)

    def complete(self, body: command_pb2.CompleteTasks) -> command_pb2.CommandResult:
        """Each completion has an outcome of its own."""
        outcomes = []
        holder: Session | None = None
        for completion in body.completions:
            try:
                task = self._store.existing(completion.task_id)
                token = completion.claim_token
                if not _ended_so(task, token, body.session_id, task_pb2.TASK_EVENT_KIND_COMPLETED):
                    self._check_claim(task, token, body.session_id)
                    holder = self._flow.complete(task, completion.result)
                outcomes.append(command_pb2.CompletionResult(task=task.message()))
            except Refused as no:
                outcomes.append(command_pb2.CompletionResult(refusal=no.refusal))
        # Once for all: each of a thousand completions would look at each of its waits.
        self._flow.serve(holder)
        results = command_pb2.CompletionResults(outcomes=outcomes)
        return command_pb2.CommandResult(completions=results)

    def fail(self, body: command_pb2.FailTask) -> command_pb2.CommandResult:
        """Ends the attempt; repeating it with the same token changes nothing."""
        task = self._store.existing(body.task_id)
        kind = task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED
        if not _ended_so(task, body.claim_token, body.session_id, kind):
            self._check_claim(task, body.claim_token, body.session_id)
            self._flow.end_attempt(task, kind, body.error, permanent=body.permanent)
        return task_result(task)

    def release(self, body: command_pb2.ReleaseTask) -> command_pb2.CommandResult:
        """Gives the task back; repeating it with the same token changes nothing."""
        task = self._store.existing(body.task_id)
        kind = task_pb2.TASK_EVENT_KIND_RELEASED
        if not _ended_so(task, body.claim_token, body.session_id, kind):
            self._check_claim(task, body.claim_token, body.session_id)
            self._flow.release(task)
        return task_result(task)

    # --- without a claim

    def cancel(self, body: command_pb2.CancelTask) -> command_pb2.CommandResult:
        """Calls the task off; one that is called off already stays as it is."""
        task = self._store.existing(body.task_id)
        if task.state in FINISHED_STATES and task.state != CANCELLED:
            raise _illegal(task, "cancelled")
        if task.state != CANCELLED:
            self._flow.cancel(task, body.reason)
        return task_result(task)

    def requeue(self, body: command_pb2.RequeueTask) -> command_pb2.CommandResult:
        """A FAILED or CANCELLED task begins again with all its retries."""
        task = self._store.existing(body.task_id)
        if task.state not in (FAILED, CANCELLED):
            raise _illegal(task, "requeued")
        self._check_room(1)
        self._flow.requeue(task)
        return task_result(task)

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
            },
        )


def task_result(task: Task) -> command_pb2.CommandResult:
    """One task as a command's result."""
    results = command_pb2.TaskResults(tasks=[task.message()], existing=[True])
    return command_pb2.CommandResult(tasks=results)


def _ended_so(task: Task, token: int, session_id: str, kind: EventKind) -> bool:
    """The claim ended this way before: the caller, or a peer for it, repeats what was accepted.

    Another may hold the task by then; the history tells it all the same.
    """
    if token == task.claim_token:
        return task.ended_by == kind and task.session_id == session_id
    return any((kind, session_id, token) == (at[0], at[2], at[3]) for at in task.history or ())


def _check_spec(spec: command_pb2.TaskSpec, field: str) -> None:
    if not spec.task_type:
        raise refusal.invalid(f"{field}.task_type", "task_type is empty")
    if abs(spec.priority) > MAX_PRIORITY:
        raise refusal.invalid(
            f"{field}.priority", f"priority is not within -{MAX_PRIORITY} to {MAX_PRIORITY}"
        )
    if spec.max_retries < 0:
        raise refusal.invalid(f"{field}.max_retries", "max_retries is negative")
    if spec.delay_ms < 0:
        raise refusal.invalid(f"{field}.delay", "delay is negative")
    if spec.deadline_ms:
        raise refusal.unimplemented(f"{field}.deadline")
    if spec.depends_on:
        raise refusal.unimplemented(f"{field}.depends_on")


def _content_digest(spec: command_pb2.TaskSpec) -> bytes:
    bare = command_pb2.TaskSpec()
    bare.CopyFrom(spec)
    bare.ClearField("idempotency_key")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()


def _key_reused(key: str, known: Task | None, field: str) -> Refused:
    return refused(
        refusal.ALREADY_EXISTS,
        "IDEMPOTENCY_KEY_REUSED",
        f"the idempotency_key {key!r} came with other content before",
        field=f"{field}.idempotency_key",
        details={"task_id": known.task_id} if known is not None else {},
    )


def _illegal(task: Task, verb: str) -> Refused:
    name = state_name(task.state)
    return refused(
        refusal.FAILED_PRECONDITION,
        "ILLEGAL_TRANSITION",
        f"task {task.task_id} is {name} and can't be {verb}",
        details={"task_id": task.task_id, "state": name},
    )
