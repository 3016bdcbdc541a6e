"""ClassroomService over the real state machine."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from gaia.alert.v1 import alert_pb2
from gaia.classroom.v1 import classroom_pb2
from gaia.metrics.v1 import metrics_pb2

from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, failure_of


async def put(
    peer: ServedPeer, classroom_id: str = "5b", **fields: Any
) -> classroom_pb2.PutClassroomResponse:
    request = classroom_pb2.PutClassroomRequest(classroom_id=classroom_id, **fields)
    return await peer.classrooms.PutClassroom(request, timeout=TIMEOUT_S)


async def get(peer: ServedPeer, classroom_id: str = "5b") -> classroom_pb2.Classroom:
    request = classroom_pb2.GetClassroomRequest(classroom_id=classroom_id)
    return (await peer.classrooms.GetClassroom(request, timeout=TIMEOUT_S)).classroom


async def listed(peer: ServedPeer, **fields: Any) -> classroom_pb2.ListClassroomsResponse:
    request = classroom_pb2.ListClassroomsRequest(**fields)
    return await peer.classrooms.ListClassrooms(request, timeout=TIMEOUT_S)


async def forget(
    peer: ServedPeer, student_id: str, **fields: Any
) -> classroom_pb2.DeleteStudentDataResponse:
    request = classroom_pb2.DeleteStudentDataRequest(student_id=student_id, **fields)
    return await peer.classrooms.DeleteStudentData(request, timeout=TIMEOUT_S)


async def publish(peer: ServedPeer, student_id: str, errors: int, sequence: int = 1) -> None:
    batch = metrics_pb2.MetricBatch(
        source_id=f"tablet-of-{student_id}",
        source_epoch=1,
        sequence=sequence,
        classroom_id="5b",
        student_id=student_id,
        app_name="math",
        metrics=[metrics_pb2.Metric(metric_type="error", value=1)] * errors,
    )
    request = metrics_pb2.PublishMetricsRequest(batches=[batch])
    await peer.metrics.PublishMetrics(request, timeout=TIMEOUT_S)


async def test_a_roster_is_put_read_and_replaced(peer: ServedPeer) -> None:
    answer = await put(peer, name="5b", teacher_ids=["kim", "jo"], student_ids=["ben", "ana"])
    assert answer.applied_index == peer.node.machine.applied_index
    assert answer.classroom.teacher_ids == ["jo", "kim"]
    assert await get(peer) == answer.classroom
    replaced = await put(peer, student_ids=["eve"])
    assert (replaced.classroom.name, list(replaced.classroom.teacher_ids)) == ("", [])
    assert (await listed(peer)).classrooms == [replaced.classroom]
    assert (await listed(peer, teacher_id="kim")).classrooms == []
    failure = await failure_of(get(peer, "6a"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_members_in_another_order_are_the_same_request(peer: ServedPeer) -> None:
    first = await put(peer, student_ids=["a", "b"], request_id="r1")
    again = await put(peer, student_ids=["b", "a", "b"], request_id="r1")
    assert again.classroom == first.classroom
    failure = await failure_of(put(peer, student_ids=["a"], request_id="r1"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_pages_of_full_classrooms_of_a_teacher(peer: ServedPeer) -> None:
    students = [f"student-{number:05d}" for number in range(10_000)]
    for number in range(5):
        await put(peer, f"room-{number}", teacher_ids=["kim"], student_ids=students)
    found: list[str] = []
    token = ""
    while True:
        page = await listed(peer, teacher_id="kim", page_token=token)
        assert all(len(room.student_ids) == 10_000 for room in page.classrooms)
        found += [room.classroom_id for room in page.classrooms]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"room-{number}" for number in range(5)]


async def test_limits_are_named(serve: Serve) -> None:
    async with serve({"classroom.max_classrooms": "1", "classroom.max_members": "2"}) as peer:
        too_many = [f"s{number}" for number in range(10_001)]
        failure = await failure_of(put(peer, student_ids=too_many, teacher_ids=["no spaces"]))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert list(failure.violations) == [
            "teacher_ids",
            "student_ids",
        ]
        failure = await failure_of(put(peer, student_ids=["a", "b", "c"]))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_MEMBERS",
        )
        await put(peer)
        failure = await failure_of(put(peer, "6a"))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_CLASSROOMS",
        )


async def test_a_deletion_reaches_watchers_of_windows_and_alerts(peer: ServedPeer) -> None:
    """A board shows no student who is gone, and its cursor misses nothing."""
    for student_id in ("ana", "ben"):
        await publish(peer, student_id, 5)
    await put(peer, student_ids=["ana", "ben"])
    watch: Any = peer.metrics.WatchClassroom(
        metrics_pb2.WatchClassroomRequest(classroom_id="5b", interval_ms=60_000)
    )
    alerts: Any = peer.alerts.SubscribeAlerts(
        alert_pb2.SubscribeAlertsRequest(
            after_sequence=0, filter=alert_pb2.AlertFilter(classroom_id="5b")
        )
    )
    async with asyncio.timeout(TIMEOUT_S):
        assert len((await watch.read()).aggregates) == 2
        messages = [await alerts.read() for _ in range(3)]
        assert [message.event.sequence for message in messages] == [0, 1, 2]
        answer = await forget(peer, "ana", request_id="r1")
        assert answer.applied_index == answer.compact_through_index
        assert (answer.removed_windows, answer.removed_alerts) == (1, 1)
        assert (answer.removed_alert_events, answer.removed_memberships) == (1, 1)
        update = await watch.read()
        assert update.resync
        assert [window.student_id for window in update.aggregates] == ["ben"]
        told = await alerts.read()
        assert (told.event.sequence, told.through_sequence) == (3, 3)
        assert told.event.change == alert_pb2.ALERT_CHANGE_ERASED
        assert (told.event.alert.alert_id, told.event.alert.student_id) == ("alert-1", "")
        again = await forget(peer, "ana", request_id="r1")
        assert again.compact_through_index == answer.compact_through_index
        await publish(peer, "ana", 5, sequence=2)
        opened = await alerts.read()
        assert (opened.event.sequence, opened.event.alert.alert_id) == (4, "alert-3")
    watch.cancel()
    alerts.cancel()
