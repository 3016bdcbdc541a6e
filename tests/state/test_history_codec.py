"""A packed past window is the window, to the last bit, and damage is told."""

from __future__ import annotations

from array import array
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state import channels, history_codec, varints
from gaia_grpc.state.history_codec import PastWindow
from gaia_grpc.state.series import Series

START_MS = 1_700_000_000_000
VALUES = st.one_of(
    st.sampled_from([0, 1_000_000, 2_000_000, -5_000_000, 500_000]),
    st.integers(-(9 * 10**15), 9 * 10**15),
    st.integers(0, 10_000).map(lambda value: value * 1_000),
)
METRICS = st.lists(st.tuples(st.integers(1, 300_000), VALUES), min_size=1, max_size=20)
TYPES = st.sampled_from(["error", "accuracy", "response_time", "keypress", "x"])


def series(metrics: list[tuple[int, int]]) -> Series:
    """Metrics at (milliseconds after the start, micro-value)."""
    found = Series()
    found.extend([START_MS + at for at, _ in metrics], array("q", [value for _, value in metrics]))
    return found


def past_window(parts: list[tuple[str, list[tuple[int, int]], bool]]) -> PastWindow:
    """A window of these columns, added one after another."""
    window = PastWindow(START_MS, START_MS + 300_000)
    for metric_type, metrics, ranked in parts:
        part = series(metrics)
        window.add_series(metric_type, part, 0, len(part.times), ranked=ranked)
    return window


@given(st.lists(st.tuples(TYPES, METRICS, st.booleans()), max_size=6), st.integers(0, 300))
def test_a_window_comes_back_as_it_was(
    parts: list[tuple[str, list[tuple[int, int]], bool]], number: int
) -> None:
    window = past_window(parts)
    window.revision = number
    if number % 3 == 0:
        window.of("gap").omitted = number
    packed = history_codec.encode(window)
    decoded = history_codec.decode(packed, window.types(), window.end_ms)
    assert decoded == window
    assert history_codec.encode(decoded) == packed


@given(st.lists(METRICS, min_size=1, max_size=5), st.randoms())
def test_exact_figures_do_not_depend_on_the_order_of_adding(
    parts: list[list[tuple[int, int]]], shuffle: object
) -> None:
    once = past_window([("error", [each for part in parts for each in part], False)])
    there = past_window([("error", part, False) for part in parts])
    back = past_window([("error", part, False) for part in reversed(parts)])
    assert once == there == back


def test_whole_counts_are_short() -> None:
    """What a window of 5 types takes is a promise of the documentation."""
    ones = [(at * 1_000 + 1, 1_000_000) for at in range(290)]
    times = [(at * 1_000 + 1, 1_234_000 + at * 7_919_000 % 9_000_000) for at in range(290)]
    parts = [(kind, ones, True) for kind in ("error", "correct", "keypress", "backspace")]
    window = past_window([*parts, ("response_time", times, True)])
    figures = PastWindow(window.start_ms, window.end_ms, 0, window.figures)
    assert len(history_codec.encode(figures)) <= 110
    assert len(history_codec.encode(window)) <= 450


@given(st.integers(0, 1 << 200), st.integers(-(1 << 80), 1 << 80))
def test_numbers_of_any_size(value: int, signed: int) -> None:
    encoded = bytearray()
    varints.append(encoded, value)
    varints.append_signed(encoded, signed)
    reader = varints.Reader(bytes(encoded))
    assert (reader.take(), reader.take_signed()) == (value, signed)
    assert reader.at_end
    with pytest.raises(ValueError, match="cut short"):
        reader.take()


def test_bytes_that_are_no_window_are_refused() -> None:
    window = past_window([("error", [(1, 5), (2, 7)], True), ("keypress", [(3, 1)], True)])
    packed = history_codec.encode(window)
    refused = 0
    for size in range(len(packed)):
        try:
            history_codec.decode(packed[:size], window.types(), window.end_ms)
        except ValueError:
            refused += 1
    # Where a channel ends the rest may be missing: a snapshot's digest is what tells that.
    assert refused >= len(packed) - 3
    for bad in (b"\x00\x00\x09", packed + b"\xff\x00\x01\x00", packed + packed[-5:]):
        with pytest.raises(ValueError, match=r"cut short|no column|no power|unranked"):
            history_codec.decode(bad, window.types(), window.end_ms)


def test_a_logarithm_in_whole_numbers() -> None:
    values = [*range(1, 3_000), *(10**power + 7 for power in range(4, 16)), 9 * 10**15]
    before = 0
    for value in values:
        found = channels.log2_steps(value)
        assert found >= before
        assert 0 <= log2(value) * channels.LOG_STEPS - found < 1.5
        before = found


def test_one_vocabulary() -> None:
    assert len(channels.CHANNELS) == len(set(channels.CHANNELS)) == 10
    for types in (channels.ERROR_TYPES, channels.SUCCESS_TYPES):
        assert all(channels.PLACES_OF[name] for name in types)
    assert channels.PLACES_OF["accuracy"] == (0, 1)
    assert channels.PLACES_OF["help"] == channels.PLACES_OF["hint"]
    assert "typing_speed" not in channels.PLACES_OF
