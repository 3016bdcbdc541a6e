"""What an alert of the detector says: counts, what is usual, and never a feeling."""

from __future__ import annotations

from array import array

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.level import Level
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.pattern_rules import find, read_limits
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.struggle import Detector
from gaia_grpc.state.struggle_text import describe_alert
from gaia_grpc.state.windows import StudentWindow

END_MS = 1_000_000
DETECTOR = Detector(Settings())
LIMITS = read_limits(Settings())
Event = tuple[str, int, int]
"""(metric_type, seconds before the end, units)."""


def describe(
    *events: Event, app: str = "reading", severity: int = 2, level: Level | None = None
) -> alert_pb2.Alert:
    window = StudentWindow()
    touched = []
    for kind, age_s, value in events:
        at_ms = END_MS - age_s * 1_000
        window.add(kind, [at_ms], array("q", [value * MICRO]), 0)
        touched.append((kind, at_ms, at_ms))
    window.level = level
    alert = alert_pb2.Alert(severity=alert_pb2.Severity.ValueType(severity), pushed=True)
    found = DETECTOR.evaluate(window, app, END_MS)
    describe_alert(alert, find(window, touched, LIMITS), found, pattern_window_ms=60_000)
    return alert


def errors(*ages_s: int) -> list[Event]:
    return [("error", age_s, 1) for age_s in ages_s]


def test_an_alert_says_what_happened_and_what_is_usual() -> None:
    level = Level(count=1_000, sums_micro=[MICRO * 300] + [0] * 11)
    events = [("correct", 200, 1), *errors(130, 90, 50, 40, 20, 10, 5), ("hint", 7, 3)]
    alert = describe(*events, severity=3, level=level)
    assert alert.explanation.startswith(
        "5 errors in 60 s; 7 of 8 answers wrong in 5 min (usual for this student: 3 of 8)"
    )
    assert "Estimated chance of unproductive struggle in the next 5 min" in alert.explanation
    assert alert.suggested_action == "guidance"
    assert (alert.window_s, alert.model_version) == (300, "default-1")
    assert alert.base_rate == 0.05
    assert 0.5 < alert.coverage < 1
    rows = {each.feature: each for each in alert.evidence}
    assert rows["errors_60s"].value == 5
    assert rows["hints"].contribution > 0
    assert alert.pushed


def test_each_pattern_has_its_words() -> None:
    assert "12 corrections in 60 s" in describe(("backspace", 5, 12)).explanation
    assert "a pause of 35 s" in describe(("pause", 5, 35)).explanation
    falling = [("accuracy", 60 - 9 * at, 95 - 9 * at) for at in range(6)]
    assert "accuracy fell by 27 points in 60 s" in describe(*falling).explanation


def test_a_share_of_others_is_told_where_it_was_counted() -> None:
    alert = describe(*errors(100, 80, 40, 20), app="math")
    assert "in 10 students like this stayed stuck" in alert.explanation
    assert "students like this" not in describe(*errors(100, 80)).explanation


def test_technical_help_where_nothing_else_speaks() -> None:
    alert = describe(("rapid_repeat", 5, 50), ("keypress", 5, 1))
    assert alert.suggested_action == "technical_help"
    assert "keys repeated often" in alert.explanation


def test_how_long_nothing_was_right() -> None:
    alert = describe(("correct", 200, 1), *errors(100, 20))
    assert "no correct answer for 3 min 20 s" in alert.explanation


def test_nothing_known_is_said_so() -> None:
    assert describe().explanation.startswith("little is known of these 5 min.")


def test_no_alert_names_a_feeling() -> None:
    texts = [
        describe(*errors(50, 40, 30, 20, 10), ("hint", 5, 4), ("pause", 8, 60)),
        describe(("backspace", 5, 30), ("blur", 4, 9), ("response_time", 70, 900)),
    ]
    for alert in texts:
        for word in ("frustrat", "angry", "sad", "emotion", "feel", "bored", "confus"):
            assert word not in alert.explanation.lower()
