"""What a hostile or unlucky sender does to windows and their past: it costs no peer its heartbeat,
stops none, and loses no count."""

from __future__ import annotations

import pytest
from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.state import history, history_table, late_work, metrics, omissions
from gaia_grpc.state.history import TYPE_COST
from gaia_grpc.state.packing import pack_batch
from tests.state.lessons import ROOM, Lesson, counts
from tests.state.snapshot_checks import check_restored

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
WINDOW_MS = 5 * MINUTE_MS


def publish(lesson: Lesson, metric_type: str, at_ms: int, student: str = "ana") -> None:
    """One metric, at most an hour ahead."""
    batch = lesson.batch([(metric_type, 1.0, at_ms)], student=student)
    packed = pack_batch(batch, max_future_ms=HOUR_MS).batch
    lesson.do(publish_metrics=command_pb2.PublishMetrics(batches=[packed]))


def past(lesson: Lesson, **fields: object) -> list[metrics_pb2.HistoryWindow]:
    """All pages of ana's past."""
    windows: list[metrics_pb2.HistoryWindow] = []
    token = ""
    while True:
        ask = {"student_id": "ana", "app_name": "reading", "page_token": token, **fields}
        answer = lesson.ask(get_history=ask).get_history
        windows.extend(answer.windows)
        token = answer.next_page_token
        if not token:
            return windows


def test_a_record_from_ahead_of_the_clock_takes_an_earlier_start() -> None:
    """A window that goes packs what its student sent from ahead of the clock. Then windows become
    longer: what is packed later has the same end and begins before the record."""
    lesson = Lesson()
    hour_ms = (lesson.now_ms // HOUR_MS + 2) * HOUR_MS
    lesson.advance(hour_ms - 50 * MINUTE_MS - lesson.now_ms)
    publish(lesson, "keypress", hour_ms - MINUTE_MS)
    lesson.advance(20 * MINUTE_MS)
    publish(lesson, "keypress", lesson.now_ms, student="bo")  # ana's window goes
    lesson.do(update_settings={"changes": [{"name": "metrics.window", "value": "1h"}]})
    changed_ms = lesson.now_ms
    publish(lesson, "keypress", lesson.now_ms, student="bo")
    lesson.advance(2 * MINUTE_MS)
    publish(lesson, "keypress", lesson.now_ms)
    lesson.advance(2 * HOUR_MS)
    publish(lesson, "keypress", lesson.now_ms)
    found = past(lesson)[0].aggregate
    assert (found.window_start_ms, found.window_end_ms) == (changed_ms, hour_ms)
    assert counts(found) == {"keypress": 2}
    check_restored(lesson.entries, len(lesson.entries) // 2)


def test_a_school_that_was_away_is_packed_over_several_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everybody is far behind after an outage, and comes back in one command."""
    monkeypatch.setattr(history, "PACKED_A_COMMAND", 4 * TYPE_COST)
    monkeypatch.setattr(history, "OVERDRAWN", 4 * TYPE_COST)
    lesson = Lesson()
    students = [f"s{number:02d}" for number in range(40)]

    def everybody() -> int:
        """One command; returns how many were packed by it."""
        before = packed()
        lesson.send(
            *(
                lesson.batch([("keypress", 1.0, lesson.now_ms)], student=student)
                for student in students
            )
        )
        return packed() - before

    def packed() -> int:
        past = lesson.metrics_table()._history.get("")
        return sum(len(each.ends_ms) for each in past.keys.values()) if past is not None else 0

    for student in students:
        for kind in ("a", "b", "c", "d", "e"):
            lesson.publish([(kind, 1.0, lesson.now_ms)], student=student)
    lesson.advance(30 * MINUTE_MS)
    first = everybody()
    assert 0 < first < 20
    rounds = 1
    while packed() < len(students):
        lesson.advance(1_000)
        everybody()
        rounds += 1
        assert rounds < 20
    assert rounds > 2


def test_all_that_comes_is_packed_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each batch brings a metric or two of a type: none of it waits for ever."""
    monkeypatch.setattr(history, "PACKED_A_COMMAND", 1)
    monkeypatch.setattr(history, "OVERDRAWN", 0)
    lesson = Lesson()
    students = [f"s{number:02d}" for number in range(20)]
    for _ in range(30):
        samples = [("a", 1.0, lesson.now_ms), ("b", 1.0, lesson.now_ms)]
        lesson.send(*(lesson.batch(samples, student=student) for student in students))
        lesson.advance(100_000)
    windows = lesson.metrics_table()._timelines.live.windows.values()
    behind = [lesson.now_ms - (window.packed_through_ms or 0) for window in windows]
    assert max(behind) < 4 * WINDOW_MS


def test_a_command_writes_a_bounded_part_of_the_past_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_work, "TYPES_A_COMMAND", 30)
    lesson = Lesson()
    late = [lesson.now_ms - WINDOW_MS * number for number in range(2, 6)]
    many = [(f"t{kind}", 1.0, at_ms) for kind in range(10) for at_ms in late]
    assert lesson.publish(many).expired_count == 0
    few = [("t0", 1.0, at_ms) for at_ms in late]
    batches = [lesson.batch(few, student=student) for student in ("ana", "ana", "bo")]
    first, second, other = lesson.send(*batches)
    assert (first.late_count, first.expired_count) == (4, 0)  # 40 types: alone it always may
    assert (second.status, second.reason) == (
        metrics_pb2.BATCH_STATUS_REFUSED,
        "RESOURCE_EXHAUSTED",
    )
    assert other.late_count == 4
    again = lesson.send(batches[1])[0]
    assert (again.status, again.late_count) == (metrics_pb2.BATCH_STATUS_ACCEPTED, 4)
    found = past(lesson)
    assert [counts(each.aggregate)["t0"] for each in found] == [3, 3, 3, 3]
    assert [each.revision for each in found] == [3, 3, 3, 3]
    check_restored(lesson.entries, len(lesson.entries) - 2)


def test_gap_marks_of_a_window_are_bounded_and_their_counts_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(omissions, "MAX_WINDOW_MARKS", 50)
    lesson = Lesson()
    omitted = 0
    for _ in range(40):
        now = lesson.now_ms
        marks = [("keypress", 3, now - 7 * at) for at in range(9)]
        marks += [("error", 1, now + 11 * at) for at in range(9)]
        lesson.omit(*marks, samples=[("keypress", 1.0, now)])
        omitted += 36
        lesson.advance(997)
        window = lesson.metrics_table()._timelines.live.windows["ana", "reading"]
        assert window.omissions.marks <= 52
        assert window.omissions.marks == sum(
            len(gaps.times) for gaps in window.omissions.by_type.values()
        )
    assert sum(part.omitted_count for part in lesson.window().metrics) == omitted
    lesson.advance(20 * MINUTE_MS)
    lesson.publish([("keypress", 1.0, lesson.now_ms)])
    told = [sum(part.omitted_count for part in each.aggregate.metrics) for each in past(lesson)]
    assert sum(told) == omitted
    check_restored(lesson.entries, len(lesson.entries) // 2)


def test_pages_end_after_a_bounded_number_of_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_table, "PAGE_METRICS", 10)
    monkeypatch.setattr(metrics, "PAGE_METRICS", 10)
    lesson = Lesson()
    types = [f"t{kind}" for kind in range(4)]
    for number in range(7):
        times = [lesson.now_ms - WINDOW_MS * (number + 2)]
        lesson.publish([(kind, 1.0, at_ms) for kind in types for at_ms in times])
        for student in ("ana", "bo", "cy", "di"):
            lesson.publish([(kind, 1.0, lesson.now_ms) for kind in types], student=student)
    ask = {"student_id": "ana", "app_name": "reading", "page_size": 1_000}
    page = lesson.ask(get_history=ask).get_history
    assert len(page.windows) == 3
    assert len(past(lesson, page_size=1_000)) == 7
    first = lesson.ask(list_aggregates={"classroom_id": ROOM}).list_aggregates
    token = first.next_page_token
    second = lesson.ask(list_aggregates={"classroom_id": ROOM, "page_token": token})
    students = [each.student_id for each in first.aggregates]
    students += [each.student_id for each in second.list_aggregates.aggregates]
    assert students == ["ana", "bo", "cy", "di"]
    assert not second.list_aggregates.next_page_token


def test_a_sweep_looks_at_a_bounded_number_of_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retention of one type makes it look at every type of every window."""
    monkeypatch.setattr(history, "TYPES_A_SWEEP", 50)
    lesson = Lesson(("metrics.type_retention", "keypress=1m"))
    late = [lesson.now_ms - WINDOW_MS * number for number in range(3, 6)]
    for student in ("ana", "bo", "cy", "di", "ed"):
        samples = [(f"t{kind}", 1.0, at_ms) for kind in range(10) for at_ms in late]
        lesson.publish(samples, student=student)
    lesson.now_ms += 11 * MINUTE_MS
    looks = []
    while (due_ms := lesson.machine.next_due_ms()) is not None and due_ms <= lesson.now_ms:
        lesson.do(advance_time={})
        looked = lesson.metrics_table()._history.get("")
        assert looked is not None
        looks.append(sum(each.visited_ms == lesson.now_ms for each in looked.keys.values()))
        lesson.now_ms += 50
    assert looks == [2, 2, 1]
    check_restored(lesson.entries, len(lesson.entries) - 2)
