"""The detector: exact features at any pace, monotone evidence, one documented model."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.features import FEATURES, log1p, read
from gaia_grpc.state.level import PRIOR_WINDOWS, Level
from gaia_grpc.state.models import MODELS
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.struggle import Detector, Estimate, calibrate
from gaia_grpc.state.windows import StudentWindow

WINDOW_MS = 300_000
END_MS = 1_000_000
Event = tuple[str, int, int]
"""(metric_type, time_ms, micro-units)."""
DETECTOR = Detector(Settings())
APPS = ["reading", "math"]


def window_of(events: Iterable[Event]) -> StudentWindow:
    window = StudentWindow()
    for kind, time_ms, value in events:
        window.add(kind, [time_ms], array("q", [value]), cut_ms=0)
    return window


def judge(events: Iterable[Event], app: str = "reading", end_ms: int = END_MS) -> Estimate:
    return DETECTOR.evaluate(window_of(events), app, end_ms)


def answers(pattern: str, every_ms: int = 10_000) -> list[Event]:
    """`x` an error, `o` a correct answer, `h` a hint; the last one at the end."""
    names = {"x": "error", "o": "correct", "h": "hint"}
    first = END_MS - every_ms * (len(pattern) - 1)
    return [(names[mark], first + every_ms * at, MICRO) for at, mark in enumerate(pattern)]


KINDS = [
    "error", "mistake", "correct", "completion", "accuracy", "hint", "help", "backspace",
    "keypress", "pause", "blur", "rapid_repeat", "response_time",
]  # fmt: skip
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(END_MS - WINDOW_MS - 20_000, END_MS + 5_000),
        st.sampled_from([-MICRO, 0, MICRO // 2, MICRO, 2 * MICRO, 35 * MICRO, 2_000 * MICRO]),
    ),
    max_size=40,
)
EVIDENCE = ["error", "errors", "hint", "backspace", "pause", "blur", "rapid_repeat"]


@given(
    EVENTS,
    st.sampled_from(EVIDENCE),
    st.integers(END_MS - WINDOW_MS + 1, END_MS),
    st.sampled_from([MICRO, 3 * MICRO]),
    st.sampled_from(APPS),
)
def test_detector_defect_1_more_evidence_never_lowers_a_confidence(
    events: list[Event], kind: str, time_ms: int, value: int, app: str
) -> None:
    before = judge(events, app).confidence
    assert judge([*events, (kind, time_ms, value)], app).confidence >= before


@given(EVENTS, st.sampled_from(APPS))
def test_a_confidence_is_a_probability(events: list[Event], app: str) -> None:
    found = judge(events, app)
    assert 0.0 < found.confidence < 1.0
    assert 0.0 <= found.coverage <= 1.0
    assert 0 <= found.groups <= 6
    assert found.reading.wrong <= found.reading.decisions


@given(EVENTS, st.randoms(), st.sampled_from(APPS))
def test_the_order_of_arrival_does_not_matter(
    events: list[Event], shuffle: random.Random, app: str
) -> None:
    mixed = list(events)
    shuffle.shuffle(mixed)
    assert judge(mixed, app) == judge(events, app)


def test_sums_that_move_on_equal_those_made_anew() -> None:
    """20,000 events, in order, late or ahead, looked at at any pace: detector.md's brute force."""
    draw = random.Random(5)
    window = StudentWindow()
    known: list[Event] = []
    clock_ms = 400_000
    for number in range(20_000):
        clock_ms += draw.choice([0, 0, 1, 20, 50, 100, 4_000 if number % 1_000 == 0 else 50])
        late_ms = draw.choice([0, 0, 0, 30, 2_000, 90_000, -500])
        event = (draw.choice(KINDS), clock_ms - late_ms, draw.choice([0, MICRO, 3 * MICRO]))
        known.append(event)
        window.add(event[0], [event[1]], array("q", [event[2]]), cut_ms=clock_ms - 2 * WINDOW_MS)
        if draw.random() < 0.005:
            anew = window_of(each for each in known if each[1] > clock_ms - WINDOW_MS)
            assert read(window, clock_ms) == read(anew, clock_ms)
        elif draw.random() < 0.2:
            read(window, clock_ms)


GOLDEN = [
    ("", "reading", 0.05),
    ("ooo", "reading", 0.036818),
    ("xxx", "reading", 0.357775),
    ("xxxxx", "reading", 0.479437),
    ("oooooooxxx", "reading", 0.148486),
    ("oxoxoxhhhx", "reading", 0.56709),
    ("xxxxx", "math", 0.112807),
    ("oooooooooo", "math", 0.050141),
]


@pytest.mark.parametrize(("pattern", "app", "expected"), GOLDEN)
def test_f7_the_golden_table(pattern: str, app: str, expected: float) -> None:
    """One documented model; a changed figure is a changed model and needs a new version."""
    assert judge(answers(pattern), app).confidence == expected


def test_the_models_are_well_formed() -> None:
    for version, model in MODELS.items():
        assert model.version == version
        assert [weight.feature for weight in model.weights] == [each.name for each in FEATURES]
        for weight in model.weights:
            assert weight.now >= 0
            assert weight.level >= 0
            assert weight.deviation > 0
        places = model.calibration
        assert places[0] == (0.0, 0.0)
        assert places[-1][0] == 1.0
        assert list(places) == sorted(places)
        assert [high for _, high in places] == sorted(high for _, high in places)
        assert calibrate(model, model.base_rate) == pytest.approx(model.base_rate, abs=1e-3)


def test_what_is_not_known_is_the_base_rate() -> None:
    for app in APPS:
        base = DETECTOR.model_of(app).base_rate
        assert judge([], app).confidence == base
        typing = [("backspace", END_MS - 100 * at, MICRO) for at in range(100)]
        found = judge(typing, app)
        assert found.confidence <= base
        assert not found.ready


def test_alerts_need_enough_answers_some_time_and_failure() -> None:
    assert judge(answers("xxx", 30_000)).ready
    assert not judge(answers("xx", 60_000)).ready
    assert not judge(answers("xxx", 29_000)).ready
    assert not judge(answers("ooooo", 30_000)).ready
    assert judge(answers("oooh", 30_000)).ready


def test_a_high_level_alone_raises_nothing() -> None:
    window = window_of(answers("oooooo"))
    window.level = Level(count=1_000, sums_micro=[MICRO * 1_000] * len(FEATURES))
    assert DETECTOR.evaluate(window, "math", END_MS).confidence <= 0.08


def test_standing_still_says_nothing_of_who_is_away() -> None:
    events = answers("oxo")
    here = DETECTOR.evaluate(window_of(events), "reading", END_MS + 50_000)
    away = DETECTOR.evaluate(window_of(events), "reading", END_MS + 61_000)
    assert away.confidence <= here.confidence


def test_the_level_is_causal_and_drawn_to_the_cohort() -> None:
    window = window_of(answers("xxxoxxx", 20_000))
    first = DETECTOR.evaluate(window, "math", END_MS)
    assert (first.windows, {part.own == part.cohort for part in first.parts}) == (0, {True})
    DETECTOR.learn(window, first, END_MS)
    DETECTOR.learn(window, first, END_MS + 19_999)
    assert window.level is not None
    assert window.level.count == 1
    second = DETECTOR.evaluate(window, "math", END_MS)
    assert second.windows == 1
    part = next(each for each in second.parts if each.feature == "error_rate")
    expected = (part.value + PRIOR_WINDOWS * part.cohort) / (PRIOR_WINDOWS + 1)
    assert part.own == pytest.approx(expected, abs=1e-6)
    assert second.confidence >= first.confidence
    assert Level.unpack(window.level.pack()) == window.level


def test_one_evaluation_in_250_ms() -> None:
    window = window_of(answers("xxx"))
    assert DETECTOR.due(window, END_MS)
    DETECTOR.learn(window, DETECTOR.evaluate(window, "math", END_MS), END_MS)
    assert not DETECTOR.due(window, END_MS + 249)
    assert DETECTOR.due(window, END_MS + 250)


@given(st.floats(0, 10_000))
def test_log1p_is_near_and_never_falls(value: float) -> None:
    assert log1p(value) == pytest.approx(math.log1p(value), abs=0.03)
    assert log1p(value) <= log1p(value * 1.01 + 0.001)
