"""Windows against a dumb twin: a list of everything, looked through at each question."""

from __future__ import annotations

import random
from array import array
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.series import CUT_AT_LEAST, Series
from gaia_grpc.state.windows import (
    StudentWindow,
    Summary,
    nearest_rank,
    standard_deviation,
)

WINDOW_MS = 1_000
Metric = tuple[int, int]
"""(time_ms, micro-units)."""

METRICS = st.lists(st.tuples(st.integers(0, 3_000), st.integers(-(10**15), 10**15)), max_size=40)
BATCHES = st.lists(METRICS.filter(bool), max_size=12)


def series_of(*batches: list[Metric]) -> Series:
    series = Series()
    for batch in batches:
        series.extend([time for time, _ in batch], array("q", [value for _, value in batch]))
    return series


def window_of(batches: list[tuple[str, list[Metric]]]) -> StudentWindow:
    window = StudentWindow()
    for kind, batch in batches:
        times, values = [time for time, _ in batch], array("q", [value for _, value in batch])
        window.add(kind, times, values, cut_ms=-(10**9))
    return window


def exact_deviation(values: list[int]) -> float:
    getcontext().prec = 60
    count = len(values)
    mean = Fraction(sum(values), count)
    variance = sum(((value - mean) ** 2 for value in values), Fraction(0)) / count
    root = (Decimal(variance.numerator) / Decimal(variance.denominator)).sqrt()
    return float(root / 1_000_000)


def twin(kind: str, metrics: list[Metric], end_ms: int) -> Summary | None:
    """The figures of one type by their definitions."""
    inside = [(time, value) for time, value in metrics if end_ms - WINDOW_MS < time <= end_ms]
    if not inside:
        return None
    values = sorted(value for _, value in inside)
    count = len(values)

    def rank(percent: int) -> float:
        at = next(at for at in range(1, count + 1) if at * 100 >= percent * count)
        return values[at - 1] / 1_000_000

    return Summary(
        metric_type=kind,
        count=count,
        sum=float(Fraction(sum(values), 10**6)),
        mean=float(Fraction(sum(values), count * 10**6)),
        min=values[0] / 1_000_000,
        max=values[-1] / 1_000_000,
        stddev=exact_deviation(values),
        p50=rank(50),
        p95=rank(95),
        p99=rank(99),
        first_time_ms=min(time for time, _ in inside),
        last_time_ms=max(time for time, _ in inside),
    )


# --- series ------------------------------------------------------------------------------------


@given(BATCHES)
def test_a_series_is_sorted_whatever_the_order_of_arrival(batches: list[list[Metric]]) -> None:
    series = series_of(*batches)
    pairs = list(zip(series.times, series.values, strict=True))
    assert list(series.times) == sorted(series.times)
    assert sorted(pairs) == sorted(metric for batch in batches for metric in batch)


def test_a_few_late_metrics_go_into_a_long_series() -> None:
    """The way of single insertions: many metrics behind, few to insert."""
    series = series_of([(time, time) for time in range(0, 1_000, 2)], [(11, 11), (501, 501)])
    assert list(series.times) == sorted([*range(0, 1_000, 2), 11, 501])
    assert list(series.values) == list(series.times)


@given(BATCHES, st.integers(-10, 3_100))
def test_cutting_keeps_everything_after_the_cut(batches: list[list[Metric]], cut: int) -> None:
    series = series_of(*batches)
    kept = [time for time in series.times if time > cut]
    series.cut(cut)
    assert [time for time in series.times if time > cut] == kept
    assert len(series.values) == len(series.times)
    assert len(series.times) - len(kept) < CUT_AT_LEAST


def test_a_long_series_is_cut_in_large_pieces() -> None:
    """So that the move of what stays is spread over many metrics."""
    series = series_of([(time, 0) for time in range(10_000)])
    series.cut(300)
    assert len(series.times) == 10_000
    series.cut(700)
    assert series.times[0] == 701
    series.cut(100_000)
    assert not series.times


@given(BATCHES, st.integers(-10, 3_100), st.integers(-10, 3_100))
def test_a_range_is_half_open(batches: list[list[Metric]], start: int, end: int) -> None:
    series = series_of(*batches)
    first, last = series.range(start, end)
    expected = [time for time in series.times if start < time <= end]
    assert list(series.times[first:last]) == expected


# --- windows -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), METRICS.filter(bool)), max_size=10), st.data())
def test_a_window_equals_its_twin_at_every_end(
    batches: list[tuple[str, list[Metric]]], data: st.DataObject
) -> None:
    window = window_of(batches)
    for end_ms in data.draw(st.lists(st.integers(-10, 4_200), min_size=1, max_size=8)):
        expected = [
            summary
            for kind in "abc"
            if (summary := twin(kind, [m for k, b in batches if k == kind for m in b], end_ms))
        ]
        assert list(window.summaries(end_ms, WINDOW_MS)) == expected


@given(st.lists(st.tuples(st.sampled_from("ab"), METRICS.filter(bool)), max_size=8), st.randoms())
def test_the_order_of_arrival_does_not_matter(
    batches: list[tuple[str, list[Metric]]], shuffle: random.Random
) -> None:
    singles = [(kind, [metric]) for kind, batch in batches for metric in batch]
    shuffle.shuffle(singles)
    expected = window_of(batches).summaries(2_000, WINDOW_MS)
    assert window_of(singles).summaries(2_000, WINDOW_MS) == expected


def test_a_kept_answer_ends_when_a_metric_leaves_or_comes_into_the_window() -> None:
    window = window_of([("a", [(100, 1), (1_500, 2)])])
    ends = [100, 101, 1_099, 1_100, 1_499, 1_500, 2_499, 2_500, 100, 1_500]
    found = [[entry.count for entry in window.summaries(end, WINDOW_MS)] for end in ends]
    assert found == [[1], [1], [1], [], [], [1], [1], [], [1], [1]]


def test_a_quiet_window_is_computed_once() -> None:
    window = window_of([("a", [(100, 1)])])
    first = window.summaries(500, WINDOW_MS)
    assert window.summaries(600, WINDOW_MS) is first
    assert window.summaries(600, 2 * WINDOW_MS) is not first


def test_both_ends_of_the_window() -> None:
    """M3: the first point of a window is lost where both ends are open."""
    window = window_of([("a", [(0, 1), (1, 1), (1_000, 1), (1_001, 1)])])
    (summary,) = window.summaries(1_000, WINDOW_MS)
    assert (summary.count, summary.first_time_ms, summary.last_time_ms) == (2, 1, 1_000)


def test_types_that_nothing_is_left_of_are_swept() -> None:
    window = window_of([("a", [(100, 1)]), ("b", [(900, 1)])])
    window.sweep(500, every_ms=100)
    assert sorted(window.series) == ["b"]
    window.sweep(950, every_ms=1_000)
    assert sorted(window.series) == ["b"]
    window.sweep(1_500, every_ms=1_000)
    assert not window.series


# --- figures -----------------------------------------------------------------------------------


@given(st.lists(st.integers(-(9 * 10**15), 9 * 10**15), min_size=1, max_size=50))
def test_the_deviation_is_exact_to_the_last_bit_but_one(values: list[int]) -> None:
    squares = sum(value * value for value in values)
    found = standard_deviation(len(values), sum(values), squares)
    assert found == pytest.approx(exact_deviation(values), rel=1e-15, abs=0)


def test_the_deviation_of_large_close_values_does_not_cancel() -> None:
    values = [9 * 10**15, 9 * 10**15 - 2]
    squares = sum(value * value for value in values)
    assert standard_deviation(2, sum(values), squares) == 1e-6


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 3), (95, 5), (99, 5), (20, 1), (21, 2), (100, 5), (1, 1)]
)
def test_percentiles_by_nearest_rank(percent: int, expected: int) -> None:
    assert nearest_rank([1, 2, 3, 4, 5], percent) == expected


def test_defect_20_percentiles_come_from_sorted_values() -> None:
    """The original took the mean of an unsorted prefix."""
    window = window_of([("a", [(10, 9), (11, 1), (12, 5), (13, 7), (14, 3)])])
    (summary,) = window.summaries(20, WINDOW_MS)
    assert (summary.p50, summary.p95, summary.p99) == (5e-6, 9e-6, 9e-6)
