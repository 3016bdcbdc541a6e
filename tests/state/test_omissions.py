"""Gap marks: in the window exactly as long as metrics of their time, counted once, in any order."""

from __future__ import annotations

import random
from array import array

import pytest
from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.omissions import MAX_TOTAL, Gaps, Omissions
from gaia_grpc.state.packing import pack_batch
from tests.state.harness import Log
from tests.state.lessons import MAX_FUTURE_MS, Lesson, make_batch, metric
from tests.state.snapshot_checks import check_frozen, check_restored, restored, whole

WINDOW_MS = 300_000
TYPES = ["keypress", "error", ""]


def plain(marks: list[tuple[str, int, int]], start_ms: int, end_ms: int) -> dict[str, int]:
    """What the counts must be, by looking at each."""
    found: dict[str, int] = {}
    for metric_type, count, time_ms in marks:
        if start_ms < time_ms <= end_ms:
            found[metric_type] = found.get(metric_type, 0) + count
    return found


def told(window: metrics_pb2.Aggregate) -> dict[str, int]:
    """Omissions by type."""
    return {part.metric_type: part.omitted_count for part in window.metrics if part.omitted_count}


MARK = st.tuples(st.sampled_from(TYPES), st.integers(1, 500), st.integers(-400_000, MAX_FUTURE_MS))


@given(
    st.lists(
        st.tuples(st.lists(MARK, min_size=1, max_size=5), st.integers(0, 120_000)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 700_000),
    st.booleans(),
)
def test_live_marks_stand_in_the_window_as_long_as_metrics(
    batches: list[tuple[list[tuple[str, int, int]], int]], later_ms: int, read_often: bool
) -> None:
    lesson = Lesson()
    inside: list[tuple[str, int, int]] = []
    total = metrics = 0
    for marks, pause_ms in batches:
        now = lesson.now_ms
        placed = [(kind, count, now + age) for kind, count, age in marks]
        result = lesson.omit(*placed, samples=[("keypress", 1, now)])
        assert (result.accepted_count, result.late_count) == (1, 0)
        metrics += 1
        total += sum(count for _, count, _ in marks)
        inside += [mark for mark in placed if mark[2] > now - WINDOW_MS]
        if read_often:
            lesson.window()
        lesson.advance(pause_ms)
    lesson.advance(later_ms)
    window = lesson.window()
    end = lesson.now_ms
    expected = plain(inside, end - WINDOW_MS, end)
    assert window.omitted_total == total
    assert told(window) == {kind: count for kind, count in expected.items() if kind}
    counted = sum(part.count for part in window.metrics)
    omitted = sum(expected.values())
    assert window.completeness == (counted / (counted + omitted) if omitted else 1.0)
    assert window.accepted_total == metrics
    for part in window.metrics:
        assert part.completeness == part.count / (part.count + part.omitted_count)


@given(st.lists(st.lists(MARK, min_size=1, max_size=5), min_size=1, max_size=6), st.randoms())
def test_any_order_and_any_cut_of_marks_give_the_same_window(
    batches: list[list[tuple[str, int, int]]], shuffle: random.Random
) -> None:
    flat = [(kind, count, 10_000_000 + age // 2) for marks in batches for kind, count, age in marks]
    snapshots = []
    for _ in range(2):
        lesson = Lesson()
        lesson.omit(("x", 1, 10_000_000), timeline_id="t", sent_at_ms=10_000_000)
        left = list(flat)
        while left:
            size = shuffle.randrange(1, 5)
            part, left = left[:size], left[size:]
            lesson.omit(*part, timeline_id="t", sent_at_ms=10_000_000)
        window = lesson.window(timeline_id="t")
        window.version = 0
        inside = lesson.metrics_table()._timelines.get("t")
        assert inside is not None
        gaps = next(iter(inside.windows.values())).omissions
        snapshots.append((window, [each.SerializeToString() for each in gaps.encode()]))
        shuffle.shuffle(flat)
    assert snapshots[0] == snapshots[1]


def test_a_type_of_which_nothing_came_stands_there_with_its_gap() -> None:
    lesson = Lesson()
    now = lesson.now_ms
    assert lesson.omit(("keypress", 40, now)).status == metrics_pb2.BATCH_STATUS_ACCEPTED
    lost = metric(lesson.window(), "keypress")
    assert (lost.count, lost.omitted_count, lost.completeness) == (0, 40, 0.0)
    lesson.omit(("", 30, 0), ("keypress", 20, now), samples=[("keypress", 2, now)] * 30)
    window = lesson.window()
    part = metric(window, "keypress")
    assert (part.count, part.sum, part.omitted_count) == (30, 60, 60)
    assert part.completeness == pytest.approx(1 / 3)
    assert window.completeness == 30 / (30 + 60 + 30)
    assert (window.omitted_total, window.accepted_total) == (90, 30)
    lesson.advance(WINDOW_MS - 1)
    assert told(lesson.window()) == {"keypress": 60}
    lesson.advance(1)
    after = lesson.window()
    assert (len(after.metrics), after.completeness, after.omitted_total) == (0, 1.0, 90)


def test_a_repeated_batch_counts_its_marks_once_and_other_marks_are_other_content() -> None:
    lesson = Lesson()
    batch = lesson.batch([("keypress", 1, lesson.now_ms)])
    batch.omissions.add(metric_type="keypress", count=5)
    assert lesson.send(batch)[0].status == metrics_pb2.BATCH_STATUS_ACCEPTED
    batch.sent_at_ms += 500
    assert lesson.send(batch)[0].status == metrics_pb2.BATCH_STATUS_DUPLICATE
    assert lesson.window().omitted_total == 5
    for field, value in (("count", 6), ("metric_type", ""), ("event_time_ms", 9), ("reason", 2)):
        other = metrics_pb2.MetricBatch()
        other.CopyFrom(batch)
        setattr(other.omissions[0], field, value)
        assert lesson.send(other)[0].reason == "ALREADY_EXISTS", field
    del batch.omissions[:]
    assert lesson.send(batch)[0].reason == "ALREADY_EXISTS"


def test_marks_far_ahead_count_as_far_as_metrics_may_be() -> None:
    batch = make_batch([], sequence=1, sent_at_ms=1_000_000)
    batch.omissions.add(count=1, event_time_ms=9_000_000)
    batch.omissions.add(count=1, event_time_ms=990_000)
    packed = pack_batch(batch, max_future_ms=60_000).batch
    assert [mark.time_offset_ms for mark in packed.omissions] == [60_000, -10_000]
    bare = pack_batch(batch, max_future_ms=60_000, with_omissions=False).batch
    del batch.omissions[:]
    assert bare == pack_batch(batch, max_future_ms=60_000).batch


def test_below_level_3_apply_takes_no_notice() -> None:
    """Byte for byte what it did before there were marks."""
    results = []
    for marked in (True, False):
        log = Log(level=2)
        for sequence in (1, 2):
            samples = [("keypress", 1.0, log.now_ms)] if sequence == 1 else []
            batch = make_batch(samples, sequence=sequence, sent_at_ms=log.now_ms)
            packed = pack_batch(batch, max_future_ms=60_000).batch
            if marked:
                packed.omissions.add(metric_type="keypress", count=5)
                packed.omissions.add(metric_type="keypress", count=-1)
            result = log.do(publish_metrics=command_pb2.PublishMetrics(batches=[packed]))
            results.append((sequence, result.publish.SerializeToString()))
    assert results[:2] == results[2:]


@pytest.mark.parametrize(
    "mark", [{}, {"count": -1}, {"count": 10**9 + 1}, {"count": 1, "time_offset_ms": 1 << 60}]
)
def test_malformed_marks_are_refused_and_stop_nobody(mark: dict[str, int]) -> None:
    lesson = Lesson()
    packed = pack_batch(lesson.batch([("keypress", 1, 0)]), max_future_ms=60_000).batch
    packed.omissions.add(**mark)
    body = command_pb2.PublishMetrics(batches=[packed])
    (result,) = lesson.do(publish_metrics=body).publish.results
    assert result.reason == "INVALID_ARGUMENT"
    assert lesson.windows() == []


def test_counts_end_where_an_answer_can_hold_them() -> None:
    gaps, omissions = Gaps(), Omissions()
    for _ in range(3):
        gaps.add(1, MAX_TOTAL - 1, 0)
        omissions.note(MAX_TOTAL - 1)
    gaps.add(2, MAX_TOTAL, 0)
    assert (gaps.count(0, 1), gaps.count(0, 2), omissions.total) == (MAX_TOTAL,) * 3


def test_what_is_cut_is_too_old_for_any_question() -> None:
    gaps = Gaps()
    for time_ms in range(1_000):
        gaps.add(time_ms, 1, time_ms % 2)
        gaps.cut(time_ms - 100)
        assert gaps.count(time_ms - 100, time_ms) == min(time_ms + 1, 100)
    assert len(gaps.times) < 200
    assert gaps.times == array("q", sorted(gaps.times))


def test_past_windows_hold_the_gaps_of_their_time() -> None:
    """Packed, not packed yet and corrected: each mark is in exactly one past window."""
    for step_ms in (20_000, 301_000):
        lesson = Lesson()
        source = random.Random(step_ms)
        marks: list[tuple[str, int, int]] = []
        first = lesson.now_ms
        for _ in range(60):
            now = lesson.now_ms
            placed = [
                (source.choice(TYPES), source.randrange(1, 9), now - source.randrange(600_000))
                for _ in range(source.randrange(4))
            ]
            marks += placed
            lesson.omit(*placed, samples=[("keypress", 1, now)])
            lesson.advance(step_ms)
        ask = {"student_id": "ana", "app_name": "reading", "page_size": 1_000}
        windows = lesson.ask(get_history=ask).get_history.windows
        assert len(windows) > 3
        for past in windows:
            aggregate = past.aggregate
            start, end = aggregate.window_start_ms, aggregate.window_end_ms
            if start < first:
                continue
            expected = plain(marks, start, end)
            assert told(aggregate) == {kind: count for kind, count in expected.items() if kind}
            counted = sum(part.count for part in aggregate.metrics)
            omitted = sum(expected.values())
            assert aggregate.completeness == (counted / (counted + omitted) if omitted else 1.0)


def busy(seed: int) -> Lesson:
    """Marks with and without metrics, late ones, on several timelines, and deletions."""
    source = random.Random(seed)
    lesson = Lesson(("metrics.window", "20s"))
    for _ in range(150):
        now = lesson.now_ms
        if source.random() < 0.05:
            lesson.do(delete_student_data={"student_id": f"s{source.randrange(3)}"})
        marks = [
            (source.choice(TYPES), source.randrange(1, 9), now - source.randrange(60_000))
            for _ in range(source.randrange(1, 4))
        ]
        samples = [("keypress", 1.0, now)] * source.randrange(3)
        timeline = source.choice(["", "", "t"])
        lesson.omit(
            *marks,
            samples=samples,
            student=f"s{source.randrange(3)}",
            timeline_id=timeline,
            source_id=source.choice(["x", "y"]),
        )
        lesson.advance(source.choice([0, 500, 7_000, 25_000]))
    return lesson


@pytest.mark.parametrize("seed", range(3))
def test_snapshots_with_marks(seed: int) -> None:
    lesson = busy(seed)
    source = random.Random(seed)
    assert check_frozen(lesson.entries, 10, lambda: source.randrange(3)) >= 4
    for begin_at in (30, 80, 140):
        check_restored(lesson.entries, begin_at)
    lesson.omit(("error", 3, lesson.now_ms), ("", 1, lesson.now_ms))
    assert whole(restored(whole(lesson.machine))) == whole(lesson.machine)
