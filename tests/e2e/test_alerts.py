"""Alerts on real peers: raised once, received once by everyone, on any peer, after any failure."""

from __future__ import annotations

import asyncio

import pytest
from gaia.alert.v1 import alert_pb2

from gaia_grpc.client import AlertListener, Client
from gaia_grpc.errors import FailedPreconditionError, NotFoundError
from gaia_grpc.testing import Cluster
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs


async def frustrate(client: Client, student: str, classroom: str, errors: int = 5) -> None:
    """So many errors at once, in one batch."""
    buffer = client.metrics.buffer(
        student_id=student,
        app_name="math",
        classroom_id=classroom,
        urgent_types=frozenset(),
    )
    for _ in range(errors):
        buffer.record("error")
    await buffer.close()


async def opened(listener: AlertListener, count: int, timeout: float = 15) -> list[str]:
    """Students of the next opened alerts."""
    students: list[str] = []
    async with asyncio.timeout(timeout):
        async for event in listener:
            if event.change == alert_pb2.ALERT_CHANGE_OPENED:
                students.append(event.alert.student_id)
            if len(students) == count:
                break
    return students


async def test_alert_excessive_errors_reach_two_teachers_on_different_peers_once(
    cluster3: Served, client3: Client
) -> None:
    first, second = [
        client3.alerts.listen(classroom_id="c-two", address=address)
        for address in cluster3.addresses[:2]
    ]
    async with first, second:
        await frustrate(client3, "ada", "c-two")
        for listener in (first, second):
            event = await listener.next(timeout=5)
            assert event is not None
            assert event.change == alert_pb2.ALERT_CHANGE_OPENED
            alert = event.alert
            assert (alert.student_id, alert.app_name) == ("ada", "math")
            assert alert.pattern == "excessive_errors"
            assert alert.severity >= alert_pb2.SEVERITY_HIGH
            assert 0 < alert.confidence <= 1
            assert alert.explanation
        await frustrate(client3, "ada", "c-two")
        for listener in (first, second):
            while (event := await listener.next(timeout=0.5)) is not None:
                assert event.change != alert_pb2.ALERT_CHANGE_OPENED
    [stored] = [alert async for alert in client3.alerts.list(classroom_id="c-two")]
    assert stored.student_id == "ada"


async def test_alert_three_errors_are_repeated_errors(client3: Client) -> None:
    async with client3.alerts.listen(classroom_id="c-three") as listener:
        await frustrate(client3, "bob", "c-three", errors=2)
        assert await listener.next(timeout=0.3) is None
        await frustrate(client3, "bob", "c-three", errors=1)
        event = await listener.next(timeout=5)
        assert event is not None
        assert event.alert.pattern == "repeated_errors"
        assert event.alert.severity == alert_pb2.SEVERITY_MEDIUM


@pytest.mark.embedded_only
async def test_alert_listener_resumes_after_its_peer_is_killed(
    cluster3: Cluster, client3: Client
) -> None:
    leader = await cluster3.aio.leader()
    victims = [leader, next(node for node in cluster3.node_ids if node != leader)]
    for round_number, victim in enumerate(victims):
        classroom = f"c-kill-{round_number}"
        students = [f"s{round_number}-{number}" for number in range(9)]
        async with client3.alerts.listen(
            classroom_id=classroom, address=cluster3.address(victim), progress_interval=1
        ) as listener:
            for student in students[:3]:
                await frustrate(client3, student, classroom)
            got = await opened(listener, 2)
            await cluster3.aio.kill(victim)
            for student in students[3:6]:
                await frustrate(client3, student, classroom)
            got += await opened(listener, 4)
            assert listener.reconnects >= 1
            await cluster3.aio.restart(victim)
            for student in students[6:]:
                await frustrate(client3, student, classroom)
            got += await opened(listener, 3)
        assert got == students


async def test_alert_missed_while_away_is_delivered_in_order_on_another_peer(
    cluster3: Served, client3: Client
) -> None:
    async with client3.alerts.listen(classroom_id="c-away") as listener:
        cursor, cluster_id = listener.cursor, listener.cluster_id
    assert cursor is not None
    students = [f"away-{number}" for number in range(5)]
    for student in students:
        await frustrate(client3, student, "c-away")
    for address in cluster3.addresses:
        async with client3.alerts.listen(
            classroom_id="c-away", after_sequence=cursor, cluster_id=cluster_id, address=address
        ) as listener:
            assert await opened(listener, 5) == students


async def test_alert_all_retained_ones_come_from_sequence_zero(client3: Client) -> None:
    await frustrate(client3, "early", "c-zero")
    async with client3.alerts.listen(classroom_id="c-zero", after_sequence=0) as listener:
        assert await opened(listener, 1) == ["early"]


async def test_alert_cursor_of_another_cluster_is_refused(client3: Client) -> None:
    with pytest.raises(FailedPreconditionError):
        await client3.alerts.listen(after_sequence=0, cluster_id="0" * 32).open()


async def test_alert_is_acknowledged_and_resolved(client3: Client) -> None:
    async with client3.alerts.listen(classroom_id="c-life") as listener:
        await frustrate(client3, "carl", "c-life")
        event = await listener.next(timeout=5)
        assert event is not None
        alert_id = event.alert.alert_id
        seen = (await client3.alerts.acknowledge(alert_id, teacher_id="t1")).alert
        assert seen.state == alert_pb2.ALERT_STATE_ACKNOWLEDGED
        closed = (await client3.alerts.resolve(alert_id, teacher_id="t1")).alert
        assert closed.state == alert_pb2.ALERT_STATE_RESOLVED
        changes = [event.change]
        while len(changes) < 3:
            following = await listener.next(timeout=5)
            assert following is not None
            assert following.sequence > event.sequence
            event = following
            changes.append(event.change)
        assert changes == [
            alert_pb2.ALERT_CHANGE_OPENED,
            alert_pb2.ALERT_CHANGE_ACKNOWLEDGED,
            alert_pb2.ALERT_CHANGE_RESOLVED,
        ]
    with pytest.raises(NotFoundError):
        await client3.alerts.acknowledge("alert-999999", teacher_id="t1")


async def test_alert_of_a_timeline_goes_only_to_who_asks_for_it(client3: Client) -> None:
    now_ms = [5_000_000]
    async with (
        client3.alerts.listen(classroom_id="c-sim") as live,
        client3.alerts.listen(classroom_id="c-sim", timeline_id="sim-1") as simulated,
    ):
        buffer = client3.metrics.buffer(
            student_id="dora",
            app_name="math",
            classroom_id="c-sim",
            timeline_id="sim-1",
            clock=lambda: now_ms[0],
        )
        for _ in range(5):
            now_ms[0] += 5_000
            buffer.record("error")
            await buffer.flush()
        event = await simulated.next(timeout=5)
        assert event is not None
        assert event.alert.timeline_id == "sim-1"
        assert await live.next(timeout=0.3) is None
