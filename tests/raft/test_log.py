"""RaftLog against a plain list, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.log import RaftLog
from gaia_grpc.raft.types import Entry, EntryId, HardState, Index, Restored, Term
from tests.support.cluster import entry, log_of

TERMS = st.lists(st.integers(1, 4), max_size=12).map(sorted)


def build(terms: list[int], base: int, base_term: int = 1) -> tuple[RaftLog, dict[int, Entry]]:
    """A log behind a compacted prefix of `base` entries, and the same as a dictionary."""
    entries = tuple(entry(term, index) for index, term in enumerate(terms, base + 1))
    base_id = EntryId(Term(base_term if base else 0), Index(base))
    return RaftLog(Restored(HardState(), entries, None, base_id)), {e.index: e for e in entries}


@given(TERMS, st.integers(0, 3), st.integers(-1, 20), st.integers(0, 5))
def test_looking_up(terms: list[int], base: int, index: int, term: int) -> None:
    log, model = build(terms, base)
    assert log.first_index == base + 1
    assert log.last_index == base + len(terms)
    assert log.last_term == (terms[-1] if terms else (1 if base else 0))
    base_term = 1 if base else 0
    expected = model[index].term if index in model else (base_term if index == base else 0)
    assert log.term_at(index) == expected
    present = index in model or index == base
    assert log.matches(Index(index), Term(term)) == (present and expected == term)


@given(TERMS, st.integers(0, 3), st.integers(0, 20), st.integers(-2, 20))
def test_slices_hold_what_is_there(terms: list[int], base: int, first: int, last: int) -> None:
    log, model = build(terms, base)
    expected = tuple(model[index] for index in range(first, last + 1) if index in model)
    assert log.slice(first, last) == expected


@given(TERMS, st.integers(1, 14), st.integers(1, 5), st.integers(1, 12))
def test_batches_keep_both_limits_and_move_on(
    terms: list[int], first: int, max_entries: int, max_bytes: int
) -> None:
    log, model = build(terms, 0)
    batch = log.batch(first, max_entries, max_bytes)
    assert list(batch) == [model[first + offset] for offset in range(len(batch))]
    size = sum(len(each.data) for each in batch)
    assert len(batch) <= max_entries
    assert size <= max_bytes or len(batch) == 1
    following = model.get(first + len(batch))
    if following is not None and len(batch) < max_entries:
        assert size + len(following.data) > max_bytes, "there was room for one more"
        assert batch


@given(TERMS, TERMS, st.integers(0, 12))
def test_a_conflict_is_the_first_entry_that_is_not_there(
    terms: list[int], other: list[int], commit: int
) -> None:
    log, model = build(terms, 0)
    offered = log_of(*other)
    expected = next((i for i, each in enumerate(offered) if model.get(i + 1) != each), None)
    assert log.first_conflict(offered) == expected
    if expected is not None and expected < len(terms):
        if expected + 1 <= commit:
            with pytest.raises(InvariantError):
                log.truncate(Index(expected + 1), Index(commit))
            return
        log.truncate(Index(expected + 1), Index(commit))
        log.append(offered[expected:])
        assert log.slice(1, 99) == tuple(model[i + 1] for i in range(expected)) + offered[expected:]
        assert (log.last_index, log.last_term) == (len(offered), other[-1])


@given(TERMS, st.integers(0, 3), st.integers(0, 16), st.integers(0, 5))
def test_the_last_entry_at_or_below_a_term(
    terms: list[int], base: int, index: int, term: int
) -> None:
    log, model = build(terms, base)
    if index < base:
        index = base
    fitting = [each for each in model.values() if each.index <= index and each.term <= term]
    found = log.last_at_or_below(index, Term(term))
    assert found == (
        (fitting[-1].index, fitting[-1].term) if fitting else (base, log.term_at(base))
    )


@pytest.mark.parametrize("bad", [entry(2, 4), entry(2, 2), entry(1, 3)], ids=["gap", "old", "term"])
def test_an_entry_that_does_not_continue_the_log_is_refused(bad: Entry) -> None:
    log, _ = build([1, 2], 0)
    with pytest.raises(InvariantError, match="can't follow"):
        log.append([bad])
    assert log.last_index == 2


@pytest.mark.parametrize(("own", "other", "expected"), [
    ([1, 2], (2, 2), True), ([1, 2], (2, 1), False), ([1, 2], (9, 1), False),
    ([1, 2], (1, 3), True), ([], (0, 0), True),
])  # fmt: skip
def test_up_to_date(own: list[int], other: tuple[int, int], expected: bool) -> None:
    assert build(own, 0)[0].is_up_to_date(Index(other[0]), Term(other[1])) is expected


@given(TERMS, st.integers(0, 3), st.integers(0, 12))
def test_compaction_changes_nothing_behind_its_end(terms: list[int], base: int, count: int) -> None:
    log, model = build(terms, base)
    end = min(base + count, base + len(terms))
    term = log.term_at(end)
    log.compact(Index(end))
    assert log.base == EntryId(term, Index(end))
    assert (log.first_index, log.last_index) == (end + 1, base + len(terms))
    for index in range(base + len(terms) + 2):
        expected = model[index].term if index in model and index >= end else 0
        assert log.term_at(index) == (term if index == end else expected)
    assert log.slice(0, 99) == tuple(model[index] for index in sorted(model) if index > end)


@pytest.mark.parametrize("index", [1, 6])
def test_compaction_outside_the_log_is_refused(index: int) -> None:
    log, _ = build([1, 1, 2], base=2)
    with pytest.raises(InvariantError, match=f"compacting 2..5 up to {index}"):
        log.compact(Index(index))


@given(TERMS, st.integers(0, 3), st.integers(1, 20))
def test_a_log_that_is_replaced_begins_anew(terms: list[int], base: int, index: int) -> None:
    log, _ = build(terms, base)
    log.replace(EntryId(Term(4), Index(index)))
    assert (log.first_index, log.last_index, log.last_term) == (index + 1, index, 4)
    assert log.slice(0, 99) == ()
    assert log.matches(Index(index), Term(4))
    assert not log.matches(Index(index - 1), Term(4))
    log.append((entry(4, index + 1),))
    assert log.last_index == index + 1
