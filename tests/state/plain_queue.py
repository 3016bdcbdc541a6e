"""The rules of sessions and tasks, once more and as plainly as possible: lists and scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DEGRADED_MS, FAILED_MS, CLAIM_MS, BASE_MS = 15_000, 30_000, 20_000, 1_000
AGEING_MS, MAX_RETRY_MS, MAX_DEPENDENTS, MAX_RETRIES = 10_000, 3_600_000, 4, 3

OPEN = ("PENDING", "SCHEDULED", "CLAIMED", "BLOCKED")


@dataclass
class PlainTask:
    number: int
    task_type: str
    affinity: str
    priority: int
    max_retries: int
    state: str = "PENDING"
    due_ms: int = 0
    retries: int = 0
    token: int = 0
    holder: str = ""
    epoch: int | None = None
    delay_ms: int = 0
    deadline_ms: int = 0
    depends_on: tuple[int, ...] = ()
    waiting_for: list[int] = field(default_factory=list)
    failed_by: int = 0
    error_type: str = ""
    finish_ms: int = 0


@dataclass
class PlainPolicy:
    max_retries: int = MAX_RETRIES
    base_ms: int = BASE_MS
    claim_ms: int = CLAIM_MS
    final: str = "none"
    retention_ms: int | None = None


@dataclass
class PlainSession:
    name: str
    session_id: str
    specialty: str
    capacity: int
    beat_ms: int
    health: str = "HEALTHY"


@dataclass
class PlainWaiter:
    waiter_id: int
    session: PlainSession
    most: int
    types: tuple[str, ...]
    unmatched: bool
    due_ms: int
    grants: list[tuple[int, int]] = field(default_factory=list)


class PlainQueue:
    """Every question is answered by looking at everything."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.tasks: list[PlainTask] = []
        self.sessions: list[PlainSession] = []
        self.waiters: list[PlainWaiter] = []
        self.fetched: dict[int, PlainWaiter] = {}
        self.last_token = 0
        self.last_waiter = 0
        self.start_ms = now_ms
        self.policies: dict[str, PlainPolicy] = {}
        self.purges: list[tuple[int, int, int]] = []
        self.failed_attempts = self.dead_letters = self.purged = 0

    # --- questions

    def held(self, session: PlainSession) -> list[PlainTask]:
        return [
            task
            for task in self.tasks
            if task.state == "CLAIMED" and task.holder == session.session_id
        ]

    def takes(
        self, session: PlainSession, task: PlainTask, types: Sequence[str], unmatched: bool
    ) -> bool:
        return (
            task.state == "PENDING"
            and (not types or task.task_type in types)
            and (unmatched or score(session.specialty, task.affinity) > 0)
        )

    def policy(self, task: PlainTask) -> PlainPolicy:
        return self.policies.get(task.task_type, PlainPolicy())

    def dependents(self, number: int) -> list[PlainTask]:
        return [t for t in self.tasks if number in t.waiting_for and t.state != "PURGED"]

    def aged(self, task: PlainTask) -> int:
        """The priority with a level for each interval since it first could be claimed."""
        assert task.epoch is not None
        return task.priority + (self.now_ms - self.start_ms) // AGEING_MS - task.epoch

    def ready(self, session: PlainSession) -> bool:
        return session.health == "HEALTHY" and len(self.held(session)) < session.capacity

    # --- actions

    def take(
        self, session: PlainSession, most: int, types: Sequence[str], unmatched: bool
    ) -> list[tuple[int, int]]:
        taken: list[tuple[int, int]] = []
        while len(taken) < most and len(self.held(session)) < session.capacity:
            fits = [task for task in self.tasks if self.takes(session, task, types, unmatched)]
            if not fits:
                break
            best = min(
                fits,
                key=lambda task: (
                    -self.aged(task),
                    -score(session.specialty, task.affinity),
                    task.number,
                ),
            )
            self.last_token += 1
            best.state, best.holder, best.token = "CLAIMED", session.session_id, self.last_token
            best.due_ms = self.now_ms + self.policy(best).claim_ms
            taken.append((best.number, best.token))
        return taken

    def wait(
        self, session: PlainSession, most: int, types: tuple[str, ...], unmatched: bool, ms: int
    ) -> int:
        self.last_waiter += 1
        self.waiters.append(
            PlainWaiter(self.last_waiter, session, most, types, unmatched, self.now_ms + ms)
        )
        return self.last_waiter

    def offer(self, task: PlainTask) -> None:
        for waiter in list(self.waiters):
            if self.ready(waiter.session) and self.takes(
                waiter.session, task, waiter.types, waiter.unmatched
            ):
                self.grant(waiter)

    def serve(self, session_id: str) -> None:
        for waiter in list(self.waiters):
            if waiter.session.session_id == session_id and self.ready(waiter.session):
                self.grant(waiter)

    def grant(self, waiter: PlainWaiter) -> None:
        waiter.grants = self.take(waiter.session, waiter.most, waiter.types, waiter.unmatched)
        if waiter.grants:
            self.waiters.remove(waiter)
            self.fetched[waiter.waiter_id] = waiter

    def attempt_failed(
        self,
        task: PlainTask,
        *,
        permanent: bool = False,
        retry_ms: int | None = None,
        error_type: str = "",
    ) -> None:
        task.retries += 1
        task.error_type = error_type
        self.failed_attempts += 1
        policy = self.policy(task)
        wait_ms = min(policy.base_ms * 2 ** (task.retries - 1), MAX_RETRY_MS)
        if retry_ms is not None:
            wait_ms = retry_ms
        too_late = task.deadline_ms and self.now_ms + wait_ms >= task.deadline_ms
        final = permanent or error_type == policy.final
        if final or task.retries > task.max_retries or too_late:
            self.finish(task, "FAILED")
        elif wait_ms:
            task.state = "SCHEDULED"
            task.due_ms = self.now_ms + wait_ms
        else:
            self.pending(task)
        self.serve(task.holder)

    def pending(self, task: PlainTask) -> None:
        task.state = "PENDING"
        if task.epoch is None:
            task.epoch = (self.now_ms - self.start_ms) // AGEING_MS
        self.offer(task)

    def finish(self, task: PlainTask, state: str) -> None:
        """The task ends, and those that depend on it hear of it."""
        task.state, task.finish_ms = state, self.now_ms
        self.dead_letters += state == "FAILED"
        retention_ms = self.policy(task).retention_ms
        if retention_ms is not None:
            due_ms = -(-(self.now_ms + retention_ms) // 1_000) * 1_000
            self.purges.append((due_ms, task.number, self.now_ms))
        for other in self.dependents(task.number):
            if state == "COMPLETED":
                other.waiting_for.remove(task.number)
                if other.state == "BLOCKED" and not other.waiting_for:
                    self.unblock(other)
            elif other.state == "BLOCKED":
                other.failed_by = task.number
                self.finish(other, "FAILED")

    def unblock(self, task: PlainTask) -> None:
        if task.delay_ms:
            task.state, task.due_ms = "SCHEDULED", self.now_ms + task.delay_ms
        else:
            self.pending(task)

    def stop(self, task: PlainTask, state: str) -> None:
        """An open task ends, whoever holds it."""
        held = task.state == "CLAIMED"
        self.finish(task, state)
        if held:
            self.serve(task.holder)

    # --- what a batch may depend on

    def plan(self, specs: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], str]:
        """The specs with the names of what they depend on, and why they will be refused."""
        planned = []
        refused = ""
        counts: dict[str, int] = {}
        for position, (*rest, picks) in enumerate(specs):
            names = []
            delay_ms, deadline_ms = rest[2], rest[3]
            if 0 < deadline_ms <= delay_ms:
                refused = refused or "INVALID_ARGUMENT"
            for pick in picks:
                if pick < 0 and position + pick >= 0:
                    names.append(f"#{position + pick}")
                elif pick >= 0 and self.tasks:
                    names.append(f"t-{pick % len(self.tasks) + 1:012d}")
            for name in dict.fromkeys(names):
                refused = refused or self.refused(name, counts)
            planned.append((*rest, names))
        return planned, refused

    def refused(self, name: str, counts: dict[str, int]) -> str:
        """Why nothing can depend on this one; counts it where something can."""
        state, before = "PENDING", 0
        if name[0] != "#":
            state = self.state(int(name[2:]))
            before = len(self.dependents(int(name[2:])))
        if state == "PURGED":
            return "NOT_FOUND"
        if state in ("FAILED", "CANCELLED"):
            return "DEPENDENCY_FAILED"
        if state == "COMPLETED":
            return ""
        counts[name] = counts.get(name, before) + 1
        return "TOO_MANY_DEPENDENTS" if counts[name] > MAX_DEPENDENTS else ""

    def state(self, number: int) -> str:
        return self.tasks[number - 1].state

    # --- requeue

    def stuck(self, task: PlainTask) -> bool:
        """It waits for one that can't be completed."""
        return any(self.tasks[n - 1].state not in (*OPEN, "COMPLETED") for n in task.waiting_for)

    def failed_with(self, task: PlainTask) -> list[PlainTask]:
        found = [
            t for t in self.dependents(task.number)
            if t.state == "FAILED" and t.failed_by == task.number
        ]  # fmt: skip
        below = [other for each in found for other in self.failed_with(each)]
        return sorted([*found, *below], key=lambda each: each.number)

    def requeue(self, task: PlainTask) -> None:
        task.retries = task.deadline_ms = task.delay_ms = task.failed_by = 0
        task.epoch = None
        if task.waiting_for:
            task.state = "BLOCKED"
        else:
            self.pending(task)

    def lose(self, session: PlainSession, *, counted: bool) -> None:
        self.waiters = [waiter for waiter in self.waiters if waiter.session is not session]
        for task in self.held(session):
            if counted:
                self.attempt_failed(task)
            else:
                self.pending(task)

    # --- time

    def advance(self, milliseconds: int) -> None:
        end_ms = self.now_ms + milliseconds
        while True:
            events: list[tuple[int, str, Any]] = [
                *((self.session_due_ms(s), "session.health", s.session_id) for s in self.sessions
                  if s.health != "FAILED"),
                *((t.due_ms, "task.available", t.number) for t in self.tasks
                  if t.state == "SCHEDULED"),
                *((t.due_ms, "task.claim", t.number) for t in self.tasks if t.state == "CLAIMED"),
                *((w.due_ms, "task.wait", w.waiter_id) for w in self.waiters),
                *((t.deadline_ms, "deadline.task", t.number) for t in self.tasks
                  if t.deadline_ms and t.state in OPEN),
                *((due_ms, "task.purge_by_policy", number) for due_ms, number, _ in self.purges),
            ]  # fmt: skip
            due = [event for event in events if event[0] <= end_ms]
            if not due:
                break
            self.now_ms, kind, key = min(due)
            self.fire(kind, key)
        self.now_ms = end_ms

    def session_due_ms(self, session: PlainSession) -> int:
        return session.beat_ms + (DEGRADED_MS if session.health == "HEALTHY" else FAILED_MS)

    def fire(self, kind: str, key: int | str) -> None:
        if kind == "session.health":
            session = next(s for s in self.sessions if s.session_id == key)
            session.health = "DEGRADED" if session.health == "HEALTHY" else "FAILED"
            if session.health == "FAILED":
                self.lose(session, counted=True)
        elif kind == "task.wait":
            self.waiters = [waiter for waiter in self.waiters if waiter.waiter_id != key]
        elif kind == "task.purge_by_policy":
            self.purge(int(key))
        else:
            task = self.tasks[int(key) - 1]
            if kind == "task.claim":
                self.attempt_failed(task)
            elif kind == "deadline.task":
                self.stop(task, "FAILED")
            else:
                self.pending(task)

    def purge(self, number: int) -> None:
        entry = min(each for each in self.purges if each[1] == number)
        self.purges.remove(entry)
        task = self.tasks[number - 1]
        if task.state not in (*OPEN, "PURGED") and task.finish_ms == entry[2]:
            task.state = "PURGED"
            self.purged += 1


def score(specialty: str, affinity: str) -> float:
    if specialty == affinity:
        return 1.0
    return 0.5 if "general" in (specialty, affinity) else 0.0
