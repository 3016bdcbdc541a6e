"""The eight defects of the original's detector, by their numbers: none comes back here.

Alerts as they come out of the whole state machine, under a clock that is moved by hand. The
property behind the first one (each piece of evidence, drawn at random) is in test_struggle.py; the
scenarios on real peers are in tests/e2e/test_detection.py.
"""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from gaia.alert.v1 import alert_pb2

from gaia_grpc.testing.traces import TROUBLES, Sample, answering
from tests.state.lessons import Lesson

LOW, MEDIUM, HIGH, CRITICAL = (
    alert_pb2.SEVERITY_LOW,
    alert_pb2.SEVERITY_MEDIUM,
    alert_pb2.SEVERITY_HIGH,
    alert_pb2.SEVERITY_CRITICAL,
)
RESOLVED = alert_pb2.ALERT_STATE_RESOLVED
LITERALS = {0.95, 0.85, 0.80, 0.70, 0.65, 0.99}
"""What the original wrote into its events."""


def publish(lesson: Lesson, *samples: Sample, **fields: str) -> None:
    """Samples of these ages in milliseconds, in one batch."""
    now_ms = lesson.now_ms
    lesson.publish([(kind, value, now_ms - age_ms) for kind, value, age_ms in samples], **fields)


def worst(lesson: Lesson) -> tuple[str, int]:
    """Pattern and severity of the most severe alert, of equals the oldest."""
    alert = max(reversed(lesson.alerts()), key=lambda each: each.severity)
    return alert.pattern, alert.severity


def patterns(lesson: Lesson) -> list[str]:
    """Patterns of all alerts of patterns, oldest first."""
    return [alert.pattern for alert in reversed(lesson.alerts()) if alert.pattern != "struggle"]


# --- 1: more evidence lowers the alarm -----------------------------------------------------------

ERRORS = [("error", 1.0, 1_000 * at) for at in range(3)]
CORRECTIONS = [("backspace", 1.0, 500 * at) for at in range(10)]
PAUSE: list[Sample] = [("pause", 45.0, 0)]
FALL: list[Sample] = [("accuracy", 95.0 - 9.0 * at, 25_000 - 5_000 * at) for at in range(6)]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_detector_defect_1_more_evidence_never_lowers_an_alert(order: tuple[int, ...]) -> None:
    """3 errors were HIGH, with 10 corrections beside them MEDIUM; a pause overwrote either."""
    lesson = Lesson()
    before = 0
    for place in order:
        publish(lesson, *(ERRORS, CORRECTIONS, PAUSE, FALL)[place])
        severities = [alert.severity for alert in lesson.alerts()]
        assert max(severities) >= before
        before = max(severities)
    assert worst(lesson) == ("mixed_struggle", HIGH)
    assert "SEVERITY_LOWERED" not in lesson.changes()


def test_detector_defect_1_whichever_group_rises_last_both_together_are_worse() -> None:
    for first, second in ((HIGH, MEDIUM), (MEDIUM, HIGH)):
        lesson = Lesson()
        errors = {MEDIUM: 3, HIGH: 2}
        publish(lesson, *CORRECTIONS)
        publish(lesson, *ERRORS[: errors[MEDIUM]])
        if first == HIGH:
            publish(lesson, *ERRORS[: errors[HIGH]])
            publish(lesson, *CORRECTIONS)
        else:
            publish(lesson, *CORRECTIONS)
            publish(lesson, *ERRORS[: errors[HIGH]])
        assert worst(lesson) == ("mixed_struggle", CRITICAL), (first, second)


def test_detector_defect_1_corrections_that_become_excessive_are_called_so() -> None:
    """They keep their severity: it is told, and pushed to nobody."""
    lesson = Lesson()
    for _ in range(25):
        publish(lesson, ("backspace", 1.0, 0))
        lesson.advance(1_000)
    assert lesson.changes() == ["OPENED", "UPDATED"]
    assert worst(lesson) == ("excessive_corrections", LOW)
    assert not any(event.pushed for event in lesson.events().events)


# --- 2 and 3: it never ends, and comes with every metric -----------------------------------------


def test_detector_defect_2_a_pause_is_over_when_it_is_over() -> None:
    """One pause made every later metric an alert, until the process was restarted."""
    lesson = Lesson()
    publish(lesson, ("hesitation", 35.0, 0))
    assert lesson.changes() == ["OPENED"]
    for _ in range(600):
        lesson.advance(500)
        publish(lesson, ("keypress", 1.0, 0), ("correct", 1.0, 0))
    (alert,) = lesson.alerts()
    assert (alert.pattern, alert.state) == ("prolonged_hesitation", RESOLVED)
    assert lesson.changes() == ["OPENED", "RESOLVED"]


def test_detector_defect_3_a_flood_of_errors_is_one_alert() -> None:
    """20 errors a second for two minutes: 2,400 metrics, no flood."""
    lesson = Lesson()
    for _ in range(480):
        publish(lesson, *[("error", 1.0, 50 * at) for at in range(5)])
        lesson.advance(250)
    assert patterns(lesson) == ["excessive_errors"]
    assert len(lesson.events().events) < 10
    assert sum(event.pushed for event in lesson.events().events) <= 3


def test_detector_defect_3_the_quiet_time_after_an_alert() -> None:
    """The same again within five minutes after its end is no new alert; what is worse is one."""
    lesson = Lesson()
    publish(lesson, *ERRORS)
    lesson.advance(130_000)
    assert lesson.alerts()[0].state == RESOLVED
    publish(lesson, *ERRORS)
    assert patterns(lesson) == ["repeated_errors"]
    publish(lesson, *[("error", 1.0, 100 * at) for at in range(5)])
    assert patterns(lesson) == ["repeated_errors", "excessive_errors"]


# --- 4: tumbling windows, and counts that ignore the value ---------------------------------------


@pytest.mark.parametrize("begin_ms", range(0, 60_000, 7_500))
def test_detector_defect_4_no_boundary_hides_a_burst(begin_ms: int) -> None:
    """8 errors within 20 s, wherever in the minute they begin."""
    lesson = Lesson()
    lesson.advance(begin_ms)
    for _ in range(8):
        publish(lesson, ("error", 1.0, 0))
        lesson.advance(2_500)
    assert worst(lesson) == ("excessive_errors", CRITICAL)


def test_detector_defect_4_a_metric_counts_what_its_value_says() -> None:
    lesson = Lesson()
    publish(lesson, ("error", 5.0, 0))
    assert worst(lesson) == ("excessive_errors", HIGH)
    other = Lesson()
    publish(other, *[("error", 0.0, at) for at in range(9)], ("backspace", 0.0, 0))
    assert other.alerts() == []


# --- 5: errors in a row that are never reset, and right answers that say nothing ------------------


def test_detector_defect_5_a_right_answer_ends_a_streak_and_is_evidence() -> None:
    wrong = [("error", 1.0, 1_000 * at) for at in range(9)]
    lesson = Lesson()
    publish(lesson, *wrong)
    assert worst(lesson) == ("excessive_errors", CRITICAL)
    other = Lesson()
    publish(other, *wrong, ("correct", 1.0, 4_500))
    assert worst(other) == ("excessive_errors", HIGH)
    mostly_right = Lesson()
    right = [("correct", 1.0, 10_000 + 5_000 * at) for at in range(50)]
    publish(mostly_right, *wrong[:5], *right)
    publish(other, *wrong)
    only_wrong = Lesson()
    publish(only_wrong, *wrong[:5])
    assert mostly_right.alerts()[0].confidence < only_wrong.alerts()[0].confidence


# --- 6: one threshold for every app and child ----------------------------------------------------


def test_detector_defect_6_ordinary_typing_reaches_no_teacher() -> None:
    """10 corrections a minute for ten minutes: on the board, LOW, pushed to nobody."""
    lesson = Lesson()
    for _ in range(100):
        publish(lesson, ("backspace", 1.0, 0), *[("keypress", 1.0, 40 * at) for at in range(12)])
        lesson.advance(6_000)
    (alert,) = lesson.alerts()
    assert (alert.pattern, alert.severity, alert.pushed) == ("repeated_corrections", LOW, False)
    assert alert.confidence <= 0.35


def test_detector_defect_6_apps_and_students_differ_and_thresholds_are_settings() -> None:
    lesson = Lesson(("alert.repeated_corrections", "15"), ("alert.excessive_corrections", "30"))
    publish(lesson, *CORRECTIONS)
    assert lesson.alerts() == []
    for app in ("math", "reading"):
        publish(lesson, *ERRORS, app=app)
    rates = {alert.app_name: (alert.base_rate, alert.model_version) for alert in lesson.alerts()}
    assert len(set(rates.values())) == 2
    # The same errors of a student who is always wrong, and of one who never was before.
    usual: dict[str, float] = {}
    for student, kind in (("weak", "error"), ("strong", "correct")):
        history = Lesson(("alert.repeated_errors", "30"), ("alert.excessive_errors", "31"))
        for _ in range(60):
            publish(history, (kind, 1.0, 0), student=student)
            history.advance(30_000)
        publish(history, ("error", 31.0, 0), student=student)
        alert = next(each for each in history.alerts() if each.pattern == "excessive_errors")
        [rate] = [each for each in alert.evidence if each.feature == "error_rate"]
        usual[student] = rate.own
    assert usual["strong"] < usual["weak"]


# --- 7: rates over all time ----------------------------------------------------------------------


def test_detector_defect_7_what_is_judged_is_the_window() -> None:
    """An hour of failure that is over weighs nothing but in what is usual for the student."""
    lesson = Lesson(("alert.cooldown", "0ms"))
    for _ in range(120):
        publish(lesson, ("error", 1.0, 0))
        lesson.advance(30_000)
    lesson.advance(600_000)
    publish(lesson, *ERRORS)
    found = {each.feature: each.value for each in lesson.alerts()[0].evidence}
    assert found["error_rate"] == pytest.approx((3 + 1) / (3 + 4))
    assert lesson.window().metrics[0].count == 3


# --- 8: the expected figure is assigned to the variable that is asserted on ----------------------


@pytest.mark.parametrize("pattern", TROUBLES)
def test_detector_defect_8_a_confidence_is_computed_from_the_evidence(pattern: str) -> None:
    """The same pattern with other evidence beside it has another confidence, and none is one of
    the original's literals."""
    draw = random.Random(8)
    trouble = TROUBLES[pattern](draw)
    alone, amid = Lesson(), Lesson()
    publish(alone, *trouble)
    publish(amid, *trouble, *answering(draw, wrong=0.3))
    figures = {max(alert.confidence for alert in each.alerts()) for each in (alone, amid)}
    assert len(figures) == 2
    assert not figures & LITERALS
    assert all(0 < figure < 1 for figure in figures)
