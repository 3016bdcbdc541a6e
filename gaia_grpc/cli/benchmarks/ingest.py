"""Metrics in the shapes that apps send them, by hand and through the SDK, and what one costs."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, cpu_seconds, quantile
from gaia_grpc.client import LOCAL, MetricsBuffer

TYPES = ("keypress", "response_time", "accuracy", "correct", "attempts")
SHAPE_SECONDS = 4.0
STREAMS = 20
STREAM_AHEAD = 16
"""Batches of one stream that are sent and not acknowledged."""
SDK_STUDENTS = 100
BUFFER = 100
LESSON_STUDENTS = 100
LESSON_RATE = 20
"""Metrics of one student a second."""
LESSON_ROUNDS = 100


@dataclass(slots=True)
class Feed:
    """Makes batches of many students; each source counts its own."""

    name: str
    students: int
    metrics_per_batch: int
    types: int = 4
    timeline_id: str = ""
    acknowledged: int = 0
    _epoch: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _metrics: list[metrics_pb2.Metric] = field(default_factory=list)

    def batch(self) -> metrics_pb2.MetricBatch:
        """The next one, of the student whose turn it is."""
        if not self._metrics:
            self._metrics = [
                metrics_pb2.Metric(metric_type=TYPES[place % self.types], value=90.0 + place % 10)
                for place in range(self.metrics_per_batch)
            ]
        round_number, student = divmod(next(self._numbers), self.students)
        return metrics_pb2.MetricBatch(
            source_id=f"{self.name}.{student}",
            source_epoch=self._epoch,
            sequence=round_number + 1,
            sent_at_ms=time.time_ns() // 1_000_000,
            timeline_id=self.timeline_id,
            classroom_id=f"{self.name}.{student // 30}",
            student_id=f"{self.name}.{student}",
            app_name="math",
            metrics=self._metrics,
        )

    async def call(self, bed: Bed, batches: int) -> None:
        """One PublishMetrics with so many batches."""
        request = metrics_pb2.PublishMetricsRequest(batches=[self.batch() for _ in range(batches)])
        answer = await bed.client.call(lambda peer: peer.metrics.PublishMetrics, request)
        self.acknowledged += sum(result.accepted_count for result in answer.results)

    async def callers(self, bed: Bed, count: int, batches: int, until_s: float) -> None:
        """So many calls at a time, until the time comes."""

        async def caller() -> None:
            while time.perf_counter() < until_s:
                await self.call(bed, batches)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(caller())

    async def streams(self, bed: Bed, count: int, until_s: float) -> None:
        """So many StreamMetrics to the leader, until the time comes."""
        leader = bed.cluster.peer(await bed.cluster.aio.leader())
        stub = bed.client.peer(leader.address).metrics

        async def stream() -> None:
            ahead = asyncio.Semaphore(STREAM_AHEAD)

            async def requests() -> AsyncIterator[metrics_pb2.StreamMetricsRequest]:
                while time.perf_counter() < until_s:
                    await ahead.acquire()
                    yield metrics_pb2.StreamMetricsRequest(batch=self.batch())

            async for answer in stub.StreamMetrics(requests()):
                ahead.release()
                self.acknowledged += answer.result.accepted_count

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(stream())


async def measure(
    bed: Bed, name: str, how: str, feed: Feed, work: Callable[[float], Awaitable[None]]
) -> Figure:
    """Acknowledged a second while `work(until)` runs; `how` tells the CPU of each peer too."""
    leader = bed.cluster.peer(await bed.cluster.aio.leader()).pid
    took_s = 0.0

    async def run() -> int:
        nonlocal took_s
        begin_s = time.perf_counter()
        await work(begin_s + bed.seconds(SHAPE_SECONDS))
        took_s = time.perf_counter() - begin_s
        return feed.acknowledged

    leader_s = cpu_seconds(leader)
    cost = await bed.cost(run)
    leader_us = (cpu_seconds(leader) - leader_s) / cost.operations * 1e6
    follower_us = (cost.peer_cpu_us - leader_us) / 2
    return Figure(
        name,
        feed.acknowledged / took_s,
        "/s",
        f"3 peers, fsync, 1 client, {how}; CPU a metric: leader {leader_us:.2f} µs, "
        f"each follower {follower_us:.2f} µs",
        guide=20_000.0,
        higher_is_better=True,
        samples=feed.acknowledged,
        operations=cost.operations,
        peer_cpu_us=cost.peer_cpu_us,
        client_cpu_us=cost.client_cpu_us,
        log_bytes=cost.log_bytes,
        peak_peer_mb=cost.peak_peer_mb,
    )


async def shapes(bed: Bed) -> list[Figure]:
    """One buffer a call, small batches, and streams."""
    figures = []
    for what, calls, batches, metrics in (
        (f"one batch of {BUFFER} a call", 64, 1, BUFFER),
        ("20 batches of 10 a call", 16, 20, 10),
        ("one batch of 10 a call", 64, 1, 10),
    ):
        feed = Feed(bed.name("shape"), 1_000, metrics)

        async def work(
            until_s: float, feed: Feed = feed, calls: int = calls, batches: int = batches
        ) -> None:
            await feed.callers(bed, calls, batches, until_s)

        how = f"{calls} calls in flight, 1,000 students"
        name = f"metrics acknowledged a second, {what}"
        figures.append(await measure(bed, name, how, feed, work))
    feed = Feed(bed.name("shape"), 1_000, BUFFER)
    figures.append(
        await measure(
            bed,
            f"metrics acknowledged a second, StreamMetrics, batches of {BUFFER}",
            f"{STREAMS} streams with {STREAM_AHEAD} batches in flight each, 1,000 students",
            feed,
            lambda until_s: feed.streams(bed, STREAMS, until_s),
        )
    )
    return figures


async def students(bed: Bed) -> list[Figure]:
    """MB3: a hundred students at a time, each through an SDK buffer of its own."""
    feed = Feed(bed.name("sdk"), SDK_STUDENTS, BUFFER)
    flushes_s: list[float] = []

    async def student(number: int, until_s: float) -> None:
        async with bed.client.metrics.buffer(
            student_id=f"{feed.name}.{number}", app_name="math", classroom_id=feed.name
        ) as buffer:
            while time.perf_counter() < until_s:
                for place in range(BUFFER):
                    buffer.record(TYPES[place % 4], 90.0 + place % 10)
                begin_s = time.perf_counter()
                await buffer.flush()
                flushes_s.append(time.perf_counter() - begin_s)
                feed.acknowledged += BUFFER

    async def work(until_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(SDK_STUDENTS):
                group.create_task(student(number, until_s))

    name = f"metrics acknowledged a second, {SDK_STUDENTS} students at a time through the SDK"
    how = f"buffers of {BUFFER}, flushed one after the other"
    figure = await measure(bed, name, how, feed, work)
    return [
        figure,
        Figure(
            f"SDK flush of {BUFFER} metrics acknowledged, {SDK_STUDENTS} students at a time, p99",
            quantile(flushes_s, 99) * 1e3,
            "ms",
            "3 peers, fsync, 1 client; all of them send as fast as they can",
            samples=len(flushes_s),
            p50=quantile(flushes_s, 50) * 1e3,
        ),
    ]


async def lesson(bed: Bed) -> list[Figure]:
    """From the SDK's record to the update of a watch, in a class that sends all the time."""
    room = bed.name("class")
    count = LESSON_STUDENTS if not bed.quick else 5
    buffers = [
        bed.client.metrics.buffer(student_id=f"{room}.{number}", app_name="math", classroom_id=room)
        for number in range(count)
    ]
    durations: list[float] = []
    ending = asyncio.Event()

    async def typing(buffer: MetricsBuffer, number: int) -> None:
        while not ending.is_set():
            buffer.record("keypress", float(number))
            await asyncio.sleep(1 / LESSON_RATE)

    async with asyncio.TaskGroup() as group:
        for number, buffer in enumerate(buffers):
            group.create_task(typing(buffer, number))
        updates = bed.client.metrics.watch_classroom(room)
        seen = 0
        for _ in range(bed.scaled(LESSON_ROUNDS)):
            begin_s = time.perf_counter()
            buffers[0].record("help")
            target = seen + 1
            async for update in updates:
                seen = max([seen, *(_helps(each) for each in update.aggregates)])
                if seen >= target:
                    break
            durations.append(time.perf_counter() - begin_s)
        ending.set()
    for buffer in buffers:
        await buffer.close()
    return [
        Figure(
            f"SDK record (urgent) to WatchClassroom update, {LESSON_STUDENTS} students, p99",
            quantile(durations, 99) * 1e3,
            "ms",
            f"3 peers, fsync, 1 client, {count} students in one classroom at {LESSON_RATE} metrics "
            "a second each meanwhile",
            guide=200.0,
            first=100.0,
            samples=len(durations),
            p50=quantile(durations, 50) * 1e3,
        )
    ]


def _helps(aggregate: metrics_pb2.Aggregate) -> int:
    return sum(each.count for each in aggregate.metrics if each.metric_type == "help")


async def reading(bed: Bed) -> list[Figure]:
    """Aggregates returned while the same windows change all the time."""
    feed = Feed(bed.name("read"), 30, BUFFER)
    request = metrics_pb2.ListAggregatesRequest(
        classroom_id=f"{feed.name}.0", page_size=1_000, consistency=LOCAL
    )
    await feed.call(bed, 30)
    returned = 0
    begin_s = time.perf_counter()
    until_s = begin_s + bed.seconds(SHAPE_SECONDS)
    async with asyncio.TaskGroup() as group:
        group.create_task(feed.callers(bed, 1, 4, until_s))
        while time.perf_counter() < until_s:
            page = await bed.client.call(lambda peer: peer.metrics.ListAggregates, request)
            returned += len(page.aggregates)
    took_s = time.perf_counter() - begin_s
    return [
        Figure(
            "aggregates returned a second, while their windows change",
            returned / took_s,
            "/s",
            "3 peers, fsync, 1 client, one call at a time, a classroom of 30 students, 4 metric "
            f"types each; meanwhile {feed.acknowledged / took_s:,.0f} metrics a second for these "
            f"students, in batches of {BUFFER}",
            guide=100.0,
            higher_is_better=True,
            samples=returned,
        )
    ]
