"""Alerts for who runs the cluster: session failed, task dead-lettered, peer lost."""

from __future__ import annotations

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2

from gaia_grpc.state import operational_alerts
from tests.state.lessons import Lesson
from tests.state.snapshot_checks import check_restored

OPERATIONAL = alert_pb2.ALERT_KIND_OPERATIONAL
RESOLVED = alert_pb2.ALERT_STATE_RESOLVED


def troubles(lesson: Lesson) -> list[alert_pb2.Alert]:
    return lesson.alerts(kind=OPERATIONAL)


def dead_letter(lesson: Lesson, task_type: str, count: int) -> None:
    for _ in range(count):
        lesson.enqueue(task_type, delay_ms=500, deadline_ms=1_000)
    lesson.advance(1_000)


def test_a_failed_session_is_an_alert_until_it_registers_again() -> None:
    lesson = Lesson()
    lesson.register("w1")
    lesson.advance(15_000)
    lesson.advance(15_000)
    (alert,) = troubles(lesson)
    assert (alert.pattern, alert.subject, alert.severity) == (
        "session_failed", "w1", alert_pb2.SEVERITY_MEDIUM,
    )  # fmt: skip
    assert (alert.student_id, alert.classroom_id, alert.kind) == ("", "", OPERATIONAL)
    assert lesson.alerts() == []
    assert lesson.events().events == []
    lesson.register("w1")
    assert troubles(lesson)[0].state == RESOLVED
    assert lesson.changes(kind=OPERATIONAL) == ["OPENED", "RESOLVED"]


def test_a_session_that_is_forgotten_or_leaves_leaves_no_open_alert() -> None:
    lesson = Lesson(("session.retention", "60s"))
    lesson.register("w1")
    left = lesson.register("w2")
    lesson.do(deregister_session={"session_id": left})
    for _ in range(8):
        lesson.advance(15_000)
    assert [each.subject for each in troubles(lesson)] == ["w1"]
    assert troubles(lesson)[0].state == RESOLVED


def test_dead_letters_are_counted_by_type_in_one_alert_with_few_events() -> None:
    lesson = Lesson()
    dead_letter(lesson, "grade", 30)
    dead_letter(lesson, "tutor", 1)
    for _ in range(20):
        lesson.advance(1_000)
    tutor, grade = troubles(lesson)
    assert (grade.pattern, grade.subject, grade.occurrences) == ("task_dead_lettered", "grade", 30)
    assert grade.explanation == "30 task(s) of the type grade failed for good"
    assert (tutor.subject, tutor.occurrences) == ("tutor", 1)
    assert lesson.changes(kind=OPERATIONAL) == ["OPENED", "OPENED", "RECURRED"]
    lesson.advance(600_000)
    assert {each.state for each in troubles(lesson)} == {RESOLVED}
    dead_letter(lesson, "grade", 1)
    assert troubles(lesson)[0].occurrences == 1


def test_dead_letters_of_a_cascade_count_too() -> None:
    lesson = Lesson()
    first = lesson.enqueue("grade")
    for _ in range(5):
        lesson.enqueue("report", depends_on=[first])
    lesson.do(cancel_task={"task_id": first})
    lesson.advance(10_000)
    (alert,) = troubles(lesson)
    assert (alert.subject, alert.occurrences) == ("report", 5)


def test_a_lost_member_is_told_once_until_it_is_back() -> None:
    lesson = Lesson()
    for _ in range(3):
        lesson.do(report_peer={"node_id": "n2", "lost": True})
    (alert,) = troubles(lesson)
    assert (alert.pattern, alert.subject, alert.severity, alert.occurrences) == (
        "peer_lost", "n2", alert_pb2.SEVERITY_HIGH, 1,
    )  # fmt: skip
    lesson.do(report_peer={"node_id": "n3", "lost": False})
    lesson.do(report_peer={"node_id": "n2", "lost": False})
    assert troubles(lesson)[0].state == RESOLVED
    assert lesson.changes(kind=OPERATIONAL) == ["OPENED", "RESOLVED"]
    assert lesson.refuse(report_peer={"lost": True}).field == "node_id"


def test_an_operator_acknowledges_snoozes_and_resolves() -> None:
    lesson = Lesson()
    dead_letter(lesson, "grade", 1)
    lesson.do(acknowledge_alert={"alert_id": "alert-1", "teacher_id": "op"})
    lesson.do(snooze_alert={"alert_id": "alert-1", "teacher_id": "op", "duration_ms": 1_000})
    lesson.do(resolve_alert={"alert_id": "alert-1", "teacher_id": "op", "note": "fixed"})
    assert lesson.changes(kind=OPERATIONAL) == ["OPENED", "ACKNOWLEDGED", "SNOOZED", "RESOLVED"]
    assert troubles(lesson)[0].resolution_note == "fixed"
    lesson.advance(1_000_000)
    assert len(lesson.changes(kind=OPERATIONAL)) == 4


def test_beyond_many_the_rest_shares_one_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operational_alerts, "MOST_OPEN", 2)
    lesson = Lesson()
    for task_type in ("a", "b", "c", "d"):
        dead_letter(lesson, task_type, 1)
    lesson.advance(10_000)
    assert [(each.subject, each.occurrences) for each in troubles(lesson)] == [
        ("*", 2), ("b", 1), ("a", 1),
    ]  # fmt: skip


def test_below_level_3_nothing_of_it_happens() -> None:
    lesson = Lesson(level=2)
    lesson.register("w1")
    lesson.advance(30_000)
    lesson.advance(30_000)
    assert troubles(lesson) == []
    for name in ("snooze_alert", "record_intervention"):
        refusal = lesson.refuse(**{name: {}})
        assert refusal == command_pb2.Refusal(
            kind=command_pb2.REFUSAL_KIND_UNIMPLEMENTED,
            reason="UNIMPLEMENTED",
            message=f"{name} is not served yet",
        )
    assert lesson.refuse(report_peer={"node_id": "n2"}).reason == "FEATURE_LEVEL"


def test_a_restored_machine_goes_on_counting() -> None:
    lesson = Lesson(("session.retention", "60s"))
    lesson.register("w1")
    lesson.do(report_peer={"node_id": "n2", "lost": True})
    for _ in range(4):
        dead_letter(lesson, "grade", 3)
    begin_at = len(lesson.entries)
    for _ in range(8):
        lesson.advance(15_000)
        dead_letter(lesson, "grade", 2)
    lesson.advance(700_000)
    check_restored(lesson.entries, begin_at)
