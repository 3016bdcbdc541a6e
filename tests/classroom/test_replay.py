"""The replay keeps its own time, and never sends a call without content."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.classroom.recordings import RecordedMetric
from gaia_grpc.classroom.replay import Replayer, Slice
from gaia_grpc.client import Client


class Recorder:
    """Accepts everything and remembers how many batches each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def publish(
        self, batches: Sequence[metrics_pb2.MetricBatch]
    ) -> metrics_pb2.PublishMetricsResponse:
        self.calls.append(len(batches))
        return metrics_pb2.PublishMetricsResponse(
            results=[
                metrics_pb2.BatchResult(
                    status=metrics_pb2.BATCH_STATUS_ACCEPTED, accepted_count=len(batch.metrics)
                )
                for batch in batches
            ]
        )


async def test_a_timer_that_fires_early_sends_no_empty_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen with a real log: the loop's timer has steps of a millisecond."""
    monkeypatch.setattr(asyncio, "sleep", _no_wait)
    recorder = Recorder()
    replayer = Replayer(
        cast(Client, SimpleNamespace(metrics=recorder)),
        timeline_id="t",
        classroom_id="c",
        source_id="s",
        source_epoch=1,
        speed=1.0,
    )
    metric: Any = RecordedMetric(
        at_ms=1_000, student_id="a", app_name="math", metric_type="error", value=1.0
    )
    await replayer.run([Slice(1_000 * n, 60_000 * n, (metric,)) for n in range(1, 4)])
    assert recorder.calls == [1, 1, 1]
    assert replayer.counts.accepted == 3


async def _no_wait(delay_s: float) -> None:
    del delay_s
