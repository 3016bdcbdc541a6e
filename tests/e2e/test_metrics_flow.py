"""Scenarios M1 and M3 to M6: from an app's record to the dashboards and to exact windows.

M2 and M7 (the buffer) are in test_metrics_buffering.py, the edges in test_metrics_edges.py.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import Client, MetricsBuffer
from gaia_grpc.testing import Cluster
from tests.e2e.support import report
from tests.state.plain_metrics import PlainMetrics
from tests.support.metric_answers import (
    WINDOW_MS,
    Measured,
    assert_figures,
    assert_measured,
    draw,
)
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs

NO_PUSH_S = 60.0
"""Interval of a watch that then brings nothing but changes."""
HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000 // WINDOW_MS * WINDOW_MS
GUIDE_TYPES = {
    "typing": ("words_per_minute", "accuracy_percentage", "error_count"),
    "math": ("problems_solved", "accuracy_percentage", "time_per_problem"),
    "reading": ("words_read", "accuracy_percentage", "focus_time"),
}


# --- M1 -----------------------------------------------------------------------------------------


class Dashboard:
    """What one watch has shown; each stamp is a value that grows."""

    def __init__(self) -> None:
        self.windows: dict[str, metrics_pb2.Aggregate] = {}
        self.updates = 0
        self.latest = 0.0
        self.at_s = 0.0
        self._changed = asyncio.Condition()

    async def show(self, updates: AsyncIterator[metrics_pb2.WatchClassroomResponse]) -> None:
        async for update in updates:
            self.at_s = time.perf_counter()
            self.updates += 1
            async with self._changed:
                for window in update.aggregates:
                    self.windows[window.student_id] = window
                    stamps = [part.max for part in window.metrics]
                    self.latest = max([self.latest, *stamps])
                self._changed.notify_all()

    async def until(self, stamp: float) -> float:
        """When the stamp was there, in seconds."""
        async with self._changed, asyncio.timeout(10):
            await self._changed.wait_for(lambda: self.latest >= stamp)
        return self.at_s


@asynccontextmanager
async def dashboard(client: Client, room: str, address: str) -> AsyncIterator[Dashboard]:
    """A watch at one peer."""
    board = Dashboard()
    updates = client.metrics.watch_classroom(room, interval=NO_PUSH_S, address=address)
    showing = asyncio.create_task(board.show(updates))
    try:
        yield board
    finally:
        showing.cancel()
        await asyncio.wait({showing})
        await updates.aclose()


def quantiles(seconds: Sequence[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms, n = {len(seconds)}"


async def test_metrics_from_the_app_reach_the_dashboards_of_every_peer(
    cluster3: Served, client3: Client
) -> None:
    """An urgent metric, and one that fills the buffer: each is on every dashboard by a push on
    change, since these watches have no other for a minute."""
    recorded: dict[str, list[Measured]] = {f"m1-{number}": [] for number in range(20)}
    buffers = {
        student: client3.metrics.buffer(student_id=student, app_name="math", classroom_id="m1")
        for student in recorded
    }
    delays: dict[str, list[float]] = {"urgent": [], "full buffer": []}
    async with AsyncExitStack() as stack:
        boards = [
            await stack.enter_async_context(dashboard(client3, "m1", address))
            for address in cluster3.addresses
        ]
        begin_s = time.perf_counter()
        for place in range(100):
            student = f"m1-{place % 20}"
            how = "full buffer" if place % 4 == 3 else "urgent"
            fill = [("keypress", 0.0)] * 99 if how == "full buffer" else []
            for measured in fill:
                assert buffers[student].record(*measured)
            stamp_s = time.perf_counter() - begin_s
            stamp = ("help" if how == "urgent" else "keypress", round(stamp_s * 1e6) / 1e3)
            assert buffers[student].record(*stamp)
            recorded[student] += [*fill, stamp]
            for board in boards:
                delays[how].append(await board.until(stamp[1]) - begin_s - stamp_s)
        for student, measured_here in recorded.items():
            for board in boards:
                assert_measured(board.windows[student], measured_here)
    for how, found in delays.items():
        report(f"M1, {how}: SDK record to WatchClassroom update on each of 3 peers: "
               f"{quantiles(found)}")  # fmt: skip


# --- M3 -----------------------------------------------------------------------------------------


class Stream:
    """Ten minutes of one student on a timeline of its own: 10 metrics a second, 100 a batch."""

    def __init__(self, client: Client, student: str) -> None:
        self.student = student
        self._client = client
        self._rng = random.Random(student)
        self._sequence = 0
        self.plain = PlainMetrics(WINDOW_MS, 8 * HOUR_MS, {})
        self.timeline_id = f"m3-{student}"
        self.key = (self.timeline_id, student, "math")
        self.clock_ms = 0

    def batch(self, second: int) -> metrics_pb2.MetricBatch:
        """The ten seconds that end at `second`: (second - 10, second]."""
        self._sequence += 1
        end_ms = START_MS + second * 1_000
        return metrics_pb2.MetricBatch(
            source_id=self.timeline_id,
            source_epoch=1,
            sequence=self._sequence,
            sent_at_ms=end_ms,
            timeline_id=self.timeline_id,
            classroom_id="m3",
            student_id=self.student,
            app_name="math",
            metrics=[
                metrics_pb2.Metric(metric_type=name, value=value, event_time_ms=end_ms - 100 * at)
                for at, (name, value) in enumerate(draw(self._rng.randrange(10**6), 100))
            ],
        )

    async def send(self, batches: Sequence[metrics_pb2.MetricBatch], clock_ms: int) -> None:
        """In this order, each twice; `clock_ms` is the timeline's clock from then on."""
        self.clock_ms = clock_ms
        answer = await self._client.metrics.publish([*batches, *batches])
        for batch, first, again in zip(
            batches, answer.results, answer.results[len(batches) :], strict=False
        ):
            events = [(each.metric_type, each.value, each.event_time_ms) for each in batch.metrics]
            expected = self.plain.accept(self.key, events, clock_ms)
            assert (first.accepted_count, first.late_count, first.expired_count) == expected
            assert again.status == metrics_pb2.BATCH_STATUS_DUPLICATE

    async def assert_window(self, at_ms: int) -> int:
        """The rolling window that ends there; returns how many metrics are in it."""
        answer = await self._client.metrics.aggregate(
            self.student, "math", timeline_id=self.timeline_id, at_ms=at_ms
        )
        window = answer.aggregate
        assert (window.window_start_ms, window.window_end_ms) == (at_ms - WINDOW_MS, at_ms)
        assert_figures(window.metrics, self.plain.rolling(self.key, at_ms))
        return sum(part.count for part in window.metrics)

    async def assert_history(self) -> list[tuple[int, int, int]]:
        """(end, revision, metrics) of every past window."""
        windows = [
            window
            async for window in self._client.metrics.history(
                self.student, "math", timeline_id=self.timeline_id
            )
        ]
        expected = self.plain.history(self.key, self.clock_ms)
        found = []
        for window, (end_ms, revision, closed, figures) in zip(windows, expected, strict=True):
            part = window.aggregate
            assert (part.window_start_ms, part.window_end_ms) == (end_ms - WINDOW_MS, end_ms)
            assert (window.revision, window.HasField("close_time")) == (revision, closed)
            assert_figures(part.metrics, figures)
            found.append((end_ms, revision, sum(each.count for each in part.metrics)))
        return found


async def test_metrics_of_ten_minutes_are_two_windows_without_overlap(
    cluster3: Served, client3: Client
) -> None:
    """6,000 metrics of each of two students; batches come out of order, twice, and some late."""
    middle_ms, end_ms = START_MS + WINDOW_MS, START_MS + 2 * WINDOW_MS
    for student in ("ana", "ben"):
        stream = Stream(client3, student)
        batches = {second: stream.batch(second) for second in range(10, 601, 10)}
        late, delayed = batches.pop(70), batches.pop(250)
        # The first point of the ten minutes is no part of them: it ends the window before.
        edge = stream.batch(0)
        del edge.metrics[1:]
        await stream.send([edge], START_MS)
        first = [batch for second, batch in batches.items() if second < 300]
        random.Random(1).shuffle(first)
        await stream.send([batches[300], *first], middle_ms)
        assert await stream.assert_window(middle_ms) == 3_000 - 200
        await stream.send([batches[400], delayed], START_MS + 400_000)
        last = [batch for second, batch in batches.items() if second > 300 and second != 400]
        random.Random(2).shuffle(last)
        last.sort(key=lambda batch: batch.sent_at_ms != end_ms)
        await stream.send(last, end_ms)
        assert await stream.assert_window(end_ms) == 3_000
        assert await stream.assert_window(middle_ms) == 3_000 - 100
        assert await stream.assert_window(middle_ms + 123_456) > 2_900
        assert await stream.assert_history() == [
            (START_MS, 0, 1), (middle_ms, 0, 2_900), (end_ms, 0, 3_000),
        ]  # fmt: skip
        await stream.send([late], end_ms)
        assert await stream.assert_window(middle_ms) == 3_000 - 100
        assert await stream.assert_history() == [
            (START_MS, 0, 1), (middle_ms, 1, 3_000), (end_ms, 0, 3_000),
        ]  # fmt: skip
        total = (
            await client3.metrics.aggregate(student, "math", timeline_id=stream.timeline_id)
        ).aggregate
        assert (total.accepted_total, total.late_total) == (1 + 6_000 - 100, 100)
    await cluster3.aio.assert_equal_logs_and_hashes()


# --- M4, M5, M6 ---------------------------------------------------------------------------------


@asynccontextmanager
async def one_client_a_peer(cluster: Served) -> AsyncIterator[list[Client]]:
    """Each knows but one peer at first."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Client.connect(address))
            for address in cluster.addresses
        ]


async def record_all(buffer: MetricsBuffer, measured: Sequence[Measured]) -> None:
    """As an app does: a few, and then something else happens."""
    for place, (metric_type, value) in enumerate(measured):
        assert buffer.record(metric_type, value)
        if place % 7 == 0:
            await asyncio.sleep(0)
    await buffer.flush()
    counts = buffer.counters
    assert counts.adds_up
    assert counts.acknowledged == counts.recorded == len(measured)


async def test_metrics_of_fifty_concurrent_students_are_all_there_and_never_mixed(
    cluster3: Served, client3: Client
) -> None:
    """Each value tells whose it is, so that a foreign one would show in sum, min and max."""
    measured = {
        f"m4-{student:02d}": [
            (metric_type, 10_000.0 * student + value) for metric_type, value in draw(student, 100)
        ]
        for student in range(50)
    }
    async with one_client_a_peer(cluster3) as clients, asyncio.TaskGroup() as group:
        for place, (student, values) in enumerate(measured.items()):
            buffer = clients[place % 3].metrics.buffer(
                student_id=student, app_name="math", classroom_id=f"m4-{place % 2}"
            )
            group.create_task(record_all(buffer, values))
    listed = {
        room: [window async for window in client3.metrics.aggregates(room)]
        for room in ("m4-0", "m4-1")
    }
    for place, windows in enumerate(listed.values()):
        assert [window.student_id for window in windows] == sorted(measured)[place::2]
        for window in windows:
            assert_measured(window, measured[window.student_id])
    present = sum(part.count for each in listed.values() for w in each for part in w.metrics)
    assert present == 5_000
    report(f"M4: {present} of 5,000 metrics present")
    await cluster3.aio.assert_equal_logs_and_hashes()


async def test_metrics_of_three_apps_are_kept_apart_by_student_app_and_type(
    cluster3: Served, client3: Client
) -> None:
    """Ten students, three apps of 100 metrics each; one type is measured by all three apps."""
    rng = random.Random(5)
    measured: dict[tuple[str, str], list[Measured]] = {
        (f"m5-{student}", app): [
            (rng.choice(types), rng.randrange(100_000) / 1_000) for _ in range(100)
        ]
        for student in range(10)
        for app, types in GUIDE_TYPES.items()
    }
    async with one_client_a_peer(cluster3) as clients, asyncio.TaskGroup() as group:
        for place, ((student, app), values) in enumerate(measured.items()):
            buffer = clients[place % 3].metrics.buffer(
                student_id=student, app_name=app, classroom_id="m5"
            )
            group.create_task(record_all(buffer, values))
    windows = [window async for window in client3.metrics.aggregates("m5")]
    assert [(window.student_id, window.app_name) for window in windows] == sorted(measured)
    for window in windows:
        assert_measured(window, measured[window.student_id, window.app_name])
        assert {part.metric_type for part in window.metrics} <= set(GUIDE_TYPES[window.app_name])
    await cluster3.aio.assert_equal_logs_and_hashes()


def guide_pattern(seed: int) -> list[Measured]:
    """NormalMetricPattern of the guide: 20 keys, 2 corrections, an accuracy, a response time."""
    rng = random.Random(seed)
    return [
        *[("keypress", 1.0)] * 20,
        *[("backspace", float(rng.randrange(3))) for _ in range(2)],
        ("accuracy", float(rng.randrange(85, 100))),
        ("response_time", float(rng.randrange(800, 1_200))),
    ]


async def test_metrics_aggregates_are_those_of_an_exact_oracle(
    cluster3: Served, client3: Client
) -> None:
    """The guide's 24 values, and so many that each percentile falls on another place."""
    measured = {f"m6-guide-{seed}": guide_pattern(seed) for seed in range(20)}
    measured |= {f"m6-count-{count}": draw(count, count) for count in (1, 2, 3, 99, 100, 101, 997)}
    measured["m6-sign"] = [("drift", value / 1e6) for value in range(-500_500, 500_000, 1_000)]
    measured["m6-large"] = [("large", 9e9 - place) for place in range(300)]
    async with asyncio.TaskGroup() as group:
        for student, values in measured.items():
            shuffled = random.Random(student).sample(values, len(values))
            buffer = client3.metrics.buffer(student_id=student, app_name="math", classroom_id="m6")
            group.create_task(record_all(buffer, shuffled))
    for student, values in measured.items():
        assert_measured((await client3.metrics.aggregate(student, "math")).aggregate, values)
    await cluster3.aio.assert_equal_logs_and_hashes()


@pytest.mark.embedded_only
async def test_metrics_recorded_while_the_leader_dies_are_all_there_once(
    cluster3: Cluster, client3: Client
) -> None:
    buffers = [
        client3.metrics.buffer(student_id=f"storm-{number}", app_name="math", classroom_id="storm")
        for number in range(10)
    ]
    killed = ""
    for round_number in range(60):
        for buffer in buffers:
            buffer.record("error" if round_number % 10 == 0 else "keypress", 1)
        await asyncio.sleep(0.01)
        if round_number == 20:
            killed = await cluster3.aio.leader()
            await cluster3.aio.kill(killed)
    for buffer in buffers:
        await buffer.flush()
        assert buffer.counters.acknowledged == 60
    windows = [window async for window in client3.metrics.aggregates("storm")]
    assert len(windows) == 10
    for window in windows:
        assert {part.metric_type: part.count for part in window.metrics} == {
            "error": 6,
            "keypress": 54,
        }
    await cluster3.aio.heal()
    await cluster3.aio.assert_equal_logs_and_hashes()
