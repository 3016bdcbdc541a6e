"""Alerts: how soon they arrive, how many at a time, and what finding them costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import grpc
from gaia.alert.v1 import alert_pb2, alert_pb2_grpc
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile
from gaia_grpc.cli.benchmarks.stream import (
    BATCHES_PER_CALL,
    CALLS_IN_FLIGHT,
    STUDENTS,
    make_requests,
    now_ms,
    publish_all,
)
from gaia_grpc.errors import invariant

SUBSCRIBERS = 1_000
STALLED = 50
ROUNDS = 150
MISSED_EVENTS = 1_000
BURST = 40
WAIT_S = 20.0
STALL_S = 6.0
"""A little longer than a peer waits for one that does not read."""
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0))
"""Of a client that takes little without reading it."""

Received = asyncio.Queue[tuple[str, float]]
"""(classroom, time in seconds) of each event that opened an alert."""


def _burst(classroom_id: str, students: Sequence[str], epoch: int) -> list[metrics_pb2.MetricBatch]:
    """Five errors of each student at once: each opens an alert."""
    sent_at_ms = now_ms()
    return [
        metrics_pb2.MetricBatch(
            source_id=student,
            source_epoch=epoch,
            sequence=1,
            sent_at_ms=sent_at_ms,
            classroom_id=classroom_id,
            student_id=student,
            app_name="math",
            metrics=[metrics_pb2.Metric(metric_type="error", value=1.0)] * 5,
        )
        for student in students
    ]


def _teachers(name: str) -> list[alert_pb2.AlertFilter]:
    """How the two teachers of a classroom subscribe: one by the roster, one by the classroom."""
    return [
        alert_pb2.AlertFilter(teacher_id=f"{name}.teacher"),
        alert_pb2.AlertFilter(classroom_id=name),
    ]


@asynccontextmanager
async def _subscribers(
    bed: Bed, filters: Sequence[alert_pb2.AlertFilter], received: Received
) -> AsyncIterator[None]:
    """One subscription for each filter, spread over the peers; notes when alerts are opened."""
    ready = 0
    all_ready = asyncio.Event()

    async def subscribe(place: int, wanted: alert_pb2.AlertFilter) -> None:
        nonlocal ready
        peer = bed.client.peer(bed.client.addresses[place % len(bed.client.addresses)])
        request = alert_pb2.SubscribeAlertsRequest(
            filter=wanted, from_now=True, progress_interval_ms=60_000
        )
        first = True
        async for message in peer.alerts.SubscribeAlerts(request):
            if first:
                first = False
                ready += 1
                if ready == len(filters):
                    all_ready.set()
            if message.event.change == alert_pb2.ALERT_CHANGE_OPENED:
                received.put_nowait((message.event.alert.classroom_id, time.perf_counter()))

    tasks = [asyncio.create_task(subscribe(place, one)) for place, one in enumerate(filters)]
    try:
        async with asyncio.timeout(WAIT_S):
            await all_ready.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _rosters(bed: Bed, names: Sequence[str]) -> None:
    for name in names:
        await bed.client.classrooms.put(
            name, teacher_ids=[f"{name}.teacher", f"{name}.other"], student_ids=[f"{name}.student"]
        )


async def _rounds(bed: Bed, names: Sequence[str], received: Received) -> list[float]:
    """An alert in each of the classrooms, one after the other; seconds from the publish call to
    the receipt by each of its two teachers."""
    durations: list[float] = []
    for name in names:
        begin_s = time.perf_counter()
        await bed.client.metrics.publish(_burst(name, [f"{name}.student"], now_ms()))
        for _ in range(2):
            async with asyncio.timeout(WAIT_S):
                where, at_s = await received.get()
            invariant(where == name, f"an alert of {where} came instead of {name}")
            durations.append(at_s - begin_s)
    return durations


def _latency(name: str, durations: Sequence[float], how: str) -> Figure:
    return Figure(
        name,
        quantile(durations, 99) * 1e3,
        "ms",
        how,
        guide=100.0,
        first=50.0,
        samples=len(durations),
        p50=quantile(durations, 50) * 1e3,
    )


async def alert(bed: Bed) -> list[Figure]:
    """From the publish call to the receipt by both teachers of the classroom."""
    rounds = bed.scaled(ROUNDS)
    subscribers = max(2 * rounds, bed.scaled(SUBSCRIBERS))
    names = [bed.name("class") for _ in range(subscribers // 2)]
    await _rosters(bed, names)
    received: Received = asyncio.Queue()
    async with _subscribers(bed, [one for name in names for one in _teachers(name)], received):
        durations = await _rounds(bed, names[:rounds], received)
    return [
        _latency(
            "publish to alert received by its classroom's teachers, p99",
            durations,
            f"3 peers, fsync, {subscribers:,} subscribers connected, 2 of them in the classroom",
        )
    ]


async def stalled(bed: Bed) -> list[Figure]:
    """The same while some subscribers want everything and read nothing."""
    rounds, count = bed.scaled(ROUNDS), bed.scaled(STALLED)
    subscribers = max(2 * rounds, bed.scaled(SUBSCRIBERS) - count)
    names = [bed.name("class") for _ in range(subscribers // 2)]
    await _rosters(bed, names)
    noise = bed.name("noise")
    async with bed.client.alerts.listen() as listener:
        begin = listener.cursor or 0
    students = [f"{noise}.{number}" for number in range(bed.scaled(MISSED_EVENTS))]
    await bed.client.metrics.publish(_burst(noise, students, now_ms()))
    received: Received = asyncio.Queue()
    async with (
        _stalling(bed, begin, count),
        _subscribers(bed, [one for name in names for one in _teachers(name)], received),
    ):
        durations = await _rounds(bed, names[:rounds], received)
    return [
        _latency(
            f"the same, with {count} stalled subscribers beside {subscribers:,} healthy ones, p99",
            durations,
            f"the stalled ones have {len(students):,} events to take, read none, are closed after "
            "5 s and come back",
        )
    ]


@asynccontextmanager
async def _stalling(bed: Bed, after_sequence: int, count: int) -> AsyncIterator[None]:
    """So many subscribers that never read, over the peers; they come back when they are closed."""
    request = alert_pb2.SubscribeAlertsRequest(after_sequence=after_sequence)

    async def stall(stub: alert_pb2_grpc.AlertServiceAsyncStub) -> None:
        while True:
            call = stub.SubscribeAlerts(request)
            try:
                await call.initial_metadata()
                started.release()
                await asyncio.sleep(STALL_S)
            finally:
                call.cancel()

    started = asyncio.Semaphore(0)
    addresses = bed.client.addresses
    channels = [grpc.aio.insecure_channel(each, options=SMALL_WINDOW) for each in addresses]
    stubs: list[alert_pb2_grpc.AlertServiceAsyncStub] = [
        alert_pb2_grpc.AlertServiceStub(channel) for channel in channels
    ]
    tasks = [asyncio.create_task(stall(stubs[place % len(stubs)])) for place in range(count)]
    try:
        async with asyncio.timeout(WAIT_S):
            for _ in range(count):
                await started.acquire()
        yield
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:
            await channel.close()


async def deliver(bed: Bed) -> list[Figure]:
    """A burst of alerts in one classroom that everybody watches."""
    name = bed.name("class")
    count, burst = bed.scaled(SUBSCRIBERS), bed.scaled(BURST)
    received: Received = asyncio.Queue()
    filters = [alert_pb2.AlertFilter(classroom_id=name) for _ in range(count)]
    took_s = 0.0

    async def work() -> int:
        nonlocal took_s
        begin_s = time.perf_counter()
        students = [f"{name}.{number}" for number in range(burst)]
        await bed.client.metrics.publish(_burst(name, students, now_ms()))
        async with asyncio.timeout(WAIT_S):
            for _ in range(count * burst):
                _, at_s = await received.get()
        took_s = at_s - begin_s
        return count * burst

    async with _subscribers(bed, filters, received):
        cost = await bed.cost(work)
    return [
        Figure(
            "alert deliveries a second",
            cost.operations / took_s,
            "/s",
            f"{burst} alerts at once to {count:,} subscribers of one classroom, all of them in "
            "one client process",
            higher_is_better=True,
            samples=cost.operations,
            operations=cost.operations,
            peer_cpu_us=cost.peer_cpu_us,
            client_cpu_us=cost.client_cpu_us,
        )
    ]


EVIDENCE = (
    ("correct", 1.0), ("error", 1.0), ("backspace", 1.0), ("response_time", 4_000.0),
    ("correct", 1.0), ("hint", 1.0), ("accuracy", 80.0), ("hesitation", 3.0),
    ("correct", 1.0), ("mistake", 1.0),
)  # fmt: skip
"""What the detector looks at; as many errors as keep episodes open."""


async def detect(bed: Bed) -> list[Figure]:
    """Metrics that are all evidence, a second's worth of a student in each batch, published until
    they are acknowledged: all patterns and the model have looked at them by then."""
    metrics = [
        metrics_pb2.Metric(metric_type=metric_type, value=value)
        for metric_type, value in EVIDENCE * 2
    ]
    requests = make_requests(bed.name("class"), STUDENTS // BATCHES_PER_CALL, metrics)
    rate, cost = await publish_all(bed, requests, 5.0)
    return [
        Figure(
            "metrics analysed a second, each of them evidence",
            rate,
            "/s",
            f"3 peers, fsync, 1 client, {CALLS_IN_FLIGHT} calls in flight, {BATCHES_PER_CALL} "
            f"batches of {len(metrics)} a call, {STUDENTS:,} students, an episode of each",
            higher_is_better=True,
            samples=cost.operations,
            operations=cost.operations,
            peer_cpu_us=cost.peer_cpu_us,
            client_cpu_us=cost.client_cpu_us,
            log_bytes=cost.log_bytes,
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
            _burst(classroom_id, students[place : place + 100], now_ms())
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
