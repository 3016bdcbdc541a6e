"""MetricsService over the real state machine."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc import errors
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.services.classroom_watch import LEAST_PAUSE_S, READ_SHARE, ReadBudget
from gaia_grpc.services.publishing import MAX_METRICS_PER_COMMAND
from gaia_grpc.services.refused_batches import batch_refusal
from tests.state.snapshots import restored, whole_snapshot
from tests.support.fake_node import FakeNode
from tests.support.served_peer import TIMEOUT_S, ServedPeer, eventually, failure_of


def make_batch(sequence: int = 1, values: tuple[float, ...] = (1.0,), **fields: Any) -> Any:
    """A batch of one student; `values` are of the type `keypress`."""
    known = {
        "source_id": "app-1",
        "source_epoch": 1,
        "sequence": sequence,
        "classroom_id": "room-1",
        "student_id": "ada",
        "app_name": "math",
        **fields,
    }
    metrics = [metrics_pb2.Metric(metric_type="keypress", value=value) for value in values]
    return metrics_pb2.MetricBatch(metrics=metrics, **known)


async def publish(
    peer: ServedPeer, *batches: metrics_pb2.MetricBatch
) -> metrics_pb2.PublishMetricsResponse:
    request = metrics_pb2.PublishMetricsRequest(batches=batches)
    return await peer.metrics.PublishMetrics(request, timeout=TIMEOUT_S)


async def get_aggregate(peer: ServedPeer) -> metrics_pb2.Aggregate:
    request = metrics_pb2.GetAggregateRequest(student_id="ada", app_name="math")
    return (await peer.metrics.GetAggregate(request, timeout=TIMEOUT_S)).aggregate


async def test_metrics_are_aggregated_and_bad_ones_listed(peer: ServedPeer) -> None:
    batch = make_batch(values=(1.0, float("nan"), 3.0, 1e10))
    batch.metrics.add(metric_type="no type", value=1.0)
    response = await publish(peer, batch)
    (result,) = response.results
    assert result.status == metrics_pb2.BATCH_STATUS_ACCEPTED
    assert result.accepted_count == 2
    assert [(rejected.index, rejected.reason) for rejected in result.rejected] == [
        (1, "VALUE_NOT_FINITE"),
        (3, "VALUE_OUT_OF_RANGE"),
        (4, "TYPE_INVALID"),
    ]
    assert response.applied_index == peer.node.machine.applied_index
    aggregate = await get_aggregate(peer)
    (metric,) = aggregate.metrics
    assert (metric.metric_type, metric.count, metric.sum) == ("keypress", 2, 4.0)
    assert peer.node.commands[-1].request_id == ""


async def test_a_repeated_batch_counts_once(peer: ServedPeer) -> None:
    await publish(peer, make_batch())
    response = await publish(peer, make_batch(sent_at_ms=int(time.time() * 1000)))
    assert response.results[0].status == metrics_pb2.BATCH_STATUS_DUPLICATE
    assert (await get_aggregate(peer)).metrics[0].count == 1


async def test_a_single_refused_batch_is_the_status_of_the_call(peer: ServedPeer) -> None:
    await publish(peer, make_batch())
    failure = await failure_of(publish(peer, make_batch(values=(2.0,))))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "ALREADY_EXISTS",
    )
    assert failure.metadata == {"source_id": "app-1", "sequence": "1"}


async def test_a_refused_batch_among_others_stands_in_its_result(peer: ServedPeer) -> None:
    await publish(peer, make_batch())
    response = await publish(peer, make_batch(values=(2.0,)), make_batch(2))
    refused, accepted = response.results
    assert (refused.status, refused.reason) == (
        metrics_pb2.BATCH_STATUS_REFUSED,
        "ALREADY_EXISTS",
    )
    assert accepted.status == metrics_pb2.BATCH_STATUS_ACCEPTED


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("OUT_OF_RANGE", errors.OutOfRangeError),
        ("RESOURCE_EXHAUSTED", errors.ResourceExhaustedError),
        ("INVALID_ARGUMENT", errors.InvalidArgumentError),
        ("SOMETHING_NEW", errors.FailedPreconditionError),
    ],
)
def test_refused_batches_become_errors(reason: str, kind: type[errors.GaiaError]) -> None:
    result = metrics_pb2.BatchResult(
        status=metrics_pb2.BATCH_STATUS_REFUSED, reason=reason, message="no"
    )
    error = batch_refusal(result)
    assert type(error) is kind
    assert error.instance_reason == reason
    assert batch_refusal(metrics_pb2.BatchResult()) is None


async def test_a_large_request_becomes_several_entries(peer: ServedPeer) -> None:
    count = MAX_METRICS_PER_COMMAND // 2 - 1
    batches = [make_batch(number, values=(1.0,) * count) for number in range(1, 5)]
    response = await publish(peer, *batches)
    sizes = [len(command.publish_metrics.batches) for command in peer.node.commands]
    assert sizes == [2, 2]
    assert [result.sequence for result in response.results] == [1, 2, 3, 4]
    assert response.applied_index == peer.node.machine.applied_index
    assert (await get_aggregate(peer)).metrics[0].count == 4 * count


@pytest.mark.parametrize(("timeline", "commands"), [("", 2), ("lesson", 1)])
async def test_a_timelines_batches_never_get_ahead_of_those_before_them(
    peer: ServedPeer, timeline: str, commands: int
) -> None:
    """The second half of a recording was stored while the first was lost with its leader; sent
    again, the first was late, since the clock of a timeline is in its batches."""
    values = (1.0,) * (MAX_METRICS_PER_COMMAND // 2 - 1)
    batches = [
        make_batch(number, values, timeline_id=timeline, sent_at_ms=number * 600_000)
        for number in range(1, 5)
    ]
    peer.node.answers.clear()
    request = metrics_pb2.PublishMetricsRequest(batches=batches)
    failure = await failure_of(peer.metrics.PublishMetrics(request, timeout=0.5))
    unknown = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert failure.code in unknown
    assert len(peer.node.commands) == commands
    peer.node.answers.set()
    response = await publish(peer, *batches)
    late = [result.late_count for result in response.results]
    assert late == [0] * 4
    assert len(peer.node.commands) == commands + 2


async def test_a_batch_that_fills_more_than_a_command_is_one(peer: ServedPeer) -> None:
    await publish(peer, make_batch(values=(1.0,) * (MAX_METRICS_PER_COMMAND + 1)), make_batch(2))
    sizes = [len(command.publish_metrics.batches) for command in peer.node.commands]
    assert sizes == [1, 1]


async def test_a_command_holds_few_batches_of_errors_of_one_student(peer: ServedPeer) -> None:
    """A thousand in one entry held every peer up for seconds, so that no leader could stay one."""
    batches = []
    for number in range(20):
        student = "ada" if number % 2 else f"student-{number}"
        batch = make_batch(student_id=student, source_id=f"errors-{number}")
        batch.metrics[0].metric_type = "error"
        batches.append(batch)
    response = await publish(peer, *batches, *(make_batch(number + 1) for number in range(20)))
    sizes = [len(command.publish_metrics.batches) for command in peer.node.commands]
    assert sorted(sizes) == [17, 23]  # which of the two comes first is the loop's choice
    accepted = [result.status for result in response.results]
    assert accepted == [metrics_pb2.BATCH_STATUS_ACCEPTED] * 40


async def test_windows_of_a_classroom_are_listed_a_page_at_a_time(peer: ServedPeer) -> None:
    await publish(peer, make_batch(), make_batch(2, student_id="bob", source_id="app-2"))
    request = metrics_pb2.ListAggregatesRequest(classroom_id="room-1", page_size=1)
    first = await peer.metrics.ListAggregates(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    second = await peer.metrics.ListAggregates(request, timeout=TIMEOUT_S)
    students = [page.aggregates[0].student_id for page in (first, second)]
    assert students == ["ada", "bob"]


async def test_the_window_of_an_unknown_student_is_not_found(peer: ServedPeer) -> None:
    failure = await failure_of(get_aggregate(peer))
    assert failure.code is grpc.StatusCode.NOT_FOUND


# --- StreamMetrics ---------------------------------------------------------------------------


async def test_each_batch_of_a_stream_is_acknowledged(peer: ServedPeer) -> None:
    requests = [metrics_pb2.StreamMetricsRequest(batch=make_batch(n)) for n in range(1, 51)]
    call = peer.metrics.StreamMetrics(iter(requests), timeout=TIMEOUT_S)
    answers = [answer async for answer in call]
    assert [answer.result.sequence for answer in answers] == list(range(1, 51))
    assert {answer.result.status for answer in answers} == {metrics_pb2.BATCH_STATUS_ACCEPTED}
    assert answers[-1].applied_index == peer.node.machine.applied_index


async def test_a_batch_that_is_not_well_formed_does_not_end_the_stream(
    peer: ServedPeer,
) -> None:
    batches = [make_batch(1, student_id=""), make_batch(2)]
    requests = [metrics_pb2.StreamMetricsRequest(batch=batch) for batch in batches]
    call = peer.metrics.StreamMetrics(iter(requests), timeout=TIMEOUT_S)
    answers = {answer.result.sequence: answer.result async for answer in call}
    assert answers[1].status == metrics_pb2.BATCH_STATUS_REFUSED
    assert answers[1].reason == "INVALID_ARGUMENT"
    assert "batch.student_id" in answers[1].message
    assert answers[2].status == metrics_pb2.BATCH_STATUS_ACCEPTED


async def test_a_stream_of_nothing_but_bad_batches_is_answered(peer: ServedPeer) -> None:
    request = metrics_pb2.StreamMetricsRequest(batch=make_batch(1, app_name=""))
    call = peer.metrics.StreamMetrics(iter([request]), timeout=TIMEOUT_S)
    (answer,) = [answer async for answer in call]
    assert answer.result.status == metrics_pb2.BATCH_STATUS_REFUSED
    assert peer.node.commands == []


async def test_a_stream_without_quorum_ends_unavailable(peer: ServedPeer) -> None:
    peer.node.error = errors.UnavailableError("no quorum")
    request = metrics_pb2.StreamMetricsRequest(batch=make_batch())
    failure = await failure_of(peer.metrics.StreamMetrics(iter([request]), timeout=TIMEOUT_S))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_QUORUM")


# --- WatchClassroom --------------------------------------------------------------------------


async def test_a_watch_sends_all_windows_and_then_the_changed_ones(peer: ServedPeer) -> None:
    await publish(peer, make_batch(), make_batch(2, student_id="bob", source_id="app-2"))
    request = metrics_pb2.WatchClassroomRequest(classroom_id="room-1", interval_ms=60_000)
    watch: Any = peer.metrics.WatchClassroom(request)
    first = await watch.read()
    assert first.complete
    assert [aggregate.student_id for aggregate in first.aggregates] == ["ada", "bob"]
    assert first.applied_index == peer.node.machine.applied_index
    await publish(peer, make_batch(3, student_id="bob", source_id="app-2"))
    update = await watch.read()
    assert not update.complete
    assert [aggregate.student_id for aggregate in update.aggregates] == ["bob"]
    assert update.aggregates[0].metrics[0].count == 2
    watch.cancel()


async def test_a_watch_says_something_after_each_interval(peer: ServedPeer) -> None:
    request = metrics_pb2.WatchClassroomRequest(classroom_id="room-1", interval_ms=100)
    watch: Any = peer.metrics.WatchClassroom(request)
    assert (await watch.read()).complete
    update = await watch.read()
    assert not update.complete
    assert list(update.aggregates) == []
    watch.cancel()


@pytest.mark.twin_only  # the state is replaced by hand
async def test_a_watch_sends_all_again_where_a_newer_state_was_taken_over(
    peer: ServedPeer,
) -> None:
    await publish(peer, make_batch(), make_batch(2, student_id="bob", source_id="app-2"))
    snapshot = whole_snapshot(peer.node.machine)
    request = metrics_pb2.WatchClassroomRequest(classroom_id="room-1", interval_ms=60_000)
    watch: Any = peer.metrics.WatchClassroom(request)
    assert not (await watch.read()).resync
    newer = restored(snapshot)
    newer.apply(newer.applied_index + 1, int(EntryKind.NOOP), b"")
    assert isinstance(peer.node, FakeNode)
    peer.node.install(newer)
    update = await asyncio.wait_for(watch.read(), TIMEOUT_S)
    assert (update.resync, update.complete) == (True, True)
    assert [aggregate.student_id for aggregate in update.aggregates] == ["ada", "bob"]
    assert update.applied_index == newer.applied_index
    await publish(peer, make_batch(3, student_id="bob", source_id="app-2"))
    update = await asyncio.wait_for(watch.read(), TIMEOUT_S)
    assert (update.resync, update.complete) == (False, False)
    assert [aggregate.student_id for aggregate in update.aggregates] == ["bob"]
    watch.cancel()


async def test_a_watch_sends_all_again_where_a_window_left_the_classroom(peer: ServedPeer) -> None:
    await publish(peer, make_batch(), make_batch(2, student_id="bob", source_id="app-2"))
    request = metrics_pb2.WatchClassroomRequest(classroom_id="room-1", interval_ms=60_000)
    watch: Any = peer.metrics.WatchClassroom(request)
    assert len((await watch.read()).aggregates) == 2
    moved = make_batch(3, student_id="bob", source_id="app-2", classroom_id="room-2")
    await publish(peer, moved)
    update = await asyncio.wait_for(watch.read(), TIMEOUT_S)
    assert (update.resync, update.complete) == (True, True)
    assert [aggregate.student_id for aggregate in update.aggregates] == ["ada"]
    watch.cancel()


async def test_a_watch_reads_a_large_classroom_page_by_page(peer: ServedPeer) -> None:
    batches = [
        make_batch(1, student_id=f"s-{number:04}", source_id=f"app-{number}")
        for number in range(1_000)
    ]
    await publish(peer, *batches)
    await publish(peer, make_batch(1, student_id="s-9999", source_id="app-x"))
    request = metrics_pb2.WatchClassroomRequest(classroom_id="room-1")
    watch: Any = peer.metrics.WatchClassroom(request)
    assert len((await watch.read()).aggregates) == 1_001
    watch.cancel()
    await eventually(lambda: peer.port.interceptor.streams == 0)


def test_watches_together_read_for_a_quarter_of_the_time() -> None:
    """Fifty reads a second each were nothing for ten watches and everything for a thousand."""
    now_s = 50.0
    budget = ReadBudget(lambda: now_s)
    assert budget.pause_s() == LEAST_PAUSE_S
    budget.spend(READ_SHARE)
    assert budget.pause_s() == LEAST_PAUSE_S
    for _ in range(1_000):
        budget.spend(0.001)
    assert budget.pause_s() == pytest.approx(4.0)
    now_s += 3.0
    assert budget.pause_s() == pytest.approx(1.0)
    now_s += 3_600.0
    budget.spend(READ_SHARE)
    assert budget.pause_s() == LEAST_PAUSE_S
