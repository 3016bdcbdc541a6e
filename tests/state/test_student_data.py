"""DeleteStudentData through the machine: nothing of the student is left in the state, nothing of
anybody else is gone, and streams of alerts stay whole."""

from __future__ import annotations

import random
from typing import Any

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.classroom.v1 import classroom_pb2

from gaia_grpc.state import topics
from tests.state.harness import Log
from tests.state.lessons import ROOM, Lesson, counts
from tests.state.snapshot_checks import check_frozen, check_restored, restored, whole

WINDOW_IDLE_MS = 900_000


def forget(log: Log, student_id: str = "ana") -> classroom_pb2.DeleteStudentDataResponse:
    return log.do(delete_student_data={"student_id": student_id}).deleted


def troubled(*students: str, **fields: Any) -> Lesson:
    """Each has an alert of two events."""
    lesson = Lesson()
    for student in students:
        lesson.errors(2, 1, 0, student=student, **fields)
        lesson.errors(1, 0, student=student, **fields)
    return lesson


def test_nothing_of_the_student_is_left_and_all_of_the_others() -> None:
    lesson = troubled("ana", "ana2", "an")
    lesson.publish([("keypress", 1, lesson.now_ms)], student="ana", app="math")
    lesson.publish([("keypress", 1, 1_000)], student="ana", timeline_id="t", sent_at_ms=1_000)
    for room in ("5a", "5b", "5c"):
        students = ["an", "ana2"] if room == "5a" else ["ana", "ben"]
        lesson.do(put_classroom={"classroom_id": room, "student_ids": students})
    acknowledge = {"alert_id": "alert-1", "teacher_id": "kim"}
    lesson.do(acknowledge_alert=acknowledge, request_id="r1", client_id="c")
    assert b"ana\x12" in whole(lesson.machine) or b"ana\x1a" in whole(lesson.machine)
    others = [lesson.window(student) for student in ("ana2", "an")]
    alerts = [alert for alert in lesson.alerts() if alert.student_id != "ana"]
    answer = forget(lesson)
    assert (answer.removed_windows, answer.removed_alerts) == (3, 1)
    assert (answer.removed_alert_events, answer.removed_memberships) == (3, 2)
    assert answer.compact_through_index == lesson.machine.applied_index
    assert lesson.machine.deletion_index == lesson.machine.applied_index
    assert (
        lesson.query(get_aggregate={"student_id": "ana", "app_name": "reading"}).refusal.reason
        == "NOT_FOUND"
    )
    assert lesson.alerts() == alerts
    assert lesson.alerts(student_id="ana") == []
    assert [lesson.window(student) for student in ("ana2", "an")] == others
    assert [window.student_id for window in lesson.windows()] == ["an", "ana2"]
    rosters = lesson.ask(list_classrooms={}).list_classrooms.classrooms
    assert [list(room.student_ids) for room in rosters] == [["an", "ana2"], ["ben"], ["ben"]]


def test_no_byte_of_the_student_is_in_a_snapshot() -> None:
    name = "pupil-7f3a91"
    lesson = troubled(name, "ben", source_id="tablet-3")
    lesson.errors(0, student=name, timeline_id="t", sent_at_ms=lesson.now_ms, source_id="tablet-4")
    lesson.do(put_classroom={"classroom_id": "5b", "student_ids": [name]}, request_id="r0")
    for number, call in enumerate(("acknowledge_alert", "resolve_alert")):
        body = {"alert_id": "alert-1", "teacher_id": "kim"}
        lesson.do(**{call: body}, request_id=f"q{number}")
    assert name.encode() in whole(lesson.machine)
    forget(lesson, name)
    assert name.encode() not in whole(lesson.machine)
    again = lesson.do(
        acknowledge_alert={"alert_id": "alert-1", "teacher_id": "kim"}, request_id="q0"
    )
    assert again.alert == alert_pb2.Alert(alert_id="alert-1")


def test_streams_miss_nothing_and_get_nothing_twice() -> None:
    """A board that knew the alert is told that it is gone, and nobody gets an event without one."""
    lesson = troubled("ana", "ben")
    before = lesson.events().events
    assert [event.sequence for event in before] == [1, 2, 3, 4]
    lesson.machine.take_touched()
    forget(lesson)
    touched = lesson.machine.take_touched()
    assert topics.ALERTS in touched
    assert topics.classroom_alerts(ROOM) in touched
    assert topics.classroom_metrics("", ROOM) in touched
    after = lesson.events()
    assert [event.sequence for event in after.events] == [3, 4, 5]
    assert (after.oldest_sequence, after.newest_sequence, after.through_sequence) == (1, 5, 5)
    erased = after.events[-1]
    assert erased.change == alert_pb2.ALERT_CHANGE_ERASED
    assert erased.alert == alert_pb2.Alert(
        alert_id="alert-1",
        classroom_id=ROOM,
        severity=before[1].alert.severity,
        state=alert_pb2.ALERT_STATE_RESOLVED,
        resolved_at_ms=lesson.now_ms,
        last_sequence=5,
    )
    room = lesson.events(after=1, classroom_id=ROOM, min_severity=alert_pb2.SEVERITY_HIGH)
    assert [event.sequence for event in room.events] == [4, 5]
    assert lesson.events(student_id="ana").events == []
    refusal = lesson.refuse(resolve_alert={"alert_id": "alert-1", "teacher_id": "kim"})
    assert refusal.reason == "NOT_FOUND"


def test_what_comes_later_begins_anew() -> None:
    lesson = troubled("ana")
    batch = lesson.batch([("keypress", 1, lesson.now_ms)])
    lesson.send(batch)
    forget(lesson)
    (repeated,) = lesson.send(batch)
    assert repeated.accepted_count == 1
    assert (
        lesson.query(get_aggregate={"student_id": "ana", "app_name": "reading"}).refusal.reason
        == "NOT_FOUND"
    )
    lesson.errors(2, 1, 0)
    window = lesson.window()
    assert (counts(window), window.accepted_total) == ({"error": 3}, 3)
    assert [alert.alert_id for alert in lesson.alerts()] == ["alert-2"]
    assert lesson.changes() == ["ERASED", "OPENED"]


def test_a_window_that_came_back_is_forgotten_when_it_is_idle_and_not_before() -> None:
    lesson = Lesson()
    lesson.publish([("keypress", 1, lesson.now_ms)])
    lesson.now_ms += WINDOW_IDLE_MS - 1_000
    forget(lesson)
    lesson.publish([("keypress", 1, lesson.now_ms)])
    lesson.now_ms += 2_000
    lesson.publish([("keypress", 1, lesson.now_ms)], student="ben")
    assert lesson.window().accepted_total == 1
    lesson.now_ms += WINDOW_IDLE_MS
    for sequence in (50, 51):
        lesson.publish([("keypress", 1, lesson.now_ms)], student="eve", sequence=sequence)
    assert [window.student_id for window in lesson.windows()] == ["eve"]
    assert lesson.metrics_table()._timelines.window_count == 1


def test_deleting_more_alerts_than_events_are_retained() -> None:
    """Each new event pushes out an old one, and with it perhaps the record that comes next."""
    lesson = Lesson(("alert.retained_events", "3"))
    for number in range(6):
        lesson.errors(2, 1, 0, app=f"app{number}")
    answer = forget(lesson)
    assert (answer.removed_alerts, answer.removed_alert_events) == (6, 3)
    events = lesson.events().events
    assert [event.sequence for event in events] == [10, 11, 12]
    assert [event.alert.alert_id for event in events] == ["alert-4", "alert-5", "alert-6"]
    lesson.advance(1_000_000)


def test_past_windows_and_detector_inputs_go_too() -> None:
    name = "pupil-7f3a91"
    lesson = Lesson()
    for _ in range(40):
        for student in (name, "ben"):
            lesson.errors(0, student=student, source_id=f"tablet-{student == name}")
        lesson.advance(60_000)
    asks = [
        {"student_id": student, "app_name": "reading", "page_size": 1_000}
        for student in (name, "ben")
    ]
    pasts = [lesson.ask(get_history=ask).get_history for ask in asks]
    assert len(pasts[0].windows) > 5
    assert name.encode() in whole(lesson.machine)
    answer = forget(lesson, name)
    assert answer.removed_history > 3
    assert name.encode() not in whole(lesson.machine)
    assert lesson.ask(get_history=asks[0]).get_history.windows == []
    assert lesson.ask(get_history=asks[1]).get_history == pasts[1]
    lesson.errors(0, student=name)
    lesson.advance(300_000)
    (window,) = lesson.ask(get_history=asks[0]).get_history.windows
    assert [part.count for part in window.aggregate.metrics] == [1]
    assert forget(lesson, name).removed_windows == 1


def test_an_unknown_student_is_deleted_all_the_same() -> None:
    log = Log()
    answer = forget(log, "nobody")
    assert answer == classroom_pb2.DeleteStudentDataResponse(compact_through_index=2)
    assert log.machine.deletion_index == 2
    assert log.refuse(delete_student_data={}).field == "student_id"


def busy(seed: int) -> Lesson:
    """Students come, struggle, are deleted and come back, live and on timelines."""
    source = random.Random(seed)
    lesson = Lesson(("alert.retained_events", "12"), ("alert.cooldown", "20s"))
    erased = 0
    for step in range(150):
        student = f"s{source.randrange(4)}"
        kind = source.random()
        if kind < 0.12:
            erased += forget(lesson, student).removed_alerts
        elif kind < 0.2:
            body = {"alert_id": f"alert-{source.randrange(1, 20)}", "teacher_id": "kim"}
            name = source.choice(["acknowledge_alert", "resolve_alert"])
            lesson.apply_fields(**{name: body}, request_id=f"r{step}")
        elif kind < 0.3:
            members = sorted({f"s{source.randrange(4)}" for _ in range(3)})
            roster = {"classroom_id": source.choice("ab"), "student_ids": members}
            lesson.apply_fields(put_classroom=roster, request_id=f"r{step}")
        else:
            timeline = source.choice(["", "", "t", "u"])
            ages = [source.randrange(40) for _ in range(source.randrange(1, 6))]
            lesson.errors(
                *ages,
                student=student,
                app=source.choice(["reading", "math"]),
                timeline_id=timeline,
                classroom_id=source.choice(["room-1", "room-2", ""]),
                source_id=source.choice(["x", "y"]),
            )
        lesson.advance(source.choice([0, 500, 2_000, 30_000, 90_000]))
        if step == 90:
            lesson.advance(WINDOW_IDLE_MS)
    assert erased > 2
    return lesson


@pytest.mark.parametrize("seed", range(4))
def test_snapshots_around_deletions(seed: int) -> None:
    lesson = busy(seed)
    source = random.Random(seed)
    assert check_frozen(lesson.entries, 10, lambda: source.randrange(3)) >= 4
    for begin_at in (30, 80, 140):
        check_restored(lesson.entries, begin_at)


@pytest.mark.parametrize("seed", range(4))
def test_a_restored_machine_knows_of_the_deletion(seed: int) -> None:
    lesson = busy(seed)
    assert lesson.machine.deletion_index > 0
    assert restored(whole(lesson.machine)).deletion_index == lesson.machine.deletion_index
