"""Past windows: when they are packed, what goes and when, and what a change of settings does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from gaia.metrics.v1 import metrics_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state import history, timelines
from gaia_grpc.state.history_grid import MAX_CHANGES, Grid
from gaia_grpc.state.history_store import KeyHistory, TimelineHistory
from tests.state.lessons import Lesson, counts
from tests.state.snapshot_checks import check_frozen, check_restored, timers
from tests.state.snapshots import restored, whole_snapshot

WINDOW_MS = 300_000
HOUR_MS = 3_600_000
ASK = {"student_id": "ana", "app_name": "reading"}


def past(lesson: Lesson, **fields: Any) -> list[metrics_pb2.HistoryWindow]:
    """One page of history."""
    return list(lesson.ask(get_history={**ASK, **fields}).get_history.windows)


def store(lesson: Lesson, timeline: str = "") -> TimelineHistory:
    """What is kept inside."""
    found = lesson.metrics_table()._history.get(timeline)
    assert found is not None
    return found


def kept(lesson: Lesson, timeline: str = "", student: str = "ana") -> KeyHistory:
    """The packed records of one student."""
    return store(lesson, timeline).keys[student, "reading"]


def change(lesson: Lesson, name: str, value: str) -> None:
    """Changes a setting."""
    lesson.do(update_settings={"changes": [{"name": name, "value": value}]})


NO_MODEL = ("detector.min_decisions", "1000")
"""No alerts: they are kept longer than past windows, with their students."""


def fill(lesson: Lesson, windows: int, every_ms: int = 60_000, **fields: Any) -> None:
    """One error a minute, for so many windows."""
    for _ in range(windows * WINDOW_MS // every_ms):
        lesson.publish([("error", 1, lesson.now_ms)], **fields)
        lesson.advance(every_ms)


def to_boundary(lesson: Lesson) -> int:
    """Lets time pass to the next begin of a window, which it returns."""
    lesson.advance(-lesson.now_ms % WINDOW_MS)
    return lesson.now_ms


# --- windows --------------------------------------------------------------------------------------


def test_windows_are_half_open_and_aligned() -> None:
    lesson = Lesson()
    start = to_boundary(lesson)
    lesson.advance(1)
    lesson.publish(
        [("error", 1, start), ("error", 2, start + 1), ("error", 4, start - WINDOW_MS + 2)]
    )
    lesson.advance(WINDOW_MS)
    first, second = past(lesson)
    assert (first.aggregate.window_start_ms, first.aggregate.window_end_ms) == (
        start - WINDOW_MS,
        start,
    )
    assert (first.aggregate.metrics[0].sum, second.aggregate.metrics[0].sum) == (5, 2)
    assert second.aggregate.window_start_ms == start


def test_a_window_is_there_from_its_end_on_and_closed_a_window_later() -> None:
    lesson = Lesson()
    start = to_boundary(lesson)
    lesson.advance(1)
    lesson.publish([("error", 1, lesson.now_ms)])
    lesson.now_ms = start + WINDOW_MS - 1
    assert not past(lesson)
    lesson.now_ms += 1
    assert [window.HasField("close_time") for window in past(lesson)] == [False]
    lesson.now_ms += WINDOW_MS
    (window,) = past(lesson)
    assert window.close_time.ToMilliseconds() == lesson.now_ms
    assert window.aggregate.classroom_id == "room-1"


def test_late_data_makes_a_revision_a_batch_and_is_in_all_but_the_percentiles() -> None:
    lesson = Lesson()
    start = to_boundary(lesson)
    lesson.advance(1_000)
    lesson.publish([("error", 1, lesson.now_ms), ("error", 3, lesson.now_ms)])
    lesson.advance(3 * WINDOW_MS)
    for value in (5, 9):
        result = lesson.publish([("error", value, start + 1)] * 2 + [("hint", 1, start + 2)])
        assert (result.accepted_count, result.late_count, result.expired_count) == (0, 3, 0)
    (window,) = past(lesson)
    assert window.revision == 2
    errors, hints = window.aggregate.metrics
    assert (errors.count, errors.sum, errors.min, errors.max) == (6, 32, 1, 9)
    assert (errors.p50, errors.p99, errors.unranked_count) == (1, 3, 4)
    assert (hints.count, hints.unranked_count, hints.p50) == (2, 2, 0)
    assert lesson.window().late_total == 6


def test_what_is_older_than_all_that_is_kept_is_counted_and_said() -> None:
    lesson = Lesson()
    now = lesson.now_ms
    result = lesson.publish([("error", 1, now - 9 * HOUR_MS), ("error", 1, now - 7 * HOUR_MS)])
    assert (result.late_count, result.expired_count) == (2, 1)
    assert [window.revision for window in past(lesson)] == [1]
    assert lesson.window().late_total == 2


def test_pages_and_stretches() -> None:
    lesson = Lesson()
    start = to_boundary(lesson)
    fill(lesson, 6)
    ends = [window.aggregate.window_end_ms for window in past(lesson)]
    assert ends == [start + number * WINDOW_MS for number in range(7)]
    answer = lesson.ask(get_history={**ASK, "page_size": 4}).get_history
    rest = lesson.ask(get_history={**ASK, "page_token": answer.next_page_token}).get_history
    assert [w.aggregate.window_end_ms for w in (*answer.windows, *rest.windows)] == ends
    some = past(lesson, start_ms=ends[1], end_ms=ends[4])
    assert [window.aggregate.window_end_ms for window in some] == ends[2:5]
    assert not past(lesson, student_id="nobody")
    bad = lesson.query(get_history={**ASK, "page_token": "x"}).refusal
    assert bad.field == "page_token"


def test_students_apps_and_timelines_never_mix() -> None:
    lesson = Lesson()
    lesson.advance(1)
    for number, fields in enumerate(
        [{}, {"student": "bo"}, {"app": "math"}, {"timeline_id": "t"}], start=1
    ):
        lesson.publish([("error", number, lesson.now_ms)], **fields)
    lesson.advance(2 * WINDOW_MS)
    lesson.publish([("hint", 1, lesson.now_ms)], timeline_id="t")
    sums = [
        [window.aggregate.metrics[0].sum for window in past(lesson, **fields)]
        for fields in (
            {},
            {"student_id": "bo"},
            {"app_name": "math"},
            {"timeline_id": "t"},
        )
    ]
    assert sums == [[1], [2], [3], [4]]


def test_late_data_fills_a_window_with_no_more_types_than_an_answer_can_bring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "MAX_LATE_TYPES", 3)
    lesson = Lesson()
    old = lesson.now_ms - HOUR_MS
    first = lesson.publish([(f"a{number}", 1, old) for number in range(2)])
    second = lesson.publish([(f"b{number}", 1, old) for number in range(4)])
    third = lesson.publish([("a0", 1, old), ("b9", 1, old)])
    assert [each.expired_count for each in (first, second, third)] == [0, 3, 1]
    assert counts(past(lesson)[0].aggregate) == {"a0": 2, "a1": 1, "b0": 1}
    assert lesson.window().late_total == 8


# --- packing --------------------------------------------------------------------------------------


def test_packing_changes_no_answer() -> None:
    """An answer is the same before, while and after a window is packed, at any of its moments."""
    lesson = Lesson()
    fill(lesson, 2, every_ms=7_000)
    seen: dict[int, bytes] = {}
    for _ in range(120):
        lesson.publish([("error", 1, lesson.now_ms)])
        for window in past(lesson):
            if window.HasField("close_time"):
                end_ms = window.aggregate.window_end_ms
                found = window.SerializeToString(deterministic=True)
                assert seen.setdefault(end_ms, found) == found
        lesson.advance(7_000)
    assert len(seen) >= 3
    assert len(kept(lesson).packed) >= 3


def test_students_are_packed_at_times_of_their_own_and_few_in_one_command() -> None:
    lesson = Lesson()
    to_boundary(lesson)
    students = [f"s{number}" for number in range(60)]
    packed: list[int] = []
    for step in range(40):
        batches = [
            lesson.batch([("error", 1, lesson.now_ms)] * 40, student=student)
            for student in students
        ]
        lesson.send(*batches)
        packed.append(sum([len(each.packed) for each in store(lesson).keys.values()]))
        lesson.advance(15_000)
        if step == 20:
            lesson.machine = restored(whole_snapshot(lesson.machine))
    steps = [later - before for before, later in pairwise(packed)]
    assert sum(steps) == 60
    assert max(steps) <= 30
    assert len([each for each in steps if each]) >= 4


def test_a_command_packs_little_more_than_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students that all come back at once after a break are packed over some commands."""
    monkeypatch.setattr(history, "PACKED_A_COMMAND", 1_000)
    lesson = Lesson()
    students = [f"s{number}" for number in range(30)]
    for student in students:
        lesson.publish([("keypress", 1, lesson.now_ms)] * 1_800, student=student)
    lesson.advance(2 * WINDOW_MS + WINDOW_MS // 2)
    packed = []
    for _ in range(40):
        lesson.send(*[lesson.batch([("hint", 1, lesson.now_ms)], student=s) for s in students])
        packed.append(sum([len(each.packed) for each in store(lesson).keys.values()]))
        for student in students:
            (window,) = past(lesson, student_id=student)
            assert counts(window.aggregate) == {"keypress": 1_800}
    assert packed[0] <= 5
    assert packed[-1] == 30


def test_an_idle_student_is_packed_before_the_window_goes() -> None:
    lesson = Lesson()
    lesson.publish([("error", 1, lesson.now_ms), ("error", 1, lesson.now_ms + 50_000)])
    lesson.advance(timelines.WINDOW_IDLE_MS + 1)
    lesson.publish([("hint", 1, lesson.now_ms)], student="bo")
    assert lesson.query(get_aggregate=ASK).HasField("refusal")
    assert sum([window.aggregate.metrics[0].count for window in past(lesson)]) == 2
    assert [window.revision for window in past(lesson)] == [0] * len(past(lesson))


# --- what goes ------------------------------------------------------------------------------------


def test_windows_go_after_their_time_also_where_nothing_comes_any_more() -> None:
    lesson = Lesson(("metrics.history_retention", "1h"), NO_MODEL)
    fill(lesson, 4, source_id="tablet")
    lesson.advance(timelines.WINDOW_IDLE_MS + 1)
    lesson.publish([("hint", 1, lesson.now_ms)], student="bo", timeline_id="t")
    assert past(lesson)
    first_end_ms = past(lesson)[0].aggregate.window_end_ms
    lesson.advance(first_end_ms + HOUR_MS - lesson.now_ms - 1)
    assert past(lesson)[0].aggregate.window_end_ms == first_end_ms
    lesson.advance(1)
    assert past(lesson)[0].aggregate.window_end_ms == first_end_ms + WINDOW_MS
    lesson.advance(HOUR_MS + 2 * history.VISIT_EVERY_MS)
    assert not past(lesson)
    assert not store(lesson).keys
    assert store(lesson).bytes == 0
    assert b"ana" not in whole_snapshot(lesson.machine)
    assert lesson.machine.next_due_ms() is None


def test_types_go_at_times_of_their_own_and_take_their_channels_along() -> None:
    lesson = Lesson(("metrics.type_retention", "keypress=0ms error=30m hint=1d"))
    fill_types = [("keypress", 1), ("error", 1), ("accuracy", 0.5), ("hint", 1)]
    for _ in range(10):
        lesson.publish([(kind, value, lesson.now_ms) for kind, value in fill_types])
        lesson.advance(60_000)
    lesson.advance(timelines.WINDOW_IDLE_MS + 1)

    def channels() -> list[str]:
        windows = lesson.ask(detector_inputs=ASK).detector_inputs.windows
        return [column.channel for column in windows[0].columns]

    assert list(counts(past(lesson)[0].aggregate)) == ["accuracy", "error", "hint"]
    assert channels() == ["error", "correct", "hint"]
    lesson.publish([("hint", 1, lesson.now_ms)])
    lesson.advance(HOUR_MS)
    assert list(counts(past(lesson)[0].aggregate)) == ["accuracy", "hint"]
    assert channels() == ["correct", "hint"]
    assert "error" not in kept(lesson).types[0]
    lesson.advance(9 * HOUR_MS)
    assert list(counts(past(lesson)[0].aggregate)) == ["hint"]
    lesson.advance(24 * HOUR_MS)
    assert not past(lesson)


def test_a_sweep_looks_at_some_students_at_a_time() -> None:
    lesson = Lesson(("metrics.history_retention", "1m"))
    students = [f"s{number}" for number in range(100)]
    now = lesson.now_ms
    lesson.send(*[lesson.batch([("error", 1, now - WINDOW_MS)], student=s) for s in students])
    assert len(store(lesson).keys) == 100 or not store(lesson).keys
    change(lesson, "metrics.history_retention", "8h")
    lesson.send(*[lesson.batch([("error", 1, now - WINDOW_MS)], student=s) for s in students])
    change(lesson, "metrics.history_retention", "1m")
    lesson.now_ms = now + HOUR_MS
    left = []
    for _ in range(4):
        lesson.do(advance_time={})
        left.append(len(store(lesson).keys))
        lesson.now_ms += history.SWEEP_AGAIN_MS
    assert left == [68, 36, 4, 0]


def test_the_oldest_windows_of_all_students_go_where_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "MIB", 1_024)
    lesson = Lesson(("metrics.max_history_mib", "3"))
    to_boundary(lesson)
    for _ in range(14 * 5):
        for student in ("ana", "bo"):
            lesson.publish([("error", 1, lesson.now_ms)], student=student)
        lesson.publish([("error", 1, lesson.now_ms)], timeline_id="t")
        lesson.advance(60_000)
    assert store(lesson).bytes <= 3 * 1_024
    ends = [window.aggregate.window_end_ms for window in past(lesson)]
    assert ends == [window.aggregate.window_end_ms for window in past(lesson, student_id="bo")]
    assert all(later - before == WINDOW_MS for before, later in pairwise(ends))
    assert ends[0] == store(lesson).floor_ms + WINDOW_MS
    result = lesson.publish([("error", 1, ends[0] - WINDOW_MS)])
    assert (result.late_count, result.expired_count) == (1, 1)
    assert len(past(lesson, timeline_id="t")) == 14
    twin = restored(whole_snapshot(lesson.machine))
    assert whole_snapshot(twin) == whole_snapshot(lesson.machine)


def test_a_timeline_takes_its_past_along() -> None:
    lesson = Lesson(NO_MODEL)
    fill(lesson, 4, student="zoe", source_id="tablet", timeline_id="t")
    assert past(lesson, student_id="zoe", timeline_id="t")
    assert b"zoe" in whole_snapshot(lesson.machine)
    lesson.advance(timelines.TIMELINE_IDLE_MS)
    lesson.publish([("error", 1, lesson.now_ms)])
    assert not past(lesson, student_id="zoe", timeline_id="t")
    assert b"zoe" not in whole_snapshot(lesson.machine)


def test_a_student_is_forgotten_on_every_timeline() -> None:
    lesson = Lesson()
    fill(lesson, 4)
    fill(lesson, 4, timeline_id="t")
    fill(lesson, 4, student="bo")
    table = lesson.metrics_table()._history
    held = sum(
        [len(store(lesson, timeline).keys["ana", "reading"].packed) for timeline in ("", "t")]
    )
    assert table.forget_student("ana") == held >= 4
    assert ("ana", "reading") not in store(lesson).keys
    assert past(lesson, student_id="bo")


# --- settings and levels --------------------------------------------------------------------------

TIMES = st.integers(-10_000_000, 10_000_000)


@given(
    st.lists(st.tuples(st.integers(1, 500_000), st.integers(0, 400_000)), min_size=1, max_size=9),
    st.lists(TIMES, min_size=1, max_size=20),
)
def test_every_time_is_in_one_window_however_often_their_length_changes(
    changes: list[tuple[int, int]], times: list[int]
) -> None:
    grid = Grid()
    clock_ms = 0
    for window_ms, later_ms in changes:
        clock_ms += later_ms
        grid.use(window_ms, clock_ms)
    for time_ms in times:
        start_ms, end_ms = grid.bounds(time_ms)
        assert start_ms < time_ms <= end_ms
        assert end_ms - start_ms <= 500_000
        assert grid.bounds(start_ms + 1) == grid.bounds(end_ms) == (start_ms, end_ms)
        assert grid.bounds(start_ms)[1] == start_ms
        assert grid.bounds(end_ms + 1)[0] == end_ms


def test_a_grid_forgets_the_oldest_of_too_many_changes() -> None:
    grid = Grid()
    floors = [grid.use(10 + number, number * 1_000) for number in range(MAX_CHANGES + 3)]
    assert floors[:MAX_CHANGES] == [None] * MAX_CHANGES
    assert floors[MAX_CHANGES:] == [1_000, 2_000, 3_000]


@pytest.mark.parametrize("lengths", [["1s", "5m", "10s"], ["1h", "1s", "1h"], ["7s", "13m", "2m"]])
def test_no_metric_is_lost_or_doubled_where_the_length_changes(lengths: list[str]) -> None:
    lesson = Lesson()
    sent = late = 0
    for step in range(300):
        if step % 60 == 30:
            change(lesson, "metrics.window", lengths[step // 60 % 3])
        now = lesson.now_ms
        result = lesson.publish(
            [("error", 1, now), ("error", 1, now - 1_500), ("error", 1, now - step * 4_000)]
        )
        sent += 3
        late += result.late_count
        assert not result.expired_count
        lesson.advance(3_000)
        if step % 50 == 40:
            lesson.machine = restored(whole_snapshot(lesson.machine))
    lesson.advance(2 * HOUR_MS)
    windows: list[metrics_pb2.HistoryWindow] = []
    token = ""
    while True:
        answer = lesson.ask(get_history={**ASK, "page_token": token}).get_history
        windows += answer.windows
        token = answer.next_page_token
        if not token:
            break
    assert late
    assert sum([window.aggregate.metrics[0].count for window in windows]) == sent
    for before, later in pairwise(windows):
        assert before.aggregate.window_end_ms <= later.aggregate.window_start_ms
    for window in windows:
        (metric,) = window.aggregate.metrics
        assert window.aggregate.window_start_ms < metric.first_time_ms
        assert metric.last_time_ms <= window.aggregate.window_end_ms


def test_below_its_level_there_is_no_history() -> None:
    lesson = Lesson(level=2)
    fill(lesson, 4)
    result = lesson.publish([("error", 1, lesson.now_ms - HOUR_MS)])
    assert (result.late_count, result.expired_count) == (1, 0)
    assert lesson.query(get_history=ASK).refusal.reason == "FEATURE_LEVEL"
    assert lesson.metrics_table()._history.get("") is None
    assert (
        lesson.metrics_table()._timelines.live.windows["ana", "reading"].packed_through_ms is None
    )


def test_history_begins_when_the_level_is_raised() -> None:
    lesson = Lesson(level=2)
    fill(lesson, 4)
    lesson.do(raise_feature_level={"level": 3})
    assert not past(lesson)
    raised = lesson.now_ms
    fill(lesson, 4)
    windows = past(lesson)
    assert raised - 2 * WINDOW_MS <= windows[0].aggregate.window_start_ms
    full = [window.aggregate.metrics[0].count for window in windows[:-1]]
    assert full == [5] * len(full)


# --- snapshots ------------------------------------------------------------------------------------


def long_lesson() -> Lesson:
    """Everything that history does."""
    lesson = Lesson(
        ("metrics.window", "20s"),
        ("metrics.history_retention", "2m"),
        ("metrics.type_retention", "error=30s hint=10m"),
    )
    for step in range(200):
        now = lesson.now_ms
        lesson.publish(
            [
                (("error", "hint", "keypress")[step % 3], step, now - step % 7 * 3_000),
                ("response_time", step / 7, now - step % 11 * 9_000),
            ],
            student=("ana", "bo", "cy")[step % 5 % 3],
            timeline_id="t" if step % 6 == 0 else "",
        )
        if step == 120:
            change(lesson, "metrics.window", "7s")
        lesson.advance(5_000 if step % 40 else 1_000_000)
    return lesson


def test_a_snapshot_taken_while_windows_are_packed_is_that_of_its_index() -> None:
    lesson = long_lesson()
    for begin in (3, 60, 121):
        assert check_frozen(lesson.entries, begin, lambda: 1) >= 1


def test_a_restored_machine_packs_and_forgets_like_the_one_it_is_of() -> None:
    lesson = long_lesson()
    assert any(kind == history.SWEEP for _, kind, _ in timers(lesson.machine))
    for begin in range(5, len(lesson.entries), 60):
        check_restored(lesson.entries, begin)
