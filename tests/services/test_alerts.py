"""AlertService over the real state machine."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.errors import UnavailableError
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.packing import pack_batch
from gaia_grpc.state.stamp import stamp
from tests.state.snapshots import restored, whole_snapshot
from tests.support.fake_node import FakeNode
from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, eventually, failure_of


async def frustrate(peer: ServedPeer, *student_ids: str, room: str = "room-1") -> None:
    """Enough errors of each student for an alert."""
    batches = [frustrated_batch(student_id, room) for student_id in student_ids]
    request = metrics_pb2.PublishMetricsRequest(batches=batches)
    await peer.metrics.PublishMetrics(request, timeout=TIMEOUT_S)


def frustrated_batch(student_id: str, room: str) -> metrics_pb2.MetricBatch:
    metrics = [metrics_pb2.Metric(metric_type="error", value=1.0) for _ in range(5)]
    return metrics_pb2.MetricBatch(
        source_id=f"app-{student_id}",
        source_epoch=1,
        sequence=1,
        classroom_id=room,
        student_id=student_id,
        app_name="math",
        metrics=metrics,
    )


def subscribe(peer: ServedPeer, **fields: Any) -> Any:
    fields.setdefault("progress_interval_ms", 60_000)
    return peer.alerts.SubscribeAlerts(alert_pb2.SubscribeAlertsRequest(**fields))


async def first_alert(peer: ServedPeer) -> alert_pb2.Alert:
    response = await peer.alerts.ListAlerts(alert_pb2.ListAlertsRequest(), timeout=TIMEOUT_S)
    return response.alerts[0]


async def test_an_alert_is_listed_acknowledged_and_resolved(peer: ServedPeer) -> None:
    await frustrate(peer, "ada")
    alert = await first_alert(peer)
    assert (alert.student_id, alert.pattern) == ("ada", "excessive_errors")
    acknowledge = alert_pb2.AcknowledgeAlertRequest(alert_id=alert.alert_id, teacher_id="t-1")
    acknowledged = await peer.alerts.AcknowledgeAlert(acknowledge, timeout=TIMEOUT_S)
    assert acknowledged.alert.state == alert_pb2.ALERT_STATE_ACKNOWLEDGED
    assert acknowledged.alert.acknowledged_by == "t-1"
    assert acknowledged.applied_index == peer.node.machine.applied_index
    resolve = alert_pb2.ResolveAlertRequest(
        alert_id=alert.alert_id, teacher_id="t-1", note="helped\nin person"
    )
    resolved = await peer.alerts.ResolveAlert(resolve, timeout=TIMEOUT_S)
    assert resolved.alert.state == alert_pb2.ALERT_STATE_RESOLVED
    request = alert_pb2.ListAlertsRequest(state=alert_pb2.ALERT_STATE_OPEN)
    assert list((await peer.alerts.ListAlerts(request, timeout=TIMEOUT_S)).alerts) == []


async def test_an_unknown_alert_is_not_found(peer: ServedPeer) -> None:
    request = alert_pb2.AcknowledgeAlertRequest(alert_id="alert-9", teacher_id="t-1")
    failure = await failure_of(peer.alerts.AcknowledgeAlert(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_a_stream_begins_with_progress_and_sends_what_comes(peer: ServedPeer) -> None:
    await frustrate(peer, "before")
    stream = subscribe(peer, from_now=True)
    progress = await stream.read()
    assert not progress.HasField("event")
    assert (progress.through_sequence, progress.cluster_id) == (1, peer.node.status().cluster_id)
    await frustrate(peer, "after")
    message = await stream.read()
    assert message.event.alert.student_id == "after"
    assert (message.event.sequence, message.through_sequence) == (2, 2)
    assert message.cluster_id == peer.node.status().cluster_id
    stream.cancel()


@pytest.mark.parametrize("start", [{"from_now": True}, {"from_now": False}, {}])
async def test_from_now_asks_the_cluster(peer: ServedPeer, start: dict[str, Any]) -> None:
    await frustrate(peer, "before")
    peer.node.reads.clear()
    stream = subscribe(peer, **start)
    assert (await stream.read()).through_sequence == 1
    assert peer.node.reads[0] is ReadConsistency.LINEARIZABLE
    stream.cancel()


async def test_from_now_without_quorum_is_unavailable_and_a_cursor_is_not(
    peer: ServedPeer,
) -> None:
    await frustrate(peer, "ada")
    peer.node.error = UnavailableError("no quorum")
    failure = await failure_of(subscribe(peer, from_now=True))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    stream = subscribe(peer, after_sequence=0)
    await stream.read()
    assert (await stream.read()).event.alert.student_id == "ada"
    stream.cancel()


async def test_b28_a_stream_goes_on_after_its_cursor(peer: ServedPeer) -> None:
    for number in range(5):
        await frustrate(peer, f"s{number}")
    stream = subscribe(peer, after_sequence=2, cluster_id=peer.node.status().cluster_id)
    assert (await stream.read()).through_sequence == 2
    sequences = [(await stream.read()).event.sequence for _ in range(3)]
    assert sequences == [3, 4, 5]
    stream.cancel()


async def test_more_events_than_one_read_holds_come_in_order(peer: ServedPeer) -> None:
    for start in (0, 550):
        await frustrate(peer, *(f"s{start + number}" for number in range(550)))
    stream = subscribe(peer, after_sequence=0)
    await stream.read()
    sequences = [(await stream.read()).event.sequence for _ in range(1_100)]
    assert sequences == list(range(1, 1_101))
    stream.cancel()


async def test_a_stream_of_one_classroom_is_told_how_far_it_is(peer: ServedPeer) -> None:
    stream = subscribe(
        peer,
        from_now=True,
        filter=alert_pb2.AlertFilter(classroom_id="room-2"),
        progress_interval_ms=100,
    )
    assert (await stream.read()).through_sequence == 0
    await frustrate(peer, "other", room="room-1")
    message = await stream.read()
    assert not message.HasField("event")
    assert message.through_sequence == 1
    await frustrate(peer, "mine", room="room-2")
    while not (message := await stream.read()).HasField("event"):
        continue
    assert message.event.alert.student_id == "mine"
    assert message.through_sequence == 2
    stream.cancel()


async def test_a_cursor_of_another_cluster_is_refused(peer: ServedPeer) -> None:
    failure = await failure_of(subscribe(peer, after_sequence=0, cluster_id="c-other"))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CLUSTER_MISMATCH",
    )
    assert failure.metadata["cluster_id"] == peer.node.status().cluster_id


async def test_a_cursor_that_was_never_given_out_is_out_of_range(peer: ServedPeer) -> None:
    await frustrate(peer, "ada")
    peer.node.reads.clear()
    failure = await failure_of(subscribe(peer, after_sequence=2))
    assert failure.code is grpc.StatusCode.OUT_OF_RANGE
    assert failure.metadata["newest_sequence"] == "1"
    assert peer.node.reads == [ReadConsistency.LOCAL, ReadConsistency.LINEARIZABLE]


async def test_events_that_are_gone_are_out_of_range_with_the_oldest(serve: Serve) -> None:
    async with serve({"alert.retained_events": "3"}) as peer:
        for number in range(10):
            await frustrate(peer, f"s{number}")
        failure = await failure_of(subscribe(peer, after_sequence=4))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.OUT_OF_RANGE,
            "OUT_OF_RANGE",
        )
        assert failure.metadata["oldest_sequence"] == "8"
        stream = subscribe(peer, after_sequence=0)
        assert (await stream.read()).through_sequence == 7
        assert (await stream.read()).event.sequence == 8
        stream.cancel()


@pytest.mark.twin_only  # the state is replaced by hand
@pytest.mark.parametrize("retained", [100, 1])
async def test_a_stream_goes_on_in_a_newer_state_that_was_taken_over(
    serve: Serve, retained: int
) -> None:
    """It sends what came in between, or says that this is gone: never silence."""
    async with serve({"alert.retained_events": str(retained)}) as peer:
        await frustrate(peer, "ada")
        stream = subscribe(peer, after_sequence=0)
        assert not (await stream.read()).HasField("event")
        assert (await stream.read()).event.sequence == 1
        assert isinstance(peer.node, FakeNode)
        peer.node.install(with_alerts_of(peer.node, "bob", "eve"))
        if retained == 100:
            events = [(await stream.read()).event for _ in range(2)]
            assert [(event.sequence, event.alert.student_id) for event in events] == [
                (2, "bob"),
                (3, "eve"),
            ]
            stream.cancel()
            return
        failure = await failure_of(stream)
        assert failure.code is grpc.StatusCode.OUT_OF_RANGE
        assert failure.metadata["oldest_sequence"] == "3"


def with_alerts_of(node: FakeNode, *student_ids: str) -> StateMachine:
    """The node's state, and what it would be after more alerts."""
    newer = restored(whole_snapshot(node.machine))
    batches = [
        pack_batch(frustrated_batch(student_id, "room-1"), max_future_ms=0).batch
        for student_id in student_ids
    ]
    body = command_pb2.PublishMetrics(batches=batches)
    command = command_pb2.Command(publish_metrics=body).SerializeToString()
    stamped = stamp(command, node.elapsed_ms, node.elapsed_ms)
    newer.apply(newer.applied_index + 1, int(EntryKind.COMMAND), stamped)
    return newer


async def test_teachers_of_one_classroom_share_a_read(peer: ServedPeer) -> None:
    streams = [
        subscribe(peer, from_now=True, filter=alert_pb2.AlertFilter(classroom_id="room-1"))
        for _ in range(20)
    ]
    for stream in streams:
        await stream.read()
    await eventually(lambda: peer.node.waiting == 20)
    peer.node.reads.clear()
    await frustrate(peer, "ada")
    messages = await asyncio.gather(*(stream.read() for stream in streams))
    assert {message.event.sequence for message in messages} == {1}
    await eventually(lambda: peer.node.waiting == 20)
    assert len(peer.node.reads) < 20
    for stream in streams:
        stream.cancel()


async def test_the_shared_reads_are_bounded(peer: ServedPeer) -> None:
    for number in range(300):
        stream = subscribe(
            peer, from_now=True, filter=alert_pb2.AlertFilter(student_id=f"s{number}")
        )
        await stream.read()
        stream.cancel()
    feed = peer.port._services._alerts._feed
    await eventually(lambda: peer.port.interceptor.streams == 0)
    assert len(feed._pages) <= 256


async def test_a_stream_ends_with_its_cursor_when_the_peer_stops(serve: Serve) -> None:
    async with serve() as peer:
        stream = subscribe(peer, from_now=True)
        await stream.read()
        await frustrate(peer, "ada")
        await stream.read()
        peer.port.health.drain()
        stopping = asyncio.ensure_future(peer.port.stop())
        failure = await failure_of(stream)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert failure.metadata["through_sequence"] == "1"
        await stopping


# --- what teachers do -----------------------------------------------------------------------------


async def test_an_alert_is_snoozed_and_an_intervention_is_kept_with_it(peer: ServedPeer) -> None:
    await frustrate(peer, "ada")
    alert = await first_alert(peer)
    snooze = alert_pb2.SnoozeAlertRequest(alert_id=alert.alert_id, teacher_id="t-1")
    refused = await failure_of(peer.alerts.SnoozeAlert(snooze, timeout=TIMEOUT_S))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.violations) == ["duration"]
    snooze.duration.FromSeconds(600)
    snoozed = await peer.alerts.SnoozeAlert(snooze, timeout=TIMEOUT_S)
    assert snoozed.alert.muted_until_ms - snoozed.alert.detected_at_ms >= 600_000
    assert snoozed.alert.state == alert_pb2.ALERT_STATE_OPEN
    record = alert_pb2.RecordInterventionRequest(
        alert_id=alert.alert_id,
        student_id="ada",
        teacher_id="t-1",
        kind="encouragement",
        note="well done\nso far",
        request_id="r-1",
    )
    recorded = await peer.alerts.RecordIntervention(record, timeout=TIMEOUT_S)
    again = await peer.alerts.RecordIntervention(record, timeout=TIMEOUT_S)
    assert again.intervention == recorded.intervention
    assert recorded.intervention.before.errors == 5
    assert recorded.applied_index == peer.node.machine.applied_index - 1
    listed = alert_pb2.ListInterventionsRequest(alert_id=alert.alert_id)
    found = (await peer.alerts.ListInterventions(listed, timeout=TIMEOUT_S)).interventions
    assert list(found) == [recorded.intervention]
    assert (await first_alert(peer)).interventions == 1


async def test_an_unknown_kind_of_intervention_is_refused(peer: ServedPeer) -> None:
    record = alert_pb2.RecordInterventionRequest(student_id="a", teacher_id="t", kind="shouting")
    failure = await failure_of(peer.alerts.RecordIntervention(record, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == ["kind"]


async def test_pages_of_interventions_hold_as_many_as_asked_for(peer: ServedPeer) -> None:
    record = alert_pb2.RecordInterventionRequest(student_id="a", teacher_id="t", kind="help")
    for _ in range(5):
        await peer.alerts.RecordIntervention(record, timeout=TIMEOUT_S)
    request = alert_pb2.ListInterventionsRequest(page_size=3)
    first = await peer.alerts.ListInterventions(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    second = await peer.alerts.ListInterventions(request, timeout=TIMEOUT_S)
    ids = [each.intervention_id for each in [*first.interventions, *second.interventions]]
    assert ids == [f"intervention-{number}" for number in range(5, 0, -1)]
    assert second.next_page_token == ""


async def test_operational_alerts_are_a_stream_of_their_own(peer: ServedPeer) -> None:
    operational = alert_pb2.AlertFilter(kind=alert_pb2.ALERT_KIND_OPERATIONAL)
    stream = subscribe(peer, after_sequence=0, filter=operational)
    students = subscribe(peer, after_sequence=0)
    assert not (await stream.read()).HasField("event")
    assert not (await students.read()).HasField("event")
    report = command_pb2.ReportPeer(node_id="n3", lost=True)
    command = command_pb2.Command(report_peer=report)
    await peer.node.propose(command.SerializeToString(), timeout_s=TIMEOUT_S)
    await frustrate(peer, "ada")
    event = (await stream.read()).event
    assert (event.alert.pattern, event.alert.subject, event.pushed) == ("peer_lost", "n3", True)
    assert (await students.read()).event.alert.student_id == "ada"
    stream.cancel()
    students.cancel()
