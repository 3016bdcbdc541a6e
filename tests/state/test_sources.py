"""Deduplication of batches against a dumb twin that remembers everything."""

from __future__ import annotations

import sys
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state import sources
from gaia_grpc.state.sources import IDLE_AFTER_MS, KEPT_EPOCHS, Admission, Sources, Verdict

KEPT = 8


def content(text: str) -> bytes:
    return sha256(text.encode()).digest()[:16]


def take(
    table: Sources,
    sequence: int,
    text: str = "x",
    *,
    source: str = "s",
    epoch: int = 1,
    now_ms: int = 0,
    kept: int = KEPT,
    accepted: int = 5,
    late: int = 2,
) -> Verdict:
    """Admits and, where it is new, records."""
    verdict = table.admit(source, epoch, sequence, content(text))
    if verdict.admission is Admission.NEW:
        table.record(
            source,
            epoch,
            sequence,
            content(text),
            accepted_count=accepted,
            late_count=late,
            now_ms=now_ms,
            kept=kept,
        )
    return verdict


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.one_of(st.integers(0, 30), st.integers(-5, 4_000)),
            st.sampled_from("xy"),
        ),
        max_size=80,
    )
)
def test_admission_equals_its_twin(batches: list[tuple[int, int, str]]) -> None:
    table = Sources()
    applied: dict[int, dict[int, str]] = {}
    for epoch, sequence, text in batches:
        known = applied.get(epoch)
        if known is None:
            too_old = any(other > epoch for other in applied)
            expected = Admission.TOO_OLD if too_old else Admission.NEW
        elif sequence <= max(0, *known) - KEPT:
            expected = Admission.TOO_OLD
        elif sequence in known:
            same = known[sequence] == text
            expected = Admission.DUPLICATE if same else Admission.OTHER_CONTENT
        else:
            expected = Admission.NEW
        assert take(table, sequence, text, epoch=epoch).admission is expected
        if expected is Admission.NEW:
            applied.setdefault(epoch, {})[sequence] = text


def test_a_repeat_gets_the_counts_of_the_first_time() -> None:
    table = Sources()
    take(table, 1, accepted=9_999, late=1)
    assert take(table, 1, accepted=0, late=0) == Verdict(Admission.DUPLICATE, 9_999, 1)


def test_the_last_sequences_are_kept_and_older_ones_refused() -> None:
    table = Sources()
    for sequence in range(1, 2_001):
        take(table, sequence, kept=1_024)
    assert take(table, 2_000 - 1_023).admission is Admission.DUPLICATE
    assert take(table, 2_000 - 1_024).admission is Admission.TOO_OLD


def test_a_sequence_that_was_jumped_over_is_new_even_where_its_slot_was_used() -> None:
    table = Sources()
    for sequence in range(1, KEPT + 1):
        take(table, sequence)
    take(table, KEPT + 4)
    assert take(table, KEPT + 2).admission is Admission.NEW
    assert take(table, KEPT + 2).admission is Admission.DUPLICATE


def test_a_far_jump_costs_no_more_than_the_kept_sequences() -> None:
    table = Sources()
    take(table, 1)
    take(table, 2**62)
    assert take(table, 2**62).admission is Admission.DUPLICATE
    assert take(table, 1).admission is Admission.TOO_OLD


def test_a_jump_takes_no_step_for_each_sequence() -> None:
    """A thousand jumps in one command held every peer up for 25 s."""
    table = Sources()
    kept = 65_536
    take(table, kept - 1, kept=kept)  # the whole ring is used
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        take(table, 3 * kept)
    finally:
        sys.setprofile(None)
    assert steps < 100


def test_an_older_epoch_is_served_while_its_record_is_kept() -> None:
    table = Sources()
    for epoch in range(1, KEPT_EPOCHS + 1):
        take(table, 1, epoch=epoch)
    assert take(table, 1, epoch=1).admission is Admission.DUPLICATE
    assert take(table, 2, epoch=1).admission is Admission.NEW
    take(table, 1, epoch=KEPT_EPOCHS + 1)
    assert take(table, 3, epoch=1).admission is Admission.TOO_OLD
    assert take(table, 1, epoch=2).admission is Admission.DUPLICATE


def test_an_epoch_keeps_the_number_of_sequences_it_began_with() -> None:
    table = Sources()
    take(table, 1, kept=2)
    take(table, 2, kept=100)
    take(table, 3, kept=100)
    assert take(table, 1).admission is Admission.TOO_OLD


def test_sources_are_told_apart() -> None:
    table = Sources()
    take(table, 1, source="a")
    assert take(table, 1, source="b").admission is Admission.NEW
    assert len(table) == 2


def test_a_full_table_refuses_new_sources_and_evicts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "MAX_SOURCES", 2)
    table = Sources()
    take(table, 1, source="a")
    take(table, 1, source="b")
    assert take(table, 1, source="c").admission is Admission.TABLE_FULL
    assert take(table, 2, source="a").admission is Admission.NEW


def test_a_source_that_is_silent_for_an_hour_is_forgotten() -> None:
    table = Sources()
    take(table, 1, source="a", now_ms=0)
    take(table, 1, source="b", now_ms=10)
    take(table, 2, source="a", now_ms=20)
    assert table.evict_idle(IDLE_AFTER_MS + 9) == 0
    assert table.evict_idle(IDLE_AFTER_MS + 10) == 1
    assert take(table, 1, source="b", now_ms=IDLE_AFTER_MS + 10).admission is Admission.NEW
    assert table.evict_idle(IDLE_AFTER_MS + 20) == 1
    assert len(table) == 1


def test_eviction_is_bounded_and_takes_the_longest_silent_first() -> None:
    table = Sources()
    for number in range(sources.EVICTED_AT_ONCE + 6):
        take(table, 1, source=f"s{number:03d}", now_ms=1_000 - number)
    assert table.evict_idle(IDLE_AFTER_MS + 5_000) == sources.EVICTED_AT_ONCE
    assert take(table, 1, source="s005").admission is Admission.DUPLICATE
    assert take(table, 1, source="s006").admission is Admission.NEW
