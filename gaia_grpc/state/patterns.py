"""Named patterns over rolling windows: what is announced at once, without any model.

`repeated_errors` is 3 or more errors in 60 s, `excessive_errors` 5 or more; the second is critical
where 8 or more errors in a row stand before it without a correct answer between (the figures are
settings). A window ends at each error, half open like every window here, so no boundary can hide a
burst. An error metric counts as many errors as its value says; a value of 0 or less is none.

Whatever came in, every window that a new error is part of is looked at with all that is known by
then. The windows of one set of errors are the same in any order of arrival, and each is complete
when its last error comes: so the worst one found does not depend on their order. At one instant,
correct answers stand before errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.channels import ERROR_TYPES, SUCCESS_TYPES
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.series import Series
from gaia_grpc.state.windows import StudentWindow

REPEATED_ERRORS: Final = "repeated_errors"
EXCESSIVE_ERRORS: Final = "excessive_errors"
ERRORS_GROUP: Final = "errors"


@dataclass(frozen=True, slots=True)
class ErrorLimits:
    """The thresholds, in whole errors, and the window in milliseconds."""

    window_ms: int
    repeated: int
    excessive: int
    streak: int
    lookback_ms: int
    """How far back a streak is followed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The worst of the windows that were looked at."""

    pattern: str
    severity: int
    """`gaia.alert.v1.Severity`."""
    at_ms: int
    """Time of the error that first made it as severe."""
    errors_micro: int
    """Most errors in any of the windows, in millionths."""
    hold_until_ms: int
    """From here on the pattern does not hold, as far as is known: of errors, fewer than the
    repeated ones are in the window."""
    group: str = ERRORS_GROUP
    """What kind of pattern it is (pattern_rules.py); one episode each."""
    amount_micro: int = 0
    """What was found of another kind than errors: corrections, seconds, or a fall in shares, in
    millionths."""


def errors_between(window: StudentWindow, start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """(time, micro-errors) of `start_ms < t <= end_ms`, ascending."""
    found: list[tuple[int, int]] = []
    for metric_type in ERROR_TYPES:
        series = window.series.get(metric_type)
        if series is not None:
            first, last = series.range(start_ms, end_ms)
            found += zip(series.times[first:last], series.values[first:last], strict=True)
    found.sort()  # linear where one type alone is there
    return [event for event in found if event[1] > 0]


def assess(window: StudentWindow, from_ms: int, to_ms: int, limits: ErrorLimits) -> Finding | None:
    """The worst window that errors of `from_ms <= t <= to_ms` are part of; None where none is bad.

    An error is part of the windows that end less than their length after it, and of the streaks
    that end less than the lookback after it: errors at 0, 0, 0, 1, 1, 1, 1, 60 are critical at 60
    also where one of those at 0, which the window does not hold, comes last.
    """
    reach_ms = max(limits.window_ms, limits.lookback_ms)
    events = errors_between(window, from_ms - limits.window_ms, to_ms + reach_ms - 1)
    repeated = limits.repeated * MICRO
    if sum([weight for _, weight in events]) < repeated:
        return None
    severity = at_ms = most_errors = hold_until_ms = 0
    first = tight = 0  # positions: first event in the window; last from which it still suffices
    errors = tight_errors = 0
    # A streak grows by each error at most, so most errors need no look at it.
    longest_streak = enough = limits.streak * MICRO
    for position, (time_ms, weight) in enumerate(events):
        errors += weight
        tight_errors += weight
        longest_streak += weight
        while events[first][0] <= time_ms - limits.window_ms:
            errors -= events[first][1]
            first += 1
        while tight_errors - events[tight][1] >= repeated:
            tight_errors -= events[tight][1]
            tight += 1
        simultaneous = position + 1 < len(events) and events[position + 1][0] == time_ms
        if simultaneous or time_ms < from_ms or errors < repeated:
            continue
        most_errors = max(most_errors, errors)
        hold_until_ms = max(hold_until_ms, events[tight][0] + limits.window_ms)
        found: int = alert_pb2.SEVERITY_MEDIUM
        if errors >= limits.excessive * MICRO:
            found = alert_pb2.SEVERITY_HIGH
            if longest_streak >= enough and severity < alert_pb2.SEVERITY_CRITICAL:
                longest_streak = streak_micro(window, time_ms, limits.lookback_ms, enough)
                if longest_streak >= enough:
                    found = alert_pb2.SEVERITY_CRITICAL
        if found > severity:
            severity, at_ms = found, time_ms
    if not severity:
        return None
    pattern = REPEATED_ERRORS if severity == alert_pb2.SEVERITY_MEDIUM else EXCESSIVE_ERRORS
    return Finding(pattern, severity, at_ms, most_errors, hold_until_ms)


def streak_micro(window: StudentWindow, at_ms: int, lookback_ms: int, enough_micro: int) -> int:
    """Errors in a row up to `at_ms` without a success between, in millionths.

    Followed back no further than `lookback_ms`, and no further than there are enough in one type:
    a sum needs no common order of the types, so a few steps in each will do.
    """
    start_ms = at_ms - lookback_ms
    for metric_type in SUCCESS_TYPES:
        series = window.series.get(metric_type)
        if series is not None:
            first, last = series.range(start_ms, at_ms)
            for at in range(last - 1, first - 1, -1):
                if series.values[at] > 0:
                    # Errors of the same instant come after the success.
                    start_ms = series.times[at] - 1
                    break
    total = 0
    for metric_type in ERROR_TYPES:
        series = window.series.get(metric_type)
        if series is not None:
            total += _count_back(series, start_ms, at_ms, enough_micro)
    return total


def _count_back(series: Series, start_ms: int, end_ms: int, enough_micro: int) -> int:
    """Errors of `start_ms < t <= end_ms`, from the newest back, until there are enough."""
    first, last = series.range(start_ms, end_ms)
    total = 0
    for at in range(last - 1, first - 1, -1):
        if total >= enough_micro:
            break
        total += max(series.values[at], 0)
    return total
