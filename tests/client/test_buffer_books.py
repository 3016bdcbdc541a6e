"""The counters add up at every moment, whatever happens: random outcomes, closes and restarts."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gaia.metrics.v1 import metrics_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia_grpc.client import MetricsBuffer, MetricsCounters
from gaia_grpc.client import publisher as publisher_module
from gaia_grpc.client.metrics import MetricsApi
from gaia_grpc.client.spool import Spool
from gaia_grpc.errors import (
    InvalidArgumentError,
    OutcomeUnknownError,
    ResourceExhaustedError,
    UnavailableError,
)

Key = tuple[str, int, int]
Outcome = str

OUTCOMES = ("ok", "ok", "ok", "away", "answer lost", "bad call", "full", "full in part", "odd")


class Cluster:
    """Stands for the connection: keeps each batch once, and fails as it is told."""

    def __init__(self) -> None:
        self.client_id = ""
        """As of a real connection: another in each life."""
        self.stored: dict[Key, metrics_pb2.BatchResult] = {}
        self.values: Counter[float] = Counter()
        self.told = 0
        self.outcomes: list[Outcome] = []

    async def call(
        self,
        method: Callable[..., Any],
        request: metrics_pb2.PublishMetricsRequest,
        *,
        timeout: float,
        before_attempt: Callable[[metrics_pb2.PublishMetricsRequest], None],
    ) -> metrics_pb2.PublishMetricsResponse:
        before_attempt(request)
        await asyncio.sleep(0)
        outcome = self.outcomes.pop() if self.outcomes else "ok"
        if outcome == "away":
            raise UnavailableError("away")
        if outcome == "full":
            raise ResourceExhaustedError("full", retry_after_ms=0)
        if outcome == "bad call":
            raise InvalidArgumentError("bad")
        results = [
            self._full(batch)
            if outcome == "full in part" and place
            else self._store(batch, outcome)
            for place, batch in enumerate(request.batches)
        ]
        await asyncio.sleep(0)
        if outcome == "answer lost":
            raise OutcomeUnknownError("lost")
        return metrics_pb2.PublishMetricsResponse(results=results)

    def _full(self, batch: metrics_pb2.MetricBatch) -> metrics_pb2.BatchResult:
        return metrics_pb2.BatchResult(
            status=metrics_pb2.BATCH_STATUS_REFUSED, reason="RESOURCE_EXHAUSTED"
        )

    def _store(self, batch: metrics_pb2.MetricBatch, outcome: Outcome) -> metrics_pb2.BatchResult:
        key = (batch.source_id, batch.source_epoch, batch.sequence)
        if key in self.stored:
            again = metrics_pb2.BatchResult()
            again.CopyFrom(self.stored[key])
            again.status = metrics_pb2.BATCH_STATUS_DUPLICATE
            return again
        kept = list(batch.metrics)
        result = metrics_pb2.BatchResult(status=metrics_pb2.BATCH_STATUS_ACCEPTED)
        if outcome == "odd":  # one rejected, one late, one sampled
            for number, _ in enumerate(kept[:1]):
                result.rejected.add(index=number, reason="VALUE_NOT_FINITE")
            result.late_count = len(kept[1:2])
            del kept[2:3]
            del kept[:1]
        result.accepted_count = len(kept) - result.late_count
        for metric in kept:
            self.values[metric.value] += 1
        self.told += sum(mark.count for mark in batch.omissions)
        self.stored[key] = result
        return result


class Life:
    """One process of the app: an API, perhaps a spool, and the buffers of two students."""

    def __init__(self, cluster: Cluster, directory: Path | None) -> None:
        self.cluster = cluster
        self.directory = directory
        self.spool: Spool | None = None
        self.buffers: dict[int, MetricsBuffer] = {}

    async def begin(self) -> None:
        connection: Any = self.cluster
        connection.client_id += "x"
        self.api = MetricsApi(connection)
        if self.directory is not None:
            self.spool = await self.api.open_spool(self.directory, max_bytes=8_192)
            self.spool.source.max_queued = 8

    def buffer(self, number: int) -> MetricsBuffer:
        if number not in self.buffers:
            self.buffers[number] = self.api.buffer(
                student_id=f"s{number}",
                app_name="a",
                flush_size=3,
                flush_interval=0.001,
                max_pending=12,
                spool=self.spool,
            )
        return self.buffers[number]

    async def close_buffer(self, number: int) -> None:
        try:
            await self.buffer(number).close(timeout=0.002)
        except UnavailableError:
            assert self.spool is None
        del self.buffers[number]

    async def end(self) -> None:
        for number in list(self.buffers):
            await self.close_buffer(number)
        await self.api.close()

    async def die(self) -> None:
        """Leaves as a killed process does: nothing more is sent or written, the lock is free."""
        publisher = self.api.publisher
        publisher._closed = True
        for task in (*publisher._calls, *publisher._loads):
            task.cancel()
        if self.spool is not None:
            self.spool._closed = True
            await self.spool._on_thread(self.spool._files._close_current)
            os.close(self.spool._files._lock)
            self.spool._thread.shutdown()
        for buffer in self.buffers.values():
            buffer._closed = True
            if buffer._timer is not None:
                buffer._timer.cancel()

    @property
    def counts(self) -> MetricsCounters:
        return self.api.counters


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(1, 30)),
        st.tuples(st.just("outcome"), st.sampled_from(OUTCOMES)),
        st.tuples(st.just("turns"), st.integers(1, 12)),
        st.tuples(st.just("close"), st.integers(0, 1)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=40,
)


async def live(steps: list[tuple[str, Any]], directory: Path | None) -> None:
    cluster = Cluster()
    life = Life(cluster, directory)
    await life.begin()
    recorded = 0
    finals = MetricsCounters()
    for kind, argument in [*steps, ("restart", 0)]:
        if kind == "record":
            for _ in range(argument):
                life.buffer(recorded % 2).record("keypress", recorded)
                recorded += 1
                assert life.counts.adds_up
        elif kind == "outcome":
            cluster.outcomes.insert(0, argument)
        elif kind == "turns":
            for _ in range(argument):
                await asyncio.sleep(0)
                assert life.counts.adds_up
        elif kind == "close":
            await life.close_buffer(argument)
        else:
            await life.end()
            finals = ended_life(finals, life.counts)
            life = Life(cluster, directory)
            await life.begin()
        assert life.counts.adds_up
    cluster.outcomes.clear()
    await drained(life)
    await life.end()
    finals = ended_life(finals, life.counts)
    assert finals.recorded == recorded
    assert finals.pending == finals.spooled == 0
    assert max(cluster.values.values(), default=1) == 1, "nothing counts twice"
    kept = finals.acknowledged + finals.late
    if directory is not None:
        assert kept == cluster.values.total()
    else:
        # A close may have given up what an attempt had delivered already.
        assert kept <= cluster.values.total() <= kept + finals.dropped
    assert finals.gaps_told <= cluster.told <= finals.dropped + finals.rejected


async def drained(life: Life) -> None:
    if life.spool is not None:
        async with asyncio.timeout(10):
            while life.counts.spooled or life.counts.pending:
                await life.api.publisher.wait_call()


def ended_life(before: MetricsCounters, life: MetricsCounters) -> MetricsCounters:
    """The counts of all lives; what the one before left in the spool is what this one found."""
    assert life.adds_up
    assert life.pending == 0
    assert life.recovered == before.spooled
    total = MetricsCounters.total([before, life])
    total.recovered, total.spooled = 0, life.spooled
    assert total.adds_up
    return total


def run(steps: list[tuple[str, Any]], body: Callable[..., Any], *, spooled: bool) -> None:
    pause, publisher_module.RETRY_PAUSE_S = publisher_module.RETRY_PAUSE_S, 0.0
    directory = Path(tempfile.mkdtemp()) if spooled else None
    try:
        asyncio.run(body(steps, directory))
    finally:
        publisher_module.RETRY_PAUSE_S = pause
        if directory is not None:
            shutil.rmtree(directory)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_the_counters_always_add_up(steps: list[tuple[str, Any]]) -> None:
    run(steps, live, spooled=False)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_the_counters_always_add_up_over_restarts_with_a_spool(
    steps: list[tuple[str, Any]],
) -> None:
    run(steps, live, spooled=True)


async def live_and_die(steps: list[tuple[str, Any]], directory: Path) -> None:
    cluster = Cluster()
    life = Life(cluster, directory)
    await life.begin()
    recorded = 0
    safe: set[float] = set()
    for kind, argument in steps:
        if kind == "record":
            for _ in range(argument):
                if life.buffer(recorded % 2).record("keypress", recorded):
                    safe.add(recorded)
                recorded += 1
        elif kind == "outcome" and argument != "bad call" and argument != "odd":
            cluster.outcomes.insert(0, argument)
        elif kind == "turns":
            for _ in range(argument):
                await asyncio.sleep(0)
        elif kind == "restart":
            for buffer in life.buffers.values():
                buffer.seal()
            await life.die()
            life = Life(cluster, directory)
            await life.begin()
        assert life.counts.adds_up
    for buffer in life.buffers.values():
        buffer.seal()
    cluster.outcomes.clear()
    await drained(life)
    await life.end()
    assert dict(cluster.values) == dict.fromkeys(safe, 1), "each once, whatever was killed"


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_killed_apps_deliver_each_metric_once(steps: list[tuple[str, Any]]) -> None:
    run(steps, live_and_die, spooled=True)
