"""The end of a class: every number against what was planned, read back from the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.classroom.lessons import ClassPlan, Key, Totals, to_micro
from gaia_grpc.classroom.staff import Grading, Paper, Teacher
from gaia_grpc.client import Client, MetricsCounters
from gaia_grpc.errors import GaiaError

CATCH_UP_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.1

MODEL_PATTERN = "struggle"
"""Pattern of an alert that the detector's model raised by itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the reconciliation."""

    what: str
    expected: str
    found: str
    ok: bool
    note: str = ""


def row(what: str, expected: object, found: object, note: str = "") -> Row:
    """A line that is right where both sides are equal."""
    return Row(what, str(expected), str(found), expected == found, note)


# --- metrics --------------------------------------------------------------------------------------


def audit_counters(plan: ClassPlan, counters: MetricsCounters) -> list[Row]:
    """What the students' SDK says."""
    planned = len(plan.measurements)
    return [
        row("metrics planned = recorded by the SDK", planned, counters.recorded),
        row("metrics recorded = acknowledged", counters.recorded, counters.acknowledged),
        row(
            "metrics late, rejected or dropped",
            "0, 0, 0",
            f"{counters.late}, {counters.rejected}, {counters.dropped}",
            f"{counters.batches} batches, {counters.duplicates} answered by an earlier attempt",
        ),
    ]


def audit_windows(
    plan: ClassPlan, begin_ms: int, aggregates: Sequence[metrics_pb2.Aggregate]
) -> list[Row]:
    """What the cluster's windows hold, against the generator's own oracle."""
    end_ms = max((each.window_end_ms for each in aggregates), default=begin_ms)
    oracle = plan.window_totals(end_ms - begin_ms)
    found = window_totals(aggregates)
    wrong = sorted(
        key
        for key in oracle.keys() | found.keys()
        if oracle.get(key, Totals()) != found.get(key, Totals())
    )
    accepted = {
        (each.student_id, each.app_name): each.accepted_total
        for each in aggregates
        if each.accepted_total
    }
    planned = plan.accepted_totals()
    pairs = sum(1 for key in planned if accepted.get(key) == planned[key])
    return [
        row(
            "metrics acknowledged = aggregated in 5-minute windows",
            sum(total.count for total in oracle.values()),
            sum(total.count for total in found.values()),
            "sum of the counts over all students, apps and types",
        ),
        row(
            "count and sum of each (student, app, type)",
            f"{len(oracle)} keys equal",
            f"{len(oracle.keys() | found.keys()) - len(wrong)} keys equal",
            f"wrong: {_key_text(wrong[0], oracle, found)}" if wrong else "",
        ),
        row(
            "metrics ever accepted of each (student, app)",
            f"{len(planned)} pairs equal",
            f"{pairs} pairs equal",
        ),
    ]


def window_totals(aggregates: Iterable[metrics_pb2.Aggregate]) -> dict[Key, Totals]:
    """The windows in the form of the oracle."""
    return {
        (each.student_id, each.app_name, metric.metric_type): Totals(
            metric.count, to_micro(metric.sum)
        )
        for each in aggregates
        for metric in each.metrics
        if metric.count
    }


def _key_text(key: Key, oracle: Mapping[Key, Totals], found: Mapping[Key, Totals]) -> str:
    expected, got = oracle.get(key, Totals()), found.get(key, Totals())
    return (
        f"{'/'.join(key)} has {got.count} of {expected.count}, "
        f"sum {got.sum_micro / 1e6:g} of {expected.sum_micro / 1e6:g}"
    )


# --- tasks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What the histories of all tasks say together."""

    completed_once: int
    right_results: int
    claims: int
    failed_attempts: int
    other_ends: int
    """Claims that ended without completion or failure: expiries, lost sessions, releases."""
    cycle_seconds: tuple[float, ...]
    """From enqueue to completion by log time, of tasks without a retry."""


async def read_tasks(client: Client, grading: Grading) -> list[task_pb2.Task]:
    """Every task of the class with its history, in the order of the papers."""
    return [
        (await client.tasks.get(grading.task_ids[paper.number])).task for paper in grading.papers
    ]


def task_facts(papers: Sequence[Paper], tasks: Sequence[task_pb2.Task]) -> TaskFacts:
    """Adds up histories. Completed once: one completion, by the token of the last claim."""
    once = right = claims = failed = other = 0
    cycles: list[float] = []
    for paper, task in zip(papers, tasks, strict=True):
        by_kind: dict[int, list[task_pb2.TaskEvent]] = {}
        for event in task.history:
            by_kind.setdefault(event.kind, []).append(event)
        claimed = by_kind.get(task_pb2.TASK_EVENT_KIND_CLAIMED, [])
        completed = by_kind.get(task_pb2.TASK_EVENT_KIND_COMPLETED, [])
        failures = by_kind.get(task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED, [])
        claims += len(claimed)
        failed += len(failures)
        other += max(0, len(claimed) - len(completed) - len(failures))
        tokens = [event.claim_token for event in claimed]
        once += (
            task.state == task_pb2.TASK_STATE_COMPLETED
            and len(completed) == 1
            and tokens == sorted(set(tokens))
            and completed[0].claim_token == tokens[-1]
        )
        right += task.result == paper.result
        if completed and not failures:
            begin_ms = task.create_time.ToMilliseconds()
            cycles.append((completed[0].time.ToMilliseconds() - begin_ms) / 1_000.0)
    return TaskFacts(once, right, claims, failed, other, tuple(cycles))


def audit_tasks(grading: Grading, facts: TaskFacts) -> list[Row]:
    """Each paper graded exactly once, with the right result."""
    count = len(grading.papers)
    injected = sum(paper.fails_once for paper in grading.papers)
    return [
        row("tasks enqueued", count, len(set(grading.task_ids.values()))),
        row("tasks enqueued = completed, each exactly once", count, facts.completed_once),
        row("results right", count, facts.right_results),
        row("attempts made to fail = failed and tried again", injected, facts.failed_attempts),
        row(
            "claims ended (completed, failed, lost) = granted",
            facts.completed_once + facts.failed_attempts + facts.other_ends,
            facts.claims,
            f"{grading.handler_runs} handler runs",
        ),
    ]


# --- alerts ---------------------------------------------------------------------------------------


def audit_alerts(
    plan: ClassPlan, alerts: Sequence[alert_pb2.Alert], teachers: Sequence[Teacher]
) -> list[Row]:
    """Injected = alerted, and alerted = received by each teacher: nothing extra, nothing twice.

    What the model alone puts on the board is an estimate about a student to whom nothing was done:
    it must reach each teacher, and it is no answer to what was injected.
    """
    injected = sorted((burst.student_id, burst.app_name) for burst in plan.bursts)
    alerted = sorted(
        (alert.student_id, alert.app_name) for alert in alerts if alert.pattern != MODEL_PATTERN
    )
    estimated = len(alerts) - len(alerted)
    high = sum(
        alert.pattern == "excessive_errors" and alert.severity >= alert_pb2.SEVERITY_HIGH
        for alert in alerts
    )
    rows = [
        Row(
            "frustration events injected = alerts raised",
            str(len(injected)),
            str(len(alerted)),
            injected == alerted,
            f"differs at {_difference(injected, alerted)}"
            if injected != alerted
            else f"{estimated} more by the model alone"
            if estimated
            else "",
        ),
        row("alerts that reached excessive_errors, high or critical", len(injected), high),
    ]
    for teacher in teachers:
        rows.append(_audit_teacher(alerts, teacher))
    sequences = [[event.sequence for _, event in teacher.events] for teacher in teachers]
    same = all(each == sequences[0] for each in sequences)
    rows.append(
        Row(
            "both teachers received the same events in the same order",
            " = ".join([str(len(sequences[0]))] * len(sequences)),
            " = ".join(str(len(each)) for each in sequences),
            same,
        )
    )
    return rows


def _audit_teacher(alerts: Sequence[alert_pb2.Alert], teacher: Teacher) -> Row:
    events = [event for _, event in teacher.events]
    raised = sorted(alert.alert_id for alert in alerts)
    opened = sorted(
        event.alert.alert_id for event in events if event.change == alert_pb2.ALERT_CHANGE_OPENED
    )
    sequences = [event.sequence for event in events]
    twice = len(sequences) - len(set(sequences))
    ordered = sequences == sorted(sequences)
    reconnects = teacher.listener.reconnects if teacher.listener else 0
    return Row(
        f"alerts raised = received by {teacher.name}",
        str(len(raised)),
        str(len(opened)) + (f", {twice} twice" if twice else ""),
        opened == raised and not twice and ordered,
        f"{len(events)} events, {reconnects} reconnects",
    )


def _difference(left: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]]) -> str:
    only_left = [item for item in left if item not in right]
    only_right = [item for item in right if item not in left]
    parts = [f"no alert for {'/'.join(item)}" for item in only_left[:1]]
    parts += [f"an alert for {'/'.join(item)}" for item in only_right[:1]]
    return ", ".join(parts) or "the number of alerts of one student"


# --- the cluster ----------------------------------------------------------------------------------


async def audit_cluster(client: Client, begin_index: int) -> list[Row]:
    """Logs and state hashes of all peers that answer, at one common index."""
    living, down = await _caught_up(client)
    note = f"down: {', '.join(down)}" if down else ""
    if not living:
        return [Row("peers that answer", "at least 1", "0", False, note)]
    index = min(status.applied_index for status in living.values())
    logs: list[list[tuple[int, int, bytes]]] = []
    hashes: list[bytes] = []
    for address in living:
        entries = await client.cluster.log_entries(address=address, start_index=begin_index)
        logs.append([(e.index, e.term, e.checksum) for e in entries if e.index <= index])
        status = await client.cluster.status(address=address, at_index=index)
        hashes.append(status.state_hash if status.hash_index == index else b"")
    count = len(living)
    equal_logs = sum(log == logs[0] and bool(log) for log in logs)
    equal_hashes = sum(value == hashes[0] and bool(value) for value in hashes)
    span = f"{len(logs[0])} entries, index {begin_index} to {index}"
    return [
        row("peers with equal logs", count, equal_logs, "; ".join(filter(None, [span, note]))),
        row(
            "peers with equal state hashes",
            count,
            equal_hashes,
            f"{hashes[0].hex()[:16]}... at index {index}",
        ),
    ]


async def _caught_up(
    client: Client,
) -> tuple[dict[str, cluster_pb2.GetStatusResponse], list[str]]:
    """Statuses of the living once all have applied what was committed at first sight."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + CATCH_UP_TIMEOUT_S
    target = 0
    while True:
        answers = await client.cluster.statuses(timeout=2.0)
        living = {
            address: answer
            for address, answer in sorted(answers.items())
            if isinstance(answer, cluster_pb2.GetStatusResponse)
        }
        target = target or max((answer.commit_index for answer in living.values()), default=0)
        behind = [each for each in living.values() if each.applied_index < target]
        if not behind or loop.time() > deadline_s:
            down = [address for address in sorted(answers) if address not in living]
            return living, down
        await asyncio.sleep(POLL_INTERVAL_S)


async def audit_sessions(client: Client, run_id: str, expected: int) -> Row:
    """All sessions of the class are healthy."""
    from gaia.session.v1 import session_pb2

    healthy = 0
    try:
        async for session in client.sessions.list():
            if session.name.endswith(f".{run_id}"):
                healthy += session.health == session_pb2.HEALTH_HEALTHY
    except GaiaError as error:
        return Row("sessions registered = healthy", str(expected), "?", False, error.message)
    return row("sessions registered = healthy", expected, healthy)
