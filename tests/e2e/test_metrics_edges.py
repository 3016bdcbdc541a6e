"""Metrics at the edges: windows, clocks, repeats, orders of arrival, and what is refused."""

from __future__ import annotations

import asyncio
import math
import random
import time

import grpc
import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import LOCAL, Client
from gaia_grpc.errors import AlreadyExistsError, InvalidArgumentError
from tests.support.metric_answers import (
    TYPES,
    WINDOW_MS,
    assert_figures,
    assert_measured,
    draw,
    expected_of,
)
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs


async def test_metrics_repeated_batches_count_once_on_any_peer(
    cluster3: Served, client3: Client
) -> None:
    values = draw(7, 300)
    now_ms = time.time_ns() // 1_000_000
    batches = [
        metrics_pb2.MetricBatch(
            source_id="repeater",
            source_epoch=now_ms,
            sequence=sequence,
            sent_at_ms=now_ms,
            student_id="repeated",
            app_name="math",
            metrics=[
                metrics_pb2.Metric(metric_type=name, value=value, event_time_ms=now_ms - 1_000)
                for name, value in values[sequence * 10 - 10 : sequence * 10]
            ],
        )
        for sequence in range(1, 31)
    ]
    sendings = batches * 3
    random.Random(3).shuffle(sendings)
    statuses: list[int] = []
    for place, batch in enumerate(sendings):
        peer = client3.peer(cluster3.addresses[place % 3])
        answer = await peer.metrics.PublishMetrics(
            metrics_pb2.PublishMetricsRequest(batches=[batch]), timeout=5
        )
        statuses.append(answer.results[0].status)
    assert statuses.count(metrics_pb2.BATCH_STATUS_ACCEPTED) == 30
    assert statuses.count(metrics_pb2.BATCH_STATUS_DUPLICATE) == 60
    answer2 = await client3.metrics.aggregate("repeated", "math")
    assert_measured(answer2.aggregate, values)
    batches[4].metrics[0].value += 1
    with pytest.raises(AlreadyExistsError):
        await client3.metrics.publish([batches[4]])


async def test_metrics_of_a_timeline_give_the_same_window_in_any_order(client3: Client) -> None:
    rng = random.Random(11)
    start_ms = 1_000_000
    events = [
        (start_ms + rng.randrange(1, 600_000), rng.choice(TYPES), rng.randrange(1_000_000) / 1e6)
        for _ in range(1_000)
    ]
    end_ms = start_ms + 600_000
    windows = []
    for run, order in enumerate(("forward", "shuffled")):
        batches = [
            metrics_pb2.MetricBatch(
                source_id=f"timeline-{order}",
                source_epoch=1,
                sequence=number + 1,
                sent_at_ms=end_ms,
                timeline_id=f"timeline-{order}",
                student_id="replayed",
                app_name="math",
                metrics=[
                    metrics_pb2.Metric(metric_type=name, value=value, event_time_ms=at_ms)
                    for at_ms, name, value in events[number * 50 : number * 50 + 50]
                ],
            )
            for number in range(20)
        ]
        if run:
            rng.shuffle(batches)
        for batch in batches:
            await client3.metrics.publish([batch])
        answer = await client3.metrics.aggregate(
            "replayed", "math", timeline_id=f"timeline-{order}"
        )
        windows.append(answer.aggregate)
    inside = [(name, value) for at_ms, name, value in events if at_ms > end_ms - WINDOW_MS]
    for window in windows:
        assert (window.window_start_ms, window.window_end_ms) == (end_ms - WINDOW_MS, end_ms)
        for part in window.metrics:
            assert part.first_time_ms > end_ms - WINDOW_MS
        assert_figures(window.metrics, expected_of(inside))


async def test_metrics_at_the_edges_of_the_half_open_window(client3: Client) -> None:
    end_ms = 10_000_000
    edges = {
        "older": end_ms - WINDOW_MS - 1,
        "start": end_ms - WINDOW_MS,
        "inside": end_ms - WINDOW_MS + 1,
        "end": end_ms,
        "ahead": end_ms + 60_001,
    }
    batch = metrics_pb2.MetricBatch(
        source_id="edges",
        source_epoch=1,
        sequence=1,
        sent_at_ms=end_ms,
        timeline_id="edges",
        student_id="edge",
        app_name="math",
        metrics=[
            metrics_pb2.Metric(metric_type=name, value=1, event_time_ms=at_ms)
            for name, at_ms in edges.items()
        ],
    )
    [result] = (await client3.metrics.publish([batch])).results
    assert (result.accepted_count, result.late_count) == (2, 2)
    assert [(item.index, item.reason) for item in result.rejected] == [(4, "TIME_IN_FUTURE")]
    window = (await client3.metrics.aggregate("edge", "math", timeline_id="edges")).aggregate
    assert [part.metric_type for part in window.metrics] == ["end", "inside"]
    assert window.late_total == 2


async def test_metrics_of_a_wrong_clock_are_placed_by_their_age(client3: Client) -> None:
    behind_ms = time.time_ns() // 1_000_000 - 86_400_000
    buffer = client3.metrics.buffer(
        student_id="yesterday", app_name="math", clock=lambda: behind_ms
    )
    for _ in range(10):
        buffer.record("keypress")
    await buffer.flush()
    assert buffer.counters.acknowledged == 10
    window = (await client3.metrics.aggregate("yesterday", "math")).aggregate
    assert [(part.metric_type, part.count) for part in window.metrics] == [("keypress", 10)]


async def test_metrics_that_are_bad_are_named_and_the_good_ones_kept(client3: Client) -> None:
    batch = metrics_pb2.MetricBatch(
        source_id="mixed",
        source_epoch=1,
        sequence=1,
        student_id="mixed",
        app_name="math",
        metrics=[
            metrics_pb2.Metric(metric_type="ok", value=1),
            metrics_pb2.Metric(metric_type="ok", value=math.nan),
            metrics_pb2.Metric(metric_type="ok", value=1e10),
            metrics_pb2.Metric(metric_type="not ok", value=1),
        ],
    )
    [result] = (await client3.metrics.publish([batch])).results
    assert result.accepted_count == 1
    assert [(item.index, item.reason) for item in result.rejected] == [
        (1, "VALUE_NOT_FINITE"),
        (2, "VALUE_OUT_OF_RANGE"),
        (3, "TYPE_INVALID"),
    ]
    batch.student_id = ""
    with pytest.raises(InvalidArgumentError) as refusal:
        await client3.metrics.publish([batch])
    assert [violation.field for violation in refusal.value.violations] == ["batches[0].student_id"]


async def test_metrics_watch_shows_what_was_recorded(client3: Client) -> None:
    buffer = client3.metrics.buffer(student_id="seen", app_name="math", classroom_id="watched")
    watch = client3.metrics.watch_classroom("watched", interval=1)
    try:
        async with asyncio.timeout(10):
            first = await anext(watch)
            assert first.complete
            buffer.record("error", 4)
            async for update in watch:
                sums = {
                    part.metric_type: part.sum
                    for window in update.aggregates
                    for part in window.metrics
                }
                if sums.get("error") == 4:
                    break
    finally:
        await watch.aclose()


async def test_metrics_of_an_unknown_student_are_an_empty_window_or_not_found(
    cluster3: Served, client3: Client
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client3.peer(cluster3.addresses[1]).metrics.GetAggregate(
            metrics_pb2.GetAggregateRequest(
                student_id="nobody", app_name="math", consistency=LOCAL
            ),
            timeout=5,
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
