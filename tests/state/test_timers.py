"""Timers fire in the order of their due times, once, unless they were cancelled."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.timers import COMPACT_AT_LEAST, TIMERS_PER_CANCEL, Timer, Timers


def recording(timers: Timers, *kinds: str) -> list[tuple[str, int | str]]:
    fired: list[tuple[str, int | str]] = []
    for kind in kinds:
        timers.register(kind, lambda key, kind=kind: fired.append((kind, key)))  # type: ignore[misc]  # default argument binds the loop variable
    return fired


def test_due_time_then_kind_then_key_decides_the_order() -> None:
    timers = Timers()
    fired = recording(timers, "b", "a")
    for due_ms, kind, key in ((5, "b", 1), (5, "a", 2), (5, "a", 1), (4, "b", 9), (6, "a", 0)):
        timers.schedule(due_ms, kind, key)
    assert timers.next_due_ms() == 4
    assert timers.fire_due(5, limit=100) == 4
    assert fired == [("b", 9), ("a", 1), ("a", 2), ("b", 1)]
    assert timers.next_due_ms() == 6
    assert len(timers) == 1


def test_the_limit_leaves_the_rest_due() -> None:
    timers = Timers()
    fired = recording(timers, "a")
    for key in range(5):
        timers.schedule(1, "a", key)
    assert timers.fire_due(1, limit=3) == 3
    assert timers.next_due_ms() == 1
    assert timers.fire_due(1, limit=3) == 2
    assert [key for _, key in fired] == [0, 1, 2, 3, 4]
    assert timers.next_due_ms() is None


def test_a_timer_that_is_set_again_fires_at_its_new_time_only() -> None:
    timers = Timers()
    fired = recording(timers, "a")
    first = timers.schedule(1, "a", 7)
    timers.cancel(first)
    timers.schedule(1, "a", 7)
    assert timers.fire_due(1, limit=9) == 1
    assert fired == [("a", 7)]


def test_cancelled_timers_take_no_lasting_room() -> None:
    timers = Timers()
    recording(timers, "a")
    for key in range(50 * COMPACT_AT_LEAST):
        timers.cancel(timers.schedule(1_000_000 + key, "a", key))
    assert len(timers) == 0
    assert len(timers._heap) + len(timers._moved) <= 3 * COMPACT_AT_LEAST


def test_many_cancelled_timers_go_in_steps() -> None:
    timers = Timers()
    fired = recording(timers, "a")
    kept = [timers.schedule(number, "a", number) for number in range(20_000)]
    lengths = [len(timers._heap) + len(timers._moved)]
    for timer in kept[1::2] + kept[::4]:
        timers.cancel(timer)
        lengths.append(len(timers._heap) + len(timers._moved))
        assert timers.next_due_ms() == min(0 if len(lengths) <= 10_001 else 2, 2)
    assert max(before - after for before, after in pairwise(lengths)) <= TIMERS_PER_CANCEL + 2
    assert lengths[-1] < 11_000
    assert timers.live() == [(number, "a", number) for number in range(2, 20_000, 4)]
    assert timers.fire_due(20_000, limit=20_000) == 5_000
    assert [key for _, key in fired] == list(range(2, 20_000, 4))


def test_a_timer_with_much_to_do_counts_for_many() -> None:
    timers = Timers()
    fired: list[int | str] = []

    def heavy(key: int | str) -> None:
        fired.append(key)
        timers.spend(2)

    timers.register("a", heavy)
    for key in range(5):
        timers.schedule(1, "a", key)
    timers.spend(100)  # of a command, no timer's
    assert timers.fire_due(1, limit=5) == 2
    assert timers.fire_due(1, limit=5) == 2
    assert timers.fire_due(1, limit=5) == 1
    assert fired == [0, 1, 2, 3, 4]


def test_a_kind_has_one_handler() -> None:
    timers = Timers()
    recording(timers, "a")
    with pytest.raises(ValueError, match="two handlers"):
        recording(timers, "a")


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=600),
    st.integers(0, 25),
)
def test_timers_agree_with_a_sorted_list(plan: list[tuple[int, bool]], now_ms: int) -> None:
    timers = Timers()
    fired = recording(timers, "a")
    kept: list[Timer] = []
    for key, (due_ms, cancel) in enumerate(plan):
        timer = timers.schedule(due_ms, "a", key)
        if cancel:
            timers.cancel(timer)
        else:
            kept.append(timer)
    assert len(timers) == len(kept)
    assert timers.next_due_ms() == (min(kept)[0] if kept else None)
    timers.fire_due(now_ms, limit=10_000)
    assert [key for _, key in fired] == [timer[2] for timer in sorted(kept) if timer[0] <= now_ms]
