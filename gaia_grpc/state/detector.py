"""Confidence of an alert: the model `prior-1`.

What it may claim: `confidence` estimates the probability that this student will struggle
unproductively in this app during the next 5 minutes. It is no reading of an emotion. `prior-1` has
weights and cohort figures set by hand and fitted to nothing, so its figures are an ordering with a
sober scale and not a measured frequency; nobody may call them an accuracy.

Inputs are what this form knows: the share of errors in the window, the share of the last 10
attempts that went wrong, and the errors since the last success. Each is put on the cohort's scale,
capped to [-2, 4], and enters with a weight of 0 or more, so more failure never lowers the result.
A student of whom little is known is drawn to the base rate: c = base + (p - base) * m / (m + 6),
with m decisions in the window. Which of the two channels (failures, successes) had data is the
coverage.

Only + - * / and comparisons on floats, and a logistic function out of a table: every machine gets
the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gaia_grpc.state.channels import ACCURACY_TYPE, ERROR_TYPES, SUCCESS_TYPES, accuracy_micro
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.patterns import streak_micro
from gaia_grpc.state.series import Series
from gaia_grpc.state.windows import StudentWindow

MODEL_VERSION: Final = "prior-1"
LAST_ATTEMPTS: Final = 10
STREAK_CAP: Final = 8
SHRINK: Final = 6.0
Z_LOW, Z_HIGH = -2.0, 4.0
SUCCESS, GRADED, FAILURE = 0, 1, 2

BASE_RATE, BASE_LOGIT = 0.05, -2.9444389791664403
MATH_BASE_RATE, MATH_BASE_LOGIT = 0.08, -2.4423470353692043
"""Observed in algebra lessons; elsewhere a little above what observers coded in classrooms."""


@dataclass(frozen=True, slots=True)
class Feature:
    """An input: weight per standard deviation, and the cohort's mean and deviation."""

    name: str
    weight: float
    mean: float
    deviation: float

    def z(self, value: float) -> float:
        """The value on the cohort's scale."""
        return min(max((value - self.mean) / self.deviation, Z_LOW), Z_HIGH)


ERROR_RATE: Final = Feature("error_rate", 0.90, 0.22, 0.15)
LAST_TEN: Final = Feature("wrong_of_last_10", 0.50, 0.20, 0.20)
STREAK: Final = Feature("error_streak", 0.50, 0.50, 1.50)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one input added to the log-odds."""

    feature: Feature
    value: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the model says of one window."""

    confidence: float
    base_rate: float
    coverage: float
    wrong: float
    """Errors in the window."""
    decisions: float
    """Errors and successes in the window."""
    streak: float
    contributions: tuple[Contribution, ...]


def estimate(window: StudentWindow, app_name: str, end_ms: int, window_ms: int) -> Estimate:
    """The model on `end_ms - window_ms < t <= end_ms`."""
    evidence = _Evidence()
    for metric_type in (*SUCCESS_TYPES, ACCURACY_TYPE, *ERROR_TYPES):
        series = window.series.get(metric_type)
        if series is not None:
            evidence.add(metric_type, series, *series.range(end_ms - window_ms, end_ms))
    wrong, decisions = evidence.wrong / MICRO, evidence.decisions / MICRO
    streak_limit = STREAK_CAP * MICRO
    streak = min(streak_micro(window, end_ms, window_ms, streak_limit), streak_limit) / MICRO
    base, logit = BASE_RATE, BASE_LOGIT
    if app_name.lower().startswith("math"):
        base, logit = MATH_BASE_RATE, MATH_BASE_LOGIT
    inputs = (
        (ERROR_RATE, (wrong + 1.0) / (decisions + 4.0)),
        (LAST_TEN, evidence.wrong_of_last()),
        (STREAK, streak),
    )
    contributions = tuple(
        Contribution(feature, value, feature.weight * feature.z(value)) for feature, value in inputs
    )
    for part in contributions:
        logit += part.contribution
    shrunk = base + (logistic(logit) - base) * decisions / (decisions + SHRINK)
    return Estimate(
        confidence=round(shrunk * MICRO) / MICRO,
        base_rate=base,
        coverage=(evidence.failures + evidence.successes) / 2,
        wrong=wrong,
        decisions=decisions,
        streak=streak,
        contributions=contributions,
    )


def wrong_of_last(window: StudentWindow, start_ms: int, end_ms: int) -> float:
    """Share of the last 10 attempts in `start_ms < t <= end_ms` that went wrong."""
    evidence = _Evidence()
    for metric_type in (*SUCCESS_TYPES, ACCURACY_TYPE, *ERROR_TYPES):
        series = window.series.get(metric_type)
        if series is not None:
            first, last = series.range(start_ms, end_ms)
            if first < last:
                evidence.keep_newest(metric_type, series, first, last)
    return evidence.wrong_of_last()


def _attempt(metric_type: str, value: int) -> tuple[int, int, int] | None:
    """(channel, micro-wrong, micro-attempts) of one metric; None where it says nothing.

    An accuracy, written as 0..1 or as 0..100, is one attempt that went wrong in part.
    """
    if metric_type == ACCURACY_TYPE:
        return GRADED, MICRO - accuracy_micro(value), MICRO
    if value <= 0:
        return None
    if metric_type in ERROR_TYPES:
        return FAILURE, value, value
    return SUCCESS, 0, value if metric_type == "correct" else MICRO


class _Evidence:
    """Totals of a window, and the newest attempts of each type."""

    __slots__ = ("_newest", "decisions", "failures", "successes", "wrong")

    def __init__(self) -> None:
        self.wrong = 0
        self.decisions = 0
        self.failures = False
        self.successes = False
        self._newest: list[tuple[int, int, int, int]] = []

    def add(self, metric_type: str, series: Series, first: int, last: int) -> None:
        """Adds the metrics of one type."""
        if first == last:
            return
        values = series.values[first:last]
        if metric_type in (*ERROR_TYPES, "correct") and min(values) > 0:
            wrong, decisions = 0, sum(values)
            if metric_type != "correct":
                wrong = decisions
        else:
            attempts = [found for value in values if (found := _attempt(metric_type, value))]
            wrong = sum([attempt[1] for attempt in attempts])
            decisions = sum([attempt[2] for attempt in attempts])
        self.wrong += wrong
        self.decisions += decisions
        if decisions:
            self.failures = self.failures or metric_type not in SUCCESS_TYPES
            self.successes = self.successes or metric_type not in ERROR_TYPES
        self.keep_newest(metric_type, series, first, last)

    def keep_newest(self, metric_type: str, series: Series, first: int, last: int) -> None:
        """The last 10 attempts, and all of the same instant as the tenth: those have no order."""
        left = LAST_ATTEMPTS * MICRO
        oldest_ms = 0
        for at in range(last - 1, first - 1, -1):
            time_ms = series.times[at]
            if left <= 0 and time_ms != oldest_ms:
                break
            attempt = _attempt(metric_type, series.values[at])
            if attempt is not None:
                self._newest.append((time_ms, *attempt))
                left -= attempt[2]
                oldest_ms = time_ms

    def wrong_of_last(self) -> float:
        """Share of the last 10 attempts that went wrong; 0 where there are none.

        At one instant successes come first, as they do for the patterns.
        """
        left = LAST_ATTEMPTS * MICRO
        wrong = 0.0
        for _, _, micro_wrong, micro_attempts in sorted(self._newest, reverse=True):
            taken = min(micro_attempts, left)
            wrong += micro_wrong * taken / micro_attempts
            left -= taken
            if not left:
                break
        seen = LAST_ATTEMPTS * MICRO - left
        return wrong / seen if seen else 0.0


# --- the logistic function ------------------------------------------------------------------------

TABLE_STEP: Final = 16
"""Places of the table in one unit of log-odds."""
TABLE_REACH: Final = 12
_SCALE: Final = 1 << 96


def _exp_scaled(numerator: int, denominator: int) -> int:
    """exp(numerator / denominator) * 2**96 for a positive fraction, by its series in integers."""
    total = term = _SCALE
    step = 0
    while term:
        step += 1
        term = term * numerator // (denominator * step)
        total += term
    return total


_VALUES: Final = tuple(
    exp / (exp + _SCALE)
    for exp in (_exp_scaled(place, TABLE_STEP) for place in range(TABLE_REACH * TABLE_STEP + 1))
)


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)), linear between places 1/16 apart (error below 5e-5), never falling."""
    if x < 0:
        return 1.0 - logistic(-x)
    if x >= TABLE_REACH:
        return _VALUES[-1]
    place = int(x * TABLE_STEP)
    low, high = _VALUES[place], _VALUES[place + 1]
    return low + (high - low) * (x * TABLE_STEP - place)
