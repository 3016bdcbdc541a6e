"""What the model looks at: features of the window that ends now, of one student in one app.

Decisions are errors and successes; an accuracy is one decision that went wrong in part. Errors,
corrections and hints count by their values. Each feature grows with the evidence that it stands
for and shrinks with nothing but successes and key presses, so that more evidence can never lower a
confidence. Hence two departures from the usual forms: output counts successes only (an error is no
output), and the trend is the error rate of the last minute (minus that of five it would fall with
an old error).

What did not come is a count of 0, which is what it looks like where an app has no such thing; the
shrinkage (struggle.py) keeps a window without decisions at the base rate. Only the pace needs data:
without, it is absent (None) and says nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from gaia_grpc.state.channels import (
    ACCURACY_TYPE,
    CORRECTION_TYPES,
    ERROR_TYPES,
    HINT_TYPES,
    IDLE_TYPES,
    LOG_STEPS,
    SUCCESS_TYPES,
    accuracy_micro,
    log2_steps,
)
from gaia_grpc.state.detector import wrong_of_last
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.patterns import streak_micro
from gaia_grpc.state.rolling import RollingSum, Weights
from gaia_grpc.state.windows import StudentWindow

WINDOW_MS: Final = 300_000
MINUTE_MS: Final = 60_000
ACTIVE_MS: Final = 60_000
"""A student is active this long after anything that is no pause."""
SPARSE: Final = 64
"""So many metrics of a type are summed up as fast as a running sum is moved on."""
STREAK_CAP: Final = 8
LN2: Final = 0.6931471805599453

FAILURE, HELP, PACE, DISENGAGED, TYPING, OTHER = (
    "failure", "help", "pace", "disengaged", "typing", "other",
)  # fmt: skip


class Feature(NamedTuple):
    """A feature and the group that it speaks for."""

    name: str
    group: str


FEATURES: Final = (
    Feature("error_rate", FAILURE),
    Feature("wrong_of_last_10", FAILURE),
    Feature("error_streak", FAILURE),
    Feature("stuck", FAILURE),
    Feature("error_rate_1min", FAILURE),
    Feature("hints", HELP),
    Feature("low_output", PACE),
    Feature("pace_change", PACE),
    Feature("idle", DISENGAGED),
    Feature("corrections", TYPING),
    Feature("blur", OTHER),
    Feature("rapid_repeat", OTHER),
)
"""Their order is part of what is stored: a new one comes last."""

Values: TypeAlias = tuple[float | None, ...]
"""In the order of `FEATURES`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A window as the model sees it."""

    values: Values
    coverage: int
    """One bit a feature, in the order of `FEATURES`: whether its channel brought anything."""
    wrong: float
    """Errors."""
    decisions: float
    """Errors and successes."""
    hints: float
    streak: float
    """Errors since the last success, at most 8."""
    since_success_ms: int
    """Since the last success, or since the first decision where none is in the window."""
    active: bool
    activity_ms: int
    """From the first sign of activity in the window to now; 0 without one."""


def _positive(values: array[int]) -> Sequence[int]:
    return values if min(values) > 0 else [max(value, 0) for value in values]


def _each(values: array[int]) -> Sequence[int]:
    return [MICRO if value > 0 else 0 for value in values]


def _wrong_part(values: array[int]) -> Sequence[int]:
    return [MICRO - accuracy_micro(value) for value in values]


def _right_part(values: array[int]) -> Sequence[int]:
    return [accuracy_micro(value) for value in values]


def _logs(values: array[int]) -> Sequence[int]:
    return [log2_steps(value) for value in values if value > 0]


def _present(values: array[int]) -> Sequence[int]:
    return [1 for value in values if value > 0]


WRONG, RIGHT, HINTS, CORRECTIONS, KEYS, IDLE, BLUR, RAPID, LOGS, TIMED = range(10)
_TOTALS: Final = 10
_ALL, _MINUTE = (WINDOW_MS,), (WINDOW_MS, MINUTE_MS)


def _sums() -> Mapping[str, tuple[tuple[int, Weights, tuple[int, ...]], ...]]:
    """Metric type -> (total that it adds to, what its values count, over which lengths)."""
    found: dict[str, tuple[tuple[int, Weights, tuple[int, ...]], ...]] = {}
    for name in ERROR_TYPES:
        found[name] = ((WRONG, _positive, _MINUTE),)
    found["correct"] = ((RIGHT, _positive, _MINUTE),)
    found["completion"] = ((RIGHT, _each, _MINUTE),)
    found[ACCURACY_TYPE] = (
        (WRONG, _wrong_part, _MINUTE),
        (RIGHT, _right_part, _MINUTE),
    )
    for names, total in ((HINT_TYPES, HINTS), (CORRECTION_TYPES, CORRECTIONS), (IDLE_TYPES, IDLE)):
        for name in names:
            found[name] = ((total, _positive, _ALL),)
    found["keypress"] = ((KEYS, _positive, _ALL),)
    found["blur"] = ((BLUR, _positive, _ALL),)
    found["rapid_repeat"] = ((RAPID, _positive, _ALL),)
    found["response_time"] = ((LOGS, _logs, _MINUTE), (TIMED, _present, _MINUTE))
    return MappingProxyType(found)


_SUMS: Final = _sums()
_PASSIVE: Final = frozenset({*IDLE_TYPES, "blur"})


def _add_up(
    window: StudentWindow, end_ms: int, five: list[int], one: list[int]
) -> tuple[int | None, int | None]:
    """Adds the totals of 5 minutes and of one; returns the first and last time of activity."""
    start_ms = end_ms - WINDOW_MS
    newest_ms = oldest_ms = None
    for metric_type, series in window.series.items():
        sums = _SUMS.get(metric_type)
        if sums is None:
            continue
        first, last = series.range(start_ms, end_ms)
        if first == last:
            continue
        if metric_type not in _PASSIVE:
            if newest_ms is None or series.times[last - 1] > newest_ms:
                newest_ms = series.times[last - 1]
            if oldest_ms is None or series.times[first] < oldest_ms:
                oldest_ms = series.times[first]
        if last - first <= SPARSE:
            minute = bisect_right(series.times, end_ms - MINUTE_MS, first, last)
            for total, weights, lengths in sums:
                five[total] += sum(weights(series.values[first:last]))
                if lengths is _MINUTE and minute < last:
                    one[total] += sum(weights(series.values[minute:last]))
            continue
        for total, weights, lengths in sums:
            for length_ms in lengths:
                key = (metric_type, total, length_ms)
                rolling = window.rolling.get(key)
                if rolling is None:
                    rolling = window.rolling[key] = RollingSum(weights)
                amount = rolling.over(series, end_ms - length_ms, end_ms)
                (five if length_ms == WINDOW_MS else one)[total] += amount
    return oldest_ms, newest_ms


def read(window: StudentWindow, end_ms: int) -> Reading:
    """The window of 5 minutes that ends at `end_ms`."""
    five, one = [0] * _TOTALS, [0] * _TOTALS
    oldest_ms, newest_ms = _add_up(window, end_ms, five, one)
    start_ms = end_ms - WINDOW_MS
    active = newest_ms is not None and end_ms - newest_ms <= ACTIVE_MS
    wrong, right, hints = five[WRONG] / MICRO, five[RIGHT] / MICRO, five[HINTS] / MICRO
    decisions = wrong + right
    streak = last_ten = 0.0
    since_ms = 0
    if decisions > 0:
        enough = STREAK_CAP * MICRO
        streak = min(streak_micro(window, end_ms, WINDOW_MS, enough), enough) / MICRO
        last_ten = wrong_of_last(window, start_ms, end_ms)
        since_ms = _since_success(window, start_ms, end_ms)
    pace = None
    if one[TIMED]:
        pace = abs(one[LOGS] / one[TIMED] - five[LOGS] / five[TIMED]) * LN2 / LOG_STEPS
    values: Values = (
        (wrong + 1.0) / (decisions + 4.0),
        last_ten,
        streak,
        min(1.0, since_ms / WINDOW_MS),
        (one[WRONG] / MICRO + 1.0) / ((one[WRONG] + one[RIGHT]) / MICRO + 4.0),
        log1p(hints),
        -log1p(right),
        pace,
        min(1.0, five[IDLE] / (WINDOW_MS * 1_000)),
        five[CORRECTIONS] / (five[KEYS] + 20 * MICRO),
        log1p(five[BLUR] / MICRO),
        log1p(five[RAPID] / MICRO),
    )
    return Reading(
        values=values,
        coverage=_coverage(five, one),
        wrong=wrong,
        decisions=decisions,
        hints=hints,
        streak=streak,
        since_success_ms=since_ms,
        active=active,
        activity_ms=end_ms - oldest_ms if oldest_ms is not None else 0,
    )


def _coverage(five: list[int], one: list[int]) -> int:
    """One bit a feature: whether its channel brought anything."""
    decided = five[WRONG] > 0 or five[RIGHT] > 0
    there = (
        *(decided,) * 5,
        five[HINTS] > 0,
        decided,
        one[TIMED] > 0,
        five[IDLE] > 0,
        five[CORRECTIONS] > 0 or five[KEYS] > 0,
        five[BLUR] > 0,
        five[RAPID] > 0,
    )
    return sum([1 << at for at, present in enumerate(there) if present])


def log1p(value: float) -> float:
    """log(1 + value) of 0 or more to 1/64 of a doubling, the same on every machine."""
    return log2_steps(MICRO + round(value * MICRO)) * LN2 / LOG_STEPS - _LOG_MICRO


_LOG_MICRO: Final = log2_steps(MICRO) * LN2 / LOG_STEPS


def _since_success(window: StudentWindow, start_ms: int, end_ms: int) -> int:
    """Milliseconds since the last success; where there is none, since the first decision."""
    newest_ms = oldest_ms = None
    for metric_type in (*SUCCESS_TYPES, ACCURACY_TYPE):
        series = window.series.get(metric_type)
        if series is None:
            continue
        first, last = series.range(start_ms, end_ms)
        for at in range(last - 1, first - 1, -1):
            value = series.values[at]
            if metric_type == ACCURACY_TYPE:
                value = accuracy_micro(value) - MICRO // 2
            if value > 0:
                if newest_ms is None or series.times[at] > newest_ms:
                    newest_ms = series.times[at]
                break
    if newest_ms is not None:
        return end_ms - newest_ms
    for metric_type in (*ERROR_TYPES, ACCURACY_TYPE):
        series = window.series.get(metric_type)
        if series is not None:
            first, last = series.range(start_ms, end_ms)
            if first < last and (oldest_ms is None or series.times[first] < oldest_ms):
                oldest_ms = series.times[first]
    return end_ms - oldest_ms if oldest_ms is not None else 0
