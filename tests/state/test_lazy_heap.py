"""The lazy heap against a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.lazy_heap import COMPACT_AT_LEAST, LazyHeap


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
        assert len(heap) <= COMPACT_AT_LEAST + 3
    assert heap.first(members.__contains__) == 0
