"""Windows and history of real peers beside an oracle that keeps everything: any order, devices with
wrong clocks, repeats at other peers, timelines, late data, and leaders that go in the middle.

Where a batch was placed is told by its answer (`time_shift_ms`); where the first answer got lost in
a failover, by a metric of the batch whose type is its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from gaia.cluster.v1 import cluster_pb2
from gaia.metrics.v1 import metrics_pb2
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gaia_grpc.client import Client
from gaia_grpc.errors import NotFoundError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import report
from tests.state.plain_metrics import Key, PlainMetrics
from tests.support.metric_answers import assert_figures

IS_LONG = bool(os.environ.get("GAIA_LONG"))
EXAMPLES = 200 if IS_LONG else 8
TIMEOUT_S = 3_600 if IS_LONG else 60
PHASES = [Phase.generate, Phase.shrink] if IS_LONG else [Phase.generate]
"""Smaller examples of a failure take longer than a test may."""
WINDOW_MS = 1_000
RETENTION_MS = 60_000
SETTINGS = {"metrics.window": "1s", "metrics.history_retention": "60s"}
START_MS = 1_700_000_000_500
LIVE = ""

AGES = st.one_of(
    st.integers(-5_000, 1_000),
    st.integers(0, 4 * WINDOW_MS),
    st.integers(0, 2 * RETENTION_MS),
    st.sampled_from([0, WINDOW_MS - 1, WINDOW_MS, WINDOW_MS + 1, 500, RETENTION_MS]),
)
VALUES = st.one_of(
    st.sampled_from([1.0, 0.0, -3.0, 0.5]),
    st.floats(-9e9, 9e9, allow_nan=False),
    st.integers(0, 10_000).map(lambda value: value / 1_000),
)
METRICS = st.lists(
    st.tuples(st.sampled_from(["error", "keypress", "response_time"]), VALUES, AGES),
    min_size=1,
    max_size=8,
)
BATCHES = st.fixed_dictionaries(
    {
        "student": st.sampled_from(["ana", "bo"]),
        "timeline": st.sampled_from([LIVE, LIVE, "t1", "t2"]),
        "metrics": METRICS,
        "clock_ms": st.integers(-10_000_000, 10_000_000),
        "peer": st.integers(0, 2),
    }
)
STEPS = st.one_of(
    st.tuples(st.just("one"), BATCHES),
    st.tuples(st.just("repeat"), st.integers(0, 20), st.integers(0, 2)),
    st.tuples(
        st.just("many"),
        st.lists(BATCHES, min_size=2, max_size=12),
        st.sampled_from(["transfer", "transfer", "kill"]),
    ),
)
NUMBERS = itertools.count(1)
COUNTS: Counter[str] = Counter()


@dataclass
class Sent:
    """A batch and its answer."""

    key: Key
    batch: metrics_pb2.MetricBatch
    result: metrics_pb2.BatchResult


@dataclass
class Run:
    """The cluster and the oracle side by side."""

    cluster: Cluster
    clients: list[Client]
    name: str = field(default_factory=lambda: f"oracle-{next(NUMBERS)}")
    plain: PlainMetrics = field(default_factory=lambda: PlainMetrics(WINDOW_MS, RETENTION_MS, {}))
    clocks: dict[str, int] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)

    def batch(
        self, student: str, timeline: str, metrics: list[tuple[str, float, int]], clock_ms: int
    ) -> tuple[Key, metrics_pb2.MetricBatch]:
        """From a device whose clock is wrong by `clock_ms`; of a recording, in any order."""
        number = next(NUMBERS)
        if timeline:
            sent_at_ms = START_MS + abs(clock_ms) % 30_000
            timeline = f"{self.name}-{timeline}"
        else:
            sent_at_ms = time.time_ns() // 1_000_000 + clock_ms
        metrics = [*metrics, (f"mark-{number}", float(number), 0)]
        batch = metrics_pb2.MetricBatch(
            source_id=f"{self.name}-{number}",
            source_epoch=1,
            sequence=1,
            sent_at_ms=sent_at_ms,
            timeline_id=timeline,
            student_id=f"{self.name}-{student}",
            app_name="math",
            metrics=[
                metrics_pb2.Metric(metric_type=kind, value=value, event_time_ms=sent_at_ms - age)
                for kind, value, age in metrics
            ],
        )
        return (timeline, batch.student_id, "math"), batch

    async def publish(self, batch: metrics_pb2.MetricBatch, peer: int) -> metrics_pb2.BatchResult:
        """The client tries again, at other peers too, until there is an answer."""
        return (await self.clients[peer].metrics.publish([batch])).results[0]

    async def send(self, peer: int, **fields: Any) -> None:
        """One batch; notes it where the cluster has placed it."""
        key, batch = self.batch(**fields)
        result = await self.publish(batch, peer)
        await self.note(Sent(key, batch, result))

    async def note(self, sent: Sent) -> None:
        """Puts the batch into the oracle, which must say the same of it."""
        timeline, batch, result = sent.key[0], sent.batch, sent.result
        if timeline:
            shift_ms = 0
            clock_ms = max(self.clocks.get(timeline, 0), batch.sent_at_ms)
            self.clocks[timeline] = clock_ms
        else:
            shift_ms = result.time_shift_ms
            if result.status == metrics_pb2.BATCH_STATUS_DUPLICATE:  # placed by a lost attempt
                COUNTS["answers lost"] += 1
                shift_ms = await self.placed_ms(sent) - batch.sent_at_ms
            clock_ms = batch.sent_at_ms + shift_ms
        placed = [(m.metric_type, m.value, m.event_time_ms + shift_ms) for m in batch.metrics]
        expected = self.plain.accept(sent.key, placed, clock_ms)
        assert (result.accepted_count, result.late_count) == expected[:2]
        if result.status == metrics_pb2.BATCH_STATUS_ACCEPTED:
            assert result.expired_count == expected[2]
        else:
            assert result.status == metrics_pb2.BATCH_STATUS_DUPLICATE
        COUNTS["batches"] += 1
        COUNTS["late metrics"] += result.late_count
        self.sent.append(sent)

    async def placed_ms(self, sent: Sent) -> int:
        """Where the cluster has the batch's own mark."""
        mark = sent.batch.metrics[-1].metric_type
        metrics = self.clients[0].metrics
        parts = list((await metrics.aggregate(*sent.key[1:])).aggregate.metrics)
        async for window in metrics.history(*sent.key[1:]):
            parts += window.aggregate.metrics
        return next(part.first_time_ms for part in parts if part.metric_type == mark)

    async def one(self, batch: dict[str, Any]) -> None:
        await self.send(**batch)

    async def repeat(self, back: int, peer: int) -> None:
        """A batch of before again, stamped anew: nothing changes."""
        if not self.sent:
            return
        sent = self.sent[-1 - back % len(self.sent)]
        batch = metrics_pb2.MetricBatch()
        batch.CopyFrom(sent.batch)
        if not sent.key[0]:
            batch.sent_at_ms += 12_345
        again = await self.publish(batch, peer)
        assert again.status == metrics_pb2.BATCH_STATUS_DUPLICATE
        assert again.accepted_count == sent.result.accepted_count
        assert again.late_count == sent.result.late_count

    async def many(self, batches: list[dict[str, Any]], fault: str) -> None:
        """At once, while the leader goes; of a timeline one after the other, since its clock
        depends on the order."""
        lanes: dict[object, list[dict[str, Any]]] = {}
        for place, batch in enumerate(batches):
            lanes.setdefault(batch["timeline"] or place, []).append(batch)

        async def lane(waiting: list[dict[str, Any]]) -> None:
            for batch in waiting:
                await self.send(**batch)

        async with asyncio.TaskGroup() as group:
            for waiting in lanes.values():
                group.create_task(lane(waiting))
            group.create_task(self.fault(fault))
        await self.cluster.aio.heal()

    async def fault(self, fault: str) -> None:
        leader = await self.cluster.aio.leader()
        if fault == "kill":
            await self.cluster.aio.kill(leader)
            COUNTS["killed"] += 1
            return
        stub = self.clients[0].peer(self.cluster.address(leader)).cluster
        with suppress(grpc.aio.AioRpcError):  # another one leads by now
            await stub.TransferLeadership(cluster_pb2.TransferLeadershipRequest(), timeout=5)
            COUNTS["transferred"] += 1

    # --- what the cluster says ---------------------------------------------------------------

    async def log_time_ms(self) -> int:
        """The clock of live metrics."""
        while True:
            _, batch = self.batch("clock", LIVE, [], 0)
            result = await self.publish(batch, 0)
            if result.status == metrics_pb2.BATCH_STATUS_ACCEPTED:
                return batch.sent_at_ms + result.time_shift_ms

    async def check(self) -> None:
        """Everything that can be asked, at one peer after the other."""
        for place, key in enumerate(sorted(self.plain.events)):
            metrics = self.clients[place % 3].metrics
            timeline, student, app = key
            try:
                answer = await metrics.aggregate(student, app, timeline_id=timeline)
            except NotFoundError:  # idle for long
                clock_ms = self.clocks.get(timeline) or await self.log_time_ms()
                assert not self.plain.rolling(key, clock_ms)
            else:
                window = answer.aggregate
                assert not timeline or window.window_end_ms == self.clocks[timeline]
                expected = self.plain.rolling(key, window.window_end_ms)
                assert_figures(window.metrics, expected, WINDOW_MS)
            await self.check_history(metrics, key)

    async def check_history(self, metrics: Any, key: Key) -> None:
        """Live windows end and expire meanwhile: asked again until nothing did."""
        timeline, student, app = key
        while True:
            before_ms = self.clocks.get(timeline) or await self.log_time_ms()
            windows = [w async for w in metrics.history(student, app, timeline_id=timeline)]
            after_ms = self.clocks.get(timeline) or await self.log_time_ms()
            expected = self.plain.history(key, before_ms)
            if expected == self.plain.history(key, after_ms):
                break
        assert [w.aggregate.window_end_ms for w in windows] == [each[0] for each in expected]
        for window, (_, revision, closed, figures) in zip(windows, expected, strict=True):
            assert (window.revision, window.HasField("close_time")) == (revision, closed)
            assert_figures(window.aggregate.metrics, figures, WINDOW_MS)
            COUNTS["past windows"] += 1
            COUNTS["past windows that late data changed"] += revision > 0


async def follow(cluster: Cluster, steps: list[Any]) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client.connect(cluster.addresses, timeout=20))
            for _ in cluster.addresses
        ]
        for client, address in zip(clients, cluster.addresses, strict=True):
            client.connection.peers.follow(address, 0)
        run = Run(cluster, clients)
        for name, *arguments in steps:
            await getattr(run, name)(*arguments)
        await run.check()
        await cluster.aio.assert_equal_logs_and_hashes()


@pytest.mark.timeout(TIMEOUT_S)
def test_metrics_windows_and_history_are_an_oracles_over_failovers(
    gaia_cluster: MakeCluster,
) -> None:
    cluster = gaia_cluster(3, settings=SETTINGS)

    @settings(max_examples=EXAMPLES, derandomize=not IS_LONG, database=None, phases=PHASES)
    @given(steps=st.lists(STEPS, min_size=4, max_size=16))
    def example(steps: list[Any]) -> None:
        cluster.heal()
        asyncio.run(follow(cluster, steps))

    example()
    report(", ".join(f"{count} {what}" for what, count in sorted(COUNTS.items())))
    assert COUNTS["transferred"]
    assert COUNTS["killed"]
