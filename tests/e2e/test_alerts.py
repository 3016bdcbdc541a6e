"""Alerts on real peers: raised once, received once by everyone, on any peer, after any failure."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from itertools import pairwise

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import AlertListener, Client
from gaia_grpc.errors import FailedPreconditionError, NotFoundError
from gaia_grpc.testing import Cluster
from tests.e2e.alert_subscribers import stalled
from tests.e2e.support import report
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs
TEACHERS = ("a2-ms-one", "a2-mr-two", "a2-ms-three")


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


async def burst(client: Client, students: Sequence[str], classroom: str) -> None:
    """Five errors of each student, in one call."""
    await client.metrics.publish(
        metrics_pb2.MetricBatch(
            source_id=student,
            source_epoch=1,
            sequence=1,
            classroom_id=classroom,
            student_id=student,
            app_name="math",
            metrics=[metrics_pb2.Metric(metric_type="error", value=1.0)] * 5,
        )
        for student in students
    )


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


# --- the guide's A1 to A5 ------------------------------------------------------------------------


@pytest.mark.embedded_only
async def test_alert_a1_reaches_its_teacher_and_says_why(
    cluster3: Cluster, client3: Client
) -> None:
    """From the SDK's record of the error that makes the condition true to the teacher's stream."""
    await client3.classrooms.put("a1", teacher_ids=["a1-teacher"])
    durations = []
    loop = asyncio.get_running_loop()
    for number in range(20):
        address = cluster3.addresses[number % 3]
        buffer = client3.metrics.buffer(
            student_id=f"a1-{number}", app_name="math", classroom_id="a1"
        )
        for _ in range(4):
            buffer.record("error")
            await buffer.flush()
        async with client3.alerts.listen(
            teacher_id="a1-teacher", min_severity=alert_pb2.SEVERITY_HIGH, address=address
        ) as listener:
            began_s = loop.time()
            buffer.record("error")
            event = await listener.next(10)
            durations.append(loop.time() - began_s)
        assert event is not None
        assert event.change == alert_pb2.ALERT_CHANGE_SEVERITY_RAISED
        alert = event.alert
        assert (alert.student_id, alert.app_name, alert.classroom_id) == (
            f"a1-{number}",
            "math",
            "a1",
        )
        assert (alert.pattern, alert.severity) == (
            "excessive_errors",
            alert_pb2.SEVERITY_HIGH,
        )
        assert alert.base_rate < alert.confidence < 1
        assert alert.model_version
        assert alert.evidence
        assert "5" in alert.explanation
        assert alert.suggested_action in ("encouragement", "guidance", "technical_help")
        await buffer.close()
    report(
        f"the fifth error recorded to its alert at the teacher: median "
        f"{statistics.median(durations) * 1e3:.1f} ms, worst {max(durations) * 1e3:.1f} ms "
        "of 20 (the guide asks for 100 ms)"
    )


@pytest.mark.embedded_only
async def test_alert_a2_reaches_three_teachers_while_a_fourth_reads_nothing(
    cluster3: Cluster, client3: Client
) -> None:
    """Each on another peer, each gets all of them in one order; who teaches elsewhere gets none."""
    await client3.classrooms.put("a2", teacher_ids=[*TEACHERS, "a2-slow"])
    await client3.classrooms.put("a2-else", teacher_ids=["a2-stranger"])
    listeners = [
        client3.alerts.listen(teacher_id=teacher, address=address)
        for teacher, address in zip(TEACHERS, cluster3.addresses, strict=True)
    ]
    slow = alert_pb2.SubscribeAlertsRequest(filter=alert_pb2.AlertFilter(teacher_id="a2-slow"))
    students = [f"a2-{number}" for number in range(8)]
    async with (
        listeners[0],
        listeners[1],
        listeners[2],
        client3.alerts.listen(teacher_id="a2-stranger") as stranger,
        stalled(cluster3.addresses[0], slow, 1),
    ):
        for student in students:
            await frustrate(client3, student, "a2")
        heard = [[await listener.next(5) for _ in students] for listener in listeners]
        assert heard[0] == heard[1] == heard[2]
        assert [event.alert.student_id for event in heard[0] if event] == students
        assert await stranger.next(0.2) is None


@pytest.mark.embedded_only
async def test_alert_a3_classroom_metrics_come_every_five_seconds_and_on_change(
    client3: Client,
) -> None:
    """Three rounds of a quiet class, beside another one in which something happens."""
    loop = asyncio.get_running_loop()
    await frustrate(client3, "a3-quiet", "a3-quiet")
    updates = client3.metrics.watch_classroom("a3-quiet")
    first = await anext(updates)
    assert [window.student_id for window in first.aggregates] == ["a3-quiet"]
    times_s = [loop.time()]

    async def rounds() -> None:
        for _ in range(3):
            update = await anext(updates)
            assert not update.aggregates
            times_s.append(loop.time())

    watching = asyncio.create_task(rounds())
    await frustrate(client3, "a3-busy", "a3-busy", errors=1)
    busy = client3.metrics.watch_classroom("a3-busy")
    assert len((await anext(busy)).aggregates) == 1
    for number in range(2, 5):
        await frustrate(client3, "a3-busy", "a3-busy", errors=1)
        [window] = (await asyncio.wait_for(anext(busy), 4)).aggregates
        assert window.accepted_total == number
    await watching
    gaps = [later - earlier for earlier, later in pairwise(times_s)]
    report(f"updates of a quiet class: after {', '.join(f'{gap:.2f}' for gap in gaps)} s")
    assert all(4.9 < gap < 9 for gap in gaps)
    await updates.aclose()
    await busy.aclose()


KINDS = ("help", "encouragement", "feedback", "reassign", "referral")


async def test_alert_a4_interventions_are_stored_linked_and_found(
    cluster3: Served, client3: Client
) -> None:
    """All kinds, on any peer: to the alert, the student, the teacher and the classroom."""
    await frustrate(client3, "a4-student", "a4")
    [alert] = [one async for one in client3.alerts.list(classroom_id="a4")]
    async with client3.alerts.listen(classroom_id="a4") as listener:
        stored = [
            (
                await client3.alerts.intervene(
                    kind,
                    student_id="a4-student",
                    teacher_id="a4-teacher",
                    alert_id=alert.alert_id,
                    note=f"{kind} at the desk",
                )
            ).intervention
            for kind in KINDS
        ]
        events = [await listener.next(5) for _ in KINDS]
    changes = {event.change for event in events if event}
    assert alert_pb2.ALERT_CHANGE_INTERVENTION in changes
    assert len({one.intervention_id for one in stored}) == len(KINDS)
    assert [one.kind for one in stored] == list(KINDS)
    for one in stored:
        assert (one.alert_id, one.classroom_id, one.app_name) == (alert.alert_id, "a4", "math")
        assert one.before.errors == 5
        assert not one.HasField("after")
    newest_first = stored[::-1]
    api = client3.alerts
    for found in (
        api.interventions(alert_id=alert.alert_id),
        api.interventions(student_id="a4-student"),
        api.interventions(teacher_id="a4-teacher"),
        api.interventions(classroom_id="a4"),
    ):
        assert [one async for one in found] == newest_first
    assert [one async for one in api.interventions(student_id="a4-nobody")] == []
    [after] = [one async for one in client3.alerts.list(classroom_id="a4")]
    assert after.state == alert_pb2.ALERT_STATE_ACKNOWLEDGED
    assert after.interventions == len(KINDS)
    assert after.muted_until_ms > 0
    await cluster3.aio.assert_equal_logs_and_hashes()


async def test_defect_25_interventions_of_one_second_are_all_kept(client3: Client) -> None:
    """They were keyed by the second, and stored nowhere: at once, and each repeated with its
    request_id, they are one record each."""
    calls = [
        client3.alerts.intervene(
            "help", student_id="d25-student", teacher_id=f"d25-{number}", request_id=f"d25-{number}"
        )
        for number in range(20)
        for _ in range(2)
    ]
    answers = await asyncio.gather(*calls)
    ids = {answer.intervention.intervention_id for answer in answers}
    assert len(ids) == 20
    kept = [one async for one in client3.alerts.interventions(student_id="d25-student")]
    assert {one.intervention_id for one in kept} == ids
    assert {one.teacher_id for one in kept} == {f"d25-{number}" for number in range(20)}
    assert len({one.create_time.ToMilliseconds() // 1_000 for one in kept}) < 20


async def test_defect_16_a_storm_of_metrics_is_no_storm_of_alerts(client3: Client) -> None:
    """The original sent an event for every further metric in the window, to everybody."""
    async with client3.alerts.listen(classroom_id="d16") as listener:
        for _ in range(30):
            await frustrate(client3, "d16", "d16", errors=20)
        events = []
        while (event := await listener.next(0.5)) is not None:
            events.append(event)
    opened = [event for event in events if event.change == alert_pb2.ALERT_CHANGE_OPENED]
    assert [event.alert.pattern for event in opened] == ["excessive_errors"]
    assert sum(event.pushed for event in events) <= 3
    assert len(events) <= 4


@pytest.mark.embedded_only
async def test_defect_17_events_of_a_burst_reach_a_slow_reader_over_a_stop(
    cluster3: Cluster, client3: Client
) -> None:
    """The bus and the hub dropped what their buffers had no room for, and fell over when they were
    closed: 600 alerts at once, read a few at a time, while the peer that serves them stops."""
    students = [f"d17-{number}" for number in range(600)]
    async with client3.alerts.listen(classroom_id="d17", address=cluster3.addresses[2]) as slow:
        for place in range(0, len(students), 200):
            await burst(client3, students[place : place + 200], "d17")
        got = await opened(slow, 50)
        await cluster3.aio.terminate("n3")
        await burst(client3, ["d17-late"], "d17")
        got += await opened(slow, 551)
        await cluster3.aio.restart("n3")
    assert len(got) == len(set(got)) == 601
    assert set(got) == {*students, "d17-late"}


@pytest.mark.embedded_only
async def test_alert_a5_what_came_while_all_peers_were_away_is_delivered_once(
    cluster3: Cluster, client3: Client
) -> None:
    """The listener outlives its peer, and then a restart of the whole cluster."""
    async with client3.alerts.listen(classroom_id="a5", progress_interval=0.5) as listener:
        await frustrate(client3, "a5-before", "a5")
        assert await opened(listener, 1) == ["a5-before"]
        [served_by] = [
            node for node in cluster3.node_ids if cluster3.address(node) == listener.address
        ]
        await cluster3.aio.kill(served_by)
        away = [f"a5-away-{number}" for number in range(3)]
        for student in away:
            await frustrate(client3, student, "a5")
        others = [node for node in cluster3.node_ids if node != served_by]
        await cluster3.aio.kill(*others)
        await cluster3.aio.restart(*cluster3.node_ids)
        await frustrate(client3, "a5-after", "a5")
        assert await opened(listener, 4) == [*away, "a5-after"]
        assert await listener.next(0.3) is None
        assert listener.reconnects >= 1
