"""Windows, history and detector inputs against an oracle that keeps everything: any order of
arrival, clocks, shifts, duplicates, timelines, late data, and restores in the middle."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
from gaia.metrics.v1 import metrics_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia_grpc.state import history, history_snapshot
from tests.state.lessons import MAX_FUTURE_MS, Lesson
from tests.state.plain_metrics import Key, PlainMetrics
from tests.state.snapshots import restored, whole_snapshot

TYPES = ["error", "correct", "accuracy", "response_time", "keypress", "pause", "other"]
WINDOW_MS = 20_000
RETENTION_MS = 120_000

AGES = st.one_of(
    st.integers(-MAX_FUTURE_MS, 5_000),
    st.integers(0, 3 * WINDOW_MS),
    st.integers(0, 2 * RETENTION_MS),
    st.sampled_from([0, WINDOW_MS, WINDOW_MS - 1, WINDOW_MS + 1, 2 * WINDOW_MS]),
)
VALUES = st.one_of(
    st.sampled_from([1.0, 1.0, 0.0, 2.0, 0.5, -3.0, 75.0]),
    st.floats(-9e9, 9e9, allow_nan=False),
    st.integers(0, 10_000).map(lambda value: value / 1_000),
)
METRICS = st.lists(st.tuples(st.sampled_from(TYPES), VALUES, AGES), min_size=1, max_size=8)
STEPS = st.one_of(
    st.tuples(
        st.just("batch"),
        st.sampled_from(["ana", "bo"]),
        st.sampled_from(["", "", "t"]),
        METRICS,
        st.integers(-10_000_000, 10_000_000),
    ),
    st.tuples(st.just("advance"), st.integers(1, 25_000)),
    st.tuples(st.just("advance"), st.sampled_from([WINDOW_MS, 5_000, 60_000, 180_000, 1_000_000])),
    st.tuples(st.just("repeat"), st.integers(0, 10)),
    st.tuples(st.just("restore"), st.integers(1, 5_000)),
)


class Run:
    """A machine and the oracle side by side."""

    def __init__(self, window_ms: int = WINDOW_MS, retention_ms: int = RETENTION_MS) -> None:
        self.lesson = Lesson(
            ("metrics.window", f"{window_ms}ms"),
            ("metrics.history_retention", f"{retention_ms}ms"),
            ("metrics.type_retention", "keypress=30s pause=5m other=0ms"),
        )
        self.window_ms = window_ms
        retention = {"keypress": 30_000, "pause": 300_000, "other": 0}
        self.plain = PlainMetrics(window_ms, retention_ms, retention)
        self.clocks: dict[str, int] = {"": self.lesson.now_ms}
        self.sent: list[tuple[metrics_pb2.MetricBatch, metrics_pb2.BatchResult]] = []
        self.keys: set[Key] = set()

    def clock(self, timeline: str) -> int:
        """The timeline's clock."""
        return self.clocks[timeline] if timeline else self.lesson.now_ms

    def batch(
        self, student: str, timeline: str, metrics: list[tuple[str, float, int]], shift_ms: int
    ) -> None:
        """Sends one; live from a device whose clock is wrong by the shift."""
        now_ms = self.lesson.now_ms
        # A recording may be sent in any order; its clock is the highest that came.
        sent_ms = now_ms - abs(shift_ms) % 50_000 if timeline else now_ms + shift_ms
        samples = [(kind, value, sent_ms - age) for kind, value, age in metrics]
        batch = self.lesson.batch(
            samples, student=student, timeline_id=timeline, sent_at_ms=sent_ms
        )
        result = self.lesson.send(batch)[0]
        if timeline:
            self.clocks[timeline] = max(self.clocks.get(timeline, 0), sent_ms)
        key = (timeline, student, "reading")
        self.keys.add(key)
        base_ms = sent_ms if timeline else now_ms
        placed = [(kind, value, base_ms - age) for kind, value, age in metrics]
        expected = self.plain.accept(key, placed, self.clock(timeline))
        assert (result.accepted_count, result.late_count, result.expired_count) == expected
        assert result.status == metrics_pb2.BATCH_STATUS_ACCEPTED
        self.sent.append((batch, result))

    def repeat(self, back: int) -> None:
        """A batch of before again: nothing changes."""
        if self.sent:
            batch, result = self.sent[-1 - back % len(self.sent)]
            again = self.lesson.send(batch)[0]
            assert again.status == metrics_pb2.BATCH_STATUS_DUPLICATE
            assert again.accepted_count == result.accepted_count
            assert again.late_count == result.late_count

    def restore(self, cut: int) -> None:
        """Goes on with a machine out of a snapshot."""
        snapshot = whole_snapshot(self.lesson.machine)
        self.lesson.machine = restored(snapshot, cut=cut)
        assert whole_snapshot(self.lesson.machine) == snapshot

    def check(self, page_size: int = 3) -> None:
        """Everything that can be asked is what the oracle says."""
        for key in sorted(self.keys):
            timeline, student, app = key
            clock_ms = self.clock(timeline)
            ask = {"student_id": student, "app_name": app, "timeline_id": timeline}
            answer = self.lesson.query(get_aggregate=ask)
            if answer.HasField("refusal"):
                assert not self.plain.rolling(key, clock_ms)  # forgotten after 15 minutes
            else:
                aggregate = answer.get_aggregate.aggregate
                self.check_figures(aggregate.metrics, self.plain.rolling(key, clock_ms))
            self.check_history(key, clock_ms, {**ask, "page_size": page_size})
            self.check_inputs(key, clock_ms, ask)

    def check_history(self, key: Key, clock_ms: int, ask: dict[str, Any]) -> None:
        """Past windows, page by page."""
        windows = pages(self.lesson, ask)
        expected = self.plain.history(key, clock_ms)
        assert [w.aggregate.window_end_ms for w in windows] == [each[0] for each in expected]
        for window, (end_ms, revision, closed, found) in zip(windows, expected, strict=True):
            assert window.aggregate.window_start_ms == end_ms - self.window_ms
            assert window.revision == revision
            assert window.HasField("close_time") == closed
            self.check_figures(window.aggregate.metrics, found)

    def check_inputs(self, key: Key, clock_ms: int, ask: dict[str, Any]) -> None:
        """What the detector saw."""
        found: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
        start_ms = 0
        while True:
            part = {**ask, "limit": 2, "start_ms": start_ms}
            answer = self.lesson.ask(detector_inputs=part).detector_inputs
            for window in answer.windows:
                for column in window.columns:
                    for step, count, total in zip(
                        column.steps, column.counts, column.sums, strict=True
                    ):
                        before = found[column.channel, step]
                        found[column.channel, step] = before[0] + count, before[1] + total
            start_ms = answer.next_start_ms
            if not start_ms:
                break
        assert found == self.plain.inputs(key, clock_ms)

    def check_figures(self, metrics: Any, expected: dict[str, dict[str, Any]]) -> None:
        """The figures of each type, to the last bit where they are no root."""
        assert [metric.metric_type for metric in metrics] == sorted(expected)
        for metric in metrics:
            figures = dict(expected[metric.metric_type])
            assert math.isclose(metric.stddev, figures.pop("stddev"), rel_tol=1e-12)
            assert {name: getattr(metric, name) for name in figures} == figures
            assert metric.rate_per_second == metric.count * 1_000 / self.window_ms


def pages(lesson: Lesson, ask: dict[str, Any]) -> list[metrics_pb2.HistoryWindow]:
    """All pages."""
    windows: list[metrics_pb2.HistoryWindow] = []
    token = ""
    while True:
        answer = lesson.ask(get_history={**ask, "page_token": token}).get_history
        windows.extend(answer.windows)
        token = answer.next_page_token
        if not token:
            return windows


@settings(max_examples=120, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=30))
def test_windows_and_history_are_what_an_oracle_says(steps: list[Any]) -> None:
    run = Run()
    for name, *arguments in steps:
        if name == "advance":
            run.lesson.advance(*arguments)
        else:
            getattr(run, name)(*arguments)
            run.check()
    run.check()
    run.lesson.advance(WINDOW_MS)
    run.check(page_size=1)


@settings(max_examples=30, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=25), st.integers(0, 25))
def test_a_restored_machine_keeps_the_same_past(steps: list[Any], begin: int) -> None:
    """Twins that part at a snapshot have the same bytes at the end."""
    run = Run()
    twin = None
    for at, (name, *arguments) in enumerate(steps):
        if at == begin:
            twin = restored(whole_snapshot(run.lesson.machine))
            first = len(run.lesson.entries)
        if name == "advance":
            run.lesson.advance(*arguments)
        elif name != "restore":
            getattr(run, name)(*arguments)
    if twin is not None:
        for kind, data in run.lesson.entries[first:]:
            twin.apply(twin.applied_index + 1, kind, data)
        assert whole_snapshot(twin) == whole_snapshot(run.lesson.machine)
        assert twin.next_due_ms() == run.lesson.machine.next_due_ms()


def test_the_oracle_meets_packing_late_data_and_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long lesson with everything in it, so that the test above can't pass by doing nothing."""
    monkeypatch.setattr(history_snapshot, "PIECE_WINDOWS", 2)
    monkeypatch.setattr(history, "PACKED_A_COMMAND", 4)
    run = Run()
    packed = revisions = 0
    for step in range(150):
        student = ("ana", "bo")[step % 3 == 0]
        timeline = ("", "", "t")[step % 5 % 3]
        metrics = [(TYPES[(step + at) % 7], step / 8 + at, at * 2_500) for at in range(10)]
        if step % 4 == 0:
            metrics.append(("error", 2.0, (step * 7_919) % 200_000))
        run.batch(student, timeline, metrics, shift_ms=step * 1_000)
        run.lesson.advance(3_700)
        if step % 7 == 0:
            run.check()
        if step % 20 == 0:
            run.restore(64)
        past = run.lesson.metrics_table()._history.get("")
        if past is not None:
            packed = max(packed, *(len(each.packed) for each in past.keys.values()), 0)
    run.check()
    for window in pages(run.lesson, {"student_id": "ana", "app_name": "reading"}):
        revisions = max(revisions, window.revision)
    assert packed >= 5
    assert revisions >= 1


def test_nothing_is_cut_off_before_it_is_packed() -> None:
    """Real lengths: students are packed up to a quarter of a window after the closing, by when the
    rolling window needs the first of their metrics no more."""
    run = Run(window_ms=300_000, retention_ms=8 * 3_600_000)
    for step in range(160):
        for student in ("ana", "bo", "cy", "di"):
            metrics = [("response_time", float(step + at), at * 100) for at in range(20)]
            run.batch(student, "", metrics, shift_ms=0)
        run.lesson.advance(10_000)
    run.check()
