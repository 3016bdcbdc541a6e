"""Whose turn an alert is, when it is pushed, what a teacher does, and what comes of that."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.timelines import TIMELINE_IDLE_MS
from tests.state.lessons import ROOM, Lesson
from tests.state.snapshot_checks import check_equal, check_restored, restored, whole

Change = alert_pb2.AlertChange
NO_MODEL = ("detector.min_decisions", "1000")
FIVE = (40, 30, 20, 10, 0)
MINUTE_MS = 60_000


def lesson_of(*teachers: str, settings: tuple[tuple[str, str], ...] = ()) -> Lesson:
    lesson = Lesson(NO_MODEL, *settings)
    if teachers:
        lesson.do(put_classroom={"classroom_id": ROOM, "teacher_ids": teachers})
    return lesson


def pushes(lesson: Lesson, **filters: Any) -> list[tuple[str, str]]:
    """(change, alert) of each push."""
    return [
        (Change.Name(event.change).removeprefix("ALERT_CHANGE_"), event.alert.alert_id)
        for event in lesson.events(limit=1_000, **filters).events
        if event.pushed
    ]


def snooze(lesson: Lesson, alert_id: str, milliseconds: int) -> alert_pb2.Alert:
    body = {"alert_id": alert_id, "teacher_id": "t1", "duration_ms": milliseconds}
    return lesson.do(snooze_alert=body).alert


def keep_failing(lesson: Lesson, milliseconds: int, student: str = "ana") -> None:
    """Errors that keep an alert open."""
    for _ in range(0, milliseconds, 15_000):
        lesson.advance(15_000)
        lesson.errors(2, 1, 0, student=student)


# --- groups --------------------------------------------------------------------------------------


def test_each_group_has_a_record_and_the_worse_of_two_becomes_mixed() -> None:
    lesson = lesson_of()
    now = lesson.now_ms
    lesson.publish([("backspace", 1, now - at * 100) for at in range(10)])
    (slow,) = lesson.alerts()
    assert (slow.pattern, slow.severity, slow.pushed) == (
        "repeated_corrections", alert_pb2.SEVERITY_LOW, False,
    )  # fmt: skip
    lesson.errors(*FIVE)
    worse, slow = lesson.alerts()
    assert (worse.pattern, worse.severity) == ("mixed_struggle", alert_pb2.SEVERITY_CRITICAL)
    # The error beside the corrections makes these more than a typing habit.
    assert (slow.pattern, slow.severity) == ("repeated_corrections", alert_pb2.SEVERITY_MEDIUM)
    assert {row.feature for row in worse.evidence} >= {"errors_60s", "corrections_60s"}
    assert lesson.changes() == ["OPENED", "OPENED", "SEVERITY_RAISED", "SEVERITY_RAISED"]
    lesson.publish([("pause", 45, lesson.now_ms)])
    assert len(lesson.alerts()) == 3
    assert [each.pattern for each in lesson.alerts()].count("mixed_struggle") == 1


def test_a_pause_is_cleared_after_its_minute() -> None:
    """The original's second defect: one pause made every later metric an alert."""
    lesson = lesson_of()
    lesson.publish([("hesitation", 31, lesson.now_ms)])
    lesson.advance(130_000)
    assert lesson.alerts()[0].state == alert_pb2.ALERT_STATE_RESOLVED
    lesson.publish([("keypress", 1, lesson.now_ms)])
    assert lesson.changes() == ["OPENED", "RESOLVED"]


# --- teachers and escalation ---------------------------------------------------------------------


def test_an_alert_goes_to_the_teacher_with_the_fewest_open_ones() -> None:
    lesson = lesson_of("t2", "t1")
    for student in ("ana", "bea", "cy"):
        lesson.errors(*FIVE, student=student)
    assert [each.teacher_id for each in reversed(lesson.alerts())] == ["t1", "t2", "t1"]
    lesson.do(resolve_alert={"alert_id": "alert-1", "teacher_id": "t1"})
    lesson.do(resolve_alert={"alert_id": "alert-3", "teacher_id": "t1"})
    lesson.errors(*FIVE, student="dan")
    assert lesson.alerts()[0].teacher_id == "t1"


def test_what_nobody_acknowledges_goes_to_a_second_teacher_once() -> None:
    lesson = lesson_of("t1", "t2")
    lesson.errors(*FIVE)
    pushed_ms = lesson.now_ms
    keep_failing(lesson, 105_000)
    assert lesson.alerts()[0].state == alert_pb2.ALERT_STATE_OPEN
    keep_failing(lesson, 15_000)
    (alert,) = lesson.alerts()
    assert (alert.state, alert.teacher_id, alert.escalated_to) == (
        alert_pb2.ALERT_STATE_ESCALATED, "t1", "t2",
    )  # fmt: skip
    assert alert.escalated_at_ms == pushed_ms + 120_000
    keep_failing(lesson, 300_000)
    assert lesson.changes().count("ESCALATED") == 1


def test_without_a_second_teacher_it_is_escalated_to_all_who_watch() -> None:
    lesson = lesson_of("t1")
    lesson.errors(*FIVE)
    keep_failing(lesson, 120_000)
    (alert,) = lesson.alerts()
    assert (alert.state, alert.escalated_to) == (alert_pb2.ALERT_STATE_ESCALATED, "")


def test_an_acknowledged_alert_is_not_escalated_and_not_pushed_while_muted() -> None:
    lesson = lesson_of("t1", "t2", settings=(("alert.critical_streak", "10"),))
    lesson.errors(*FIVE)
    lesson.do(acknowledge_alert={"alert_id": "alert-1", "teacher_id": "t1"})
    lesson.errors(*[0.1] * 6)
    assert lesson.changes() == ["OPENED", "ACKNOWLEDGED", "SEVERITY_RAISED"]
    assert pushes(lesson) == [("OPENED", "alert-1")]
    keep_failing(lesson, 300_000)
    # It rose while it was muted: told now that it is over.
    assert pushes(lesson) == [("OPENED", "alert-1"), ("PUSHED", "alert-1")]
    assert lesson.alerts()[0].state == alert_pb2.ALERT_STATE_ACKNOWLEDGED


def test_a_snoozed_alert_comes_back_if_it_is_still_open() -> None:
    lesson = lesson_of("t1", "t2", settings=(("alert.critical_streak", "1000"),))
    lesson.errors(*FIVE)
    alert = snooze(lesson, "alert-1", 200_000)
    assert (alert.muted_until_ms, alert.state) == (
        lesson.now_ms + 200_000, alert_pb2.ALERT_STATE_OPEN,
    )  # fmt: skip
    keep_failing(lesson, 195_000)
    assert lesson.changes() == ["OPENED", "SNOOZED"]
    keep_failing(lesson, 15_000)
    assert pushes(lesson)[-1] == ("PUSHED", "alert-1")
    # From the end of the snooze the timeout runs anew.
    keep_failing(lesson, 105_000)
    assert lesson.changes() == ["OPENED", "SNOOZED", "PUSHED"]
    keep_failing(lesson, 15_000)
    assert lesson.changes() == ["OPENED", "SNOOZED", "PUSHED", "ESCALATED"]


def test_a_snooze_needs_a_length_and_an_open_alert() -> None:
    lesson = lesson_of()
    lesson.errors(*FIVE)
    for milliseconds in (0, -1, 86_400_001):
        body = {"alert_id": "alert-1", "teacher_id": "t1", "duration_ms": milliseconds}
        assert lesson.refuse(snooze_alert=body).field == "duration"
    lesson.do(resolve_alert={"alert_id": "alert-1", "teacher_id": "t1"})
    body = {"alert_id": "alert-1", "teacher_id": "t1", "duration_ms": 1_000}
    assert lesson.refuse(snooze_alert=body).reason == "ALERT_RESOLVED"


# --- the push budget -----------------------------------------------------------------------------


@pytest.mark.parametrize("teachers", [(), ("t1",)])
def test_four_pushes_a_minute_and_the_rest_later_best_first(teachers: tuple[str, ...]) -> None:
    lesson = lesson_of(*teachers, settings=(("alert.acknowledge_timeout", "0ms"),))
    for number in range(4):
        lesson.errors(*FIVE, student=f"s{number}")
    lesson.advance(10_000)
    lesson.errors(*FIVE, student="late")
    lesson.errors(*[0.1 * at for at in range(9)], student="worst")
    assert [alert_id for _, alert_id in pushes(lesson)] == [f"alert-{n}" for n in range(1, 5)]
    assert [each.pushed for each in lesson.alerts()[:2]] == [False, False]
    lesson.advance(49_999)
    assert len(pushes(lesson)) == 4
    lesson.advance(1)
    assert pushes(lesson)[4:] == [("PUSHED", "alert-6"), ("PUSHED", "alert-5")]
    worst = lesson.alerts()[0]
    assert (worst.severity, worst.pushed) == (alert_pb2.SEVERITY_CRITICAL, True)
    assert worst.pushed_at_ms == lesson.now_ms


def test_what_waits_for_a_push_and_ends_is_never_pushed() -> None:
    lesson = lesson_of(settings=(("alert.push_budget", "1"),))
    lesson.errors(*FIVE, student="ana")
    lesson.errors(*FIVE, student="bea")
    lesson.do(resolve_alert={"alert_id": "alert-2", "teacher_id": "t"})
    lesson.advance(300_000)
    assert [alert_id for _, alert_id in pushes(lesson) if alert_id == "alert-2"] == []


def test_a_lower_and_a_higher_budget_hold_at_once() -> None:
    lesson = lesson_of(settings=(("alert.push_budget", "1"),))
    for student in ("ana", "bea", "cy"):
        lesson.errors(*FIVE, student=student)
    assert len(pushes(lesson)) == 1
    lesson.do(update_settings={"changes": [{"name": "alert.push_budget", "value": "2"}]})
    lesson.advance(1)
    assert len(pushes(lesson)) == 2


def test_a_recordings_budget_is_its_own_and_on_its_clock() -> None:
    lesson = lesson_of(settings=(("alert.push_budget", "1"),))
    lesson.errors(*FIVE)
    for student in ("ana", "bea"):
        lesson.errors(*FIVE, student=student, timeline_id="t", sent_at_ms=100_000)
    assert len(pushes(lesson)) == 1
    assert len(pushes(lesson, timeline_id="t")) == 1
    lesson.publish([("a", 1, 160_000)], timeline_id="t", sent_at_ms=160_000)
    assert pushes(lesson, timeline_id="t") == [("OPENED", "alert-2"), ("PUSHED", "alert-3")]


# --- rosters in filters --------------------------------------------------------------------------


def test_a_teacher_sees_the_alerts_of_the_rosters_as_they_are() -> None:
    lesson = lesson_of("t1")
    lesson.do(put_classroom={"classroom_id": "room-2", "teacher_ids": ["t1", "t2"]})
    for student, room in (("ana", ROOM), ("bea", "room-2"), ("cy", "room-3")):
        lesson.errors(*FIVE, student=student, classroom_id=room)
    assert [each.student_id for each in lesson.alerts(teacher_id="t1")] == ["bea", "ana"]
    assert [each.student_id for each in lesson.alerts(teacher_id="t2")] == ["bea"]
    assert lesson.alerts(teacher_id="t3") == []
    assert lesson.alerts(teacher_id="t2", classroom_id=ROOM) == []
    events = lesson.events(teacher_id="t1").events
    assert [event.sequence for event in events] == [1, 2]
    found = lesson.events(after=1, teacher_id="t1")
    assert ([event.sequence for event in found.events], found.through_sequence) == ([2], 3)
    lesson.do(put_classroom={"classroom_id": "room-3", "teacher_ids": ["t2"]})
    assert [each.student_id for each in lesson.alerts(teacher_id="t2")] == ["cy", "bea"]


def test_a_teachers_pages_go_through_all_classrooms() -> None:
    lesson = lesson_of()
    rooms = [f"room-{number}" for number in range(3)]
    for room in rooms:
        lesson.do(put_classroom={"classroom_id": room, "teacher_ids": ["t1"]})
    for number in range(9):
        lesson.errors(*FIVE, student=f"s{number}", classroom_id=rooms[number % 3])
    seen: list[str] = []
    query: dict[str, Any] = {"filter": {"teacher_id": "t1"}, "page_size": 2}
    while True:
        page = lesson.ask(list_alerts=query).list_alerts
        seen += [each.student_id for each in page.alerts]
        if not page.next_page_token:
            break
        query["page_token"] = page.next_page_token
    assert seen == [f"s{number}" for number in range(8, -1, -1)]


# --- interventions -------------------------------------------------------------------------------


def intervene(lesson: Lesson, **fields: Any) -> alert_pb2.Intervention:
    body = {"student_id": "ana", "teacher_id": "t1", "kind": "help", **fields}
    return lesson.do(record_intervention=body).intervention


def interventions(lesson: Lesson, **filters: Any) -> list[alert_pb2.Intervention]:
    return list(lesson.ask(list_interventions=filters).list_interventions.interventions)


def test_an_intervention_shows_the_student_before_and_after() -> None:
    lesson = lesson_of("t1")
    lesson.publish([("hint", 2, lesson.now_ms), ("backspace", 3, lesson.now_ms)])
    lesson.errors(*FIVE)
    found = intervene(lesson, alert_id="alert-1", note="sat down beside her")
    assert (found.app_name, found.classroom_id) == ("reading", ROOM)
    before = found.before
    assert (before.errors, before.decisions, before.hints, before.corrections) == (5, 5, 2, 3)
    assert before.end_ms - before.start_ms == 5 * MINUTE_MS
    assert not found.HasField("after")
    (alert,) = lesson.alerts()
    assert (alert.state, alert.acknowledged_by, alert.interventions) == (
        alert_pb2.ALERT_STATE_ACKNOWLEDGED, "t1", 1,
    )  # fmt: skip
    assert alert.muted_until_ms == lesson.now_ms + 5 * MINUTE_MS
    lesson.advance(MINUTE_MS)
    lesson.publish([("correct", 1, lesson.now_ms - at) for at in range(4)])
    lesson.errors(0)
    lesson.advance(4 * MINUTE_MS - 1)
    assert not interventions(lesson)[0].HasField("after")
    lesson.advance(1)
    (found,) = interventions(lesson)
    assert (found.after.errors, found.after.decisions) == (1, 5)
    assert (found.after.start_ms, found.after.end_ms) == (
        before.end_ms, before.end_ms + 5 * MINUTE_MS,
    )  # fmt: skip
    assert found.after.confidence < before.confidence


def test_all_kinds_are_listed_by_student_alert_teacher_and_classroom() -> None:
    lesson = lesson_of("t1")
    lesson.errors(*FIVE)
    lesson.errors(*FIVE, student="bea")
    kinds = ["help", "encouragement", "feedback", "reassign", "referral", "guidance",
             "technical_help"]  # fmt: skip
    for kind in kinds:
        intervene(lesson, alert_id="alert-1", kind=kind)
    intervene(lesson, student_id="bea", teacher_id="t2", app_name="reading")
    assert [each.kind for each in interventions(lesson, student_id="ana")] == kinds[::-1]
    assert len(interventions(lesson, alert_id="alert-1")) == 7
    assert [each.student_id for each in interventions(lesson, teacher_id="t2")] == ["bea"]
    assert len(interventions(lesson, classroom_id=ROOM)) == 8
    assert interventions(lesson, classroom_id="other") == []
    page = lesson.ask(list_interventions={"page_size": 3}).list_interventions
    rest = interventions(lesson, page_token=page.next_page_token, page_size=3)
    ids = [each.intervention_id for each in [*page.interventions, *rest]]
    assert ids == [f"intervention-{number}" for number in range(8, 2, -1)]


def test_what_makes_no_sense_is_refused() -> None:
    lesson = lesson_of()
    lesson.errors(*FIVE)
    good = {"student_id": "ana", "teacher_id": "t", "kind": "help"}
    for change, field in (
        ({"student_id": ""}, "student_id"),
        ({"teacher_id": ""}, "teacher_id"),
        ({"kind": "shouting"}, "kind"),
        ({"note": "x" * 4_097}, "note"),
        ({"alert_id": "alert-1", "student_id": "bea"}, "student_id"),
    ):
        assert lesson.refuse(record_intervention={**good, **change}).field == field
    unknown = lesson.refuse(record_intervention={**good, "alert_id": "alert-9"})
    assert unknown.reason == "NOT_FOUND"
    assert interventions(lesson) == []


def test_a_recording_that_is_forgotten_ends_the_windows_after() -> None:
    lesson = lesson_of()
    at = {"timeline_id": "t", "sent_at_ms": 100_000}
    lesson.errors(*FIVE, **at)
    intervene(lesson, app_name="reading", timeline_id="t")
    lesson.advance(TIMELINE_IDLE_MS)
    lesson.publish([("a", 1, lesson.now_ms)], student="bea")
    begin_at = len(lesson.entries)
    (found,) = interventions(lesson)
    assert found.HasField("after")
    assert found.after.decisions == 0
    # The same name again is another recording.
    lesson.errors(*FIVE, **at)
    lesson.publish([("a", 1, 900_000)], timeline_id="t", sent_at_ms=900_000)
    assert interventions(lesson) == [found]
    check_restored(lesson.entries, begin_at)


def test_only_so_many_interventions_are_kept() -> None:
    lesson = lesson_of(settings=(("alert.max_interventions", "3"),))
    for _ in range(30):
        intervene(lesson)
    ids = [each.intervention_id for each in interventions(lesson)]
    assert ids == ["intervention-30", "intervention-29", "intervention-28"]


def test_deleting_a_student_takes_all_that_names_them_and_changes_no_others_turn() -> None:
    lesson = lesson_of("t1", settings=(("alert.push_budget", "1"),))
    lesson.errors(*FIVE, student="bea")
    lesson.errors(*FIVE, source_id="device-7")
    intervene(lesson, alert_id="alert-2", note="ana cried")
    lesson.do(delete_student_data={"student_id": "ana"})
    assert interventions(lesson) == []
    assert b"ana" not in whole(lesson.machine)
    check_equal(lesson.machine, restored(whole(lesson.machine)))
    lesson.advance(50_000)
    assert lesson.changes() == ["OPENED", "ERASED"]
    assert pushes(lesson) == [("OPENED", "alert-1")]
    # The turn of the deleted one is free again.
    lesson.do(put_classroom={"classroom_id": ROOM, "teacher_ids": ["t0", "t1"]})
    lesson.errors(*FIVE, student="cy")
    assert lesson.alerts()[0].teacher_id == "t0"


# --- restores ------------------------------------------------------------------------------------


def test_a_restored_machine_pushes_escalates_and_looks_after_at_the_same_times() -> None:
    lesson = lesson_of("t1", "t2", settings=(("alert.push_budget", "1"),))
    for student in ("ana", "bea", "cy"):
        lesson.errors(*FIVE, student=student)
    snooze(lesson, "alert-2", 20_000)
    intervene(lesson, alert_id="alert-3", student_id="cy")
    begin_at = len(lesson.entries)
    for _ in range(30):
        lesson.advance(15_000)
        lesson.errors(2, 1, 0)
    assert {"PUSHED", "ESCALATED", "SNOOZED", "INTERVENTION"} <= set(lesson.changes())
    check_restored(lesson.entries, begin_at)
