"""What a restored machine knows of metrics and alerts, and snapshots that are refused."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from gaia.command.v1 import metrics_record_pb2, snapshot_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.errors import StorageDamagedError
from gaia_grpc.state import sources, timelines
from gaia_grpc.state.restore import _varint
from gaia_grpc.state.snapshot_codec import varint
from gaia_grpc.state.window_codec import decode_window, encode_window, take_in
from gaia_grpc.state.windows import StudentWindow
from tests.state.lessons import Lesson
from tests.state.snapshots import make_tiny_pieces, mixed_log, restored, whole_snapshot


def damaged_log() -> bytes:
    """A snapshot with records of all kinds."""
    return whole_snapshot(mixed_log(0, 150).machine)


@pytest.mark.parametrize("replays", [False, True])
def test_what_is_evicted_first_survives_a_restore(replays: bool) -> None:
    """More is due than goes at once, and was touched in another order than it came in: the places
    in the heaps are those of the first time, which no snapshot holds."""
    lesson = Lesson()
    count = 6 if replays else 70
    for number in (*range(count), *reversed(range(count))):
        lesson.publish(
            [("keypress", 1, lesson.now_ms)],
            student=f"s{number}",
            timeline_id=f"t{number}" if replays else "",
        )
        lesson.advance(1_000)
    twin = Lesson()
    twin.machine = restored(whole_snapshot(lesson.machine))
    twin.now_ms = lesson.now_ms
    for machine in (lesson, twin):
        machine.advance(7_200_000)
        machine.publish([("keypress", 1, machine.now_ms)], student="last", sequence=1)
        table = machine.metrics_table()
        left = len(table._timelines._timelines) - 1 if replays else len(table._sources) - 1
        assert left == (2 if replays else 6)
    assert whole_snapshot(lesson.machine) == whole_snapshot(twin.machine)


def test_a_repeat_is_known_after_a_restore() -> None:
    lesson = Lesson(("metrics.dedup_sequences", "4"))
    first, _, other, *_ = sent = [
        lesson.batch([("keypress", number, lesson.now_ms)], student="ana") for number in range(6)
    ]
    lesson.send(*sent)
    counted = lesson.window().accepted_total
    lesson.machine = restored(whole_snapshot(lesson.machine))
    changed = metrics_pb2.MetricBatch()
    changed.CopyFrom(sent[-1])
    changed.metrics[0].value += 1
    duplicate, other_content, too_old, kept = lesson.send(sent[-1], changed, first, other)
    assert duplicate.status == metrics_pb2.BATCH_STATUS_DUPLICATE
    assert duplicate.accepted_count == 1
    assert kept.status == metrics_pb2.BATCH_STATUS_DUPLICATE
    assert (other_content.status, other_content.reason) == (
        metrics_pb2.BATCH_STATUS_REFUSED,
        "ALREADY_EXISTS",
    )
    assert (too_old.status, too_old.reason) == (
        metrics_pb2.BATCH_STATUS_REFUSED,
        "OUT_OF_RANGE",
    )
    assert lesson.window().accepted_total == counted


@pytest.mark.parametrize("timeline", ["", "t"])
def test_a_window_expires_across_a_restore(timeline: str) -> None:
    lesson = Lesson()
    start = lesson.now_ms
    lesson.publish([("keypress", 1, start), ("keypress", 2, start + 1)], timeline_id=timeline)
    lesson.machine = restored(whole_snapshot(lesson.machine))
    # Exactly one window later the first is out of it, and one as old as it comes too late.
    lesson.now_ms = start + 300_000
    late = lesson.publish(
        [("keypress", 4, start), ("keypress", 8, start + 1)], timeline_id=timeline
    )
    assert (late.accepted_count, late.late_count) == (1, 1)
    window = lesson.window(timeline_id=timeline)
    assert (window.metrics[0].count, window.metrics[0].sum) == (2, 10)
    assert (window.accepted_total, window.late_total) == (3, 1)


def test_an_alert_lives_on_across_a_restore() -> None:
    """Its end comes when it would have come, nothing opens in the quiet time, and the sequence of
    events goes on."""
    ends = []
    for restore in (False, True):
        lesson = Lesson(("alert.acknowledge_timeout", "0ms"), ("detector.min_decisions", "1000"))
        lesson.errors(0, 1, 2)
        if restore:
            lesson.machine = restored(whole_snapshot(lesson.machine))
        lesson.advance(70_000)
        lesson.errors(0, 1, 2)
        if restore:
            lesson.machine = restored(whole_snapshot(lesson.machine))
        lesson.advance(200_000)
        assert lesson.changes() == ["OPENED", "RESOLVED"]
        if restore:
            lesson.machine = restored(whole_snapshot(lesson.machine))
        lesson.errors(0, 1, 2)
        assert lesson.changes() == ["OPENED", "RESOLVED"]
        lesson.advance(300_000)
        lesson.errors(0, 1, 2)
        assert lesson.changes() == ["OPENED", "RESOLVED", "OPENED"]
        events = lesson.events().events
        assert [event.sequence for event in events] == [1, 2, 3]
        assert events[-1].alert.alert_id == "alert-2"
        ends.append(events[1].alert.resolved_at_ms)
    assert ends[0] == ends[1]


def test_the_limits_hold_in_a_restored_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, timelines and sources are counted as if they had come one by one."""
    lesson = Lesson()
    lesson.publish([("keypress", 1, lesson.now_ms)], student="a")
    lesson.publish([("keypress", 1, lesson.now_ms)], student="b", timeline_id="t")
    lesson.machine = restored(whole_snapshot(lesson.machine))
    monkeypatch.setattr(timelines, "MAX_WINDOWS", 3)
    monkeypatch.setattr(sources, "MAX_SOURCES", 4)
    results = [
        lesson.publish([("keypress", 1, lesson.now_ms)], student=student, source_id=source)
        for student, source in (("a", "x"), ("c", "x"), ("d", "x"), ("a", "y"), ("a", "z"))
    ]
    assert [result.message for result in results] == [
        "", "", "too many students or timelines", "", "too many sources",
    ]  # fmt: skip


def test_an_alert_whose_events_are_gone_is_restored_with_its_own_bytes() -> None:
    lesson = Lesson(("alert.retained_events", "1"))
    lesson.errors(0, 1, 2)
    lesson.errors(0, 1, 2, student="bo")
    assert [alert.student_id for alert in lesson.alerts()] == ["bo", "ana"]
    before = lesson.alerts()
    lesson.machine = restored(whole_snapshot(lesson.machine))
    assert lesson.alerts() == before
    assert lesson.alerts(classroom_id="room-1", student_id="ana") == before[1:]


class Damage:
    """A snapshot whose records are changed one at a time, and signed again as if they were right:
    the digest must not be what refuses them."""

    def __init__(self, snapshot: bytes) -> None:
        self.frames = []
        place = 0
        while place < len(snapshot):
            found = _varint(snapshot, place)
            assert found is not None
            start, size = found
            place = start + size
            self.frames.append(snapshot[start:place])

    def records(self, name: str) -> list[int]:
        """Places of the records of a section."""
        return [
            place
            for place, frame in enumerate(self.frames)
            if snapshot_pb2.SnapshotRecord.FromString(frame).WhichOneof("body") == name
        ]

    def with_frames(self, frames: list[bytes]) -> bytes:
        """These frames, the trailer of which is made anew."""
        encoded = b"".join(varint(len(frame)) + frame for frame in frames[:-1])
        trailer = snapshot_pb2.SnapshotRecord(
            trailer=snapshot_pb2.SnapshotTrailer(
                record_count=len(frames) - 1, digest=sha256(encoded).digest()
            )
        ).SerializeToString()
        return encoded + varint(len(trailer)) + trailer

    def changed(self, place: int, change: Callable[[Any], None]) -> bytes:
        """One record changed."""
        frames = list(self.frames)
        record = snapshot_pb2.SnapshotRecord.FromString(frames[place])
        change(getattr(record, str(record.WhichOneof("body"))))
        frames[place] = record.SerializeToString()
        return self.with_frames(frames)

    def without(self, place: int) -> bytes:
        """One record left out."""
        return self.with_frames(self.frames[:place] + self.frames[place + 1 :])

    def twice(self, place: int) -> bytes:
        """One record twice."""
        return self.with_frames(self.frames[: place + 1] + self.frames[place:])


def test_any_flipped_bit_and_any_missing_end_is_refused() -> None:
    snapshot = damaged_log()
    draw = random.Random(1)
    for _ in range(200):
        place = draw.randrange(len(snapshot))
        broken = bytearray(snapshot)
        broken[place] ^= 1 << draw.randrange(8)
        with pytest.raises(StorageDamagedError):
            restored(bytes(broken))
        with pytest.raises(StorageDamagedError):
            restored(snapshot[:place] or b"\0")


def test_records_that_no_table_wrote_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_pieces(monkeypatch)
    damage = Damage(damaged_log())
    restored(damage.with_frames(damage.frames))
    first_source, *sources_ = damage.records("source")
    first_window, *windows = damage.records("window")
    events = damage.records("alert_events")
    episodes = damage.records("episode")
    broken = [
        damage.twice(first_source),
        damage.without(first_source),
        damage.changed(first_source, lambda source: source.ClearField("epochs")),
        damage.changed(sources_[0], lambda source: source.epochs[0].CopyFrom(EPOCH_OF_NOTHING)),
        damage.changed(first_source, lambda source: extend(source.epochs[0], b"x")),
        damage.changed(first_source, lambda source: extend(source.epochs[0], b"x" * 16 * 70)),
        damage.twice(damage.records("timeline")[1]),
        damage.without(damage.records("timeline")[1]),
        damage.twice(first_window),
        damage.twice(windows[0]),
        damage.changed(first_window, lambda window: cut(window.series[0])),
        damage.changed(first_window, lambda window: grow(window.series[0], 2**31 - 1)),
        damage.changed(first_window, lambda window: grow(window.series[0], -1)),
        damage.without(events[0]),
        damage.without(events[1]),
        damage.twice(events[1]),
        damage.changed(events[0], lambda found: setattr(found, "first_sequence", -7)),
        damage.changed(events[0], lambda found: setattr(found.events[0], "alert_number", 999)),
        damage.twice(damage.records("alert")[0]),
        damage.without(damage.records("alert")[0]),
        damage.changed(damage.records("alert")[0], lambda alert: setattr(alert, "alert", b"x")),
        damage.changed(damage.records("alert_counters")[0], lambda counters: counters.Clear()),
        damage.twice(episodes[0]),
        damage.changed(episodes[0], lambda episode: setattr(episode, "number", 999)),
    ]
    accepted = []
    for number, snapshot in enumerate(broken):
        try:
            restored(snapshot)
        except StorageDamagedError:
            continue
        accepted.append(number)
    assert not accepted


def test_pieces_of_a_window_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_pieces(monkeypatch)
    window = StudentWindow("", ("ana", "math"))
    window.add("keypress", list(range(15)), array("q", range(15)), cut_ms=-1)
    first, *pieces = map(metrics_record_pb2.WindowRecord.FromString, encode_window(window))
    assert len(pieces) == 4
    decoded = decode_window(first)
    for piece in pieces:
        take_in(decoded, piece)
    assert decoded.series["keypress"].times == window.series["keypress"].times
    assert decoded.series["keypress"].values == window.series["keypress"].values
    assert decoded.accepted_total == 15
    with pytest.raises(ValueError, match="out of order"):
        take_in(decoded, pieces[1])


EPOCH_OF_NOTHING = metrics_record_pb2.EpochRecord(epoch=77, kept=0)


def extend(epoch: metrics_record_pb2.EpochRecord, slots: bytes) -> None:
    """More slots than there can be."""
    epoch.slots += slots


def cut(series: metrics_record_pb2.SeriesRecord) -> None:
    """A column too short."""
    series.values_micro = series.values_micro[:-1]


def grow(series: metrics_record_pb2.SeriesRecord, count: int) -> None:
    """A count of all too many metrics, which must not be made room for."""
    series.count = count
    series.times_ms = series.values_micro = b"\0" * 9
