"""The lazy heap against a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.lazy_heap import (
    COMPACT_AT_LEAST,
    KEYS_PER_LEAVE,
    TOPS_PER_LEAVE,
    LazyHeap,
)


@given(st.lists(st.integers(0, 40), max_size=800))
def test_a_lazy_heap_agrees_with_a_set(flips: list[int]) -> None:
    heap = LazyHeap()
    members: set[int] = set()
    for key in flips:  # each flip brings a key in or out
        if key in members:
            members.discard(key)
            heap.leave(members.__contains__)
        else:
            members.add(key)
            heap.add(key)
        if key % 3 == 0:
            assert heap.first(members.__contains__) == (min(members) if members else None)
        assert heap.live == len(members)
    assert heap.first(members.__contains__) == (min(members) if members else None)


def test_members_that_left_take_no_lasting_room() -> None:
    heap = LazyHeap()
    members = {0}
    heap.add(0)
    for key in range(1, 100 * COMPACT_AT_LEAST):  # 0 stays on top, so nothing is dropped there
        members.add(key)
        heap.add(key)
        members.discard(key)
        heap.leave(members.__contains__)
        assert len(heap) <= COMPACT_AT_LEAST * 5 // 4
    assert heap.first(members.__contains__) == 0


def test_members_that_leave_from_the_middle_go_in_steps() -> None:
    heap = LazyHeap()
    members = set(range(20_000))
    for key in range(20_000):
        heap.add(key)
    looked = 0

    def is_live(key: int) -> bool:
        nonlocal looked
        looked += 1
        return key in members

    for key in range(19_999, 999, -1):
        members.discard(key)
        looked = 0
        heap.leave(is_live)
        assert looked <= KEYS_PER_LEAVE + TOPS_PER_LEAVE
        assert heap.first(is_live) == 0
    assert len(heap) < 2 * heap.live + 2 * COMPACT_AT_LEAST
    left = []
    while (key := heap.first(members.__contains__)) is not None:  # type: ignore[assignment]  # ends with None
        left.append(key)
        members.discard(key)
        heap.leave(members.__contains__)
    assert left == list(range(1_000))


def test_of_a_member_that_comes_and_goes_one_is_kept() -> None:
    heap = LazyHeap()
    members: set[int] = set()
    for _ in range(100 * COMPACT_AT_LEAST):
        members.add(7)
        heap.add(7)
        members.discard(7)
        heap.leave(members.__contains__)
    assert len(heap) <= 2 * COMPACT_AT_LEAST
