"""The model's own episodes: a record follows its machine up and down."""

from __future__ import annotations

from gaia.alert.v1 import alert_pb2

from tests.state.lessons import Lesson
from tests.state.snapshot_checks import check_equal, check_restored, restored, whole

MEDIUM, HIGH, CRITICAL = 2, 3, 4
RESOLVED = alert_pb2.ALERT_STATE_RESOLVED
NO_PATTERNS = (
    ("alert.repeated_errors", "999"),
    ("alert.excessive_errors", "1000"),
    ("alert.accuracy_answers", "100"),
)


def struggle(lesson: Lesson, seconds: int, every_s: int = 15) -> None:
    """Wrong answers with hints, too far apart for a pattern."""
    for _ in range(0, seconds, every_s):
        lesson.advance(every_s * 1_000)
        lesson.publish([("error", 1, lesson.now_ms), ("hint", 1, lesson.now_ms)])


def work_well(lesson: Lesson, seconds: int) -> None:
    for _ in range(0, seconds, 10):
        lesson.advance(10_000)
        lesson.publish([("correct", 1, lesson.now_ms)])


def test_the_model_alone_opens_raises_lowers_and_ends_one_record() -> None:
    lesson = Lesson(*NO_PATTERNS)
    struggle(lesson, 300)
    (alert,) = lesson.alerts()
    assert alert.pattern == "struggle"
    assert alert.severity >= MEDIUM
    assert alert.pushed
    assert alert.model_version == "default-1"
    work_well(lesson, 600)
    changes = lesson.changes()
    assert changes[0] == "OPENED"
    assert "SEVERITY_RAISED" in changes
    assert "SEVERITY_LOWERED" in changes
    assert changes[-1] == "RESOLVED"
    assert changes.count("OPENED") == 1
    levels = [event.alert.severity for event in lesson.events(limit=1_000).events]
    assert max(levels) > levels[0]


def test_silence_ends_it_too() -> None:
    lesson = Lesson(*NO_PATTERNS)
    struggle(lesson, 300)
    for _ in range(120):
        lesson.advance(5_000)
    assert lesson.alerts()[0].state == RESOLVED
    assert lesson.machine.next_due_ms() is not None  # its quiet time
    for _ in range(100):
        lesson.advance(5_000)
    assert len(lesson.alerts()) == 1


def test_a_teachers_end_is_followed_by_quiet() -> None:
    lesson = Lesson(*NO_PATTERNS, ("detector.critical_enter", "1"), ("detector.high_enter", "0.99"),
                    ("detector.unresolved_after", "1d"))  # fmt: skip
    struggle(lesson, 300)
    (alert,) = lesson.alerts()
    lesson.do(resolve_alert={"alert_id": alert.alert_id, "teacher_id": "t"})
    struggle(lesson, 285)
    assert len(lesson.alerts()) == 1
    struggle(lesson, 30)
    assert len(lesson.alerts()) == 2


def test_it_holds_a_patterns_alert_and_opens_none_beside_it() -> None:
    lesson = Lesson(("alert.acknowledge_timeout", "0ms"))
    lesson.publish([("error", 1, lesson.now_ms - at * 20_000) for at in range(12)])
    struggle(lesson, 120)
    patterns = {each.pattern for each in lesson.alerts()}
    assert patterns == {"repeated_errors"} or patterns == {"excessive_errors"}
    (alert,) = lesson.alerts()
    assert alert.severity >= HIGH
    work_well(lesson, 900)
    (alert,) = lesson.alerts()
    assert alert.state == RESOLVED


def test_the_model_pushes_what_stood_on_the_board_unless_a_teacher_saw_it() -> None:
    for seen in (False, True):
        lesson = Lesson(
            ("detector.low_exit", "0.005"), ("detector.low_enter", "0.01"),
            ("detector.medium_exit", "0.01"), ("detector.medium_enter", "0.02"),
            ("detector.high_enter", "0.99"), ("detector.critical_enter", "1"),
            ("detector.unresolved_after", "1d"), ("alert.acknowledged_mute", "0ms"),
        )  # fmt: skip
        lesson.publish([("correct", 1, lesson.now_ms - 100_000 - at) for at in range(12)])
        lesson.errors(20, 10, 0)
        (alert,) = lesson.alerts()
        assert not alert.pushed
        if seen:
            lesson.do(acknowledge_alert={"alert_id": alert.alert_id, "teacher_id": "t"})
        for _ in range(4):
            lesson.advance(5_000)
            lesson.publish([("correct", 1, lesson.now_ms)])
        assert [event.pushed for event in lesson.events().events].count(True) == (not seen)


def test_a_restored_machine_looks_again_at_the_same_times() -> None:
    lesson = Lesson(*NO_PATTERNS)
    struggle(lesson, 120)
    begin_at = len(lesson.entries)
    struggle(lesson, 180)
    for _ in range(100):
        lesson.advance(5_000)
    check_restored(lesson.entries, begin_at)


def test_a_recording_gives_the_same_alerts_at_any_speed() -> None:
    found = []
    for step in (1, 7):
        lesson = Lesson(*NO_PATTERNS)
        times = [at * 15_000 for at in range(1, 21)]
        for first in range(0, len(times), step):
            for time_ms in times[first : first + step]:
                lesson.publish(
                    [("error", 1, time_ms), ("hint", 1, time_ms)],
                    timeline_id="t",
                    sent_at_ms=time_ms,
                )
            lesson.advance(1_000 * step)
        lesson.publish([("a", 1, 1_500_000)], timeline_id="t", sent_at_ms=1_500_000)
        found.append(
            [
                (event.change, event.alert.severity, event.alert.confidence, event.pushed)
                for event in lesson.events(limit=1_000, timeline_id="t").events
            ]
        )
        check_equal(lesson.machine, restored(whole(lesson.machine)))
    assert found[0] == found[1]
    assert found[0]
