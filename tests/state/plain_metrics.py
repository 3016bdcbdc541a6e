"""What windows and history must be, computed the plain way: every metric is kept, and each answer
looks at all of them. Shares no code with what it is compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

MICRO = 1_000_000
STEP_MS = 5_000

Key = tuple[str, str, str]
"""(timeline_id, student_id, app_name)."""

CHANNELS_OF = {
    "error": ["error"],
    "mistake": ["error"],
    "correct": ["correct"],
    "accuracy": ["error", "correct"],
    "response_time": ["response_time"],
    "keypress": ["keypress"],
    "pause": ["idle"],
}


@dataclass(frozen=True)
class Event:
    """One metric that was counted."""

    metric_type: str
    micro: int
    time_ms: int
    late: bool
    expired: bool
    batch: int


@dataclass
class PlainMetrics:
    """Everything that was ever accepted."""

    window_ms: int
    retention_ms: int
    type_retention: dict[str, int]
    events: dict[Key, list[Event]] = field(default_factory=lambda: defaultdict(list))
    batches: int = 0

    def accept(
        self, key: Key, metrics: Iterable[tuple[str, float, int]], clock_ms: int
    ) -> tuple[int, int, int]:
        """One batch at the clock's time, its times placed; returns accepted, late and expired."""
        self.batches += 1
        counts = [0, 0, 0]
        for metric_type, value, time_ms in metrics:
            late = time_ms <= clock_ms - self.window_ms
            expired = late and not self._kept(metric_type, self.end_of(time_ms), clock_ms)
            counts[1 if late else 0] += 1
            counts[2] += expired
            micro = round(value * MICRO)
            self.events[key].append(Event(metric_type, micro, time_ms, late, expired, self.batches))
        return counts[0], counts[1], counts[2]

    def end_of(self, time_ms: int) -> int:
        """End of the tumbling window that holds a time."""
        return math.ceil(Fraction(time_ms, self.window_ms)) * self.window_ms

    def _kept(self, metric_type: str, end_ms: int, clock_ms: int) -> bool:
        return clock_ms < end_ms + self.type_retention.get(metric_type, self.retention_ms)

    def rolling(self, key: Key, clock_ms: int) -> dict[str, dict[str, Any]]:
        """The rolling window by type."""
        found = [
            event
            for event in self.events[key]
            if not event.late and clock_ms - self.window_ms < event.time_ms <= clock_ms
        ]
        return self._figures(found)

    def history(self, key: Key, clock_ms: int) -> list[tuple[int, int, bool, dict[str, Any]]]:
        """(end, revision, closed, figures by type) of the windows that are over and kept."""
        windows: dict[int, list[Event]] = defaultdict(list)
        for event in self.events[key]:
            if not event.expired:
                windows[self.end_of(event.time_ms)].append(event)
        answer = []
        for end_ms in sorted(windows):
            shown = [e for e in windows[end_ms] if self._kept(e.metric_type, end_ms, clock_ms)]
            if end_ms <= clock_ms and shown:
                revision = len({event.batch for event in windows[end_ms] if event.late})
                closed = end_ms + self.window_ms <= clock_ms
                answer.append((end_ms, revision, closed, self._figures(shown)))
        return answer

    def inputs(self, key: Key, clock_ms: int) -> dict[tuple[str, int], tuple[int, int]]:
        """(channel, step) -> (measurements, sum) of what the detector saw up to now."""
        found: dict[tuple[str, int], tuple[int, int]] = {}
        for event in self.events[key]:
            ahead = not event.late and event.time_ms > clock_ms
            if event.expired or ahead:
                continue
            if not self._kept(event.metric_type, self.end_of(event.time_ms), clock_ms):
                continue
            for channel in CHANNELS_OF.get(event.metric_type, []):
                added = evidence(event.metric_type, channel, event.micro)
                place = channel, math.ceil(Fraction(event.time_ms, STEP_MS)) - 1
                if added:
                    count, total = found.get(place, (0, 0))
                    found[place] = count + 1, total + added
        return found

    def _figures(self, events: list[Event]) -> dict[str, dict[str, Any]]:
        by_type: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            by_type[event.metric_type].append(event)
        return {metric_type: figures(found) for metric_type, found in by_type.items()}


def figures(events: list[Event]) -> dict[str, Any]:
    """All figures of one type; percentiles are over what was not late."""
    values = [event.micro for event in events]
    ranked = sorted(event.micro for event in events if not event.late)
    mean = Fraction(sum(values), len(values))
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    times = [event.time_ms for event in events]
    answer: dict[str, Any] = {
        "count": len(values),
        "sum": sum(values) / MICRO,
        "mean": float(mean / MICRO),
        "min": min(values) / MICRO,
        "max": max(values) / MICRO,
        "stddev": math.sqrt(variance) / MICRO,
        "first_time_ms": min(times),
        "last_time_ms": max(times),
        "unranked_count": len(values) - len(ranked),
    }
    for percent in (50, 95, 99):
        place = math.ceil(Fraction(percent * len(ranked), 100)) - 1
        answer[f"p{percent}"] = ranked[place] / MICRO if ranked else 0.0
    return answer


def evidence(metric_type: str, channel: str, micro: int) -> int:
    """What one metric adds to a channel."""
    if metric_type == "accuracy":
        right = micro if micro <= MICRO else micro // 100
        right = max(0, min(right, MICRO))
        return right if channel == "correct" else MICRO - right
    if micro <= 0:
        return 0
    if channel == "response_time":
        # 1/64 of a doubling, rounded down, of the value's 9 highest bits.
        bits = micro.bit_length() - 1
        mantissa = Fraction(micro * 2**8 // 2**bits, 2**8)
        return bits * 64 + math.floor(64 * math.log2(mantissa) + 1e-9)
    return micro
