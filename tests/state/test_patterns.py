"""Error patterns against their definition, and the defects of the original."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable

import pytest
from gaia.alert.v1 import alert_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.patterns import ErrorLimits, Finding, assess, streak_micro
from gaia_grpc.state.windows import StudentWindow

MEDIUM, HIGH, CRITICAL = (
    alert_pb2.SEVERITY_MEDIUM,
    alert_pb2.SEVERITY_HIGH,
    alert_pb2.SEVERITY_CRITICAL,
)
SMALL = ErrorLimits(window_ms=60, repeated=3, excessive=5, streak=8, lookback_ms=300)
Event = tuple[str, int, int]
"""(metric_type, time_ms, micro-units)."""


def window_of(events: Iterable[Event]) -> StudentWindow:
    window = StudentWindow()
    for kind, time_ms, value in events:
        window.add(kind, [time_ms], array("q", [value]), cut_ms=-(10**9))
    return window


def errors(*times: int, kind: str = "error", value: int = MICRO) -> list[Event]:
    return [(kind, time, value) for time in times]


def judge(events: Iterable[Event], limits: ErrorLimits = SMALL) -> Finding | None:
    known = list(events)
    times = [time for kind, time, _ in known if kind in ("error", "errors", "mistake")]
    return assess(window_of(known), min(times), max(times), limits)


def severity(events: Iterable[Event], limits: ErrorLimits = SMALL) -> int:
    finding = judge(events, limits)
    return finding.severity if finding else 0


def twin(events: list[Event]) -> tuple[int, int, int, int] | None:
    """(severity, first time of it, most errors, end of the last window that is bad enough)."""
    wrong = [(t, v) for kind, t, v in events if kind in ("error", "errors", "mistake") and v > 0]
    right = [t for kind, t, v in events if kind in ("correct", "completion") and v > 0]

    def errors_in(end: int) -> int:
        return sum(v for t, v in wrong if end - SMALL.window_ms < t <= end)

    def severity_at(end: int) -> int:
        last = max((t for t in right if t <= end), default=-(10**9))
        row = [v for t, v in wrong if last <= t <= end and t > end - SMALL.lookback_ms]
        count = errors_in(end)
        if count < SMALL.repeated * MICRO:
            return 0
        if count < SMALL.excessive * MICRO:
            return MEDIUM
        return CRITICAL if sum(row) >= SMALL.streak * MICRO else HIGH

    ends = sorted({t for t, _ in wrong})
    worst = max((severity_at(end) for end in ends), default=0)
    if not worst:
        return None
    bad = [t for t in range(min(ends), max(ends) + 61) if errors_in(t) >= SMALL.repeated * MICRO]
    at_ms = next(end for end in ends if severity_at(end) == worst)
    return worst, at_ms, max(errors_in(end) for end in ends), max(bad) + 1


KINDS = ["error", "errors", "mistake", "correct", "completion", "keypress"]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 250),
        st.sampled_from([-MICRO, 0, MICRO // 2, MICRO, MICRO, MICRO, 2 * MICRO]),
    ),
    max_size=40,
)


@given(EVENTS)
def test_a_finding_equals_its_definition(events: list[Event]) -> None:
    with_error = [*events, ("error", 100, MICRO)]
    finding = judge(with_error)
    expected = twin(with_error)
    if expected is None:
        assert finding is None
    else:
        assert finding is not None
        found = (finding.severity, finding.at_ms, finding.errors_micro, finding.hold_until_ms)
        assert found == expected


@given(st.lists(st.integers(0, 250), min_size=1, max_size=30), st.randoms())
def test_f1_the_worst_found_does_not_depend_on_the_order(
    times: list[int], shuffle: random.Random
) -> None:
    """Each error is looked at as it comes, with what is known by then."""
    found = []
    for _ in range(3):
        window = StudentWindow()
        worst = hold = 0
        for time in times:
            window.add("error", [time], array("q", [MICRO]), cut_ms=-(10**9))
            finding = assess(window, time, time, SMALL)
            if finding is not None:
                worst = max(worst, finding.severity)
                hold = max(hold, finding.hold_until_ms)
        found.append((worst, hold))
        shuffle.shuffle(times)
    expected = twin(errors(*times))
    assert set(found) == {(expected[0], expected[3]) if expected else (0, 0)}


def test_f2_three_errors_in_the_window_are_medium() -> None:
    finding = judge(errors(0, 20, 40))
    assert finding is not None
    assert (finding.pattern, finding.severity) == ("repeated_errors", MEDIUM)
    assert (finding.at_ms, finding.errors_micro, finding.hold_until_ms) == (40, 3 * MICRO, 60)


def test_f1_five_errors_in_the_window_are_high() -> None:
    finding = judge(errors(0, 10, 20, 30, 40))
    assert finding is not None
    assert (finding.pattern, finding.severity) == ("excessive_errors", HIGH)


@pytest.mark.parametrize(("last", "expected"), [(59, MEDIUM), (60, 0)])
def test_the_window_is_half_open(last: int, expected: int) -> None:
    assert severity(errors(0, 30, last)) == expected


def test_defect_16_a_burst_across_any_boundary_is_seen() -> None:
    """The original's tumbling minute saw 4 errors on either side and no 5."""
    for shift in range(0, 240, 7):
        assert severity(errors(*(shift + 10 * step for step in range(5)))) == HIGH


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        (MICRO // 2, 5, 0),
        (MICRO // 2, 6, MEDIUM),
        (3 * MICRO, 1, MEDIUM),
        (0, 9, 0),
        (-MICRO, 9, 0),
    ],
)
def test_detector_defect_4_an_error_counts_by_its_value(
    value: int, count: int, expected: int
) -> None:
    assert severity(errors(*range(count), value=value)) == expected


def test_all_names_of_an_error_count_together() -> None:
    mixed = [*errors(1), *errors(2, kind="errors"), *errors(3, kind="mistake")]
    assert severity(mixed) == MEDIUM
    assert severity([*mixed, *errors(4, 5)]) == HIGH
    assert assess(window_of([("keypress", 1, MICRO)] * 9), 0, 9, SMALL) is None


def test_a_streak_of_eight_makes_it_critical() -> None:
    assert severity(errors(*range(0, 70, 10))) == HIGH
    assert severity(errors(*range(0, 80, 10))) == CRITICAL


def test_detector_defect_5_a_correct_answer_ends_the_streak() -> None:
    """The original counted consecutive errors, never reset the count and never used it."""
    run = errors(*range(0, 80, 10))
    assert severity([*run, ("correct", 35, MICRO)]) == HIGH
    assert severity([*run, ("completion", 35, MICRO)]) == HIGH
    assert severity([*run, ("correct", 35, 0)]) == CRITICAL
    assert severity([*run, ("correct", 90, MICRO)]) == CRITICAL
    assert severity([*run, ("correct", 35, MICRO), *errors(80, 81, 82, 83)]) == CRITICAL


def test_at_one_instant_the_correct_answer_comes_first() -> None:
    run = errors(*range(0, 80, 10))
    assert severity([*run, ("correct", 0, MICRO)]) == CRITICAL
    assert severity([*run, ("correct", 10, MICRO)]) == HIGH


def test_a_streak_is_followed_back_so_far_and_no_further() -> None:
    slow = [*errors(0, 40, 80), *errors(290, 291, 292, 293, 294)]
    assert severity(slow) == CRITICAL
    assert severity([*errors(0), *errors(80, 120), *errors(310, 311, 312, 313, 314)]) == HIGH
    window = window_of(errors(*range(20)))
    assert streak_micro(window, 19, 300, 5 * MICRO) == 5 * MICRO
    assert streak_micro(window, 19, 10, 50 * MICRO) == 10 * MICRO
    assert streak_micro(StudentWindow(), 19, 10, MICRO) == 0


@given(EVENTS, st.integers(0, 250))
def test_detector_defect_1_more_errors_never_lower_the_severity(
    events: list[Event], time: int
) -> None:
    before = [*events, ("error", 100, MICRO)]
    assert severity([*before, ("error", time, MICRO)]) >= severity(before)


def test_late_errors_complete_a_window_that_ended_before() -> None:
    """Newest first, as the guide's fixture sends them."""
    window = window_of(errors(50, 40, 30, 20))
    window.add("error", [10], array("q", [MICRO]), cut_ms=-1)
    finding = assess(window, 10, 10, SMALL)
    assert finding is not None
    assert (finding.severity, finding.at_ms) == (HIGH, 50)
