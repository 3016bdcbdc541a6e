"""The grown-ups and the AI sessions: managers, grading workers, teachers."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from gaia.alert.v1 import alert_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.classroom.lessons import APPS
from gaia_grpc.classroom.observe import Progress
from gaia_grpc.classroom.pace import ClassClock
from gaia_grpc.client import AlertListener, Client, Worker
from gaia_grpc.errors import GaiaError

PROVIDER = "claude"
HEARTBEAT_INTERVAL_S = 2.0
GRADING_S = 0.02
"""How long a worker thinks about one paper."""
PRIORITIES = (1, 1, 1, 5, 5, 10)
SPECIALTIES = ("typing", "math", "reading", "general", "general")
FAILING_EVERY = 20
"""Every so many papers the first attempt fails, so that retries are part of each class."""
POLL_INTERVAL_S = 0.1
TASKS_TIMEOUT_S = 60.0
ENQUEUE_UNTIL = 0.9
"""The last paper is handed in after this share of class."""


@dataclass(slots=True)
class Manager:
    """A session that holds no tasks: it registers and stays alive."""

    client: Client
    name: str
    heartbeats: int = 0
    last_error: str = ""
    _session: session_pb2.Session | None = None

    async def register(self) -> None:
        """Registers the session; raises the SDK's errors."""
        answer = await self.client.sessions.register(
            self.name,
            tier=session_pb2.TIER_MANAGER,
            provider=PROVIDER,
            specialty="general",
            max_concurrent_tasks=5,
        )
        self._session = answer.session

    async def stay_alive(self) -> None:
        """Heartbeats until cancelled."""
        while self._session is not None:
            try:
                await self.client.sessions.heartbeat(
                    self._session.session_id, incarnation=self._session.incarnation
                )
                self.heartbeats += 1
            except GaiaError as error:
                # The audit at the end of class shows a session that is not healthy.
                self.last_error = error.message
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def deregister(self) -> None:
        """Removes the session."""
        if self._session is not None:
            await self.client.sessions.deregister(
                self._session.session_id, incarnation=self._session.incarnation
            )


# --- grading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper to grade."""

    number: int
    app_name: str
    answers: int
    correct: int

    @property
    def payload(self) -> bytes:
        """Input of the task."""
        return json.dumps(
            {"paper": self.number, "answers": self.answers, "correct": self.correct}
        ).encode()

    @property
    def result(self) -> bytes:
        """What a worker must find."""
        score = 100 * self.correct // self.answers
        return json.dumps({"paper": self.number, "score": score}).encode()

    @property
    def fails_once(self) -> bool:
        """Whether its first attempt fails."""
        return self.number % FAILING_EVERY == 0


def write_papers(seed: int, count: int) -> list[Paper]:
    """The papers of a class; the same seed writes the same ones."""
    rng = random.Random(f"gaia-papers:{seed}:{count}")
    papers = []
    for number in range(1, count + 1):
        answers = rng.randint(10, 20)
        papers.append(Paper(number, rng.choice(APPS), answers, rng.randint(0, answers)))
    return papers


@dataclass(slots=True)
class Grading:
    """The grading tasks of one class and the sessions that do them."""

    client: Client
    papers: Sequence[Paper]
    run_id: str
    clock: ClassClock
    progress: Progress
    task_ids: dict[int, str] = field(default_factory=dict)
    """Task of each paper, by its number."""
    enqueue_seconds: list[float] = field(default_factory=list)
    handler_runs: int = 0
    workers: list[Worker] = field(default_factory=list)

    @property
    def task_type(self) -> str:
        """Only this class's workers take its tasks."""
        return f"grade.{self.run_id}"

    async def hire(self, stack: AsyncExitStack) -> None:
        """Registers the workers; they stop when the stack closes."""
        for number, specialty in enumerate(SPECIALTIES, start=1):
            worker = Worker(
                self.client,
                name=f"claude-worker-{number}.{self.run_id}",
                handler=self.grade,
                specialty=specialty,
                provider=PROVIDER,
                task_types=[self.task_type],
                heartbeat_interval=HEARTBEAT_INTERVAL_S,
            )
            self.workers.append(await stack.enter_async_context(worker))

    async def grade(self, task: task_pb2.Task) -> bytes:
        """The handler: runs at least once a paper, and reports exactly once."""
        self.handler_runs += 1
        paper = json.loads(task.payload)
        await asyncio.sleep(GRADING_S)
        if paper["paper"] % FAILING_EVERY == 0 and not task.retry_count:
            raise RuntimeError("the model is overloaded, try again")
        score = 100 * paper["correct"] // paper["answers"]
        return json.dumps({"paper": paper["paper"], "score": score}).encode()

    async def hand_in(self) -> None:
        """Enqueues the papers one by one, spread over the class."""
        until_ms = self.progress.length_ms * ENQUEUE_UNTIL
        for place, paper in enumerate(self.papers):
            await self.clock.until(int(until_ms * place / len(self.papers)))
            begin_s = time.perf_counter()
            answer = await self.client.tasks.enqueue(
                self.task_type,
                paper.payload,
                affinity=paper.app_name,
                priority=PRIORITIES[place % len(PRIORITIES)],
                idempotency_key=f"{self.run_id}.paper-{paper.number}",
            )
            self.enqueue_seconds.append(time.perf_counter() - begin_s)
            self.task_ids[paper.number] = answer.task.task_id
            self.progress.tasks_enqueued += 1

    async def wait_done(self) -> None:
        """Returns when every task has ended, or after TASKS_TIMEOUT_S: the audit tells which."""
        deadline_s = time.perf_counter() + TASKS_TIMEOUT_S
        while time.perf_counter() < deadline_s:
            ended = 0
            async for task in self.client.tasks.list(task_type=self.task_type):
                ended += task.state in (task_pb2.TASK_STATE_COMPLETED, task_pb2.TASK_STATE_FAILED)
            self.progress.tasks_completed = ended
            if ended >= len(self.papers):
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    def completed_now(self) -> int:
        """Completions that the workers reported so far."""
        return sum(worker.counters.completed for worker in self.workers)


# --- teachers -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Teacher:
    """One subscription to the alerts of the class, at a peer of its own."""

    name: str
    client: Client
    address: str
    classroom_id: str
    timeline_id: str
    events: list[tuple[float, alert_pb2.AlertEvent]] = field(default_factory=list)
    """Time of receipt, and the event."""
    listener: AlertListener | None = None

    async def subscribe(self, stack: AsyncExitStack) -> None:
        """Returns when the subscription stands: from here on nothing may be missed."""
        self.listener = await stack.enter_async_context(
            self.client.alerts.listen(
                classroom_id=self.classroom_id,
                timeline_id=self.timeline_id,
                progress_interval=1.0,
                address=self.address,
            )
        )

    async def listen(self, progress: Progress | None) -> None:
        """Collects events until cancelled; tells `progress` of new alerts, where it is given."""
        if self.listener is None:
            return
        async for event in self.listener:
            self.events.append((time.perf_counter(), event))
            if progress is not None:
                progress.tell(describe(event))

    async def wait_through(self, sequence: int, timeout_s: float) -> bool:
        """True once everything up to `sequence` has arrived; False after the timeout."""
        deadline_s = time.perf_counter() + timeout_s
        while time.perf_counter() < deadline_s:
            cursor = self.listener.cursor if self.listener else None
            if cursor is not None and cursor >= sequence:
                return True
            await asyncio.sleep(POLL_INTERVAL_S)
        return False


def describe(event: alert_pb2.AlertEvent) -> str:
    """One line for people."""
    alert = event.alert
    change = alert_pb2.AlertChange.Name(event.change).removeprefix("ALERT_CHANGE_").lower()
    severity = alert_pb2.Severity.Name(alert.severity).removeprefix("SEVERITY_").lower()
    return (
        f"alert {change.replace('_', ' ')}: {alert.student_id} in {alert.app_name}, "
        f"{alert.pattern} ({severity})"
    )
