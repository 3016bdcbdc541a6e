"""A leader's view of a follower: what answers it believes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.raft.progress import Progress, ProgressState
from gaia_grpc.raft.types import Index, NodeId


def progress(next_index: int, match_index: int = 0, *, replicating: bool = False) -> Progress:
    state = ProgressState.REPLICATE if replicating else ProgressState.PROBE
    return Progress(
        NodeId("n2"), True, Index(next_index), 0, match_index=Index(match_index), state=state
    )


def test_a_probe_that_fits_starts_replication() -> None:
    each = progress(6)
    assert each.acknowledge(Index(5))
    assert (each.state, each.next_index, each.match_index) == (ProgressState.REPLICATE, 6, 5)


def test_a_probe_at_a_known_match_needs_no_news() -> None:
    each = progress(6, 5)
    assert not each.acknowledge(Index(5))
    assert each.state is ProgressState.REPLICATE


def test_an_old_answer_does_not_end_a_probe() -> None:
    each = progress(9, 5)
    assert not each.acknowledge(Index(4))
    assert (each.state, each.next_index, each.match_index) == (ProgressState.PROBE, 9, 5)


def test_an_acknowledgement_frees_the_window_up_to_it() -> None:
    each = progress(10, 3, replicating=True)
    each.window.extend([Index(5), Index(7), Index(9)])
    assert each.acknowledge(Index(7))
    assert list(each.window) == [9]
    assert not each.acknowledge(Index(5))
    assert (each.match_index, each.next_index) == (7, 10)
    assert each.acknowledge(Index(12)), "sent in an earlier state and acknowledged late"
    assert (each.match_index, each.next_index, list(each.window)) == (12, 13, [])


@pytest.mark.parametrize(("rejected", "hint", "next_index"), [(8, 6, 7), (8, 1, 4), (4, 9, 4)])
def test_a_refusal_goes_back_to_probing_near_the_hint(
    rejected: int, hint: int, next_index: int
) -> None:
    each = progress(10, 3, replicating=True)
    each.window.append(Index(9))
    assert each.refuse(Index(rejected), Index(hint))
    assert (each.state, each.next_index, each.probe_sent) == (
        ProgressState.PROBE, next_index, False,
    )  # fmt: skip
    assert not each.window


@pytest.mark.parametrize(("replicating", "rejected"), [(True, 3), (False, 3), (False, 7)])
def test_an_overtaken_refusal_is_ignored(replicating: bool, rejected: int) -> None:
    each = progress(10, 3, replicating=replicating)
    assert not each.refuse(Index(rejected), Index(1))
    assert each.next_index == 10


ANSWERS = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 20)), max_size=30)


@given(st.integers(1, 20), ANSWERS)
def test_no_sequence_of_answers_breaks_the_invariant(
    next_index: int, answers: list[tuple[bool, int, int]]
) -> None:
    each = progress(next_index)
    for success, index, hint in answers:
        before = each.match_index
        if success:
            each.acknowledge(Index(index))
        else:
            each.refuse(Index(index), Index(hint))
        assert before <= each.match_index < each.next_index
