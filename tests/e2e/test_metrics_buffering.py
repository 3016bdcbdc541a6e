"""The SDK's buffer on real peers: scenarios M2 (full flushes, outage, retry) and M7 (the timer)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import Client, MetricsBuffer
from gaia_grpc.client.clock import SteadyClock, wall_clock_ms
from gaia_grpc.testing import Cluster

pytestmark = pytest.mark.both_logs

HOUR_MS = 3_600_000


async def acknowledged(client: Client, buffer: MetricsBuffer, count: int) -> float:
    """Waits until `count` metrics of the buffer are acknowledged; when that was, in seconds."""
    async with asyncio.timeout(20):
        while buffer.counters.acknowledged < count:
            await client.metrics.publisher.wait_call()
    return time.monotonic()


async def window(client: Client, student_id: str) -> dict[str, metrics_pb2.MetricAggregate]:
    answer = await client.metrics.aggregate(student_id, "math")
    return {part.metric_type: part for part in answer.aggregate.metrics}


async def test_metrics_buffering_five_hundred_are_five_full_flushes(client3: Client) -> None:
    buffer = client3.metrics.buffer(student_id="m2-500", app_name="math")
    started = time.monotonic()
    for number in range(500):
        assert buffer.record("score", number)
    assert buffer.buffered == 0
    ended = await acknowledged(client3, buffer, 500)
    assert ended - started < 0.9, "none of them waited for the timer"
    assert buffer.counters.batches == 5
    found = (await window(client3, "m2-500"))["score"]
    assert (found.count, found.sum, found.min, found.max) == (500, 124_750, 0, 499)


async def test_metrics_buffering_a_hundred_and_fifty_are_a_hundred_and_then_the_timer(
    client3: Client,
) -> None:
    buffer = client3.metrics.buffer(student_id="m2-150", app_name="math")
    started = time.monotonic()
    for number in range(150):
        buffer.record("score", number)
    assert buffer.buffered == 50
    full = await acknowledged(client3, buffer, 100)
    assert (buffer.counters.acknowledged, buffer.counters.batches) == (100, 1)
    assert full - started < 0.9
    assert (await window(client3, "m2-150"))["score"].count == 100
    timed = await acknowledged(client3, buffer, 150)
    assert 1.0 <= timed - started < 1.8
    assert buffer.counters.batches == 2
    assert (await window(client3, "m2-150"))["score"].sum == sum(range(150))


async def test_metrics_periodic_timer_flushes_after_a_second_whatever_the_clocks_say(
    client3: Client,
) -> None:
    """Tablets an hour behind and ahead, whose clocks are set by 2 h while a metric waits."""
    for name, offset_ms, jump_ms in (
        ("right", 0, 0),
        ("behind", -HOUR_MS, 2 * HOUR_MS),
        ("ahead", HOUR_MS, -2 * HOUR_MS),
    ):
        wrong_ms = [offset_ms]

        def wall(wrong_ms: list[int] = wrong_ms) -> int:
            return wall_clock_ms() + wrong_ms[0]

        clock = SteadyClock(wall)
        buffer = client3.metrics.buffer(student_id=f"m7-{name}", app_name="math", clock=clock)
        for round_number in range(1, 3):
            started = time.monotonic()
            buffer.record("score", round_number)
            wrong_ms[0] += jump_ms
            took = await acknowledged(client3, buffer, round_number) - started
            assert 1.0 <= took < 1.5, f"{name}: {took:.3f} s"
        answer = (await client3.metrics.aggregate(f"m7-{name}", "math")).aggregate
        [found] = answer.metrics
        assert found.count == 2
        # Placed by its age: the first about 2 s ago, the last about 1 s ago, in log time.
        assert 1_800 <= answer.window_end_ms - found.first_time_ms < 4_000
        assert 800 <= found.last_time_ms - found.first_time_ms < 1_800


@pytest.mark.embedded_only
async def test_metrics_buffering_loses_nothing_in_an_outage_and_repeats_count_once(
    cluster3: Cluster, client3: Client, tmp_path: Path
) -> None:
    spool = await client3.metrics.open_spool(tmp_path)
    buffers = {
        name: client3.metrics.buffer(student_id=f"m2-{name}", app_name="math", spool=kept)
        for name, kept in (("memory", None), ("spool", spool))
    }
    nodes = list(cluster3.node_ids)
    for number in range(450):
        if number == 150:
            await cluster3.aio.kill(*nodes)
        for buffer in buffers.values():
            assert buffer.record("error" if number % 25 == 0 else "score", 1)
        await asyncio.sleep(0)
    assert all(buffer.counters.pending for buffer in buffers.values())
    await cluster3.aio.restart(*nodes)
    await cluster3.aio.heal()
    for name, buffer in buffers.items():
        await buffer.flush(timeout=30)
        counts = buffer.counters
        assert (counts.acknowledged, counts.dropped, counts.rejected) == (450, 0, 0)
        found = await window(client3, f"m2-{name}")
        assert {kind: part.count for kind, part in found.items()} == {"error": 18, "score": 432}
    await cluster3.aio.assert_equal_logs_and_hashes()


async def test_metrics_buffering_tells_the_cluster_what_it_had_no_room_for(
    client3: Client,
) -> None:
    buffer = client3.metrics.buffer(student_id="m2-gaps", app_name="math", max_pending=100)
    for _ in range(130):
        buffer.record("score", 1)
    await buffer.flush()
    answer = (await client3.metrics.aggregate("m2-gaps", "math")).aggregate
    [found] = answer.metrics
    assert (found.count, found.omitted_count) == (100, 30)
    assert found.completeness == answer.completeness == pytest.approx(100 / 130)
    assert answer.omitted_total == buffer.counters.gaps_told == 30
