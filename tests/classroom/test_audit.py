"""The audit finds what is wrong: each row is made to fail once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.classroom import audit
from gaia_grpc.classroom.lessons import ClassPlan, plan_class
from gaia_grpc.classroom.observe import Progress, quantiles
from gaia_grpc.classroom.pace import ClassClock
from gaia_grpc.classroom.school import alert_seconds
from gaia_grpc.classroom.staff import Grading, Teacher, write_papers
from gaia_grpc.client import Client, MetricsCounters

BEGIN_MS = 1_700_000_000_000
CLIENT = Client.connect("127.0.0.1:1")  # makes no I/O until it is entered


@pytest.fixture
def plan() -> ClassPlan:
    return plan_class(seed=5, students=6, minutes=5, bursts=3)


def failed(rows: list[audit.Row]) -> list[str]:
    return [row.what for row in rows if not row.ok]


# --- metrics --------------------------------------------------------------------------------------


def right_aggregates(plan: ClassPlan) -> list[metrics_pb2.Aggregate]:
    accepted = plan.accepted_totals()
    found: dict[tuple[str, str], metrics_pb2.Aggregate] = {}
    for (student, app, kind), totals in sorted(plan.window_totals(plan.length_ms).items()):
        aggregate = found.setdefault(
            (student, app),
            metrics_pb2.Aggregate(
                student_id=student,
                app_name=app,
                window_end_ms=BEGIN_MS + plan.length_ms,
                accepted_total=accepted[student, app],
            ),
        )
        aggregate.metrics.add(
            metric_type=kind, count=totals.count, sum=totals.sum_micro / 1_000_000
        )
    return list(found.values())


def test_right_windows_reconcile(plan: ClassPlan) -> None:
    rows = audit.audit_windows(plan, BEGIN_MS, right_aggregates(plan))
    assert failed(rows) == []
    assert rows[0].found == "1200"


def lose_a_metric(aggregates: list[metrics_pb2.Aggregate]) -> None:
    aggregates[0].metrics[0].count -= 1


def change_a_sum(aggregates: list[metrics_pb2.Aggregate]) -> None:
    aggregates[3].metrics[1].sum += 0.001


def mix_up_two_students(aggregates: list[metrics_pb2.Aggregate]) -> None:
    aggregates[0].metrics[0].count -= 1
    aggregates[5].metrics[0].count += 1


def forget_a_student(aggregates: list[metrics_pb2.Aggregate]) -> None:
    del aggregates[2]


def count_twice_ever(aggregates: list[metrics_pb2.Aggregate]) -> None:
    aggregates[1].accepted_total += 1


@pytest.mark.parametrize(
    "spoil",
    [lose_a_metric, change_a_sum, mix_up_two_students, forget_a_student, count_twice_ever],
)
def test_wrong_windows_do_not(
    plan: ClassPlan, spoil: Callable[[list[metrics_pb2.Aggregate]], None]
) -> None:
    aggregates = right_aggregates(plan)
    spoil(aggregates)
    assert failed(audit.audit_windows(plan, BEGIN_MS, aggregates))


def test_no_windows_at_all_do_not_reconcile(plan: ClassPlan) -> None:
    assert failed(audit.audit_windows(plan, BEGIN_MS, []))


@pytest.mark.parametrize("field", ["late", "rejected", "dropped"])
def test_metrics_that_went_astray_are_shown(plan: ClassPlan, field: str) -> None:
    planned = len(plan.measurements)
    right = MetricsCounters(recorded=planned, acknowledged=planned)
    assert failed(audit.audit_counters(plan, right)) == []
    wrong = MetricsCounters(recorded=planned, acknowledged=planned - 1)
    setattr(wrong, field, 1)
    assert len(failed(audit.audit_counters(plan, wrong))) == 2


# --- tasks ----------------------------------------------------------------------------------------


def make_grading() -> Grading:
    papers = write_papers(seed=1, count=40)
    clock = ClassClock(speed=1.0, length_ms=1, now_s=lambda: 0.0)
    grading = Grading(CLIENT, papers, "run", clock, Progress(1, 1, 40))
    grading.task_ids = {paper.number: f"task-{paper.number}" for paper in papers}
    return grading


def graded(grading: Grading) -> list[task_pb2.Task]:
    found = []
    for paper in grading.papers:
        task = task_pb2.Task(
            task_id=grading.task_ids[paper.number],
            state=task_pb2.TASK_STATE_COMPLETED,
            result=paper.result,
        )
        tokens = [3, 7] if paper.fails_once else [3]
        for token in tokens:
            task.history.add(kind=task_pb2.TASK_EVENT_KIND_CLAIMED, claim_token=token)
            if token != tokens[-1]:
                task.history.add(kind=task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED, claim_token=token)
        done = task.history.add(kind=task_pb2.TASK_EVENT_KIND_COMPLETED, claim_token=tokens[-1])
        done.time.FromMilliseconds(BEGIN_MS + 250)
        task.create_time.FromMilliseconds(BEGIN_MS)
        found.append(task)
    return found


def test_right_histories_reconcile() -> None:
    grading = make_grading()
    facts = audit.task_facts(grading.papers, graded(grading))
    assert failed(audit.audit_tasks(grading, facts)) == []
    assert (facts.completed_once, facts.claims, facts.failed_attempts) == (40, 42, 2)
    assert set(facts.cycle_seconds) == {0.25}
    assert len(facts.cycle_seconds) == 38


def complete_twice(tasks: list[task_pb2.Task]) -> None:
    tasks[0].history.add(kind=task_pb2.TASK_EVENT_KIND_COMPLETED, claim_token=3)


def complete_with_an_old_token(tasks: list[task_pb2.Task]) -> None:
    tasks[19].history[-1].claim_token = 3


def claim_twice_with_one_token(tasks: list[task_pb2.Task]) -> None:
    tasks[19].history[2].claim_token = 3


def leave_one_open(tasks: list[task_pb2.Task]) -> None:
    tasks[1].state = task_pb2.TASK_STATE_CLAIMED
    del tasks[1].history[-1]


def grade_wrong(tasks: list[task_pb2.Task]) -> None:
    tasks[2].result = b'{"paper": 3, "score": 101}'


@pytest.mark.parametrize(
    "spoil",
    [
        complete_twice,
        complete_with_an_old_token,
        claim_twice_with_one_token,
        leave_one_open,
        grade_wrong,
    ],
)
def test_wrong_histories_do_not(spoil: Callable[[list[task_pb2.Task]], None]) -> None:
    grading = make_grading()
    tasks = graded(grading)
    spoil(tasks)
    assert failed(audit.audit_tasks(grading, audit.task_facts(grading.papers, tasks)))


def test_two_papers_in_one_task_do_not_reconcile() -> None:
    grading = make_grading()
    grading.task_ids[2] = grading.task_ids[1]
    facts = audit.task_facts(grading.papers, graded(grading))
    assert "tasks enqueued" in failed(audit.audit_tasks(grading, facts))


# --- alerts ---------------------------------------------------------------------------------------


def right_alerts(plan: ClassPlan) -> list[alert_pb2.Alert]:
    return [
        alert_pb2.Alert(
            alert_id=f"alert-{place}",
            student_id=burst.student_id,
            app_name=burst.app_name,
            pattern="excessive_errors",
            severity=alert_pb2.SEVERITY_HIGH,
        )
        for place, burst in enumerate(plan.bursts)
    ]


def right_teachers(alerts: list[alert_pb2.Alert]) -> list[Teacher]:
    teachers = []
    for name in ("teacher 1", "teacher 2"):
        teacher = Teacher(name, CLIENT, "", "class", "line")
        for place, alert in enumerate(alerts):
            for step, change in enumerate(
                (alert_pb2.ALERT_CHANGE_OPENED, alert_pb2.ALERT_CHANGE_SEVERITY_RAISED)
            ):
                event = alert_pb2.AlertEvent(
                    sequence=2 * place + step + 1, change=change, alert=alert
                )
                teacher.events.append((10.0 * place + step, event))
        teachers.append(teacher)
    return teachers


def test_right_alerts_reconcile(plan: ClassPlan) -> None:
    alerts = right_alerts(plan)
    assert failed(audit.audit_alerts(plan, alerts, right_teachers(alerts))) == []


def raise_nothing_for_one(alerts: list[alert_pb2.Alert], teachers: list[Teacher]) -> None:
    alerts.pop()


def raise_twice_for_one(alerts: list[alert_pb2.Alert], teachers: list[Teacher]) -> None:
    alerts.append(alerts[0])


def raise_for_another(alerts: list[alert_pb2.Alert], teachers: list[Teacher]) -> None:
    alerts[0].student_id = "somebody-else"


def stay_low(alerts: list[alert_pb2.Alert], teachers: list[Teacher]) -> None:
    alerts[1].severity = alert_pb2.SEVERITY_MEDIUM


def miss_an_event(alerts: list[alert_pb2.Alert], teachers: list[Teacher]) -> None:
    del teachers[1].events[2]


def receive_twice(alerts: list[alert_pb2.Alert], teachers: list[Teacher]) -> None:
    teachers[0].events.append(teachers[0].events[-1])


def receive_out_of_order(alerts: list[alert_pb2.Alert], teachers: list[Teacher]) -> None:
    for teacher in teachers:
        teacher.events[0], teacher.events[2] = teacher.events[2], teacher.events[0]


@pytest.mark.parametrize(
    "spoil",
    [
        raise_nothing_for_one,
        raise_twice_for_one,
        raise_for_another,
        stay_low,
        miss_an_event,
        receive_twice,
        receive_out_of_order,
    ],
)
def test_wrong_alerts_do_not(
    plan: ClassPlan, spoil: Callable[[list[alert_pb2.Alert], list[Teacher]], None]
) -> None:
    alerts = right_alerts(plan)
    teachers = right_teachers([alert_pb2.Alert.FromString(a.SerializeToString()) for a in alerts])
    spoil(alerts, teachers)
    assert failed(audit.audit_alerts(plan, alerts, teachers))


def test_alert_latency_runs_from_the_error_that_made_the_change(plan: ClassPlan) -> None:
    alerts = right_alerts(plan)
    teachers = right_teachers(alerts)
    times = {
        (burst.student_id, burst.app_name): [10.0 * place - 4 + n for n in range(5)]
        for place, burst in enumerate(plan.bursts)
    }
    # third error at 10 * place - 2, receipt at 10 * place; fifth at 10 * place, receipt one later
    assert sorted(alert_seconds(plan.bursts, times, teachers)) == [1.0] * 6 + [2.0] * 6


def test_quantiles_are_by_nearest_rank() -> None:
    assert quantiles([]).text() == "-"
    found = quantiles([number / 1_000 for number in range(1, 101)])
    assert (found.p50_ms, found.p99_ms, found.max_ms) == pytest.approx((50.0, 99.0, 100.0))
    assert quantiles([0.004]).p99_ms == pytest.approx(4.0)
