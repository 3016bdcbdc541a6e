"""The log of alert events against a dumb twin: a list of all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state import alert_log
from gaia_grpc.state.alert_log import AlertLog, EventRecord, ScopeIndex, Selection

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["", "t"]),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from(["x", "y"]),
        st.integers(1, 4),
    ),
    max_size=60,
)
SELECTIONS = st.builds(
    Selection,
    timeline_id=st.sampled_from(["", "t", "unknown"]),
    classroom_id=st.sampled_from(["", "a", "b", "unknown"]),
    student_id=st.sampled_from(["", "x", "z"]),
    min_severity=st.integers(0, 4),
)


def event(sequence: int, timeline: str, classroom: str, student: str, level: int) -> EventRecord:
    return EventRecord(
        sequence=sequence,
        change=1,
        applied_index=sequence,
        alert_number=sequence,
        timeline_id=timeline,
        classroom_id=classroom,
        student_id=student,
        severity=level,
        body=b"alert",
    )


def wanted(record: EventRecord, selection: Selection) -> bool:
    return (
        record.timeline_id == selection.timeline_id
        and selection.classroom_id in ("", record.classroom_id)
        and selection.student_id in ("", record.student_id)
        and record.severity >= selection.min_severity
    )


@given(EVENTS, SELECTIONS, st.integers(1, 70), st.integers(1, 5), st.integers(0, 70))
def test_reading_on_from_each_answer_gives_all_matching_events_once(
    rows: list[tuple[str, str, str, int]],
    selection: Selection,
    retained: int,
    limit: int,
    after: int,
) -> None:
    log = AlertLog()
    everything: list[EventRecord] = []
    for number, row in enumerate(rows, start=1):
        record = event(number, *row)
        log.append(record)
        everything.append(record)
        assert [gone.sequence for gone in log.drop_beyond(retained)] == (
            [number - retained] if number > retained else []
        )
    kept = everything[-retained:]
    assert (len(log), log.newest, log.oldest) == (
        len(kept),
        len(rows),
        len(rows) - len(kept) + 1,
    )
    found: list[EventRecord] = []
    through = after
    while True:
        page, next_through = log.select(selection, through, limit)
        assert next_through >= through
        assert len(page) <= limit
        found += page
        if next_through >= len(rows):
            break
        assert page, "the scan went on without a reason to stop"
        through = next_through
    assert found == [r for r in kept if r.sequence > after and wanted(r, selection)]


def test_a_long_scan_stops_and_says_how_far_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_log, "SCANNED_AT_MOST", 3)
    log = AlertLog()
    for sequence in range(1, 9):
        log.append(event(sequence, "", "a", "x" if sequence == 8 else "y", 1))
    through = 0
    answers = []
    while through < log.newest:
        page, through = log.select(Selection(student_id="x"), through, 10)
        answers.append(([record.sequence for record in page], through))
    assert answers == [([], 3), ([], 6), ([8], 8)]


def test_a_classroom_is_not_scanned_for_another() -> None:
    """A quiet subscriber gets to the newest sequence in one step."""
    log = AlertLog()
    for sequence in range(1, 30_001):
        log.append(event(sequence, "", "loud", "x", 1))
    assert log.select(Selection(classroom_id="quiet"), 0, 10) == ([], 30_000)
    assert log.select(Selection(timeline_id="t"), 5, 10) == ([], 30_000)


def test_a_cursor_of_a_peer_that_is_further_does_not_go_back() -> None:
    log = AlertLog()
    log.append(event(1, "", "a", "x", 1))
    assert log.select(Selection(), 7, 10) == ([], 7)


def test_forgotten_events_free_their_places() -> None:
    log = AlertLog()
    for sequence in range(1, 1_001):
        log.append(event(sequence, "", "a" if sequence < 500 else "b", "x", 1))
        log.drop_beyond(10)
    assert len(log._events) <= 10 + alert_log.TRIM_AT_LEAST
    assert sorted(log._index._numbers) == [("", ""), ("", "b")]
    assert len(log._index._numbers["", "b"]) <= 10 + alert_log.TRIM_AT_LEAST


def test_an_index_forgets_numbers_from_the_middle() -> None:
    index = ScopeIndex()
    for number in (3, 5, 9):
        index.append("", "a", number)
    index.discard("", "a", 5)
    assert list(index.after(Selection(), 0)) == [3, 9]
    assert list(index.below(Selection(), 9)) == [3]
    index.discard("", "a", 3)
    index.discard("", "a", 9)
    index.trim("", "a", 100)
    assert list(index.after(Selection(classroom_id="a"), 0)) == []
