"""What windows cost: a metric beside more and more students, and the memory of a full school."""

from __future__ import annotations

import time

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, resident_bytes
from gaia_grpc.cli.benchmarks.ingest import TYPES, Feed, measure

STUDENT_COUNTS = (10, 1_000, 100_000)
KEYS_BATCH = 10
KEYS_BATCHES_PER_CALL = 200
SCHOOL_STUDENTS = 1_000
SCHOOL_APPS = 3
SCHOOL_TYPES = 5
SCHOOL_RATE = 20
"""Metrics of one student a second, over all apps and types."""
SCHOOL_SECONDS = 300
STEP_SECONDS = 15
"""Of one student in one app in one batch: 100 metrics."""


async def keys(bed: Bed) -> list[Figure]:
    """The same load on 10, 1,000 and 100,000 students."""
    figures: list[Figure] = []
    for count in STUDENT_COUNTS:
        students = count if not bed.quick else min(count, 100)
        feed = Feed(bed.name("keys"), students, KEYS_BATCH)
        while feed.acknowledged < students * KEYS_BATCH:  # each has a window before the measure
            await feed.call(bed, KEYS_BATCHES_PER_CALL)
        feed.acknowledged = 0

        async def work(until_s: float, feed: Feed = feed) -> None:
            await feed.callers(bed, 4, KEYS_BATCHES_PER_CALL, until_s)

        figure = await measure(
            bed,
            f"metrics acknowledged a second, {count:,} students",
            f"4 calls of {KEYS_BATCHES_PER_CALL} batches of {KEYS_BATCH} in flight",
            feed,
            work,
        )
        figures.append(figure)
        if len(figures) > 1:
            figures.append(
                Figure(
                    f"CPU of a metric at {count:,} students, beside that at 10",
                    (figure.peer_cpu_us or 0.0) / (figures[0].peer_cpu_us or 1.0),
                    "times",
                    "of all three peers together; each student's batches are far apart",
                    samples=figure.samples,
                )
            )
    return figures


async def school(bed: Bed) -> list[Figure]:
    """Five minutes of a school, on a timeline: memory of its windows."""
    pids = bed.pids
    before = [resident_bytes(pid) for pid in pids]
    timeline = bed.name("school")
    students = SCHOOL_STUDENTS if not bed.quick else 20
    base_ms = time.time_ns() // 1_000_000
    begin_s = time.perf_counter()
    sent = 0
    for step in range(SCHOOL_SECONDS // STEP_SECONDS):
        batches = [
            _school_batch(timeline, student, app, step, base_ms)
            for student in range(students)
            for app in range(SCHOOL_APPS)
        ]
        for place in range(0, len(batches), 20):
            request = metrics_pb2.PublishMetricsRequest(batches=batches[place : place + 20])
            answer = await bed.client.call(lambda peer: peer.metrics.PublishMetrics, request)
            sent += sum(result.accepted_count for result in answer.results)
    took_s = time.perf_counter() - begin_s
    grown = max(resident_bytes(pid) - size for pid, size in zip(pids, before, strict=True))
    how = (
        f"3 peers, {students:,} students x {SCHOOL_APPS} apps x {SCHOOL_TYPES} types, "
        f"{SCHOOL_RATE} metrics a second each: {sent:,} metrics of 5 minutes, sent in {took_s:.0f} "
        "s; growth of the largest peer, the part of its log that it keeps in memory included"
    )
    return [
        Figure("memory of a full 5-minute window", grown / 2**20, "MB", how, samples=sent),
        Figure("memory of a metric in its window", grown / max(sent, 1), "B", how, samples=sent),
    ]


def _school_batch(
    timeline: str, student: int, app: int, step: int, base_ms: int
) -> metrics_pb2.MetricBatch:
    count = SCHOOL_RATE * STEP_SECONDS // SCHOOL_APPS
    begin_ms = base_ms + step * STEP_SECONDS * 1_000
    return metrics_pb2.MetricBatch(
        source_id=f"{timeline}.{student}.{app}",
        source_epoch=1,
        sequence=step + 1,
        sent_at_ms=begin_ms + STEP_SECONDS * 1_000,
        timeline_id=timeline,
        classroom_id=f"{timeline}.{student // 30}",
        student_id=f"{timeline}.{student}",
        app_name=f"app-{app}",
        metrics=[
            metrics_pb2.Metric(
                metric_type=TYPES[place % SCHOOL_TYPES],
                value=float(place),
                event_time_ms=begin_ms + place * STEP_SECONDS * 1_000 // count + 1,
            )
            for place in range(count)
        ],
    )
