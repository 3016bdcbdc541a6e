"""The rules of sessions and tasks, once more and as plainly as possible: lists and scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DEGRADED_MS, FAILED_MS, CLAIM_MS, BASE_MS = 15_000, 30_000, 20_000, 1_000


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
                    -task.priority,
                    -score(session.specialty, task.affinity),
                    task.number,
                ),
            )
            self.last_token += 1
            best.state, best.holder, best.token = "CLAIMED", session.session_id, self.last_token
            best.due_ms = self.now_ms + CLAIM_MS
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

    def attempt_failed(self, task: PlainTask, *, permanent: bool = False) -> None:
        task.retries += 1
        if permanent or task.retries > task.max_retries:
            task.state = "FAILED"
        else:
            task.state = "SCHEDULED"
            task.due_ms = self.now_ms + BASE_MS * 2 ** (task.retries - 1)
        self.serve(task.holder)

    def pending(self, task: PlainTask) -> None:
        task.state = "PENDING"
        self.offer(task)

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
        else:
            task = self.tasks[int(key) - 1]
            if kind == "task.claim":
                self.attempt_failed(task)
            else:
                self.pending(task)


def score(specialty: str, affinity: str) -> float:
    if specialty == affinity:
        return 1.0
    return 0.5 if "general" in (specialty, affinity) else 0.0
