"""Metrics, watches and alerts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from gaia.alert.v1 import alert_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile
from gaia_grpc.client import LOCAL
from gaia_grpc.errors import invariant

METRICS_PER_BATCH = 100
BATCHES_PER_CALL = 20
CALLS_IN_FLIGHT = 4
STUDENTS = 1_000
SUBSCRIBERS = 1_000
MISSED_EVENTS = 1_000
WAIT_S = 20.0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _requests(classroom_id: str, count: int) -> list[metrics_pb2.PublishMetricsRequest]:
    """Calls of BATCHES_PER_CALL batches, each for one of STUDENTS students, without errors."""
    types = ("keypress", "response_time", "accuracy", "correct")
    metrics = [
        metrics_pb2.Metric(metric_type=types[place % len(types)], value=90.0 + place % 10)
        for place in range(METRICS_PER_BATCH)
    ]
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


async def publish(bed: Bed) -> list[Figure]:
    """Metrics acknowledged a second."""
    classroom_id = bed.name("class")
    requests = _requests(classroom_id, STUDENTS // BATCHES_PER_CALL)
    epoch = _now_ms()
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
            now_ms = _now_ms()
            for batch in request.batches:
                batch.source_epoch = epoch
                batch.sequence = round_number + 1
                batch.sent_at_ms = now_ms
            answer = await stub.call(lambda peer: peer.metrics.PublishMetrics, request)
            acknowledged += sum(result.accepted_count for result in answer.results)

    async def work() -> int:
        nonlocal took_s
        begin_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLS_IN_FLIGHT):
                group.create_task(caller(begin_s + bed.seconds(5.0)))
        took_s = time.perf_counter() - begin_s
        return acknowledged

    cost = await bed.cost(work)
    return [
        Figure(
            "metrics acknowledged a second",
            acknowledged / took_s,
            "/s",
            f"3 peers, fsync, 1 client, {CALLS_IN_FLIGHT} calls in flight, {BATCHES_PER_CALL} "
            f"batches of {METRICS_PER_BATCH} a call, {STUDENTS:,} students",
            guide=20_000.0,
            first=50_000.0,
            higher_is_better=True,
            samples=acknowledged,
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
        "1 client, one call at a time, pages of 1,000, 4 metric types each",
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


# --- alerts ---------------------------------------------------------------------------------------


def _burst(classroom_id: str, students: Sequence[str], epoch: int) -> list[metrics_pb2.MetricBatch]:
    """Five errors of each student at once: each opens an alert."""
    now_ms = _now_ms()
    return [
        metrics_pb2.MetricBatch(
            source_id=student,
            source_epoch=epoch,
            sequence=1,
            sent_at_ms=now_ms,
            classroom_id=classroom_id,
            student_id=student,
            app_name="math",
            metrics=[metrics_pb2.Metric(metric_type="error", value=1.0)] * 5,
        )
        for student in students
    ]


@asynccontextmanager
async def _subscribers(
    bed: Bed, classrooms: Sequence[str], received: asyncio.Queue[tuple[str, float]]
) -> AsyncIterator[None]:
    """One subscription a name in `classrooms`, spread over the peers; notes when events come."""
    ready = 0
    all_ready = asyncio.Event()

    async def subscribe(place: int, classroom_id: str) -> None:
        nonlocal ready
        peer = bed.client.peer(bed.client.addresses[place % len(bed.client.addresses)])
        request = alert_pb2.SubscribeAlertsRequest(
            filter=alert_pb2.AlertFilter(classroom_id=classroom_id),
            from_now=True,
            progress_interval_ms=60_000,
        )
        first = True
        async for message in peer.alerts.SubscribeAlerts(request):
            if first:
                first = False
                ready += 1
                if ready == len(classrooms):
                    all_ready.set()
            if message.event.change == alert_pb2.ALERT_CHANGE_OPENED:
                received.put_nowait((classroom_id, time.perf_counter()))

    tasks = [asyncio.create_task(subscribe(place, name)) for place, name in enumerate(classrooms)]
    try:
        async with asyncio.timeout(WAIT_S):
            await all_ready.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def alert(bed: Bed) -> list[Figure]:
    """From the publish call to the receipt by both teachers of the classroom."""
    rounds = bed.scaled(60)
    subscribers = max(2 * rounds, bed.scaled(SUBSCRIBERS))
    names = [bed.name("class") for _ in range(subscribers // 2)]
    received: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
    durations: list[float] = []
    async with _subscribers(bed, [name for name in names for _ in range(2)], received):
        for name in names[:rounds]:
            begin_s = time.perf_counter()
            await bed.client.metrics.publish(_burst(name, [f"{name}.student"], _now_ms()))
            for _ in range(2):
                async with asyncio.timeout(WAIT_S):
                    where, at_s = await received.get()
                invariant(where == name, f"an alert of {where} came instead of {name}")
                durations.append(at_s - begin_s)
    return [
        Figure(
            "publish to alert received by its classroom's teachers, p99",
            quantile(durations, 99) * 1e3,
            "ms",
            f"3 peers, fsync, {subscribers:,} subscribers connected, 2 of them in the classroom",
            guide=100.0,
            first=50.0,
            samples=len(durations),
            p50=quantile(durations, 50) * 1e3,
        )
    ]


async def recover(bed: Bed) -> list[Figure]:
    """A teacher who was away gets what was missed."""
    classroom_id = bed.name("class")
    count = bed.scaled(MISSED_EVENTS)
    students = [f"{classroom_id}.{number}" for number in range(count)]
    async with bed.client.alerts.listen(classroom_id=classroom_id) as listener:
        begin = listener.cursor or 0
    for place in range(0, count, 100):
        await bed.client.metrics.publish(
            _burst(classroom_id, students[place : place + 100], _now_ms())
        )
    durations: list[float] = []
    for _ in range(bed.scaled(100) // 10 or 1):
        begin_s = time.perf_counter()
        async with bed.client.alerts.listen(
            classroom_id=classroom_id, after_sequence=begin
        ) as listener:
            for _ in range(count):
                await listener.next(WAIT_S)
        durations.append(time.perf_counter() - begin_s)
    return [
        Figure(
            f"{count:,} missed alerts recovered",
            quantile(durations, 99) * 1e3,
            "ms",
            "from the subscription to the last event, 1 client; worst of the rounds",
            first=200.0,
            samples=len(durations),
            p50=quantile(durations, 50) * 1e3,
        )
    ]
