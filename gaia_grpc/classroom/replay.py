"""Replays a recorded log through the real path, on a timeline of its own.

Event times stay as recorded. The stream is cut by event time alone, into slices of one second, and
sent in that order with one call in flight; so the windows and alerts are the same at any speed and
through any failover, and nothing is late. Only the waiting is compressed: the speed divides it, and
a pause of the whole class (a night, a weekend) costs one second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.classroom.recordings import RecordedMetric
from gaia_grpc.errors import InvalidArgumentError

SLICE_MS = 1_000
MAX_BATCHES_PER_CALL = 200
PAUSE_MS = 30 * 60_000
"""A gap in the log that is longer than this counts as one second of waiting."""
PAUSE_WAIT_MS = 1_000


@dataclass(frozen=True, slots=True)
class Slice:
    """What happened in one second of the log."""

    at_ms: int
    """End of the slice: its `sent_at_ms`."""
    wait_ms: int
    """Waiting time since the begin of the log, pauses skipped."""
    metrics: tuple[RecordedMetric, ...]


@dataclass(slots=True)
class ReplayCounts:
    """What became of the metrics; `sent` is the sum of the four outcomes after each call."""

    sent: int = 0
    accepted: int = 0
    late: int = 0
    rejected: int = 0
    refused: int = 0
    """Metrics of batches that were refused as a whole."""
    duplicate_batches: int = 0
    """Batches whose first attempt had arrived, though its answer got lost."""
    calls: int = 0
    call_seconds: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    at_ms: int = 0
    """Event time reached."""


def cut(metrics: Sequence[RecordedMetric]) -> Iterator[Slice]:
    """Slices of a log that is in the order of time; the same log gives the same slices."""
    pending: list[RecordedMetric] = []
    wait_ms = 0
    last_ms: int | None = None
    for metric in metrics:
        end_ms = -(-metric.at_ms // SLICE_MS) * SLICE_MS
        if last_ms is None:
            last_ms = end_ms
        if end_ms != last_ms:
            yield Slice(last_ms, wait_ms, tuple(pending))
            pending = []
            gap_ms = end_ms - last_ms
            wait_ms += PAUSE_WAIT_MS if gap_ms > PAUSE_MS else gap_ms
            last_ms = end_ms
        pending.append(metric)
    if last_ms is not None:
        yield Slice(last_ms, wait_ms, tuple(pending))


class Publishing(Protocol):
    """Takes batches."""

    async def publish(
        self, batches: Sequence[metrics_pb2.MetricBatch]
    ) -> metrics_pb2.PublishMetricsResponse:
        """An answer with a result for each batch."""
        ...


class Sink(Protocol):
    """What a replay needs of a client."""

    @property
    def metrics(self) -> Publishing:
        """Where batches go."""
        ...


class Replayer:
    """Sends the slices of a log to a cluster."""

    def __init__(
        self,
        client: Sink,
        *,
        timeline_id: str,
        classroom_id: str,
        source_id: str,
        source_epoch: int,
        speed: float,
    ) -> None:
        """`speed` divides the waiting; 0 does not wait at all."""
        self._client = client
        self._timeline_id = timeline_id
        self._classroom_id = classroom_id
        self._source_id = source_id
        self._source_epoch = source_epoch
        self._speed = speed
        self._next_sequence = 1
        self.counts = ReplayCounts()

    async def run(self, slices: Sequence[Slice], report: Callable[[], None] = lambda: None) -> None:
        """Sends all slices; raises the SDK's errors where the cluster stays away."""
        begin_s = time.perf_counter()
        place = 0
        while place < len(slices):
            due_s = begin_s + self._wall_s(slices[place])
            if due_s > time.perf_counter():
                await asyncio.sleep(due_s - time.perf_counter())
            batches: list[metrics_pb2.MetricBatch] = []
            while place < len(slices) and len(batches) < MAX_BATCHES_PER_CALL:
                # The first one has been waited for: a timer may fire a moment early.
                if batches and begin_s + self._wall_s(slices[place]) > time.perf_counter():
                    break
                batches += self._batches(slices[place])
                self.counts.at_ms = slices[place].at_ms
                place += 1
            await self._send(batches)
            report()

    def _wall_s(self, part: Slice) -> float:
        return part.wait_ms / 1_000.0 / self._speed if self._speed else 0.0

    def _batches(self, part: Slice) -> list[metrics_pb2.MetricBatch]:
        """One batch a student and app, in the order in which they first appear in the slice."""
        groups: dict[tuple[str, str], list[RecordedMetric]] = {}
        for metric in part.metrics:
            groups.setdefault((metric.student_id, metric.app_name), []).append(metric)
        found = []
        for (student_id, app_name), metrics in groups.items():
            found.append(
                metrics_pb2.MetricBatch(
                    source_id=self._source_id,
                    source_epoch=self._source_epoch,
                    sequence=self._next_sequence,
                    sent_at_ms=part.at_ms,
                    timeline_id=self._timeline_id,
                    classroom_id=self._classroom_id,
                    student_id=student_id,
                    app_name=app_name,
                    metrics=[
                        metrics_pb2.Metric(
                            metric_type=metric.metric_type,
                            value=metric.value,
                            event_time_ms=metric.at_ms,
                        )
                        for metric in metrics
                    ],
                )
            )
            self._next_sequence += 1
        return found

    async def _send(self, batches: Sequence[metrics_pb2.MetricBatch]) -> None:
        counts = self.counts
        sent_at_s = time.perf_counter()
        answer = await self._client.metrics.publish(batches)
        counts.call_seconds.append(time.perf_counter() - sent_at_s)
        counts.calls += 1
        if len(answer.results) != len(batches):
            raise InvalidArgumentError("the answer has another number of results than was sent")
        for batch, result in zip(batches, answer.results, strict=True):
            count_result(counts, len(batch.metrics), result)


def count_result(counts: ReplayCounts, metrics: int, result: metrics_pb2.BatchResult) -> None:
    """Adds the outcome of one batch of `metrics` metrics."""
    counts.sent += metrics
    if result.status == metrics_pb2.BATCH_STATUS_REFUSED:
        counts.refused += metrics
        counts.reasons[result.reason] = counts.reasons.get(result.reason, 0) + metrics
        return
    if result.status == metrics_pb2.BATCH_STATUS_DUPLICATE:
        counts.duplicate_batches += 1
    counts.late += result.late_count
    counts.rejected += len(result.rejected)
    counts.accepted += metrics - result.late_count - len(result.rejected)
    for item in result.rejected:
        counts.reasons[item.reason] = counts.reasons.get(item.reason, 0) + 1
