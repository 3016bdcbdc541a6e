"""The guide's classroom against a running cluster: students, workers, teachers, and the audit.

Phases: connect; register the sessions; subscribe the teachers at different peers; class (metrics,
papers, alerts, heartbeats all at once); wait for what is still under way; audit. Everything goes
through the SDK, so whatever happens to the peers meanwhile is the SDK's to survive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.classroom import audit
from gaia_grpc.classroom.lessons import Burst, ClassPlan, plan_class
from gaia_grpc.classroom.observe import LeaderMonitor, Progress, Quantiles, quantiles
from gaia_grpc.classroom.pace import ClassClock
from gaia_grpc.classroom.staff import Grading, Manager, Teacher, write_papers
from gaia_grpc.classroom.students import Desk, attend
from gaia_grpc.client import Client
from gaia_grpc.errors import UnavailableError

MANAGERS = 2
TEACHER_MANAGERS = 3
WORKERS = 5
TEACHERS = 2
CALL_TIMEOUT_S = 60.0
ALERTS_TIMEOUT_S = 15.0
PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class ClassOptions:
    """Size and pace of a class; the defaults are the guide's."""

    students: int = 30
    minutes: int = 5
    speed: float = 60.0
    papers: int = 100
    bursts: int = 5
    seed: int = 1


@dataclass(slots=True)
class ClassReport:
    """What came out of a class."""

    rows: list[audit.Row] = field(default_factory=list)
    wall_s: float = 0.0
    """How long the class took, without preparation and audit."""
    metrics_per_s: float = 0.0
    tasks_per_s: float = 0.0
    publish: Quantiles = field(default_factory=lambda: quantiles([]))
    enqueue: Quantiles = field(default_factory=lambda: quantiles([]))
    task_cycle: Quantiles = field(default_factory=lambda: quantiles([]))
    alert: Quantiles = field(default_factory=lambda: quantiles([]))
    failovers: int = 0
    held_ms: float = 0.0
    classroom_id: str = ""
    timeline_id: str = ""

    @property
    def reconciled(self) -> bool:
        """Whether every row is right."""
        return bool(self.rows) and all(row.ok for row in self.rows)


class School:
    """One class. `run` once."""

    def __init__(self, addresses: Sequence[str], options: ClassOptions) -> None:
        """Makes no I/O. Raises `ValueError` where the options do not fit together."""
        self._addresses = list(addresses)
        self._options = options
        self.plan: ClassPlan = plan_class(
            seed=options.seed,
            students=options.students,
            minutes=options.minutes,
            bursts=options.bursts,
        )
        self._begin_ms = time.time_ns() // 1_000_000
        self.run_id = f"demo-{options.seed}-{self._begin_ms}"
        self.progress = Progress(self.plan.length_ms, len(self.plan.measurements), options.papers)

    async def run(self, before_audit: Callable[[], Awaitable[None]]) -> ClassReport:
        """Holds the class. `before_audit` may start peers again that died meanwhile.

        Raises:
            UnavailableError: the cluster was away for longer than a call waits (60 s).
            GaiaError: the cluster refused what it should not.
        """
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                Client.connect(self._addresses, timeout=CALL_TIMEOUT_S)
            )
            begin_index = (await client.cluster.status()).commit_index
            return await self._run(client, stack, begin_index, before_audit)

    async def _run(
        self,
        client: Client,
        stack: AsyncExitStack,
        begin_index: int,
        before_audit: Callable[[], Awaitable[None]],
    ) -> ClassReport:
        clock = ClassClock(
            speed=self._options.speed, length_ms=self.plan.length_ms, now_s=time.perf_counter
        )
        clock.stop()
        managers = self._managers(client)
        desk = self._desk(client, clock)
        papers = write_papers(self._options.seed, self._options.papers)
        grading = Grading(client, papers, self.run_id, clock, self.progress)
        teachers = await self._teachers(stack)
        self.progress.phase = "registering sessions"
        for manager in managers:
            await manager.register()
        await grading.hire(stack)
        for teacher in teachers:
            await teacher.subscribe(stack)
        monitor = LeaderMonitor(client, self.progress)
        await monitor.look()
        background = [
            monitor.run(),
            self._follow(clock, desk, grading),
            *(manager.stay_alive() for manager in managers),
            *(
                teacher.listen(self.progress if place == 0 else None)
                for place, teacher in enumerate(teachers)
            ),
        ]
        report = ClassReport()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in background]
            await self._hold_class(clock, desk, grading, report)
            self.progress.phase = "waiting for the last answers"
            await grading.wait_done()
            alerts = await self._settle_alerts(client, teachers)
            self.progress.phase = "auditing"
            sessions = await audit.audit_sessions(
                client, self.run_id, MANAGERS + TEACHER_MANAGERS + WORKERS
            )
            await before_audit()
            await self._audit(client, begin_index, desk, grading, teachers, alerts, report)
            report.rows.insert(-2, sessions)
            for task in tasks:
                task.cancel()
        for manager in managers:
            await manager.deregister()
        self.progress.phase = "done"
        return report

    def _managers(self, client: Client) -> list[Manager]:
        names = [f"claude-manager-{number + 1}" for number in range(MANAGERS)]
        names += [f"claude-teacher-manager-{number + 1}" for number in range(TEACHER_MANAGERS)]
        return [Manager(client, f"{name}.{self.run_id}") for name in names]

    def _desk(self, client: Client, clock: ClassClock) -> Desk:
        return Desk(
            client=client,
            plan=self.plan,
            clock=clock,
            progress=self.progress,
            run_id=self.run_id,
            classroom_id=self.run_id,
            timeline_id=self.run_id,
            begin_ms=self._begin_ms,
        )

    async def _teachers(self, stack: AsyncExitStack) -> list[Teacher]:
        """Each has a client of its own and begins at another peer, as long as there are some."""
        teachers = []
        for place in range(TEACHERS):
            client = await stack.enter_async_context(Client.connect(self._addresses))
            address = await _address_of(client, place)
            teachers.append(
                Teacher(f"teacher {place + 1}", client, address, self.run_id, self.run_id)
            )
        return teachers

    async def _hold_class(
        self, clock: ClassClock, desk: Desk, grading: Grading, report: ClassReport
    ) -> None:
        self.progress.phase = "class"
        begin_s = time.perf_counter()
        clock.start()
        async with asyncio.TaskGroup() as group:
            for student_id in self.plan.students:
                group.create_task(attend(desk, student_id))
            group.create_task(grading.hand_in())
        report.wall_s = time.perf_counter() - begin_s
        report.held_ms = clock.held_ms

    async def _follow(self, clock: ClassClock, desk: Desk, grading: Grading) -> None:
        """Keeps `progress` up to date until cancelled."""
        while True:
            self.progress.class_ms = clock.now_ms()
            self.progress.metrics_acknowledged = desk.totals().acknowledged
            self.progress.tasks_completed = grading.completed_now()
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    async def _settle_alerts(
        self, client: Client, teachers: Sequence[Teacher]
    ) -> list[alert_pb2.Alert]:
        """The alerts of the class, once each teacher has received everything up to them."""
        alerts = [alert async for alert in client.alerts.list(timeline_id=self.run_id)]
        through = max((alert.last_sequence for alert in alerts), default=0)
        for teacher in teachers:
            await teacher.wait_through(through, ALERTS_TIMEOUT_S)
        return alerts

    async def _audit(
        self,
        client: Client,
        begin_index: int,
        desk: Desk,
        grading: Grading,
        teachers: Sequence[Teacher],
        alerts: Sequence[alert_pb2.Alert],
        report: ClassReport,
    ) -> None:
        aggregates = [
            each async for each in client.metrics.aggregates(self.run_id, timeline_id=self.run_id)
        ]
        facts = audit.task_facts(grading.papers, await audit.read_tasks(client, grading))
        report.rows += audit.audit_counters(self.plan, desk.totals())
        report.rows += audit.audit_windows(self.plan, self._begin_ms, aggregates)
        report.rows += audit.audit_tasks(grading, facts)
        report.rows += audit.audit_alerts(self.plan, alerts, teachers)
        report.rows += await audit.audit_cluster(client, begin_index)
        report.metrics_per_s = len(self.plan.measurements) / max(report.wall_s, 0.001)
        report.tasks_per_s = facts.completed_once / max(report.wall_s, 0.001)
        report.publish = quantiles(desk.publish_seconds)
        report.enqueue = quantiles(grading.enqueue_seconds)
        report.task_cycle = quantiles(facts.cycle_seconds)
        report.alert = quantiles(alert_seconds(self.plan.bursts, desk.error_times, teachers))
        report.failovers = self.progress.failovers
        report.classroom_id = report.timeline_id = self.run_id


def alert_seconds(
    bursts: Sequence[Burst],
    error_times: dict[tuple[str, str], list[float]],
    teachers: Sequence[Teacher],
) -> list[float]:
    """From the record of the error that opened or raised an alert to its receipt, per teacher."""
    found: list[float] = []
    for burst in bursts:
        recorded = error_times.get((burst.student_id, burst.app_name), [])
        for teacher in teachers:
            received: dict[int, float] = {}
            for at_s, event in teacher.events:
                if (event.alert.student_id, event.alert.app_name) == (
                    burst.student_id,
                    burst.app_name,
                ):
                    received.setdefault(event.change, at_s)
            for change, error_number in (
                (alert_pb2.ALERT_CHANGE_OPENED, 3),
                (alert_pb2.ALERT_CHANGE_SEVERITY_RAISED, 5),
            ):
                if change in received and len(recorded) >= error_number:
                    found.append(received[change] - recorded[error_number - 1])
    return found


async def _address_of(client: Client, place: int) -> str:
    """Client address of the peer at `place` among those that answer, in the order of node ids."""
    answers = await client.cluster.statuses()
    living = sorted(
        (answer.node_id, address)
        for address, answer in answers.items()
        if isinstance(answer, cluster_pb2.GetStatusResponse)
    )
    if not living:
        raise UnavailableError("no peer answers")
    return living[place % len(living)][1]
