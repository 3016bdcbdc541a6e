"""The model behind the confidence: monotone, drawn to the base rate, the same on every machine."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.detector import (
    BASE_LOGIT,
    BASE_RATE,
    MATH_BASE_LOGIT,
    MATH_BASE_RATE,
    Estimate,
    estimate,
    logistic,
)
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.windows import StudentWindow

WINDOW_MS = 300_000
Event = tuple[str, int, int]
"""(metric_type, time_ms, micro-units)."""


def judge(events: list[Event], app: str = "reading", end_ms: int = WINDOW_MS) -> Estimate:
    window = StudentWindow()
    for kind, time_ms, value in events:
        window.add(kind, [time_ms], array("q", [value]), cut_ms=-(10**9))
    return estimate(window, app, end_ms, WINDOW_MS)


def answers(pattern: str) -> list[Event]:
    """`x` an error, `o` a correct answer, 10 s apart, the last one at the end."""
    first = WINDOW_MS - 10_000 * (len(pattern) - 1)
    return [
        ("error" if mark == "x" else "correct", first + 10_000 * at, MICRO)
        for at, mark in enumerate(pattern)
    ]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["error", "correct", "completion", "accuracy", "mistake", "keypress"]),
        st.integers(1, WINDOW_MS),
        st.sampled_from([0, MICRO // 2, MICRO, 2 * MICRO, 90 * MICRO]),
    ),
    max_size=40,
)


@given(EVENTS, st.integers(1, WINDOW_MS), st.sampled_from([MICRO, 3 * MICRO]))
def test_one_more_error_never_lowers_the_confidence(
    events: list[Event], time_ms: int, value: int
) -> None:
    before = judge(events).confidence
    assert judge([*events, ("error", time_ms, value)]).confidence >= before


@given(EVENTS)
def test_a_confidence_is_a_probability(events: list[Event]) -> None:
    found = judge(events)
    assert 0.0 < found.confidence < 1.0
    assert 0.0 <= found.coverage <= 1.0
    assert found.decisions >= found.wrong >= 0


@given(EVENTS, st.randoms())
def test_the_order_of_arrival_does_not_matter(events: list[Event], shuffle: object) -> None:
    mixed = list(events)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]  # a Random
    assert judge(mixed) == judge(events)


GOLDEN = [
    ("", "reading", 0.05),
    ("o", "reading", 0.046202),
    ("xxx", "reading", 0.326842),
    ("xxxxx", "reading", 0.464609),
    ("xxxxxxxx", "reading", 0.584703),
    ("oooooooxxx", "reading", 0.13592),
    ("xoxoxoxoxo", "reading", 0.173728),
    ("oooooooooo", "reading", 0.0256),
    ("xxxxx", "math", 0.487608),
]


@pytest.mark.parametrize(("pattern", "app", "expected"), GOLDEN)
def test_f7_the_golden_table(pattern: str, app: str, expected: float) -> None:
    """One documented model; a changed figure is a changed model and needs a new version."""
    assert judge(answers(pattern), app).confidence == expected


def test_nothing_known_is_the_base_rate() -> None:
    found = judge([])
    assert (found.confidence, found.base_rate, found.coverage) == (BASE_RATE, BASE_RATE, 0.0)
    assert judge([("error", WINDOW_MS + 1, MICRO)]) == found
    assert judge([], "math-7").confidence == MATH_BASE_RATE


def test_the_base_logits_belong_to_the_base_rates() -> None:
    for rate, logit in ((BASE_RATE, BASE_LOGIT), (MATH_BASE_RATE, MATH_BASE_LOGIT)):
        assert math.log(rate / (1 - rate)) == pytest.approx(logit, abs=1e-12)


def test_the_figures_of_a_window() -> None:
    found = judge([*answers("oxxox"), ("error", 0, MICRO), ("error", WINDOW_MS + 1, MICRO)])
    assert (found.wrong, found.decisions, found.streak, found.coverage) == (3, 5, 1, 1.0)
    values = {part.feature.name: part.value for part in found.contributions}
    assert values == {"error_rate": 4 / 9, "wrong_of_last_10": 0.6, "error_streak": 1}


def test_only_the_last_ten_attempts_count_as_the_last_ten() -> None:
    found = judge(answers("x" * 10 + "o" * 8 + "xx"))
    assert found.contributions[1].value == pytest.approx(0.2)
    big = judge([("correct", 1, 8 * MICRO), ("error", 2, 4 * MICRO), ("correct", 3, 5 * MICRO)])
    assert big.contributions[1].value == pytest.approx(0.4)


@given(EVENTS)
def test_the_last_ten_of_all_types_are_found_in_the_tails_of_each(events: list[Event]) -> None:
    """Against a twin that sorts every attempt of the window."""
    attempts: list[tuple[int, int, float, float]] = []
    for kind, time_ms, micro in events:
        value = micro / MICRO
        if kind == "accuracy":
            attempts.append((time_ms, 1, 1 - (value if value <= 1 else value / 100), 1.0))
        elif value > 0 and kind in ("error", "mistake"):
            attempts.append((time_ms, 2, value, value))
        elif value > 0 and kind in ("correct", "completion"):
            attempts.append((time_ms, 0, 0.0, value if kind == "correct" else 1.0))
    left, wrong = 10.0, 0.0
    for _, _, bad, weight in sorted(attempts, reverse=True):
        taken = min(weight, left)
        wrong += bad * taken / weight
        left -= taken
    expected = wrong / (10.0 - left) if left < 10.0 else 0.0
    found = judge(events)
    assert found.contributions[1].value == pytest.approx(expected)
    assert found.wrong == pytest.approx(sum(attempt[2] for attempt in attempts))
    assert found.decisions == pytest.approx(sum(attempt[3] for attempt in attempts))


def test_the_streak_is_capped() -> None:
    assert judge(answers("x" * 20)).streak == 8


@pytest.mark.parametrize(
    ("value", "wrong"),
    [(0, 1.0), (MICRO // 4, 0.75), (MICRO, 0.0), (25 * MICRO, 0.75), (100 * MICRO, 0.0),
     (300 * MICRO, 0.0), (-MICRO, 1.0)],
)  # fmt: skip
def test_an_accuracy_is_a_share_of_one_attempt(value: int, wrong: float) -> None:
    found = judge([("accuracy", 5, value)])
    assert (found.decisions, found.wrong, found.coverage) == (1, wrong, 1.0)


def test_coverage_is_the_share_of_channels_that_had_data() -> None:
    assert judge(answers("xx")).coverage == 0.5
    assert judge(answers("oo")).coverage == 0.5
    assert judge(answers("xo")).coverage == 1.0
    assert judge([("keypress", 5, MICRO)]).coverage == 0.0


# --- the logistic function ---------------------------------------------------------------------


@given(st.floats(-20, 20))
def test_the_table_is_close_to_the_function(x: float) -> None:
    assert logistic(x) == pytest.approx(1 / (1 + math.exp(-x)), abs=6e-5)


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_the_table_never_falls(x: float, y: float) -> None:
    low, high = sorted((x, y))
    assert logistic(low) <= logistic(high)


def test_the_places_of_the_table_are_exact() -> None:
    for place in range(-12 * 16, 12 * 16 + 1):
        x = place / 16
        assert logistic(x) == pytest.approx(1 / (1 + math.exp(-x)), rel=1e-9)
    assert logistic(0.0) == 0.5
    assert logistic(50.0) == logistic(12.0)
