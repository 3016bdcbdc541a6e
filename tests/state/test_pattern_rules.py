"""All patterns against their definitions, in any order of arrival."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable

import pytest
from gaia.alert.v1 import alert_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.pattern_rules import GROUPS, PatternLimits, find, read_limits
from gaia_grpc.state.patterns import ErrorLimits, Finding
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.windows import StudentWindow

LOW, MEDIUM = alert_pb2.SEVERITY_LOW, alert_pb2.SEVERITY_MEDIUM
HIGH = alert_pb2.SEVERITY_HIGH
SMALL = PatternLimits(
    errors=ErrorLimits(window_ms=60, repeated=3, excessive=5, streak=8, lookback_ms=300),
    repeated_corrections=4,
    excessive_corrections=8,
    hesitation_micro=30 * MICRO,
    fall_micro=MICRO // 4,
    answers=2,
)
DEFAULT = read_limits(Settings())
Event = tuple[str, int, int]
"""(metric_type, time_ms, micro-units)."""


def window_of(events: Iterable[Event]) -> StudentWindow:
    window = StudentWindow()
    for kind, time_ms, value in events:
        window.add(kind, [time_ms], array("q", [value]), cut_ms=-(10**9))
    return window


def whole(events: Iterable[Event], limits: PatternLimits = SMALL) -> dict[str, Finding]:
    """What is found where everything came in one batch."""
    known = list(events)
    touched = [
        (name, min(times), max(times))
        for name in sorted({kind for kind, _, _ in known})
        for times in ([time_ms for kind, time_ms, _ in known if kind == name],)
    ]
    return {each.group: each for each in find(window_of(known), touched, limits)}


def one_by_one(events: Iterable[Event]) -> dict[str, tuple[int, str, int]]:
    """The worst (severity, pattern, end) of each group where each metric is a batch."""
    window = StudentWindow()
    worst: dict[str, tuple[int, str, int]] = {}
    for kind, time_ms, value in events:
        window.add(kind, [time_ms], array("q", [value]), cut_ms=-(10**9))
        for found in find(window, [(kind, time_ms, time_ms)], SMALL):
            severity, pattern, hold_ms = worst.get(found.group, (0, "zz", 0))
            worst[found.group] = (
                max(severity, found.severity),
                min(pattern, found.pattern),  # "excessive" stands before "repeated"
                max(hold_ms, found.hold_until_ms),
            )
    return worst


def kinds(events: Iterable[Event], *names: str) -> list[tuple[int, int]]:
    return [(time_ms, value) for kind, time_ms, value in events if kind in names and value > 0]


def counted(
    events: list[Event], items: list[tuple[int, int]], steps: list[tuple[int, str]]
) -> tuple[int, str, int] | None:
    """(severity, pattern, end) by looking at each millisecond."""
    errors = kinds(events, "error", "errors", "mistake")
    severity, pattern, hold_ms = 0, "", 0
    for end in range(700):
        total = sum(value for time, value in items if end - 60 < time <= end)
        names = [name for least, name in steps if total >= least]
        if names:
            failed = any(end - 60 < time <= end for time, _ in errors)
            severity = max(severity, MEDIUM if failed else LOW)
            if names[-1] == steps[-1][1] or not pattern:
                pattern = names[-1]
            hold_ms = end + 1
    return (severity, pattern, hold_ms) if severity else None


def corrections(events: list[Event]) -> tuple[int, str, int] | None:
    steps = [(4 * MICRO, "repeated_corrections"), (8 * MICRO, "excessive_corrections")]
    return counted(events, kinds(events, "backspace", "correction"), steps)


def hesitation(events: list[Event]) -> tuple[int, str, int] | None:
    pauses = kinds(events, "pause", "idle", "hesitation")
    long = [(time, value) for time, value in pauses if value > 30 * MICRO]
    return counted(events, long, [(1, "prolonged_hesitation")])


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["backspace", "backspace", "correction", "pause", "idle", "error"]),
        st.integers(0, 300),
        st.sampled_from([-MICRO, 0, MICRO, MICRO, 2 * MICRO, 30 * MICRO, 35 * MICRO]),
    ),
    max_size=30,
)


@given(EVENTS)
def test_counting_patterns_equal_their_definition(events: list[Event]) -> None:
    found = whole(events)
    for group, expected in (
        ("corrections", corrections(events)),
        ("hesitation", hesitation(events)),
    ):
        finding = found.get(group)
        if expected is None:
            assert finding is None
            continue
        assert finding is not None
        assert (finding.severity, finding.pattern, finding.hold_until_ms) == expected


@given(EVENTS, st.randoms())
def test_the_worst_found_does_not_depend_on_the_order(
    events: list[Event], shuffle: random.Random
) -> None:
    for _ in range(2):
        worst = one_by_one(events)
        assert worst.get("corrections") == corrections(events)
        assert worst.get("hesitation") == hesitation(events)
        shuffle.shuffle(events)


ACCURACIES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 100)), max_size=14)


def fall(accuracies: list[tuple[int, int]]) -> tuple[int, int] | None:
    """(largest fall of two in a row in points, end of the last window that holds one)."""
    rows = sorted((time, -value) for time, value in accuracies)
    falls = []
    for late in range(2, len(rows) - 1):
        for early in range(late - 1):
            if rows[early][0] > rows[late + 1][0] - 60:
                before = -rows[early][1] - rows[early + 1][1]
                after = -rows[late][1] - rows[late + 1][1]
                if before - after >= 50:
                    falls.append((before - after, rows[early][0] + 60))
    if not falls:
        return None
    return max(each[0] for each in falls), max(each[1] for each in falls)


@given(ACCURACIES)
def test_a_fall_equals_its_definition(accuracies: list[tuple[int, int]]) -> None:
    events = [("accuracy", time, (value + 2) * MICRO) for time, value in accuracies]
    finding = whole(events).get("performance")
    capped = [(time, min(value + 2, 100)) for time, value in accuracies]
    expected = fall(capped)
    if expected is None:
        assert finding is None
    else:
        assert finding is not None
        assert finding.severity == MEDIUM
        assert finding.amount_micro == expected[0] * MICRO // 200
        assert finding.hold_until_ms == expected[1]


@given(ACCURACIES, st.randoms())
def test_a_fall_is_found_in_any_order(
    accuracies: list[tuple[int, int]], shuffle: random.Random
) -> None:
    """Once all came, what was found once or more is what stands there; late ones may show that
    three in a row were none, so a fall may be found that is none at the end, never missed."""
    events = [("accuracy", time, (value + 2) * MICRO) for time, value in accuracies]
    shuffle.shuffle(events)
    if fall([(time, min(value + 2, 100)) for time, value in accuracies]) is not None:
        assert "performance" in one_by_one(events)


# --- the fixtures of the guide --------------------------------------------------------------------


def times(count: int, every_s: float) -> list[int]:
    return [round(at * every_s * 1_000) + 1 for at in range(count)]


def test_f3_and_f4_backspaces() -> None:
    many = whole([("backspace", at, MICRO) for at in times(25, 2)], DEFAULT)
    assert (many["corrections"].pattern, many["corrections"].severity) == (
        "excessive_corrections",
        LOW,
    )
    some = whole([("backspace", at, MICRO) for at in times(10, 2)], DEFAULT)
    assert some["corrections"].pattern == "repeated_corrections"
    assert not whole([("backspace", at, MICRO) for at in times(9, 2)], DEFAULT)


def test_f5_a_pause_of_any_name() -> None:
    for kind in ("pause", "hesitation", "idle"):
        found = whole([(kind, 1, 35 * MICRO)], DEFAULT)["hesitation"]
        assert (found.pattern, found.severity) == ("prolonged_hesitation", LOW)
        assert found.hold_until_ms == 60_001
        assert not whole([(kind, 1, 30 * MICRO)], DEFAULT)


def test_f6_groups_stand_beside_each_other() -> None:
    events = [("error", at, MICRO) for at in times(3, 5)]
    before = whole(events, DEFAULT)
    found = whole([*events, *(("backspace", at, MICRO) for at in times(10, 2))], DEFAULT)
    assert found["errors"] == before["errors"]
    assert found["corrections"].severity == MEDIUM


@pytest.mark.parametrize("count", [6, 10, 26, 100])
def test_accuracy_from_95_to_50_over_25_s(count: int) -> None:
    values = [95 - 45 * at / (count - 1) for at in range(count)]
    events = [
        ("accuracy", at, round(value * MICRO))
        for at, value in zip(times(count, 25 / (count - 1)), values, strict=True)
    ]
    found = whole(events, DEFAULT)["performance"]
    assert (found.pattern, found.severity) == ("performance_degradation", MEDIUM)
    shares = [(kind, at, value // 100) for kind, at, value in events]
    assert whole(shares, DEFAULT)["performance"] == found


def test_a_lone_slip_is_no_fall() -> None:
    values = [95, 90, 40, 92, 94, 91, 93]
    events = [
        ("accuracy", at, value * MICRO) for at, value in zip(times(7, 4), values, strict=True)
    ]
    assert not whole(events, DEFAULT)


def test_detector_defect_1_more_evidence_never_lowers_a_severity() -> None:
    """3 errors were high, and 10 backspaces more made them medium."""
    events = [("error", at, MICRO) for at in times(5, 5)]
    before = whole(events, DEFAULT)["errors"].severity
    after = whole([*events, *(("backspace", at, MICRO) for at in times(10, 2))], DEFAULT)
    assert before == HIGH
    assert after["errors"].severity == HIGH


@given(EVENTS, EVENTS)
def test_more_evidence_never_lowers_any_severity(events: list[Event], more: list[Event]) -> None:
    before, after = whole(events), whole([*events, *more])
    for group in GROUPS[:3]:
        if group in before:
            assert after[group].severity >= before[group].severity


def test_detector_defect_2_a_pause_is_over_when_it_is_over() -> None:
    """One pause made every later metric an alarm."""
    events = [("pause", 1, 35 * MICRO), ("keypress", 70_000, MICRO), ("error", 70_000, MICRO)]
    window = window_of(events)
    touched = [("keypress", 70_000, 70_000), ("error", 70_000, 70_000)]
    assert find(window, touched, DEFAULT) == []


def test_detector_defect_4_a_value_of_ten_is_ten() -> None:
    found = whole([("backspace", 1, 10 * MICRO)], DEFAULT)["corrections"]
    assert found.amount_micro == 10 * MICRO
