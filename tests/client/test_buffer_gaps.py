"""What a buffer drops or the cluster refuses is told to the cluster; threads; steady time."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import grpc
import pytest
from gaia.metrics.v1 import metrics_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.client import MetricsCounters, connect_blocking
from gaia_grpc.client import publisher as publisher_module
from gaia_grpc.client.clock import SteadyClock
from gaia_grpc.client.gaps import BUFFER_FULL, REFUSED, GapLedger
from gaia_grpc.errors import UnavailableError
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse
from tests.client.test_buffer import Request, Response, Store, assert_adds_up, published, result

Peers = tuple[FakePeer, FakePeer]


def told(store: Store) -> Counter[tuple[str, int]]:
    """Missing metrics by (type, reason), of all batches that the store took."""
    counts: Counter[tuple[str, int]] = Counter()
    for batch in store.batches.values():
        for mark in batch.omissions:
            counts[mark.metric_type, mark.reason] += mark.count
    return counts


async def test_what_was_dropped_is_told_with_the_next_batch(peers: Peers, connect: Connect) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    now = count(1_000_000, 10)
    buffer = client.metrics.buffer(
        student_id="s", app_name="a", max_pending=3, clock=lambda: next(now)
    )
    taken = [buffer.record(name) for name in ("keypress",) * 4 + ("error",) * 2]
    assert taken == [True] * 3 + [False] * 3
    await buffer.flush()
    assert told(store) == {("keypress", BUFFER_FULL): 1, ("error", BUFFER_FULL): 2}
    [batch] = [batch for batch in store.batches.values() if batch.omissions]
    assert batch.metrics, "the marks travel with metrics where there are any"
    assert [mark.event_time_ms for mark in batch.omissions] == [1_000_050, 1_000_030]
    assert buffer.counters.gaps_told == 3
    assert_adds_up(buffer)


async def test_marks_go_out_by_themselves_where_nothing_more_is_recorded(
    peers: Peers, connect: Connect
) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    buffer = client.metrics.buffer(
        student_id="s", app_name="a", flush_interval=0.05, max_pending=1, flush_size=1
    )
    assert buffer.record("keypress")
    assert not buffer.record("keypress")
    async with asyncio.timeout(5):
        while not told(store):
            store.arrived.clear()
            await store.arrived.wait()
    assert told(store) == {("keypress", BUFFER_FULL): 1}
    assert [len(batch.metrics) for batch in store.batches.values()] == [1, 0]


async def test_refused_metrics_are_told_as_missing_and_refused_marks_only_once(
    peers: Peers, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def publish(request: Request, context: Context) -> Response:
        batch = request.batches[0]
        if not batch.metrics:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        answer = result(batch)
        answer.accepted_count -= 2
        answer.rejected.add(index=0, reason="VALUE_NOT_FINITE")
        answer.rejected.add(index=1, reason="TYPE_INVALID")
        return Response(results=[answer])

    peers[0].answers["PublishMetrics"] = publish
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", flush_interval=60)
    for name in ("score", "not a type", "score"):
        buffer.record(name)
    await buffer.flush()
    await buffer.flush()
    await buffer.flush()
    [_, gap] = published(peers)
    marks = {(mark.metric_type, mark.count, mark.reason) for mark in gap.batches[0].omissions}
    assert marks == {("score", 1, REFUSED), ("", 1, REFUSED)}
    assert buffer.counters.rejected == 2
    assert buffer.counters.gaps_told == 0
    assert buffer.last_refusal == "TYPE_INVALID"
    told = [record.getMessage() for record in caplog.records if record.name == "gaia_grpc.metrics"]
    assert told == [
        "metrics of the app 'a' are refused: VALUE_NOT_FINITE (type 'score')",
        "metrics of the app 'a' are refused: TYPE_INVALID (type 'not a type')",
    ]
    assert_adds_up(buffer)


async def test_what_a_peer_left_out_is_sampled_also_where_a_repeat_is_answered_by_another(
    peers: Peers, connect: Connect
) -> None:
    async def publish(request: Request, context: Context) -> Response:
        answer = result(request.batches[0])
        answer.accepted_count, answer.status = 4, metrics_pb2.BATCH_STATUS_DUPLICATE
        return Response(results=[answer])

    peers[0].answers["PublishMetrics"] = publish
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a")
    for _ in range(10):
        buffer.record("keypress")
    await buffer.flush()
    counts = buffer.counters
    assert (counts.acknowledged, counts.sampled, counts.duplicates) == (4, 6, 1)
    assert counts.adds_up


async def test_a_batch_refused_for_want_of_room_is_kept_with_those_behind_it(
    peers: Peers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "RETRY_PAUSE_S", 0.02)
    store = Store(*peers)
    plain = store.publish
    attempts: list[list[int]] = []

    async def publish(request: Request, context: Context) -> Response:
        attempts.append([batch.sequence for batch in request.batches])
        if len(request.batches) == 1:
            return await plain(request, context)
        answer = await plain(Request(batches=request.batches[:1]), context)
        for batch in request.batches[1:]:
            full = result(batch)
            full.status, full.reason = metrics_pb2.BATCH_STATUS_REFUSED, "RESOURCE_EXHAUSTED"
            answer.results.append(full)
        return answer

    peers[0].answers["PublishMetrics"] = publish
    client = await connect(peers[0])
    buffer = client.metrics.buffer(student_id="s", app_name="a", source_id="one")
    for number in range(4):
        buffer.record("error", number)
    await buffer.flush()
    assert sorted(store.metrics()) == [0, 1, 2, 3]
    assert attempts == [[1], [2, 3, 4], [3, 4], [4]]
    assert buffer.counters.acknowledged == 4
    assert buffer.counters.rejected == 0


async def test_what_a_closed_buffer_gave_up_is_not_sent_afterwards(
    peers: Peers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(publisher_module, "RETRY_PAUSE_S", 0.2)
    store = Store(*peers)
    store.fail_next = 1_000
    client = await connect(peers[0])
    pair = [
        client.metrics.buffer(student_id=student, app_name="a", source_id="shared")
        for student in ("ana", "ben")
    ]
    for buffer in pair:
        buffer.record("error")
    await client.metrics.publisher.wait_call()
    with pytest.raises(UnavailableError):
        await pair[0].close(timeout=0.01)
    store.fail_next = 0
    await pair[1].flush()
    assert [batch.student_id for batch in store.batches.values()] == ["ben"]
    assert (pair[0].counters.dropped, pair[1].counters.acknowledged) == (1, 1)
    assert client.metrics.counters.adds_up


async def test_many_threads_record_and_each_metric_is_counted_once(peers: Peers) -> None:
    store = Store(*peers)
    sums: list[bool] = []

    def script() -> MetricsCounters:
        with connect_blocking(peers[0].address) as client:
            buffer = client.metrics.buffer(student_id="s", app_name="a")
            ended = threading.Event()

            def watch() -> None:
                while not ended.is_set():
                    sums.append(buffer.counters.adds_up)

            def record(part: int) -> None:
                for number in range(500):
                    assert buffer.record("error" if number % 97 == 0 else "key", part + number)

            with ThreadPoolExecutor(9) as pool:
                watching = pool.submit(watch)
                for done in [pool.submit(record, 1_000 * part) for part in range(8)]:
                    done.result()
                ended.set()
                watching.result()
            buffer.flush()
            buffer.close()
            with pytest.raises(UnavailableError):
                buffer.record("key")
            assert client.metrics.counters == buffer.counters
            return buffer.counters

    counts = await asyncio.to_thread(script)
    assert (counts.recorded, counts.acknowledged, counts.pending) == (4_000, 4_000, 0)
    expected = [1_000 * part + number for part in range(8) for number in range(500)]
    assert sorted(store.metrics()) == expected
    assert max(len(batch.metrics) for batch in store.batches.values()) <= 100
    assert all(sums)


async def test_a_thread_records_without_waiting_for_a_busy_loop(peers: Peers) -> None:
    """The loop is held here until the thread has recorded more than a batch."""
    Store(*peers)
    held, recorded = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        recorded.wait(20)

    def script() -> int:
        with connect_blocking(peers[0].address) as client:
            buffer = client.metrics.buffer(student_id="s", app_name="a")
            loop = client._portal.loop
            loop.call_soon_threadsafe(hold)
            assert held.wait(20)
            for _ in range(250):
                buffer.record("keypress")
            assert buffer.buffered == 250
            recorded.set()
            buffer.flush()
            return buffer.counters.batches

    assert await asyncio.to_thread(script) == 3


def test_a_steady_clock_starts_at_the_wall_clock_and_is_set_by_nobody() -> None:
    wall_ms, elapsed_ns = [5_000_000], [77_000_000]
    clock = SteadyClock(lambda: wall_ms[0], lambda: elapsed_ns[0])
    assert clock() == 5_000_000
    wall_ms[0] -= 3_600_000
    elapsed_ns[0] += 250_999_999
    assert clock() == 5_000_250


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 10**8), st.integers(1, 3)), max_size=80
    ),
    st.integers(1, 20),
)
def test_a_ledger_is_bounded_and_loses_no_count(
    drops: list[tuple[str, int, int]], most: int
) -> None:
    ledger = GapLedger(max_marks=most)
    for metric_type, at_ms, dropped in drops:
        ledger.add(metric_type, at_ms, BUFFER_FULL, dropped)
        assert len(ledger) <= most
    marks: list[metrics_pb2.Omission] = []
    while ledger:
        taken = ledger.take(7)
        assert 1 <= len(taken) <= 7
        marks += taken
    assert sum(mark.count for mark in marks) == sum(dropped for *_, dropped in drops)
    if drops:
        assert max(mark.event_time_ms for mark in marks) == max(at_ms for _, at_ms, _ in drops)
    if not any(mark.metric_type == "" for mark in marks):
        by_type: Counter[str] = Counter()
        for metric_type, _, dropped in drops:
            by_type[metric_type] += dropped
        for mark in marks:
            by_type[mark.metric_type] -= mark.count
        assert not any(by_type.values())
