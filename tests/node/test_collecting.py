"""A full collection that took long is the last one over what it has looked at."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gaia_grpc.node.collecting import LONG_NS, ShortCollections


class Clock:
    """Goes on by `step_ns` with each look at it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.step_ns = 0

    def __call__(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="collections")
def _collections(clock: Clock) -> Iterator[ShortCollections]:
    collections = ShortCollections(clock)
    collections.install()
    yield collections
    collections.remove()
    gc.unfreeze()


def test_what_a_long_collection_left_is_kept_out_of_later_ones(
    collections: ShortCollections, clock: Clock
) -> None:
    before = gc.get_freeze_count()
    records = [[number] for number in range(10_000)]
    clock.step_ns = LONG_NS
    gc.collect()
    assert collections.frozen == 1
    assert gc.get_freeze_count() >= before + len(records)
    gc.collect(1)
    assert collections.frozen == 1, "only full collections count"


def test_after_a_short_collection_all_goes_on(collections: ShortCollections, clock: Clock) -> None:
    before = gc.get_freeze_count()
    clock.step_ns = LONG_NS - 1
    gc.collect()
    assert (collections.frozen, gc.get_freeze_count()) == (0, before)


def test_a_state_that_grows_never_makes_a_long_standstill(
    collections: ShortCollections, clock: Clock
) -> None:
    """The clock counts the objects that a collection looks at: 100 ns each."""
    seen: list[int] = []

    def count(phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2 and phase == "start":
            seen.append(len(gc.get_objects()))
            clock.now_ns = 0
            clock.step_ns = seen[-1] * 100
        elif info["generation"] == 2:
            assert clock.step_ns == seen[-1] * 100

    gc.collect()
    gc.freeze()
    gc.callbacks.insert(0, count)
    try:
        records = [[number] for number in range(1_000_000)]
    finally:
        gc.callbacks.remove(count)
    assert len(records) == 1_000_000
    assert collections.frozen >= 2
    assert max(seen) < 500_000, "without it the last ones look at most of the million"
