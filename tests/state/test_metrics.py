"""Metrics through the machine: counted once, placed by their age, in the right window."""

from __future__ import annotations

import random
from array import array

import pytest
from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state import timelines, topics
from gaia_grpc.state.packing import MAX_TIME_MS, encode_column, pack_batch
from tests.state.harness import START_MS
from tests.state.lessons import (
    MAX_FUTURE_MS,
    ROOM,
    Lesson,
    Sample,
    counts,
    make_batch,
    metric,
)

WINDOW_MS = 300_000
ACCEPTED = metrics_pb2.BATCH_STATUS_ACCEPTED
DUPLICATE = metrics_pb2.BATCH_STATUS_DUPLICATE
REFUSED = metrics_pb2.BATCH_STATUS_REFUSED


# --- windows through the machine ------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["keypress", "response_time", "error"]),
        st.integers(0, 5_000).map(float),
        st.integers(-400_000, MAX_FUTURE_MS),
    ),
    min_size=1,
    max_size=12,
)


@given(
    st.lists(st.tuples(EVENTS, st.integers(0, 120_000)), min_size=1, max_size=8),
    st.integers(0, 700_000),
)
def test_live_windows_hold_exactly_what_is_young_enough(
    batches: list[tuple[list[Sample], int]], later_ms: int
) -> None:
    """Late, out of order and ahead of time, against a list that keeps everything."""
    lesson = Lesson()
    inside: list[tuple[str, float, int]] = []
    late_total = 0
    for samples, pause_ms in batches:
        now = lesson.now_ms
        result = lesson.publish([(kind, value, now + age) for kind, value, age in samples])
        young = [s for s in samples if s[2] > -WINDOW_MS]
        assert (result.accepted_count, result.late_count) == (
            len(young),
            len(samples) - len(young),
        )
        inside += [(kind, value, now + age) for kind, value, age in young]
        late_total += result.late_count
        lesson.advance(pause_ms)
    lesson.advance(later_ms)
    window = lesson.window()
    end = lesson.now_ms
    assert (window.window_start_ms, window.window_end_ms) == (end - WINDOW_MS, end)
    assert (window.accepted_total, window.late_total) == (len(inside), late_total)
    expected = [sample for sample in inside if end - WINDOW_MS < sample[2] <= end]
    assert sum(entry.count for entry in window.metrics) == len(expected)
    for entry in window.metrics:
        values = [value for kind, value, _ in expected if kind == entry.metric_type]
        assert (entry.count, entry.sum) == (len(values), sum(values))
        assert (entry.min, entry.max) == (min(values), max(values))
        assert entry.rate_per_second == len(values) * 1_000 / WINDOW_MS


@given(st.lists(EVENTS, min_size=1, max_size=6), st.randoms())
def test_any_order_of_batches_gives_the_same_timeline_window(
    batches: list[list[Sample]], shuffle: random.Random
) -> None:
    """Inside one window's length nothing is late, so the order can't matter."""
    spread = [
        [(kind, value, 10_000_000 + age // 2) for kind, value, age in samples]
        for samples in batches
    ]
    made = [
        make_batch(samples, sequence=at, sent_at_ms=10_000_000 + at, timeline_id="t")
        for at, samples in enumerate(spread, start=1)
    ]
    windows = []
    for _ in range(2):
        lesson = Lesson()
        for batch in made:
            assert lesson.send(batch)[0].late_count == 0
        window = lesson.window(timeline_id="t")
        window.version = 0
        windows.append(window)
        shuffle.shuffle(made)
    assert windows[0] == windows[1]


def test_a_question_about_a_later_time_changes_nothing() -> None:
    lesson = Lesson()
    lesson.publish([("keypress", 1, lesson.now_ms)])
    lesson.now_ms += WINDOW_MS
    assert not lesson.window().metrics
    lesson.now_ms -= 1
    assert counts(lesson.window()) == {"keypress": 1}


def test_the_window_of_up_to_one_window_ago() -> None:
    lesson = Lesson()
    start = lesson.now_ms
    lesson.publish([("keypress", 1, start)])
    lesson.advance(WINDOW_MS)
    lesson.publish([("keypress", 2, lesson.now_ms)])
    assert metric(lesson.window(at_ms=start), "keypress").sum == 1
    assert metric(lesson.window(), "keypress").sum == 2
    ask = {"student_id": "ana", "app_name": "reading"}
    old = lesson.query(get_aggregate={**ask, "at_ms": start - 1}).refusal
    assert (old.kind, old.field) == (command_pb2.REFUSAL_KIND_OUT_OF_RANGE, "at_ms")
    ahead = lesson.query(get_aggregate={**ask, "at_ms": lesson.now_ms + 1}).refusal
    assert (ahead.kind, ahead.field) == (command_pb2.REFUSAL_KIND_INVALID_ARGUMENT, "at_ms")


def test_windows_are_as_long_as_the_setting_says() -> None:
    lesson = Lesson(("metrics.window", "2s"))
    lesson.publish([("keypress", 1, lesson.now_ms), ("keypress", 1, lesson.now_ms - 2_000)])
    assert (lesson.window().late_total, counts(lesson.window())) == (1, {"keypress": 1})
    lesson.advance(2_000)
    assert counts(lesson.window()) == {}


def test_an_unknown_window_is_not_found() -> None:
    lesson = Lesson()
    lesson.publish([("keypress", 1, lesson.now_ms)])
    for student, app, timeline in [("ana", "math", ""), ("bea", "reading", ""), ("ana", "x", "t")]:
        ask = {"student_id": student, "app_name": app, "timeline_id": timeline}
        refusal = lesson.query(get_aggregate=ask).refusal
        assert refusal.kind == command_pb2.REFUSAL_KIND_NOT_FOUND
        assert student not in refusal.message  # which is logged, and logs outlive a deletion


def test_types_without_a_metric_for_long_are_forgotten() -> None:
    lesson = Lesson()
    for minute in range(40):
        lesson.publish([(f"type-{minute}", 1, lesson.now_ms)])
        lesson.advance(60_000)
    assert len(lesson.window().metrics) == 4
    held = lesson.metrics_table()._timelines.live.windows["ana", "reading"].series
    assert len(held) < 20


# --- time ----------------------------------------------------------------------------------------


def test_a_device_with_a_wrong_clock_is_placed_by_age() -> None:
    lesson = Lesson()
    for years, sequence in ((-30, 1), (30, 2)):
        device = START_MS + years * 31_536_000_000
        result = lesson.publish(
            [("keypress", 1, device - 4_000)], sent_at_ms=device, sequence=sequence
        )
        assert (result.accepted_count, result.time_shift_ms) == (1, lesson.now_ms - device)
    entry = metric(lesson.window(), "keypress")
    assert (entry.first_time_ms, entry.last_time_ms) == (START_MS - 4_000, START_MS - 4_000)


def test_without_a_device_clock_everything_is_now_and_not_shifted() -> None:
    lesson = Lesson()
    result = lesson.publish([("keypress", 1, 17)], sent_at_ms=0)
    assert (result.accepted_count, result.time_shift_ms) == (1, 0)
    assert metric(lesson.window(), "keypress").first_time_ms == lesson.now_ms


def test_a_metric_a_little_ahead_comes_into_the_window_when_its_time_comes() -> None:
    lesson = Lesson()
    lesson.publish([("keypress", 1, lesson.now_ms + 5_000)])
    assert counts(lesson.window()) == {}
    lesson.advance(5_000)
    assert counts(lesson.window()) == {"keypress": 1}


def test_late_metrics_are_counted_and_in_no_window() -> None:
    lesson = Lesson()
    now = lesson.now_ms
    result = lesson.publish([("a", 1, now - WINDOW_MS), ("a", 1, now - WINDOW_MS + 1)])
    assert (result.status, result.accepted_count, result.late_count) == (ACCEPTED, 1, 1)
    result = lesson.publish([("b", 1, now - WINDOW_MS)])
    assert (result.accepted_count, result.late_count) == (0, 1)
    window = lesson.window()
    assert (window.accepted_total, window.late_total, counts(window)) == (1, 2, {"a": 1})


# --- timelines ------------------------------------------------------------------------------------


def test_a_timeline_has_its_own_time_and_clock() -> None:
    lesson = Lesson()
    lesson.publish([("a", 1, 1_000)], timeline_id="t", sent_at_ms=2_000)
    lesson.publish([("a", 2, 900)], timeline_id="t", sent_at_ms=1_500)
    window = lesson.window(timeline_id="t")
    assert (window.window_end_ms, window.timeline_id) == (2_000, "t")
    assert (metric(window, "a").first_time_ms, metric(window, "a").last_time_ms) == (900, 1_000)
    lesson.advance(3 * WINDOW_MS)
    assert lesson.window(timeline_id="t").window_end_ms == 2_000, "never extrapolated"
    lesson.publish([("b", 1, 301_000)], timeline_id="t", sent_at_ms=301_000)
    assert counts(lesson.window(timeline_id="t")) == {"b": 1}


def test_a_timeline_has_no_time_shift_and_its_own_lateness() -> None:
    lesson = Lesson()
    lesson.publish([("a", 1, 400_000)], timeline_id="t", sent_at_ms=400_000)
    result = lesson.publish([("a", 1, 100_000)], timeline_id="t", sent_at_ms=100_000)
    assert (result.accepted_count, result.late_count, result.time_shift_ms) == (0, 1, 0)


def test_timelines_do_not_mix() -> None:
    lesson = Lesson()
    lesson.publish([("a", 1, lesson.now_ms)])
    lesson.publish([("a", 2, 5)], timeline_id="t", sent_at_ms=5)
    lesson.publish([("a", 3, 5)], timeline_id="u", sent_at_ms=5)
    sums = [metric(lesson.window(timeline_id=name), "a").sum for name in ("", "t", "u")]
    assert sums == [1, 2, 3]
    assert [len(lesson.windows(timeline_id=name)) for name in ("", "t", "u", "v")] == [1, 1, 1, 0]


def test_a_timeline_is_forgotten_after_an_hour_without_a_batch() -> None:
    lesson = Lesson()
    lesson.publish([("a", 2, 5)], timeline_id="t", sent_at_ms=5)
    lesson.advance(timelines.TIMELINE_IDLE_MS - 1)
    lesson.publish([("a", 2, 6)], timeline_id="t", sent_at_ms=6)
    lesson.advance(timelines.TIMELINE_IDLE_MS - 1)
    lesson.publish([("a", 1, lesson.now_ms)])
    assert lesson.windows(timeline_id="t")
    lesson.advance(1)
    lesson.publish([("a", 1, lesson.now_ms)])
    assert not lesson.windows(timeline_id="t")


def test_many_idle_timelines_are_forgotten_a_few_at_a_time() -> None:
    """So that no one batch pays for all of them; the longest idle go first."""
    lesson = Lesson()
    names = [f"t{number}" for number in range(6)]
    for name in reversed(names):
        lesson.publish([("a", 1, 5)], timeline_id=name, sent_at_ms=5)
        lesson.advance(1)
    lesson.advance(timelines.TIMELINE_IDLE_MS)
    lesson.publish([("a", 1, lesson.now_ms)])
    assert [name for name in names if lesson.windows(timeline_id=name)] == ["t0", "t1"]
    lesson.publish([("a", 1, lesson.now_ms)])
    assert [name for name in names if lesson.windows(timeline_id=name)] == []


def test_idle_windows_are_forgotten_a_few_at_a_time() -> None:
    lesson = Lesson()
    for number in range(timelines.EVICTED_AT_ONCE + 2):
        lesson.publish([("a", 1, 0)], student=f"s{number}")
    lesson.advance(timelines.WINDOW_IDLE_MS)
    lesson.publish([("a", 1, 0)], student="ana")
    assert len(lesson.windows()) == 3
    lesson.publish([("a", 1, 0)], student="ana")
    assert len(lesson.windows()) == 1


# --- batches --------------------------------------------------------------------------------------


def test_a_repeated_batch_is_a_success_and_counts_once() -> None:
    lesson = Lesson()
    now = lesson.now_ms
    batch = lesson.batch([("a", 1, now - 1), ("a", 1, now - WINDOW_MS)])
    first = lesson.send(batch)[0]
    lesson.advance(60_000)
    batch.sent_at_ms = lesson.now_ms
    again = lesson.send(batch)[0]
    assert (first.status, again.status) == (ACCEPTED, DUPLICATE)
    assert (again.accepted_count, again.late_count) == (1, 1)
    assert (lesson.window().accepted_total, lesson.window().late_total) == (1, 1)


def test_the_same_sequence_with_other_content_is_refused() -> None:
    lesson = Lesson()
    lesson.publish([("a", 1, lesson.now_ms)], sequence=1)
    result = lesson.publish([("a", 2, lesson.now_ms)], sequence=1)
    assert (result.status, result.reason) == (REFUSED, "ALREADY_EXISTS")
    assert metric(lesson.window(), "a").sum == 1


def test_a_sequence_older_than_the_kept_ones_is_never_a_success() -> None:
    lesson = Lesson(("metrics.dedup_sequences", "2"))
    for sequence in (1, 2, 3):
        lesson.publish([("a", 1, lesson.now_ms)], sequence=sequence)
    result = lesson.publish([("a", 1, lesson.now_ms)], sequence=1)
    assert (result.status, result.reason) == (REFUSED, "OUT_OF_RANGE")
    assert lesson.publish([("a", 1, lesson.now_ms)], sequence=2).status == DUPLICATE


def test_one_command_may_hold_a_batch_twice() -> None:
    lesson = Lesson()
    batch = lesson.batch([("a", 1, lesson.now_ms)])
    assert [result.status for result in lesson.send(batch, batch)] == [ACCEPTED, DUPLICATE]


def test_a_refused_batch_does_not_stop_the_others() -> None:
    lesson = Lesson()
    good, other = lesson.batch([("a", 1, 0)]), lesson.batch([("b", 1, 0)])
    bad = make_batch([("c", 1, 0)], sequence=1, sent_at_ms=lesson.now_ms)
    results = lesson.send(good, bad, other)
    assert [result.status for result in results] == [ACCEPTED, REFUSED, ACCEPTED]
    assert [result.sequence for result in results] == [1, 1, 2]


def test_a_batch_without_valid_metrics_is_remembered_and_makes_no_window() -> None:
    lesson = Lesson()
    result = lesson.publish([("a", 1e10, lesson.now_ms)], sequence=1)
    assert (result.status, result.accepted_count) == (ACCEPTED, 0)
    assert lesson.publish([("a", 1e10, lesson.now_ms)], sequence=1).status == DUPLICATE
    assert not lesson.windows()


MALFORMED = [
    {"time_offsets_ms": b"", "values_micro": b""},
    {"time_offsets_ms": b"1234567", "values_micro": b"1234567"},
    {"time_offsets_ms": b"12345678", "values_micro": b""},
    {"time_offsets_ms": encode_column([2**62]), "values_micro": encode_column([1])},
    {"time_offsets_ms": encode_column([-(2**62)]), "values_micro": encode_column([1])},
    {"time_offsets_ms": encode_column([0] * 60_001), "values_micro": encode_column([0] * 60_001)},
]


@pytest.mark.parametrize("column", MALFORMED)
def test_defect_24_a_malformed_batch_is_refused_and_stops_no_peer(
    column: dict[str, bytes],
) -> None:
    lesson = Lesson()
    packed = command_pb2.PackedBatch(
        source_id="s",
        classroom_id=ROOM,
        student_id="ana",
        app_name="reading",
        columns=[command_pb2.MetricColumn(metric_type="a", **column)],
    )
    (result,) = lesson.do(publish_metrics={"batches": [packed]}).publish.results
    assert (result.status, result.reason) == (REFUSED, "INVALID_ARGUMENT")
    assert not lesson.windows()


@pytest.mark.parametrize("timeline_id", ["", "t"])
def test_a_sent_at_beyond_every_calendar_is_refused(timeline_id: str) -> None:
    """Live, the shift of the least of them does not fit its field: that stopped every peer."""
    lesson = Lesson()
    for sent_at_ms in (-1, MAX_TIME_MS + 1, 2**63 - 1, -(2**63)):
        packed = pack_batch(lesson.batch([("a", 1, 0)]), max_future_ms=0).batch
        packed.sent_at_ms = sent_at_ms
        packed.timeline_id = timeline_id
        (result,) = lesson.do(publish_metrics={"batches": [packed]}).publish.results
        assert result.reason == "INVALID_ARGUMENT"


def test_a_window_holds_a_bounded_number_of_types() -> None:
    """An app that makes up types broke every watch of its classroom: no answer could hold them."""
    lesson = Lesson()
    now = lesson.now_ms
    lesson.publish([(f"type-{number}", 1, now) for number in range(1_000)])
    batch = lesson.batch([("one-more", 1, now), ("type-0", 1, now)])
    assert lesson.send(batch)[0].reason == "RESOURCE_EXHAUSTED"
    lesson.publish([("type-0", 1, now)])
    assert len(lesson.window().metrics) == 1_000
    assert counts(lesson.window())["type-0"] == 2


def test_limits_are_refused_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelines, "MAX_WINDOWS", 2)
    lesson = Lesson()
    lesson.publish([("a", 1, 0)], student="ana")
    lesson.publish([("a", 1, 0)], student="bea")
    for fields in ({"student": "cy"}, {"student": "ana", "timeline_id": "t"}):
        batch = lesson.batch([("a", 1, 0)], **fields)
        assert lesson.send(batch)[0].reason == "RESOURCE_EXHAUSTED"
        # Not remembered as applied: it counts when there is room.
        assert lesson.send(batch)[0].reason == "RESOURCE_EXHAUSTED"
    assert lesson.publish([("a", 1, 0)], student="ana").status == ACCEPTED
    monkeypatch.setattr(timelines, "MAX_WINDOWS", 20)
    monkeypatch.setattr(timelines, "MAX_TIMELINES", 1)
    assert lesson.publish([("a", 1, 5)], timeline_id="t", sent_at_ms=5).status == ACCEPTED
    result = lesson.publish([("a", 1, 5)], timeline_id="u", sent_at_ms=5)
    assert result.reason == "RESOURCE_EXHAUSTED"


def test_idle_windows_are_forgotten_by_log_time() -> None:
    lesson = Lesson()
    lesson.publish([("a", 1, 0)], student="ana")
    lesson.publish([("a", 1, 0)], student="bea")
    lesson.advance(timelines.WINDOW_IDLE_MS - 1)
    lesson.publish([("a", 1, 0)], student="ana")
    lesson.advance(1)
    lesson.publish([("a", 1, 0)], student="cy")
    assert [window.student_id for window in lesson.windows()] == ["ana", "cy"]


def test_a_window_is_not_forgotten_while_it_can_be_asked_for() -> None:
    lesson = Lesson()
    lesson.publish([("a", 1, 0)], student="ana")
    lesson.do(update_settings={"changes": [{"name": "metrics.window", "value": "1h"}]})
    lesson.advance(7_199_999)
    lesson.publish([("a", 1, 0)], student="bea")
    assert len(lesson.windows()) == 2
    lesson.advance(1)
    lesson.publish([("a", 1, 0)], student="bea")
    assert len(lesson.windows()) == 1


# --- classrooms -----------------------------------------------------------------------------------


def test_a_classroom_is_listed_by_student_and_app_in_pages() -> None:
    lesson = Lesson()
    keys = [(f"s{number}", app) for number in range(4) for app in ("math", "reading", "typing")]
    for student, app in random.Random(1).sample(keys, len(keys)):
        lesson.publish([("a", 1, 0)], student=student, app=app)
        lesson.publish([("a", 1, 0)], student=f"x-{student}", app=app, classroom_id="other")
    found: list[tuple[str, str]] = []
    token = ""
    while True:
        ask = {"classroom_id": ROOM, "page_size": 5, "page_token": token}
        page = lesson.ask(list_aggregates=ask).list_aggregates
        assert len(page.aggregates) <= 5
        found += [(window.student_id, window.app_name) for window in page.aggregates]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(keys)
    assert len(lesson.windows(page_size=12)) == 12


def test_a_list_needs_a_classroom() -> None:
    refusal = Lesson().query(list_aggregates={}).refusal
    assert (refusal.kind, refusal.field) == (
        command_pb2.REFUSAL_KIND_INVALID_ARGUMENT,
        "classroom_id",
    )


def test_defect_19_a_window_belongs_to_one_classroom_alone() -> None:
    """The original ignored the classroom id, and its window length."""
    lesson = Lesson()
    lesson.publish([("a", 1, 0)], student="ana", classroom_id="room-1")
    lesson.publish([("a", 1, 0)], student="bea", classroom_id="room-2")
    assert [window.student_id for window in lesson.windows("room-1")] == ["ana"]
    assert [window.student_id for window in lesson.windows("room-2")] == ["bea"]
    lesson.machine.take_touched()
    lesson.publish([("a", 1, 0)], student="ana", classroom_id="room-2")
    assert lesson.machine.take_touched() == [
        topics.classroom_metrics("", "room-2"),
        topics.classroom_metrics("", "room-1"),
    ]
    assert lesson.windows("room-1") == []
    assert [window.student_id for window in lesson.windows("room-2")] == ["ana", "bea"]
    lesson.publish([("a", 1, 0)], student="ana", classroom_id="")
    assert lesson.window("ana").classroom_id == "room-2"
    assert lesson.machine.take_touched() == [topics.classroom_metrics("", "room-2")]


def test_m4_fifty_students_do_not_contaminate_each_other() -> None:
    lesson = Lesson()
    for number in range(50):
        samples = [("score", float(number), lesson.now_ms - age) for age in range(100)]
        lesson.publish(samples, student=f"s{number:02d}")
    windows = lesson.windows()
    assert [window.student_id for window in windows] == [f"s{n:02d}" for n in range(50)]
    for number, window in enumerate(windows):
        entry = metric(window, "score")
        assert (entry.count, entry.min, entry.max) == (100, number, number)


def test_the_version_grows_with_every_change() -> None:
    lesson = Lesson()
    versions = []
    for _ in range(3):
        lesson.publish([("a", 1, lesson.now_ms)])
        versions.append(lesson.window().version)
    lesson.publish([("a", 1, lesson.now_ms)], sequence=3)  # a duplicate
    assert versions == sorted(set(versions))
    assert lesson.window().version == versions[-1]


def test_defect_18_what_was_stored_is_there_after_any_answer() -> None:
    """The original cleared its buffer first and then failed to write: here an accepted batch is in
    the window, a refused one is not, and there is nothing between."""
    lesson = Lesson()
    total = 0
    for sequence in [1, 2, 2, 3, 1, 4, 4, 4]:
        result = lesson.publish([("a", float(sequence), 5)], sequence=sequence, sent_at_ms=9)
        total += result.accepted_count if result.status == ACCEPTED else 0
        assert lesson.window().accepted_total == total
    assert total == 4


def test_columns_may_hold_any_value() -> None:
    """Sums of squares go far beyond 64 bits."""
    lesson = Lesson()
    lesson.publish([("a", 9e9, lesson.now_ms - at) for at in range(100)])
    entry = metric(lesson.window(), "a")
    assert (entry.sum, entry.mean, entry.stddev) == (9e11, 9e9, 0)
    assert array("q", [9 * 10**15])[0] == 9 * 10**15
