"""A leader's view of a follower: what answers it believes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.raft.progress import PeerProgress, Progress, ProgressState
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


def test_a_snapshot_ends_the_window_and_ignores_refusals() -> None:
    each = progress(10, 3, replicating=True)
    each.window.extend([Index(5), Index(9)])
    each.commit_sent = Index(9)
    each.await_snapshot(Index(20))
    assert (each.state, list(each.window)) == (ProgressState.SNAPSHOT, [])
    assert each.commit_sent == 3, "what was under way when the entries were gone may be lost"
    assert not each.refuse(Index(19), Index(1))
    each.leave_snapshot(Index(15))
    assert each.state is ProgressState.SNAPSHOT, "nothing has changed"


@pytest.mark.parametrize(
    ("match", "first", "state", "next_index"),
    [
        (20, 15, ProgressState.REPLICATE, 21),
        (14, 15, ProgressState.REPLICATE, 15),
        (13, 15, ProgressState.SNAPSHOT, 10),
        (20, 30, ProgressState.PROBE, 21),
        (25, 30, ProgressState.PROBE, 26),
    ],
)
def test_what_an_answer_during_a_snapshot_leads_to(
    match: int, first: int, state: ProgressState, next_index: int
) -> None:
    each = progress(10, 3, replicating=True)
    each.await_snapshot(Index(20))
    each.delivered_ticks = 7
    assert each.acknowledge(Index(match))
    each.leave_snapshot(Index(first))
    assert (each.state, each.next_index, each.match_index) == (state, next_index, match)
    assert (each.delivered_ticks is None) == (state is not ProgressState.SNAPSHOT)


@pytest.mark.parametrize("waits", [False, True])
def test_a_probe_at_the_base_waits_like_the_one_before(waits: bool) -> None:
    each = progress(3, 2)
    each.probe_sent = waits
    each.skip_compacted(Index(9))
    assert (each.state, each.next_index, each.probe_sent) == (ProgressState.PROBE, 9, waits)


def test_compaction_under_a_follower_that_keeps_up_probes_at_once() -> None:
    each = progress(10, 3, replicating=True)
    each.probe_sent = True
    each.skip_compacted(Index(12))
    assert (each.state, each.next_index, each.probe_sent) == (ProgressState.PROBE, 12, False)


def test_the_view_of_a_follower() -> None:
    each = progress(10, 3, replicating=True)
    each.window.append(Index(9))
    each.last_heard_ticks = 5
    assert each.view(8) == PeerProgress("replicate", Index(3), Index(10), 1, 3)
    each.await_snapshot(Index(7))
    assert each.view(8) == PeerProgress("snapshot", Index(3), Index(10), 0, 3, Index(7))
    each.leave_snapshot(Index(2))
    assert each.view(8).snapshot_index == 0


OPERATIONS = st.sampled_from(["accept", "refuse", "snapshot", "fail", "compact"])
ANSWERS = st.lists(st.tuples(OPERATIONS, st.integers(0, 20), st.integers(0, 20)), max_size=30)


@given(st.integers(1, 20), ANSWERS)
def test_no_sequence_of_events_breaks_the_invariant(
    next_index: int, events: list[tuple[str, int, int]]
) -> None:
    each = progress(next_index)
    for name, index, hint in events:
        before = each.match_index
        if name == "accept":
            each.acknowledge(Index(index))
            if each.state is ProgressState.SNAPSHOT:
                each.leave_snapshot(Index(hint))
        elif name == "refuse":
            each.refuse(Index(index), Index(hint))
        elif name == "snapshot":
            each.await_snapshot(Index(index))
        elif name == "fail":
            each.probe(Index(index))
        elif each.state is not ProgressState.SNAPSHOT:
            each.skip_compacted(Index(max(index, each.next_index)))
        assert before <= each.match_index
        assert each.state is ProgressState.SNAPSHOT or each.match_index < each.next_index
        assert each.delivered_ticks is None
