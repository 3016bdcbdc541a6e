"""More metrics than a peer can take: refused with a time to come back, read later, or sampled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc import errors
from gaia_grpc.config import LimitsConfig
from gaia_grpc.services.metric_gate import (
    LONGEST_RETRY_MS,
    UNKNOWN_RETRY_MS,
    MetricGate,
)
from gaia_grpc.services.publishing import MAX_COMMANDS_IN_LOG, MAX_PARTS_PER_COMMAND
from gaia_grpc.services.refused_batches import FULL_RETRY_MS
from gaia_grpc.services.sampling import LOWEST_CLASSES, sample
from gaia_grpc.services.turns import STEPS_IN_A_ROUND, Turns
from gaia_grpc.state.channels import PLACES_OF
from gaia_grpc.state.packing import decode_column, pack_batch
from tests.services.test_metrics import get_aggregate, make_batch, publish
from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, eventually, failure_of


class Clock:
    """Seconds, set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_gate(clock: Clock, metrics: int = 1_000, size_bytes: int = 1 << 20) -> MetricGate:
    limits = LimitsConfig(max_metrics_in_flight=metrics, max_metric_size_bytes_in_flight=size_bytes)
    return MetricGate(limits, clock)


def drain(gate: MetricGate, clock: Clock, *, rate: int, seconds: float = 1.0) -> None:
    """Lets the gate see that `rate` metrics a second are acknowledged."""
    for number in range(round(seconds / 0.05)):
        hold = gate.admit(f"drain-{number % 10}", 1, 1)
        clock.now_s += 0.05
        gate.rate.acknowledged(round(rate * 0.05))
        gate.stats.accepted += 1
        gate.release(hold)


# --- the gate ------------------------------------------------------------------------------------


def test_what_is_refused_is_told_when_there_will_be_room() -> None:
    clock = Clock()
    gate = make_gate(clock)
    drain(gate, clock, rate=2_000)
    for number in range(4):
        gate.admit(f"app-{number}", 250, 10)
    waits_ms = []
    for number in range(3):
        with pytest.raises(errors.OverloadedError) as caught:
            gate.admit(f"other-{number}", 200, 10)
        waits_ms.append(caught.value.retry_after_ms)
    # The first: 200 of 1,000 must go and its own 200 with them, at 2,000 a second. Each further
    # one comes behind those before it, so that they do not all return at the same moment.
    assert waits_ms == [200, 300, 400]
    assert (gate.stats.refused, gate.stats.refused_calls) == (600, 3)
    assert gate.metrics == 1_000


def test_the_advice_follows_the_rate_and_is_bounded() -> None:
    clock = Clock()
    gate = make_gate(clock)
    for number in range(4):
        gate.admit(f"app-{number}", 250, 10)
    with pytest.raises(errors.OverloadedError) as caught:
        gate.admit("other", 100, 10)
    assert caught.value.retry_after_ms == UNKNOWN_RETRY_MS
    gate.rate.acknowledged(500)
    clock.now_s += 0.5
    gate.rate.acknowledged(500)
    with pytest.raises(errors.OverloadedError) as caught:
        gate.admit("other", 100, 10)
    assert caught.value.retry_after_ms == 100 / 2_000 * 2 * 1_000
    clock.now_s += 1_000.0  # nothing is acknowledged any more
    gate.stats.accepted = 1
    with pytest.raises(errors.OverloadedError) as caught:
        gate.admit("other", 100, 10)
    assert caught.value.retry_after_ms == LONGEST_RETRY_MS


def test_one_source_gets_a_quarter() -> None:
    gate = make_gate(Clock())
    holds = [gate.admit("greedy", 100, 10), gate.admit("greedy", 150, 10)]
    with pytest.raises(errors.OverloadedError):
        gate.admit("greedy", 1, 10)
    gate.admit("modest", 250, 10)
    gate.release(holds[0])
    gate.admit("greedy", 100, 10)


def test_what_is_larger_than_its_share_counts_as_that_share() -> None:
    gate = make_gate(Clock())
    hold = gate.admit("large", 1_000_000, 1 << 30)
    assert (hold.metrics, hold.size_bytes) == (250, 1 << 18)
    gate.release(hold)
    gate.release(hold)
    assert (gate.metrics, gate.size_bytes) == (0, 0)


def test_bytes_are_bounded_too() -> None:
    gate = make_gate(Clock(), size_bytes=1_000)
    for number in range(4):
        gate.admit(f"app-{number}", 1, 250)
    with pytest.raises(errors.OverloadedError):
        gate.admit("other", 1, 1)


async def test_streams_wait_in_line_and_leave_room_for_calls() -> None:
    gate = make_gate(Clock())
    holds = [await gate.wait(f"stream-{number}", 250, 10) for number in range(2)]
    order: list[str] = []

    async def wait(name: str) -> None:
        hold = await gate.wait(name, 100, 10)
        order.append(name)
        holds.append(hold)

    tasks = [asyncio.create_task(wait(name)) for name in ("third", "gone", "fourth", "fifth")]
    await asyncio.sleep(0)
    gate.admit("call", 250, 10)
    assert order == []
    tasks[1].cancel()
    gate.release(holds[0])
    await asyncio.gather(tasks[0], tasks[2])
    assert order == ["third", "fourth"]
    gate.release(holds[1])
    await tasks[3]
    for hold in holds:
        gate.release(hold)
    assert gate.metrics == 250


async def test_a_stream_that_ends_as_it_gets_room_gives_it_back() -> None:
    gate = make_gate(Clock())
    holds = [await gate.wait(f"stream-{number}", 250, 10) for number in range(2)]
    waiting = asyncio.create_task(gate.wait("late", 100, 10))
    await asyncio.sleep(0)
    gate.release(holds[0])
    waiting.cancel()
    await asyncio.wait((waiting,))
    gate.release(holds[1])
    assert gate.metrics == 0


def test_pressure_begins_high_and_ends_low() -> None:
    gate = make_gate(Clock())
    holds = [gate.admit("a", 240, 10), gate.admit("b", 240, 10)]
    assert not gate.under_pressure
    holds.append(gate.admit("c", 40, 10))
    assert gate.under_pressure
    gate.release(holds[0])
    assert gate.under_pressure
    gate.release(holds[1])
    assert not gate.under_pressure


async def proposed(peer: ServedPeer, count: int) -> None:
    """Returns once so many commands are in the log."""
    await eventually(lambda: len(peer.node.commands) == count)


# --- a served peer ------------------------------------------------------------------------------


async def test_calls_beyond_the_room_are_refused_and_succeed_later(serve: Serve) -> None:
    async with serve(max_metrics_in_flight=40) as peer:
        peer.node.answers.clear()
        under_way = [
            asyncio.create_task(
                publish(peer, make_batch(values=(1.0,) * 10, source_id=f"app-{number}"))
            )
            for number in range(4)
        ]
        gate = peer.port.metric_gate
        await eventually(lambda: gate.metrics == 40)
        failure = await failure_of(publish(peer, make_batch(source_id="late")))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "OVERLOADED",
        )
        assert failure.retry_after_ms == UNKNOWN_RETRY_MS
        peer.node.answers.set()
        await asyncio.gather(*under_way)
        await publish(peer, make_batch(source_id="late"))
        assert gate.metrics == 0
        request = cluster_pb2.GetStatusRequest()
        shown = (await peer.cluster.GetStatus(request, timeout=TIMEOUT_S)).metrics
        assert (shown.accepted_total, shown.refused_total, shown.refused_call_total) == (41, 1, 1)
        assert (shown.in_flight_count, shown.max_in_flight_count) == (0, 40)
        assert shown.acknowledged_per_second > 0


async def test_what_gathers_behind_a_full_log_shares_its_entries(peer: ServedPeer) -> None:
    peer.node.answers.clear()
    calls = []
    for number in range(50):
        calls.append(asyncio.create_task(publish(peer, make_batch(source_id=f"app-{number}"))))
        if number < MAX_COMMANDS_IN_LOG:
            await proposed(peer, number + 1)
    await eventually(lambda: peer.port.metric_gate.metrics == 50)
    assert len(peer.node.commands) == MAX_COMMANDS_IN_LOG
    peer.node.answers.set()
    answers = await asyncio.gather(*calls)
    assert len(peer.node.commands) <= MAX_COMMANDS_IN_LOG + 2
    assert {answer.results[0].source_id for answer in answers} == {f"app-{n}" for n in range(50)}
    assert (await get_aggregate(peer)).metrics[0].count == 50


async def test_batches_without_metrics_fill_an_entry_too(peer: ServedPeer) -> None:
    """Gap marks alone count as no metric, and yet each is work for every peer."""
    batches = []
    for number in range(40):
        batch = make_batch(values=(), source_id=f"app-{number}")
        for place in range(100):
            batch.omissions.add(metric_type="keypress", count=1, event_time_ms=place + 1)
        batches.append(batch)
    request = metrics_pb2.PublishMetricsRequest(batches=batches)
    answer = await peer.metrics.PublishMetrics(request, timeout=TIMEOUT_S)
    assert {result.status for result in answer.results} == {metrics_pb2.BATCH_STATUS_ACCEPTED}
    sizes = [len(command.publish_metrics.batches) for command in peer.node.commands]
    assert sum(sizes) == 40
    assert max(sizes) * 101 <= MAX_PARTS_PER_COMMAND


async def test_a_batch_that_the_state_has_no_room_for_is_to_come_again(peer: ServedPeer) -> None:
    """Its sender still has it, so it is no rejected one, and it is told when."""
    batch = make_batch(values=(1.0,) * 1_001)
    for number, metric in enumerate(batch.metrics):
        metric.metric_type = f"kind-{number}"
    failure = await failure_of(publish(peer, batch))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.retry_after_ms == FULL_RETRY_MS
    request = cluster_pb2.GetStatusRequest()
    shown = (await peer.cluster.GetStatus(request, timeout=TIMEOUT_S)).metrics
    assert (shown.refused_total, shown.rejected_total) == (1_001, 0)


async def test_a_caller_that_gives_up_before_its_turn_stores_nothing(peer: ServedPeer) -> None:
    peer.node.answers.clear()
    calls = []
    for number in range(MAX_COMMANDS_IN_LOG):
        calls.append(asyncio.create_task(publish(peer, make_batch(source_id=f"app-{number}"))))
        await proposed(peer, number + 1)
    request = metrics_pb2.PublishMetricsRequest(batches=[make_batch(source_id="gone")])
    failure = await failure_of(peer.metrics.PublishMetrics(request, timeout=0.2))
    assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    peer.node.answers.set()
    await asyncio.gather(*calls)
    await eventually(lambda: peer.port.metric_gate.metrics == 0)
    assert (await get_aggregate(peer)).metrics[0].count == MAX_COMMANDS_IN_LOG


async def test_a_stream_is_not_read_beyond_the_room_and_loses_nothing(serve: Serve) -> None:
    async with serve(max_metrics_in_flight=40) as peer:
        peer.node.answers.clear()
        sent = 0

        async def requests() -> AsyncIterator[metrics_pb2.StreamMetricsRequest]:
            nonlocal sent
            for number in range(1, 101):
                sent = number
                batch = make_batch(number, values=(1.0,) * 10)
                yield metrics_pb2.StreamMetricsRequest(batch=batch)

        call = peer.metrics.StreamMetrics(requests(), timeout=TIMEOUT_S)
        gate = peer.port.metric_gate
        # A source gets a quarter, so one batch is on its way; the others stay in the network.
        await eventually(lambda: gate.metrics == 10 and len(peer.node.commands) == 1)
        peer.node.answers.set()
        answers = [answer async for answer in call]
        assert [answer.result.sequence for answer in answers] == list(range(1, 101))
        assert sent == 100
        await eventually(lambda: gate.metrics == 0)
        assert (await get_aggregate(peer)).metrics[0].count == 1_000


async def test_a_stream_that_is_cut_off_gives_its_room_back(peer: ServedPeer) -> None:
    peer.node.answers.clear()
    requests = [metrics_pb2.StreamMetricsRequest(batch=make_batch(n)) for n in range(1, 31)]
    call = peer.metrics.StreamMetrics(iter(requests), timeout=TIMEOUT_S)
    reading = asyncio.create_task(call.read())
    await eventually(lambda: peer.port.metric_gate.metrics == 30)
    call.cancel()
    await asyncio.wait((reading,))
    peer.node.answers.set()
    await eventually(lambda: peer.port.metric_gate.metrics == 0)


async def test_what_was_read_before_an_error_is_answered_first(peer: ServedPeer) -> None:
    requests = [metrics_pb2.StreamMetricsRequest(batch=make_batch(n)) for n in range(1, 4)]
    raw = [request.SerializeToString() for request in requests] + [b"\xff"]
    method: Any = peer.channel.stream_stream("/gaia.metrics.v1.MetricsService/StreamMetrics")
    call = method(iter(raw), timeout=TIMEOUT_S)
    answers = [await call.read() for _ in range(3)]
    messages = [metrics_pb2.StreamMetricsResponse.FromString(answer) for answer in answers]
    assert [message.result.sequence for message in messages] == [1, 2, 3]
    assert (await failure_of(call)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_crowd_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of them in one round of the loop, a heartbeat of raft waited for a second."""
    monkeypatch.setattr("gaia_grpc.services.turns.SLICE_NS", 0)
    turns = Turns()
    rounds: list[int] = []
    now = 0

    def count_rounds() -> None:
        nonlocal now
        now += 1
        if len(rounds) < 100:
            asyncio.get_running_loop().call_soon(count_rounds)

    async def member(number: int) -> None:
        await turns.wait()
        rounds.append(now)
        order.append(number)

    order: list[int] = []
    count_rounds()
    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(member(number))
    assert max(rounds.count(number) for number in set(rounds)) == STEPS_IN_A_ROUND
    assert order == list(range(100))


# --- sampling ------------------------------------------------------------------------------------


def packed(sequence: int = 1, **counts: int) -> command_pb2.PackedBatch:
    """A batch with so many metrics of each type, a second apart."""
    batch = make_batch(sequence, values=(), sent_at_ms=1_000_000)
    for metric_type, count in counts.items():
        for number in range(count):
            batch.metrics.add(
                metric_type=metric_type, value=number, event_time_ms=900_000 + number * 1_000
            )
    return pack_batch(batch, max_future_ms=0).batch


def test_only_the_lowest_classes_are_sampled_and_all_is_accounted_for() -> None:
    batch = packed(keypress=40, error=10, help=3, correct=7)
    before = {column.metric_type: column.values_micro for column in batch.columns}
    assert sample(batch, 4) == 30
    after = {column.metric_type: decode_column(column.values_micro) for column in batch.columns}
    assert {name: len(values) for name, values in after.items()} == {
        "correct": 7, "error": 10, "help": 3, "keypress": 10,
    }  # fmt: skip
    assert after["error"].tobytes() == before["error"]
    (omission,) = batch.omissions
    assert (omission.metric_type, omission.count) == ("keypress", 30)
    assert omission.reason == metrics_pb2.OMISSION_REASON_SAMPLED
    kept_ms = {900_000 + value // 1_000_000 * 1_000 for value in after["keypress"]}
    gone_ms = {900_000 + number * 1_000 for number in range(40)} - kept_ms
    assert 1_000_000 + omission.time_offset_ms == max(gone_ms)


def test_a_retry_leaves_the_same_ones_out() -> None:
    first, second = packed(keypress=40), packed(keypress=40)
    sample(first, 10)
    sample(second, 10)
    assert first == second


def test_short_batches_lose_their_share_and_no_more() -> None:
    batches = [packed(number, keypress=1) for number in range(1, 2_001)]
    gone = sum(sample(batch, 10) for batch in batches)
    assert 1_740 <= gone <= 1_860
    assert sum(len(batch.columns) for batch in batches) == 2_000 - gone


def test_sampling_that_is_off_changes_nothing() -> None:
    for one_in in (0, 1):
        batch = packed(keypress=40)
        assert sample(batch, one_in) == 0
        assert batch == packed(keypress=40)


def test_no_evidence_of_struggle_is_ever_sampled() -> None:
    assert LOWEST_CLASSES & set(PLACES_OF) == {"keypress"}


async def test_sampling_begins_with_pressure_and_every_drop_is_shown(serve: Serve) -> None:
    async with serve({"metrics.sampling": "5"}, max_metrics_in_flight=400) as peer:
        calm = (await publish(peer, make_batch(values=(1.0,) * 50))).results[0]
        assert (calm.accepted_count, calm.sampled_count) == (50, 0)
        gate = peer.port.metric_gate
        others = [gate.admit(f"other-{number}", 100, 10) for number in range(2)]
        pressed = (await publish(peer, make_batch(2, values=(1.0,) * 50))).results[0]
        assert (pressed.accepted_count, pressed.sampled_count) == (10, 40)
        for hold in others:
            gate.release(hold)
        again = (await publish(peer, make_batch(2, values=(1.0,) * 50))).results[0]
        assert again.status == metrics_pb2.BATCH_STATUS_DUPLICATE
        assert (again.accepted_count, again.sampled_count) == (10, 40)
        (window,) = (await get_aggregate(peer)).metrics
        assert (window.count, window.omitted_count, window.completeness) == (60, 40, 0.6)
        omissions = [
            (omission.metric_type, omission.count, omission.reason)
            for command in peer.node.commands
            for batch in command.publish_metrics.batches
            for omission in batch.omissions
        ]
        assert omissions == [("keypress", 40, metrics_pb2.OMISSION_REASON_SAMPLED)]
        assert (gate.stats.accepted, gate.stats.sampled) == (60, 40)


async def test_without_the_setting_nothing_is_sampled(serve: Serve) -> None:
    async with serve(max_metrics_in_flight=400) as peer:
        for number in range(3):
            peer.port.metric_gate.admit(f"other-{number}", 100, 10)
        result = (await publish(peer, make_batch(values=(1.0,) * 50))).results[0]
        assert (result.accepted_count, result.sampled_count) == (50, 0)
