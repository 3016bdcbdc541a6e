"""Aggregates of a cluster beside what the plain oracle says of the same metrics."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from gaia.metrics.v1 import metrics_pb2

from tests.state.plain_metrics import MICRO, Event, figures

Measured = tuple[str, float]
"""(metric_type, value)."""
TYPES = ("keypress", "backspace", "error", "response_time")
WINDOW_MS = 300_000
TIMES = ("first_time_ms", "last_time_ms")
"""Of live metrics only the cluster knows these."""


def draw(seed: int, count: int) -> list[Measured]:
    """Metrics of four types with values in thousandths."""
    rng = random.Random(seed)
    return [(rng.choice(TYPES), rng.randrange(0, 5_000_000) / 1_000) for _ in range(count)]


def expected_of(measured: Iterable[Measured]) -> dict[str, dict[str, Any]]:
    """The figures of each type, whenever it was measured."""
    events: dict[str, list[Event]] = defaultdict(list)
    for metric_type, value in measured:
        micro = round(value * MICRO)
        events[metric_type].append(Event(metric_type, micro, 0, late=False, expired=False, batch=1))
    found = {metric_type: figures(each) for metric_type, each in events.items()}
    for figures_of_type in found.values():
        for name in TIMES:
            del figures_of_type[name]
    return found


def assert_figures(
    metrics: Iterable[metrics_pb2.MetricAggregate],
    expected: dict[str, dict[str, Any]],
    window_ms: int = WINDOW_MS,
) -> None:
    """Equal to the last bit, but for the root."""
    found = list(metrics)
    assert [metric.metric_type for metric in found] == sorted(expected)
    for metric in found:
        wanted = dict(expected[metric.metric_type])
        assert math.isclose(metric.stddev, wanted.pop("stddev"), rel_tol=1e-12), metric
        assert {name: getattr(metric, name) for name in wanted} == wanted, metric.metric_type
        assert metric.rate_per_second == metric.count * 1_000 / window_ms


def assert_measured(aggregate: metrics_pb2.Aggregate, measured: Iterable[Measured]) -> None:
    """The window holds these metrics and no others."""
    values = list(measured)
    assert_figures(aggregate.metrics, expected_of(values))
    assert aggregate.accepted_total == len(values)
    assert (aggregate.late_total, aggregate.omitted_total) == (0, 0)
