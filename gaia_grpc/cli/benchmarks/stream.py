"""Metrics and watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.cli.benchmarks.bed import Bed, Cost
from gaia_grpc.cli.benchmarks.figures import Figure, quantile
from gaia_grpc.client import LOCAL

METRICS_PER_BATCH = 100
BATCHES_PER_CALL = 20
CALLS_IN_FLIGHT = 4
STUDENTS = 1_000
PLAIN_TYPES = ("keypress", "response_time", "accuracy", "correct")
"""Nothing among them that patterns look for."""


def now_ms() -> int:
    """Wall time in milliseconds."""
    return time.time_ns() // 1_000_000


def make_requests(
    classroom_id: str, count: int, metrics: Sequence[metrics_pb2.Metric]
) -> list[metrics_pb2.PublishMetricsRequest]:
    """Calls of BATCHES_PER_CALL batches, each with these metrics of one of STUDENTS students."""
    student = 0
    found = []
    for _ in range(count):
        request = metrics_pb2.PublishMetricsRequest()
        for _ in range(BATCHES_PER_CALL):
            student = (student + 1) % STUDENTS
            request.batches.add(
                source_id=f"{classroom_id}.{student}",
                classroom_id=classroom_id,
                student_id=f"{classroom_id}.{student}",
                app_name="math",
                metrics=metrics,
            )
        found.append(request)
    return found


def plain_metrics() -> list[metrics_pb2.Metric]:
    """What fills one batch, without errors."""
    return [
        metrics_pb2.Metric(
            metric_type=PLAIN_TYPES[place % len(PLAIN_TYPES)], value=90.0 + place % 10
        )
        for place in range(METRICS_PER_BATCH)
    ]


async def publish_all(
    bed: Bed, requests: Sequence[metrics_pb2.PublishMetricsRequest], seconds: float
) -> tuple[float, Cost]:
    """Publishes them again and again for a time; metrics acknowledged a second, and their cost."""
    epoch = now_ms()
    acknowledged = 0
    took_s = 0.0
    next_call = 0
    stub = bed.client

    async def caller(until_s: float) -> None:
        nonlocal acknowledged, next_call
        while time.perf_counter() < until_s:
            place, round_number = next_call % len(requests), next_call // len(requests)
            next_call += 1
            request = requests[place]
            sent_at_ms = now_ms()
            for batch in request.batches:
                batch.source_epoch = epoch
                batch.sequence = round_number + 1
                batch.sent_at_ms = sent_at_ms
            answer = await stub.call(lambda peer: peer.metrics.PublishMetrics, request)
            acknowledged += sum(result.accepted_count for result in answer.results)

    async def work() -> int:
        nonlocal took_s
        begin_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLS_IN_FLIGHT):
                group.create_task(caller(begin_s + bed.seconds(seconds)))
        took_s = time.perf_counter() - begin_s
        return acknowledged

    cost = await bed.cost(work)
    return acknowledged / took_s, cost


async def publish(bed: Bed) -> list[Figure]:
    """Metrics acknowledged a second."""
    classroom_id = bed.name("class")
    requests = make_requests(classroom_id, STUDENTS // BATCHES_PER_CALL, plain_metrics())
    rate, cost = await publish_all(bed, requests, 5.0)
    return [
        Figure(
            "metrics acknowledged a second",
            rate,
            "/s",
            f"3 peers, fsync, 1 client, {CALLS_IN_FLIGHT} calls in flight, {BATCHES_PER_CALL} "
            f"batches of {METRICS_PER_BATCH} a call, {STUDENTS:,} students",
            guide=20_000.0,
            first=50_000.0,
            higher_is_better=True,
            samples=cost.operations,
            operations=cost.operations,
            peer_cpu_us=cost.peer_cpu_us,
            client_cpu_us=cost.client_cpu_us,
            log_bytes=cost.log_bytes,
            peak_peer_mb=cost.peak_peer_mb,
        ),
        await _read_aggregates(bed, classroom_id),
    ]


async def _read_aggregates(bed: Bed, classroom_id: str) -> Figure:
    """Aggregates returned a second, on the class that was just published."""
    request = metrics_pb2.ListAggregatesRequest(
        classroom_id=classroom_id, page_size=1_000, consistency=LOCAL
    )
    returned = 0
    begin_s = time.perf_counter()
    until_s = begin_s + bed.seconds(3.0)
    while time.perf_counter() < until_s:
        page = await bed.client.call(lambda peer: peer.metrics.ListAggregates, request)
        returned += len(page.aggregates)
    return Figure(
        "aggregates returned a second (ListAggregates, LOCAL)",
        returned / (time.perf_counter() - begin_s),
        "/s",
        "3 peers, fsync, 1 client, one call at a time, pages of 1,000, 4 metric types each",
        guide=100.0,
        first=5_000.0,
        higher_is_better=True,
        samples=returned,
    )


async def watch(bed: Bed) -> list[Figure]:
    """From the SDK's record of an urgent metric to the WatchClassroom update with it."""
    classroom_id = bed.name("class")
    durations: list[float] = []
    buffer = bed.client.metrics.buffer(
        student_id=f"{classroom_id}.student", app_name="math", classroom_id=classroom_id
    )
    buffer.record("help")
    await buffer.flush()
    updates = bed.client.metrics.watch_classroom(classroom_id)
    seen = 0
    async for update in updates:
        seen = max([seen, *(_count_of(each, "help") for each in update.aggregates)])
        if seen:
            break
    for _ in range(bed.scaled(150)):
        begin_s = time.perf_counter()
        buffer.record("help")
        target = seen + 1
        async for update in updates:
            seen = max([seen, *(_count_of(each, "help") for each in update.aggregates)])
            if seen >= target:
                break
        durations.append(time.perf_counter() - begin_s)
    await buffer.close()
    return [
        Figure(
            "SDK record (urgent) to WatchClassroom update, p99",
            quantile(durations, 99) * 1e3,
            "ms",
            "3 peers, fsync, 1 client, one metric at a time",
            guide=200.0,
            first=100.0,
            samples=len(durations),
            p50=quantile(durations, 50) * 1e3,
        )
    ]


def _count_of(aggregate: metrics_pb2.Aggregate, metric_type: str) -> int:
    return sum(each.count for each in aggregate.metrics if each.metric_type == metric_type)
