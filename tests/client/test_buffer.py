"""The metrics buffer: when it flushes, what it keeps, and that its counts always add up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import grpc
import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import MetricsBuffer
from gaia_grpc.client import publisher as publisher_module
from gaia_grpc.errors import InvalidArgumentError, UnavailableError
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse

Peers = tuple[FakePeer, FakePeer]
Request = metrics_pb2.PublishMetricsRequest
Response = metrics_pb2.PublishMetricsResponse


def published(peers: Peers) -> list[Request]:
    """Every attempt that reached a peer, grouped by peer."""
    return [request for peer in peers for request in peer.of("PublishMetrics")]


def result(batch: metrics_pb2.MetricBatch) -> metrics_pb2.BatchResult:
    return metrics_pb2.BatchResult(
        source_id=batch.source_id,
        source_epoch=batch.source_epoch,
        sequence=batch.sequence,
        status=metrics_pb2.BATCH_STATUS_ACCEPTED,
        accepted_count=len(batch.metrics),
    )


class Store:
    """What a cluster would keep: each (source, epoch, sequence) once."""

    def __init__(self, *peers: FakePeer) -> None:
        self.batches: dict[tuple[str, int, int], metrics_pb2.MetricBatch] = {}
        self.arrived = asyncio.Event()
        self.fail_next = 0
        self.lose_answer_of_next = 0
        self.refused_students: frozenset[str] = frozenset()
        self.concurrent: dict[str, int] = {}
        for peer in peers:
            peer.answers["PublishMetrics"] = self.publish

    async def publish(self, request: Request, context: Context) -> Response:
        if self.fail_next:
            self.fail_next -= 1
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "NO_QUORUM")
        for batch in request.batches:
            if batch.student_id in self.refused_students:
                await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        results = []
        for batch in request.batches:
            key = (batch.source_id, batch.source_epoch, batch.sequence)
            answer = result(batch)
            if key in self.batches:
                answer.status = metrics_pb2.BATCH_STATUS_DUPLICATE
            self.batches.setdefault(key, batch)
            results.append(answer)
        self.arrived.set()
        if self.lose_answer_of_next:
            self.lose_answer_of_next -= 1
            await refuse(context, grpc.StatusCode.UNAVAILABLE)
        return Response(results=results)

    def metrics(self) -> list[float]:
        return [metric.value for batch in self.batches.values() for metric in batch.metrics]


def assert_adds_up(buffer: MetricsBuffer) -> None:
    counts = buffer.counters
    assert counts.adds_up, counts
    assert counts.recorded == (
        counts.pending + counts.acknowledged + counts.late + counts.rejected + counts.dropped
    )


def values(batches: Iterable[metrics_pb2.MetricBatch]) -> list[int]:
    return [len(batch.metrics) for batch in batches]


async def test_a_hundred_metrics_flush_at_once_and_the_rest_by_the_timer(
    peers: Peers, connect: Connect
) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", classroom_id="c")
    for number in range(150):
        assert buffer.record("keypress", number)
    assert buffer.buffered == 50
    async with asyncio.timeout(0.5):
        await store.arrived.wait()
    assert values(store.batches.values()) == [100]
    store.arrived.clear()
    async with asyncio.timeout(2.0):
        await store.arrived.wait()
    assert values(store.batches.values()) == [100, 50]
    await buffer.flush()
    assert buffer.counters.acknowledged == 150
    [first, second] = store.batches.values()
    assert (first.classroom_id, first.student_id, first.app_name) == ("c", "s", "a")
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.source_epoch == second.source_epoch > 1_600_000_000_000
    assert_adds_up(buffer)


@pytest.mark.parametrize("urgent", ["error", "hesitation", "help"])
async def test_an_urgent_metric_takes_along_what_is_buffered_at_once(
    peers: Peers, connect: Connect, urgent: str
) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", flush_interval=60)
    buffer.record("keypress")
    buffer.record(urgent)
    async with asyncio.timeout(1):
        await store.arrived.wait()
    [batch] = store.batches.values()
    assert [metric.metric_type for metric in batch.metrics] == ["keypress", urgent]


async def test_flush_waits_for_the_answer_and_an_empty_one_sends_nothing(
    peers: Peers, connect: Connect
) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", flush_interval=60)
    await buffer.flush()
    assert not store.batches
    buffer.record("keypress")
    await buffer.flush()
    assert buffer.counters.acknowledged == 1
    assert buffer.counters.pending == 0


async def test_a_failed_flush_keeps_the_batch_and_sends_it_with_the_same_sequence(
    peers: Peers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(publisher_module, "RETRY_PAUSE_S", 0.05)
    store = Store(*peers)
    store.fail_next = 4
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a")
    buffer.record("error", 1)
    buffer.record("error", 2)
    with pytest.raises(UnavailableError, match="kept for another try"):
        await buffer.flush(timeout=0.01)
    assert_adds_up(buffer)
    await buffer.flush()
    sent = [list(request.batches) for request in published(peers)]
    assert len(sent) >= 5
    assert {batch.sequence for batches in sent for batch in batches} == {1, 2}
    assert store.metrics() == [1, 2]
    assert buffer.counters.acknowledged == 2
    assert_adds_up(buffer)


async def test_a_lost_answer_counts_once(peers: Peers, connect: Connect) -> None:
    store = Store(*peers)
    store.lose_answer_of_next = 1
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a")
    buffer.record("error", 7)
    await buffer.flush()
    assert store.metrics() == [7]
    assert buffer.counters.acknowledged == 1
    assert buffer.counters.duplicates == 1
    assert len(published(peers)) == 2


async def test_each_attempt_of_a_live_batch_is_stamped_anew(peers: Peers, connect: Connect) -> None:
    store = Store(*peers)
    store.fail_next = 2
    ticks = iter(range(1_000, 9_000, 100))
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", clock=lambda: next(ticks))
    buffer.record("error")
    await buffer.flush()
    stamps = sorted(request.batches[0].sent_at_ms for request in published(peers))
    assert len(stamps) == 3
    assert stamps[0] < stamps[1] < stamps[2]
    assert store.metrics() == [1]


async def test_a_timeline_keeps_its_simulated_time_over_attempts(
    peers: Peers, connect: Connect
) -> None:
    store = Store(*peers)
    store.fail_next = 2
    now = [5_000]
    client = await connect(peers[0])
    buffer = client.metrics.buffer(
        student_id="s", app_name="a", timeline_id="sim", clock=lambda: now[0]
    )
    buffer.record("error")
    now[0] = 60_000
    await buffer.flush()
    requests = published(peers)
    assert [request.batches[0].sent_at_ms for request in requests] == [5_000] * 3
    [batch] = store.batches.values()
    assert batch.timeline_id == "sim"
    assert batch.metrics[0].event_time_ms == 5_000


async def test_a_fast_simulated_clock_flushes_each_of_its_own_seconds(
    peers: Peers, connect: Connect
) -> None:
    store = Store(*peers)
    now = [0]
    client = await connect(peers[0])
    buffer = client.metrics.buffer(
        student_id="s", app_name="a", timeline_id="sim", clock=lambda: now[0]
    )
    for now[0] in range(0, 5_000, 250):
        buffer.record("keypress")
    await buffer.flush()
    assert values(store.batches.values()) == [4, 4, 4, 4, 4]


async def test_a_full_buffer_refuses_the_newest_and_counts_it(
    peers: Peers, connect: Connect
) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", max_pending=5)
    assert [buffer.record("keypress", number) for number in range(7)] == [True] * 5 + [False] * 2
    assert_adds_up(buffer)
    await buffer.flush()
    assert store.metrics() == [0, 1, 2, 3, 4]
    assert buffer.counters.dropped == 2
    assert buffer.record("keypress")
    assert_adds_up(buffer)


async def test_late_and_rejected_metrics_are_counted_apart(peers: Peers, connect: Connect) -> None:
    async def publish(request: Request, context: Context) -> Response:
        answer = result(request.batches[0])
        if request.batches[0].metrics:
            answer.accepted_count, answer.late_count = 7, 2
            answer.rejected.add(index=0, reason="VALUE_OUT_OF_RANGE")
        return Response(results=[answer])

    peers[0].answers["PublishMetrics"] = publish
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a")
    for number in range(10):
        buffer.record("keypress", number)
    await buffer.flush()
    counts = buffer.counters
    assert (counts.acknowledged, counts.late, counts.rejected) == (7, 2, 1)
    assert buffer.last_refusal == "VALUE_OUT_OF_RANGE"
    assert_adds_up(buffer)


async def test_one_refused_batch_does_not_take_the_others_with_it(
    peers: Peers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "MAX_CALLS", 1)
    store = Store(*peers)
    store.refused_students = frozenset({"bad"})
    client = await connect(peers[0])
    buffers = [
        client.metrics.buffer(student_id=student, app_name="a")
        for student in ("first", "x", "bad", "y")
    ]
    for buffer in buffers:
        buffer.record("error")  # the first is in a call alone, the others wait and share the next
    for buffer in buffers:
        await buffer.flush()
        assert_adds_up(buffer)
    assert max(len(request.batches) for request in published(peers)) == 3
    assert [buffer.counters.rejected for buffer in buffers] == [0, 0, 1, 0]
    assert [buffer.counters.acknowledged for buffer in buffers] == [1, 1, 0, 1]
    assert buffers[2].last_refusal == "INVALID_ARGUMENT"
    with pytest.raises(InvalidArgumentError, match="student_id is required"):
        client.metrics.buffer(student_id="", app_name="a")
    with pytest.raises(InvalidArgumentError, match="app_name is required"):
        client.metrics.buffer(student_id="first", app_name="")
    assert len(store.metrics()) == 3


async def test_many_buffers_share_calls_and_none_is_in_flight_twice(
    peers: Peers, connect: Connect
) -> None:
    store = Store(*peers)
    plain = store.publish
    open_sources: set[str] = set()
    overlaps: list[str] = []

    async def publish(request: Request, context: Context) -> Response:
        mine = {batch.source_id for batch in request.batches}
        overlaps.extend(open_sources & mine)
        open_sources.update(mine)
        await asyncio.sleep(0)
        answer = await plain(request, context)
        open_sources.difference_update(mine)
        return answer

    peers[0].answers["PublishMetrics"] = publish
    client = await connect(peers[0])
    buffers = [client.metrics.buffer(student_id=f"s{number}", app_name="a") for number in range(50)]
    for number in range(20):
        for buffer in buffers:
            buffer.record("error", number)
        await asyncio.sleep(0)
    for buffer in buffers:
        await buffer.flush()
    assert not overlaps
    assert len(store.metrics()) == 1_000
    assert client.metrics.publisher.calls_total < 300
    by_source: dict[str, list[int]] = {}
    for source_id, _, sequence in store.batches:
        by_source.setdefault(source_id, []).append(sequence)
    assert all(sequences == list(range(1, 21)) for sequences in by_source.values())


async def test_buffers_of_one_source_share_its_numbering(peers: Peers, connect: Connect) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    pair = [
        client.metrics.buffer(student_id="s", app_name=app, source_id="tablet-7", source_epoch=3)
        for app in ("math", "piano")
    ]
    for buffer in pair:
        buffer.record("error")
    for buffer in pair:
        await buffer.flush()
    assert sorted(store.batches) == [("tablet-7", 3, 1), ("tablet-7", 3, 2)]


async def test_closing_the_client_flushes_its_buffers(peers: Peers, connect: Connect) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", flush_interval=60)
    buffer.record("keypress", 4)
    await client.close()
    assert store.metrics() == [4]
    with pytest.raises(UnavailableError):
        buffer.record("keypress")


async def test_closing_without_a_cluster_says_what_was_lost(peers: Peers, connect: Connect) -> None:
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a")
    for peer in peers:
        await peer.stop()
    buffer.record("keypress")
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="1 metrics not delivered"):
        await buffer.close(timeout=0.2)
    assert time.monotonic() - started < 1
    assert buffer.counters.dropped == 1
    assert_adds_up(buffer)
