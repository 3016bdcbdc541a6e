"""Packed columns come back as they were, and others are refused."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.columns import pack, unpack

NUMBERS = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.one_of(NUMBERS, st.integers(-3, 300)), max_size=60))
def test_any_column_comes_back(numbers: list[int]) -> None:
    column = array("q", numbers)
    assert unpack(pack(column), len(column)) == column


def test_what_all_have_in_common_is_stored_once() -> None:
    start_ms = 1_700_000_000_000 & ~0xFFFF
    times = array("q", range(start_ms, start_ms + 60_000, 60))
    assert len(pack(times)) == 1 + 2 * len(times) + 6
    assert len(pack(array("q", [1_000_000] * 500))) == 9
    assert pack(array("q")) == b""


@given(st.binary(max_size=40), st.integers(-3, 40))
def test_other_bytes_are_refused_or_whole(packed: bytes, count: int) -> None:
    try:
        column = unpack(packed, count)
    except ValueError:
        return
    assert len(column) == count


@pytest.mark.parametrize(("packed", "count"), [(b"", 1), (b"\0" * 9, 0), (b"\0" * 8, 1)])
def test_lengths_that_do_not_fit(packed: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="numbers"):
        unpack(packed, count)
