"""EnqueueTasks: everything is looked at before anything is added, so it is all tasks or none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from sys import intern
from typing import Final, TypeAlias

from gaia.command.v1 import command_pb2

from gaia_grpc.state import refusal
from gaia_grpc.state.affinity import GENERAL
from gaia_grpc.state.context import Context
from gaia_grpc.state.refusal import Refused, refused
from gaia_grpc.state.task_dependencies import dependency_failed
from gaia_grpc.state.task_flow import TaskFlow
from gaia_grpc.state.task_index import MAX_PRIORITY
from gaia_grpc.state.task_policies import TaskPolicies
from gaia_grpc.state.task_record import COMPLETED, OPEN_STATES, Task, state_name
from gaia_grpc.state.task_store import TaskStore

FULL_RETRY_MS = 1_000
MOST_DEPENDENCIES: Final = 64
MOST_IN_BATCH: Final = 10_000
"""Dependencies that one batch may name: 25 ms of every peer's time."""

Key: TypeAlias = tuple[str, str]
Target: TypeAlias = Task | int
"""A task that exists, or the position of one of the same batch."""


@dataclass(slots=True)
class Planned:
    """One task of the batch: `known` exists already, `twin` is the position that adds it."""

    spec: command_pb2.TaskSpec
    key: Key | None
    digest: bytes
    known: Task | None
    twin: int
    depends_on: tuple[Target, ...] = ()


class TaskEnqueue:
    """Adds tasks."""

    def __init__(
        self, context: Context, policies: TaskPolicies, store: TaskStore, flow: TaskFlow
    ) -> None:
        self._context = context
        self._policies = policies
        self._store = store
        self._flow = flow

    def enqueue(self, body: command_pb2.EnqueueTasks) -> command_pb2.CommandResult:
        """Adds all tasks or none. A known key with the same content is the task that exists."""
        planned = self._plan(body.tasks)
        tasks: list[Task] = []
        existing: list[bool] = []
        for position, plan in enumerate(planned):
            task = plan.known
            if task is None and plan.twin < position:
                task = tasks[plan.twin]
            existing.append(task is not None)
            tasks.append(self._add(plan, tasks) if task is None else task)
        # All stand in the queue before the first is offered: a waiter gets the best of the batch.
        for task, existed in zip(tasks, existing, strict=True):
            if not existed:
                self._flow.offer(task)
        results = command_pb2.TaskResults(
            tasks=[self._store.message(task) for task in tasks], existing=existing
        )
        return command_pb2.CommandResult(tasks=results)

    def check_room(self, new: int) -> None:
        """Raises `Refused` where the queue can't take so many more."""
        most = self._context.settings.integer("task.max_pending")
        if self._store.open_count() + new > most:
            raise refused(
                refusal.RESOURCE_EXHAUSTED,
                "QUEUE_FULL",
                f"the queue may hold {most} tasks that are not finished (task.max_pending)",
                retry_after_ms=FULL_RETRY_MS,
            )

    def _plan(self, specs: Sequence[command_pb2.TaskSpec]) -> list[Planned]:
        if not specs:
            raise refusal.invalid("tasks", "no tasks")
        planned: list[Planned] = []
        first_with: dict[Key, int] = {}
        dependents: Counter[int] = Counter()
        new = named = 0
        for position, spec in enumerate(specs):
            field = f"tasks[{position}]"
            self._check_spec(spec, field)
            plan = Planned(spec, None, b"", None, position)
            if spec.idempotency_key:
                self._find_twin(plan, planned, first_with, field)
            planned.append(plan)
            if plan.known is None and plan.twin == position:
                new += 1
                if spec.depends_on:
                    named += len(spec.depends_on)
                    if named > MOST_IN_BATCH:
                        raise refusal.invalid(
                            f"{field}.depends_on",
                            f"more than {MOST_IN_BATCH} dependencies in one batch",
                        )
                    plan.depends_on = self._targets(planned, dependents, field)
        self.check_room(new)
        return planned

    def _find_twin(
        self, plan: Planned, planned: Sequence[Planned], first_with: dict[Key, int], field: str
    ) -> None:
        """Looks whether the key is known, from before or from this batch."""
        plan.key = (self._context.principal, plan.spec.idempotency_key)
        plan.digest = plan.spec.content_digest or _content_digest(plan.spec)
        plan.known = self._store.with_key(plan.key)
        before = plan.known.digest if plan.known is not None else None
        if before is None and plan.key in first_with:
            plan.twin = first_with[plan.key]
            before = planned[plan.twin].digest
        if before is not None and before != plan.digest:
            raise _key_reused(plan.spec.idempotency_key, plan.known, field)
        first_with.setdefault(plan.key, plan.twin)

    def _add(self, plan: Planned, tasks: Sequence[Task]) -> Task:
        spec = plan.spec
        max_retries = spec.max_retries
        if not spec.HasField("max_retries"):
            max_retries = self._policies.max_retries(spec.task_type)
        task = self._store.add(
            intern(spec.task_type),
            spec.payload,
            intern(spec.affinity or GENERAL),
            spec.priority,
            max_retries,
            plan.key,
            plan.digest,
        )
        if spec.deadline_ms:
            deadline_ms = self._context.now_ms + spec.deadline_ms
            self._store.extras.set_deadline(task.number, deadline_ms)
        waits = False
        if plan.depends_on:
            others = [tasks[each] if isinstance(each, int) else each for each in plan.depends_on]
            waiting = sorted(other.number for other in others if other.state != COMPLETED)
            self._store.extras.set_dependencies(
                task.number,
                tuple(other.number for other in others),
                tuple(waiting),
                spec.delay_ms,
            )
            waits = bool(waiting)
        if waits:
            self._store.block(task)
        elif spec.delay_ms:
            self._store.schedule(task, spec.delay_ms)
        else:
            self._store.make_pending(task)
        return task

    # --- dependencies

    def _targets(
        self, planned: Sequence[Planned], dependents: Counter[int], field: str
    ) -> tuple[Target, ...]:
        """What the last task of `planned` depends on, each once; `dependents` counts those that the
        batch adds to a task: by number, or by -1 - position."""
        depends_on = planned[-1].spec.depends_on
        if len(depends_on) > MOST_DEPENDENCIES:
            raise refusal.invalid(
                f"{field}.depends_on", f"more than {MOST_DEPENDENCIES} dependencies"
            )
        most = self._context.settings.integer("task.max_dependents")
        targets: dict[int, Target] = {}
        for place, name in enumerate(depends_on):
            where = f"{field}.depends_on[{place}]"
            target = self._target(name, planned, where)
            mark = -1 - target if isinstance(target, int) else target.number
            if mark in targets:
                continue
            targets[mark] = target
            if isinstance(target, Task) and target.state == COMPLETED:
                continue
            dependents[mark] += 1
            count = dependents[mark]
            if isinstance(target, Task):
                count += self._store.extras.dependent_count(target.number)
            if count > most:
                raise refused(
                    refusal.RESOURCE_EXHAUSTED,
                    "TOO_MANY_DEPENDENTS",
                    f"more than {most} tasks would depend on {name} (task.max_dependents)",
                    field=where,
                    retry_after_ms=FULL_RETRY_MS,
                )
        return tuple(targets.values())

    def _target(self, name: str, planned: Sequence[Planned], where: str) -> Target:
        """The task that a dependency names. Raises `Refused`."""
        if name.startswith("#"):
            digits = name[1:]
            own = len(planned) - 1
            earlier = digits.isascii() and digits.isdecimal() and len(digits) < 10
            if not earlier or int(digits) >= own:
                raise refusal.invalid(
                    where, f"{name!r} names no earlier task of this batch (this is #{own})"
                )
            plan = planned[int(digits)]
            if plan.known is None:
                return plan.twin
            return _usable(plan.known, where)
        task = self._store.find(name)
        if task is None:
            raise refused(
                refusal.NOT_FOUND,
                "NOT_FOUND",
                f"no task {name!r}",
                field=where,
                details={"task": name},
            )
        return _usable(task, where)

    # --- checks

    def _check_spec(self, spec: command_pb2.TaskSpec, field: str) -> None:
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
        if not self._store.has_rules:
            if spec.deadline_ms:
                raise refusal.unimplemented(f"{field}.deadline")
            if spec.depends_on:
                raise refusal.unimplemented(f"{field}.depends_on")
        elif spec.deadline_ms < 0:
            raise refusal.invalid(f"{field}.deadline", "deadline is negative")
        elif 0 < spec.deadline_ms <= spec.delay_ms:
            raise refusal.invalid(f"{field}.delay", "the delay does not end before the deadline")


def _usable(task: Task, where: str) -> Task:
    if task.state != COMPLETED and task.state not in OPEN_STATES:
        raise dependency_failed(task.task_id, state_name(task.state), field=where)
    return task


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
