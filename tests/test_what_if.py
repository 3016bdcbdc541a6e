"""What other settings would have made of the past, from the rows that the detector saw."""

from __future__ import annotations

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.what_if import alerts_of, differences
from tests.state.lessons import ROOM, Lesson

NO_MODEL = [("detector.min_decisions", "1000")]
SETTINGS = [("alert.repeated_errors", "3"), ("alert.excessive_errors", "5"), *NO_MODEL]


def rows(lesson: Lesson, **fields: int) -> list[metrics_pb2.DetectorInputs]:
    found: list[metrics_pb2.DetectorInputs] = []
    query = {"classroom_id": ROOM, **fields}
    while True:
        page = lesson.ask(list_detector_inputs=query).list_detector_inputs
        found += page.windows
        if not page.next_page_token:
            return found
        query["page_token"] = page.next_page_token


def taught() -> Lesson:
    """Ana fails in a burst, bea four times, and gil is in another room."""
    lesson = Lesson(*NO_MODEL)
    for _ in range(3):
        lesson.publish([("correct", 1, lesson.now_ms)], student="bea")
        lesson.advance(100_000)
    for number in range(5):
        lesson.advance(10_000)
        lesson.errors(0)
        if number:
            lesson.errors(0, student="bea")
    lesson.errors(0, 0, 0, 0, 0, student="gil", classroom_id="other")
    lesson.publish([("accuracy", 80, lesson.now_ms), ("response_time", 7, lesson.now_ms)])
    return lesson


def test_the_rows_of_a_classroom_come_page_by_page_also_of_who_is_gone() -> None:
    lesson = taught()
    found = rows(lesson)
    assert {row.student_id for row in found} == {"ana", "bea"}
    assert sum(len(row.channels) for row in found) >= 5
    assert rows(lesson, page_size=1) == found
    ends = [(row.student_id, row.app_name, row.end_ms) for row in found]
    assert ends == sorted(ends)
    for _ in range(9):
        lesson.advance(300_000)
        lesson.publish([("a", 1, lesson.now_ms)], student="gil", classroom_id="other")
    assert rows(lesson) == found
    assert lesson.query(list_detector_inputs={}).refusal.field == "classroom_id"
    bad = {"classroom_id": ROOM, "page_token": "x"}
    assert lesson.query(list_detector_inputs=bad).refusal.field == "page_token"


def test_the_same_settings_give_the_same_alerts() -> None:
    lesson = taught()
    found = rows(lesson)
    before, after, differ = differences(found, SETTINGS, [])
    assert (before, after, differ) == (2, 2, [])
    patterns = [(each.student_id, each.pattern) for each in alerts_of(found, SETTINGS)]
    assert sorted(patterns) == sorted(
        (each.student_id, each.pattern) for each in lesson.alerts(classroom_id=ROOM)
    )


def test_other_settings_add_take_away_and_change_the_severity() -> None:
    found = rows(taught())
    _, after, differ = differences(
        found, SETTINGS, [("alert.repeated_errors", "5"), ("alert.excessive_errors", "9")]
    )
    assert after == 1
    told = {(each.before or each.after).student_id: each for each in differ}  # type: ignore[union-attr]  # one is there
    assert {student: each.what for student, each in told.items()} == {
        "ana": "severity", "bea": "gone",
    }  # fmt: skip
    ana = told["ana"]
    assert ana.before is not None
    assert ana.after is not None
    assert (ana.before.severity, ana.after.severity) == (
        alert_pb2.SEVERITY_HIGH, alert_pb2.SEVERITY_MEDIUM,
    )  # fmt: skip
    strict = [("alert.repeated_errors", "9"), ("alert.excessive_errors", "10"), *NO_MODEL]
    _, _, added = differences(found, strict, SETTINGS)
    assert {each.what for each in added} == {"added"}


def test_the_model_sees_the_same_struggle_in_the_rows() -> None:
    lesson = Lesson()
    for _ in range(30):
        lesson.advance(10_000)
        lesson.publish([("error", 1, lesson.now_ms), ("hint", 1, lesson.now_ms)])
    (alert,) = lesson.alerts()
    (again,) = alerts_of(rows(lesson), [])
    assert (again.pattern, again.severity) == (alert.pattern, alert.severity)
    quiet = [("alert.repeated_errors", "99"), ("alert.excessive_errors", "100")]
    (alone,) = alerts_of(rows(lesson), quiet)
    assert alone.pattern == "struggle"
    assert alerts_of(rows(lesson), [*quiet, *NO_MODEL]) == []


def test_what_is_no_setting_or_no_value_is_said() -> None:
    with pytest.raises(InvalidArgumentError, match="no setting"):
        differences([], SETTINGS, [("alert.none", "1")])
    with pytest.raises(InvalidArgumentError):
        differences([], SETTINGS, [("alert.repeated_errors", "many")])
    assert differences([], SETTINGS, []) == (0, 0, [])
