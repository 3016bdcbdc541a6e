"""All named patterns: what is announced at once, without any model. See patterns.py for errors.

- `repeated_corrections`, `excessive_corrections`: so many corrections in 60 s; a correction metric
  counts as many as its value says.
- `prolonged_hesitation`: a pause of more than 30 s (the value is its length in seconds); it stands
  for the 60 s after it ended.
- `performance_degradation`: of the accuracies of 60 s, 3 in a row are worse on average than 3 in a
  row before them, by 25 points or more. At one instant the better ones stand first.

Corrections and pauses alone say little (slow typists, a look out of the window): LOW, and MEDIUM
where the same 60 s hold an error. All figures are settings.

Whatever came in, every window that it is part of is looked at with all that is known by then, as in
patterns.py: so the worst one found does not depend on the order of arrival. In order, that costs a
constant a correction or pause; an accuracy costs the accuracies of its window.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.channels import (
    ACCURACY_TYPE,
    CORRECTION_TYPES,
    ERROR_TYPES,
    IDLE_TYPES,
    accuracy_micro,
)
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.patterns import ERRORS_GROUP, ErrorLimits, Finding, assess
from gaia_grpc.state.series import Series
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.windows import StudentWindow

CORRECTIONS_GROUP: Final = "corrections"
HESITATION_GROUP: Final = "hesitation"
PERFORMANCE_GROUP: Final = "performance"
STRUGGLE_GROUP: Final = "struggle"
"""Of what the model says alone; it has no pattern of its own name."""
GROUPS: Final = (ERRORS_GROUP, CORRECTIONS_GROUP, HESITATION_GROUP, PERFORMANCE_GROUP)

REPEATED_CORRECTIONS: Final = "repeated_corrections"
EXCESSIVE_CORRECTIONS: Final = "excessive_corrections"
PROLONGED_HESITATION: Final = "prolonged_hesitation"
PERFORMANCE_DEGRADATION: Final = "performance_degradation"
MIXED_STRUGGLE: Final = "mixed_struggle"
"""Of two groups that stand at once; who keeps the records finds it."""

Touched: TypeAlias = Sequence[tuple[str, int, int]]
"""(metric_type, earliest, latest time in milliseconds) of what a batch brought into a window."""
Weight: TypeAlias = Callable[[int], int]
"""What a value in micro-units counts, in micro-units; 0 or less is nothing."""
Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PatternLimits:
    """The thresholds of all patterns."""

    errors: ErrorLimits
    repeated_corrections: int
    excessive_corrections: int
    hesitation_micro: int
    """Length of a pause in millionths of a second; longer ones are prolonged."""
    fall_micro: int
    """A fall of the accuracy, in millionths."""
    answers: int
    """Accuracies on either side of a fall."""

    @property
    def window_ms(self) -> int:
        """All patterns look at windows of one length."""
        return self.errors.window_ms


def read_limits(settings: Settings) -> PatternLimits:
    """The thresholds as the settings say."""
    return PatternLimits(
        errors=ErrorLimits(
            window_ms=settings.milliseconds("alert.errors_window"),
            repeated=settings.integer("alert.repeated_errors"),
            excessive=settings.integer("alert.excessive_errors"),
            streak=settings.integer("alert.critical_streak"),
            lookback_ms=settings.milliseconds("metrics.window"),
        ),
        repeated_corrections=settings.integer("alert.repeated_corrections"),
        excessive_corrections=settings.integer("alert.excessive_corrections"),
        hesitation_micro=settings.milliseconds("alert.hesitation_after") * MICRO // 1_000,
        fall_micro=settings.integer("alert.accuracy_fall") * MICRO // 100,
        answers=settings.integer("alert.accuracy_answers"),
    )


def find(window: StudentWindow, touched: Touched, limits: PatternLimits) -> list[Finding]:
    """What stands in the windows that the metrics of a batch are part of: at most one finding a
    group, in the order of `GROUPS`."""
    errors = span_of(touched, ERROR_TYPES)
    # An error makes a pattern beside it more severe, so it is looked at again.
    corrections = span_of(touched, (*CORRECTION_TYPES, *ERROR_TYPES))
    pauses = span_of(touched, (*IDLE_TYPES, *ERROR_TYPES))
    accuracies = span_of(touched, (ACCURACY_TYPE,))
    found = (
        assess(window, *errors, limits.errors) if errors else None,
        find_corrections(window, corrections, limits) if corrections else None,
        find_hesitation(window, pauses, limits) if pauses else None,
        find_fall(window, accuracies, limits) if accuracies else None,
    )
    return [finding for finding in found if finding is not None]


def span_of(touched: Touched, types: Sequence[str]) -> Span | None:
    """Earliest and latest time of some types."""
    spans = [(from_ms, to_ms) for name, from_ms, to_ms in touched if name in types]
    if not spans:
        return None
    return min([each[0] for each in spans]), max([each[1] for each in spans])


# --- so much in a window --------------------------------------------------------------------------


def find_corrections(window: StudentWindow, span: Span, limits: PatternLimits) -> Finding | None:
    """The worst window with corrections that something between the two times is part of."""
    steps = (
        (limits.repeated_corrections * MICRO, REPEATED_CORRECTIONS),
        (limits.excessive_corrections * MICRO, EXCESSIVE_CORRECTIONS),
    )
    return _count(window, CORRECTIONS_GROUP, CORRECTION_TYPES, int, span, steps, limits.window_ms)


def find_hesitation(window: StudentWindow, span: Span, limits: PatternLimits) -> Finding | None:
    """A long pause in a window that something between the two times is part of."""
    least = limits.hesitation_micro
    steps = ((least + 1, PROLONGED_HESITATION),)
    return _count(
        window,
        HESITATION_GROUP,
        IDLE_TYPES,
        lambda value: value if value > least else 0,
        span,
        steps,
        limits.window_ms,
    )


def _count(
    window: StudentWindow,
    group: str,
    types: Sequence[str],
    weight: Weight,
    span: Span,
    steps: Sequence[tuple[int, str]],
    window_ms: int,
) -> Finding | None:
    """The worst of the windows that end from `span[0]` to less than their length after `span[1]`.

    `steps` are (least amount, pattern), ascending. Worse is: beside an error; then more.
    """
    least, most = steps[0][0], steps[-1][0]
    events = _events(window, types, weight, span, most, window_ms)
    if sum([amount for _, amount in events]) < least:
        return None
    rank = (-1, -1)
    at_ms = hold_until_ms = largest = 0
    total = tight_total = first = tight = position = 0
    for end_ms in _ends(window, events, span, window_ms):
        while position < len(events) and events[position][0] <= end_ms:
            total += events[position][1]
            tight_total += events[position][1]
            position += 1
        while first < position and events[first][0] <= end_ms - window_ms:
            total -= events[first][1]
            first += 1
        while tight < position and tight_total - events[tight][1] >= least:
            tight_total -= events[tight][1]
            tight += 1
        if total < least:
            continue
        largest = max(largest, total)
        hold_until_ms = max(hold_until_ms, events[tight][0] + window_ms)
        step = max([at for at, (amount, _) in enumerate(steps) if total >= amount])
        now = (int(_failed(window, end_ms - window_ms, end_ms)), step)
        if now[0] > rank[0] or now[1] > rank[1]:
            rank = (max(now[0], rank[0]), max(now[1], rank[1]))
            at_ms = end_ms
    if rank[1] < 0:
        return None
    severity = alert_pb2.SEVERITY_MEDIUM if rank[0] else alert_pb2.SEVERITY_LOW
    return Finding(
        pattern=steps[rank[1]][1],
        severity=severity,
        at_ms=at_ms,
        errors_micro=0,
        hold_until_ms=hold_until_ms,
        group=group,
        amount_micro=largest,
    )


def _events(
    window: StudentWindow,
    types: Sequence[str],
    weight: Weight,
    span: Span,
    most: int,
    window_ms: int,
) -> list[tuple[int, int]]:
    """(time, amount) ascending, from as far back as is needed to know what the windows that end at
    `span[0]` or later hold, up to `most`."""
    found: list[tuple[int, int]] = []
    ranges = []
    begin_ms = span[0] - window_ms
    for metric_type in types:
        series = window.series.get(metric_type)
        if series is None:
            continue
        first, last = series.range(span[0] - window_ms, span[1] + window_ms - 1)
        if first < last:
            ranges.append((series, first, last))
            # Where so much of one type stands alone, what is older changes nothing.
            enough_ms = _back(series, first, last, span[0], weight, most)
            if enough_ms is not None:
                begin_ms = max(begin_ms, enough_ms)
    for series, first, last in ranges:
        begin = bisect_left(series.times, begin_ms, first, last)
        found += zip(series.times[begin:last], map(weight, series.values[begin:last]), strict=True)
    found.sort()
    return [event for event in found if event[1] > 0]


def _back(
    series: Series, first: int, last: int, before_ms: int, weight: Weight, enough: int
) -> int | None:
    """The latest time from which on there is enough up to `before_ms`, if there is any."""
    total = 0
    for at in range(bisect_right(series.times, before_ms, first, last) - 1, first - 1, -1):
        total += max(weight(series.values[at]), 0)
        if total >= enough:
            return series.times[at]
    return None


def _ends(
    window: StudentWindow, events: Sequence[tuple[int, int]], span: Span, window_ms: int
) -> list[int]:
    """Where the windows end: at what counts, and at errors."""
    through_ms = span[1] + window_ms - 1
    ends = {time_ms for time_ms, _ in events if time_ms >= span[0]}
    for metric_type in ERROR_TYPES:
        series = window.series.get(metric_type)
        if series is not None:
            first, last = series.range(span[0] - 1, through_ms)
            ends.update(series.times[first:last])
    return sorted(ends)


def _failed(window: StudentWindow, start_ms: int, end_ms: int) -> bool:
    """Whether `start_ms < t <= end_ms` holds an error."""
    for metric_type in ERROR_TYPES:
        series = window.series.get(metric_type)
        if series is not None:
            first, last = series.range(start_ms, end_ms)
            if any(value > 0 for value in series.values[first:last]):
                return True
    return False


# --- a fall ---------------------------------------------------------------------------------------


def find_fall(window: StudentWindow, span: Span, limits: PatternLimits) -> Finding | None:
    """The largest fall of the accuracy inside a window that something in the span is part of."""
    series = window.series.get(ACCURACY_TYPE)
    if series is None:
        return None
    window_ms, answers = limits.window_ms, limits.answers
    first, last = series.range(span[0] - window_ms, span[1] + window_ms - 1)
    if last - first < 2 * answers:
        return None
    events = sorted(
        (series.times[at], -accuracy_micro(series.values[at])) for at in range(first, last)
    )
    rows = [
        (events[at][0], events[at + answers - 1][0], -sum([each[1] for each in part]))
        for at in range(len(events) - answers + 1)
        for part in (events[at : at + answers],)
    ]
    enough = limits.fall_micro * answers
    at_ms = hold_until_ms = largest = 0
    best: list[int] = []  # rows that may be the best before: later ones are worse
    oldest = 0
    for at in range(answers, len(rows)):
        end_ms, total = rows[at][1], rows[at][2]
        before = at - answers
        while len(best) > oldest and rows[best[-1]][2] <= rows[before][2]:
            best.pop()
        best.append(before)
        while rows[best[oldest]][0] <= end_ms - window_ms:
            oldest += 1
            if oldest == len(best):
                break
        if oldest == len(best) or end_ms < span[0]:
            continue
        fall = rows[best[oldest]][2] - total
        if fall < enough:
            continue
        if not at_ms:
            at_ms = end_ms
        largest = max(largest, fall)
        # They get worse from row to row: the last that is better by enough ends the last window.
        past = bisect_right(best, -(total + enough), oldest, key=lambda each: -rows[each][2])
        hold_until_ms = max(hold_until_ms, rows[best[past - 1]][0] + window_ms)
    if not at_ms:
        return None
    return Finding(
        pattern=PERFORMANCE_DEGRADATION,
        severity=alert_pb2.SEVERITY_MEDIUM,
        at_ms=at_ms,
        errors_micro=0,
        hold_until_ms=hold_until_ms,
        group=PERFORMANCE_GROUP,
        amount_micro=largest // answers,
    )
