"""Defects 17 to 20 of the system that the guide was written for, on real peers.

They are about metrics on their way and in their windows; 17 is about those who listen, too.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import Client, MetricsBuffer
from gaia_grpc.errors import UnavailableError
from gaia_grpc.testing import Cluster
from tests.support.metric_answers import WINDOW_MS, assert_measured
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs

SLOTS = 256
"""What the original's hub and bus held before they dropped what came."""
SNAPSHOT_TIMEOUT_S = 20


def make_batch(
    student_id: str, sequence: int, *measured: tuple[str, float], **fields: Any
) -> metrics_pb2.MetricBatch:
    """A batch of a source of the student's own, in one app."""
    return metrics_pb2.MetricBatch(
        source_id=student_id,
        source_epoch=1,
        sequence=sequence,
        student_id=student_id,
        app_name="math",
        metrics=[metrics_pb2.Metric(metric_type=name, value=value) for name, value in measured],
        **fields,
    )


# --- 17: dropped silently when full, panic after close --------------------------------------------


async def test_defect_17_who_listens_slowly_misses_nothing(
    cluster3: Served, client3: Client
) -> None:
    """Twice as many events and changed windows as the original had room for, unread meanwhile."""
    count = 2 * SLOTS
    students = [f"d17-{number}" for number in range(count)]
    address = cluster3.addresses[1]
    watch = client3.metrics.watch_classroom("d17", interval=60, address=address)
    assert (await anext(watch)).complete
    async with client3.alerts.listen(classroom_id="d17") as listener:
        for place in range(0, count, 64):
            await client3.metrics.publish(
                make_batch(student, 1, *[("error", 1.0)] * 5, classroom_id="d17")
                for student in students[place : place + 64]
            )
        opened: list[str] = []
        sequences: list[int] = []
        while len(opened) < count:
            event = await listener.next(10)
            assert event is not None, f"only {len(opened)} of {count} came"
            sequences.append(event.sequence)
            if event.change == alert_pb2.ALERT_CHANGE_OPENED:
                opened.append(event.alert.student_id)
    assert sorted(opened) == sorted(students)
    assert sequences == sorted(set(sequences))
    seen: dict[str, int] = {}
    async with asyncio.timeout(10):
        while seen != dict.fromkeys(students, 5):
            for window in (await anext(watch)).aggregates:
                seen[window.student_id] = sum(part.count for part in window.metrics)
    await watch.aclose()


async def test_defect_17_what_a_buffer_has_no_room_for_is_told(client3: Client) -> None:
    buffer = client3.metrics.buffer(student_id="d17-full", app_name="math", max_pending=SLOTS)
    taken = [buffer.record("score", 1.0) for _ in range(3 * SLOTS)]
    await buffer.flush()
    assert taken == [True] * SLOTS + [False] * 2 * SLOTS
    counts = buffer.counters
    assert (counts.acknowledged, counts.dropped, counts.gaps_told) == (SLOTS, 2 * SLOTS, 2 * SLOTS)
    window = (await client3.metrics.aggregate("d17-full", "math")).aggregate
    assert [(part.count, part.omitted_count) for part in window.metrics] == [(SLOTS, 2 * SLOTS)]


async def test_defect_17_recording_into_a_closing_buffer_is_counted_or_refused(
    client3: Client,
) -> None:
    """Three threads record on while the buffer is closed; what was taken is in the window."""
    buffer = client3.metrics.buffer(student_id="d17-close", app_name="math", max_pending=1_000_000)
    taken: list[int] = []
    under_way = threading.Event()

    def app() -> None:
        for count in range(1_000_000):
            if count == 300:
                under_way.set()
            try:
                assert buffer.record("score", 1.0)
            except UnavailableError:
                taken.append(count)
                return

    threads = [threading.Thread(target=app) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert await asyncio.to_thread(under_way.wait, 10)
    await buffer.close()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    with pytest.raises(UnavailableError):
        buffer.record("score", 1.0)
    counts = buffer.counters
    assert len(taken) == 3
    assert sum(taken) == counts.recorded == counts.acknowledged
    window = (await client3.metrics.aggregate("d17-close", "math")).aggregate
    assert [part.count for part in window.metrics] == [counts.recorded]


# --- 18: cleared before it is written -------------------------------------------------------------


@pytest.mark.embedded_only
async def test_defect_18_a_flush_that_fails_keeps_every_metric(
    cluster3: Cluster, client3: Client
) -> None:
    """Two of three peers are killed under a buffer that is being flushed."""
    buffer: MetricsBuffer = client3.metrics.buffer(student_id="d18", app_name="math")
    measured = [("score", value / 8) for value in range(250)]
    for metric_type, value in measured[:50]:
        buffer.record(metric_type, value)
    await buffer.flush()
    gone = [await cluster3.aio.leader(), await cluster3.aio.follower()]
    await cluster3.aio.kill(*gone)
    for metric_type, value in measured[50:]:
        assert buffer.record(metric_type, value)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="200 metrics not delivered"):
            await buffer.flush(timeout=0.3)
        assert (buffer.counters.pending, buffer.counters.acknowledged) == (200, 50)
    await cluster3.aio.restart(*gone)
    await buffer.flush()
    assert (buffer.counters.acknowledged, buffer.counters.dropped) == (250, 0)
    assert_measured((await client3.metrics.aggregate("d18", "math")).aggregate, measured)
    await cluster3.aio.assert_equal_logs_and_hashes()


# --- 19: no window, no classroom ------------------------------------------------------------------


async def test_defect_19_a_metric_leaves_its_window_in_time(client3: Client) -> None:
    """A metric a minute for 20 minutes: never more than the last five are in the window."""
    start_ms = 1_700_000_000_000
    for minute in range(20):
        at_ms = start_ms + minute * 60_000
        batch = make_batch(
            "d19", minute + 1, ("score", minute), sent_at_ms=at_ms, timeline_id="d19"
        )
        await client3.metrics.publish([batch])
        for later_ms, expected in ((0, 5), (30_000, 5), (59_999, 5), (60_000, 4)):
            clock = make_batch(
                "d19-clock", 4 * minute + later_ms // 20_000 + 1, ("tick", 1),
                sent_at_ms=at_ms + later_ms, timeline_id="d19",
            )  # fmt: skip
            await client3.metrics.publish([clock])
            answer = await client3.metrics.aggregate("d19", "math", timeline_id="d19")
            [part] = answer.aggregate.metrics
            inside = range(max(minute + 1 - expected, 0), minute + 1)
            assert (part.count, part.sum) == (len(inside), sum(inside))
            assert part.first_time_ms > at_ms + later_ms - WINDOW_MS


async def test_defect_19_no_classroom_is_shown_anothers_students(
    cluster3: Served, client3: Client
) -> None:
    """Same app, two rooms; one student moves from the one to the other."""
    rooms = {
        room: [f"{room}-{number}" for number in range(10)] for room in ("d19-left", "d19-right")
    }
    watches = {
        room: client3.metrics.watch_classroom(room, interval=60, address=address)
        for room, address in zip(rooms, cluster3.addresses, strict=False)
    }
    shown: dict[str, set[str]] = {room: set() for room in rooms}

    async def look(room: str) -> None:
        update = await anext(watches[room])
        if update.complete:
            shown[room] = set()
        for window in update.aggregates:
            assert window.classroom_id == room
            shown[room].add(window.student_id)

    async with asyncio.timeout(20):
        for room in rooms:
            await look(room)
        await client3.metrics.publish(
            make_batch(student, 1, ("score", 1.0), classroom_id=room)
            for room, students in rooms.items()
            for student in students
        )
        mover = "d19-left-0"
        await client3.metrics.publish(
            [make_batch(mover, 2, ("score", 2.0), classroom_id="d19-right")]
        )
        expected = {
            "d19-left": set(rooms["d19-left"]) - {mover},
            "d19-right": {*rooms["d19-right"], mover},
        }
        for room in rooms:
            while shown[room] != expected[room]:
                await look(room)
    for room, students in expected.items():
        listed = [window async for window in client3.metrics.aggregates(room)]
        assert {window.student_id for window in listed} == students
    for watch in watches.values():
        await watch.aclose()


# --- 20: percentiles that are none, slices without a bound ----------------------------------------


async def test_defect_20_percentiles_are_ranks_of_the_sorted_values(client3: Client) -> None:
    """The original took the mean of the first so many, in the order in which they came."""
    values = [float(value) for value in range(1_000, 0, -1)]
    orders = {"falling": values, "rising": values[::-1]}
    orders["mixed"] = random.Random(20).sample(values, len(values))
    for name, order in orders.items():
        for place in range(0, 1_000, 250):
            part = [("latency", value) for value in order[place : place + 250]]
            await client3.metrics.publish([make_batch(f"d20-{name}", place // 250 + 1, *part)])
        [found] = (await client3.metrics.aggregate(f"d20-{name}", "math")).aggregate.metrics
        assert (found.p50, found.p95, found.p99) == (500.0, 950.0, 990.0)
        assert (found.min, found.max, found.mean) == (1.0, 1_000.0, 500.5)


@pytest.mark.embedded_only
async def test_defect_20_what_left_its_window_takes_no_room(
    cluster3: Cluster, client3: Client
) -> None:
    """Two hours of one busy student: after a few windows the state grows by sums alone."""
    per_window, sizes = 5_000, []
    rng = random.Random(21)
    leader = client3.peer(cluster3.address(await cluster3.aio.leader())).cluster
    start_ms = time.time_ns() // 1_000_000 // WINDOW_MS * WINDOW_MS
    for number in range(24):
        end_ms = start_ms + number * WINDOW_MS
        batch = make_batch("d20", number + 1, sent_at_ms=end_ms, timeline_id="d20")
        batch.metrics.extend(
            metrics_pb2.Metric(
                metric_type="latency", value=rng.random(), event_time_ms=end_ms - 60 * place
            )
            for place in range(per_window)
        )
        await client3.metrics.publish([batch])
        if number % 4 == 3:
            request = cluster_pb2.TakeSnapshotRequest()
            taken = await leader.TakeSnapshot(request, timeout=SNAPSHOT_TIMEOUT_S)
            sizes.append(taken.size_bytes)
    assert sizes[0] > 8 * per_window, "the raw values of the window are in it"
    assert sizes[-1] - sizes[0] < 20 * 1_000, sizes
    windows = [w async for w in client3.metrics.history("d20", "math", timeline_id="d20")]
    assert [w.aggregate.metrics[0].count for w in windows] == [per_window] * 24
