"""Streams of alerts on real peers: nothing missed, nothing twice, and nobody harmed by the slow."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import AsyncIterator

import grpc
import pytest
from gaia.alert.v1 import alert_pb2

from gaia_grpc.client import Client
from gaia_grpc.errors import OutOfRangeError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.alert_subscribers import (
    REST_S,
    Roamer,
    all_events,
    frustrate,
    matches,
    newest_sequence,
    running,
    stalled,
    told,
)
from tests.e2e.support import report
from tests.support.twin_cluster import Served

HIGH = alert_pb2.SEVERITY_HIGH
LEADERS = 3
"""How many of them are killed under the subscribers that roam."""


async def sequences(stream: AsyncIterator[alert_pb2.SubscribeAlertsResponse]) -> list[int]:
    """Sequences of all events until the stream ends, by its own error or not."""
    found = []
    try:
        async for message in stream:
            if message.HasField("event"):
                found.append(message.event.sequence)
    except grpc.aio.AioRpcError:
        return found
    return found


@pytest.mark.both_logs
async def test_alert_subscribers_get_what_their_filter_says(
    cluster3: Served, client3: Client
) -> None:
    """By classroom, student and severity, alone and together, on every peer."""
    begin = await newest_sequence(client3)
    for classroom in ("f-one", "f-two"):
        await frustrate(client3, [f"{classroom}-mild"], classroom, errors=3)
        await frustrate(client3, [f"{classroom}-bad"], classroom, errors=6)
    newest = await newest_sequence(client3)
    alert_filter = alert_pb2.AlertFilter
    filters = [
        alert_filter(),
        alert_filter(classroom_id="f-one"),
        alert_filter(student_id="f-two-mild"),
        alert_filter(min_severity=HIGH),
        alert_filter(classroom_id="f-two", min_severity=HIGH),
        alert_filter(classroom_id="f-one", student_id="f-two-bad"),
        alert_filter(timeline_id="nobody"),
    ]
    told_by = {
        address: await all_events(client3, address, newest) for address in cluster3.addresses
    }
    truth = told_by[cluster3.addresses[0]]
    assert all(events == truth for events in told_by.values())
    new = [event for event in truth if event.sequence > begin]
    assert {event.alert.student_id for event in new} == {
        f"{classroom}-{how}" for classroom in ("f-one", "f-two") for how in ("mild", "bad")
    }
    for wanted in filters:
        expected = [event for event in truth if matches(event, wanted)]
        for address in cluster3.addresses:
            assert await all_events(client3, address, newest, wanted) == expected, wanted
    assert len({sum(matches(event, wanted) for event in new) for wanted in filters}) > 3


@pytest.mark.both_logs
async def test_alert_subscribers_by_teacher_get_their_classrooms(
    cluster3: Served, client3: Client
) -> None:
    """By the rosters as they are when it is read, on every peer, live and from the past."""
    teacher = alert_pb2.AlertFilter(teacher_id="t-both")
    one_room = alert_pb2.AlertFilter(teacher_id="t-both", classroom_id="t-two")
    other = alert_pb2.AlertFilter(teacher_id="t-one")
    await frustrate(client3, ["t-early"], "t-one")
    newest = await newest_sequence(client3)
    for address in cluster3.addresses:
        assert await all_events(client3, address, newest, teacher) == []
    await client3.classrooms.put("t-one", teacher_ids=["t-one", "t-both"])
    index = (await client3.classrooms.put("t-two", teacher_ids=["t-both"])).applied_index
    assert await cluster3.aio.wait_applied_equal() >= index
    listeners = [
        # Not by progress: the event itself wakes the stream.
        client3.alerts.listen(teacher_id="t-both", address=address, progress_interval=30)
        for address in cluster3.addresses
    ]
    async with listeners[0], listeners[1], listeners[2]:
        for room in ("t-one", "t-two", "t-none"):
            await frustrate(client3, [f"{room}-student"], room)
        for listener in listeners:
            events = [await listener.next(5) for _ in range(2)]
            assert [event.alert.classroom_id for event in events if event] == ["t-one", "t-two"]
            assert await listener.next(0.1) is None
    newest = await newest_sequence(client3)
    students = {
        "t-both": ["t-early", "t-one-student", "t-two-student"],
        "t-one": ["t-early", "t-one-student"],
    }
    for address in cluster3.addresses:
        for wanted in (teacher, other):
            events_of = await all_events(client3, address, newest, wanted)
            assert [event.alert.student_id for event in events_of] == students[wanted.teacher_id]
        [event] = await all_events(client3, address, newest, one_room)
        assert event.alert.student_id == "t-two-student"
    await client3.classrooms.put("t-two", teacher_ids=["t-other"])
    await cluster3.aio.wait_applied_equal()
    for address in cluster3.addresses:
        assert await all_events(client3, address, newest, one_room) == []


@pytest.mark.both_logs
async def test_alert_stream_tells_its_progress_while_it_is_quiet(client3: Client) -> None:
    """Its own events do not come, yet its cursor moves with those of the others."""
    request = alert_pb2.SubscribeAlertsRequest(
        filter=alert_pb2.AlertFilter(classroom_id="q-quiet"),
        from_now=True,
        progress_interval_ms=100,
    )
    call = client3.peer().alerts.SubscribeAlerts(request, timeout=20)
    messages = aiter(call)
    first = await anext(messages)
    assert not first.HasField("event")
    assert first.cluster_id
    await frustrate(client3, ["loud"], "q-loud")
    newest = await newest_sequence(client3)
    assert newest > first.through_sequence
    while (message := await anext(messages)).through_sequence < newest:
        assert not message.HasField("event")
    await frustrate(client3, ["quiet"], "q-quiet")
    while not (message := await anext(messages)).HasField("event"):
        assert message.through_sequence >= newest
    assert message.event.alert.student_id == "quiet"
    call.cancel()


async def test_alert_subscriber_that_had_seen_nothing_misses_nothing(
    cluster3: Cluster, client3: Client
) -> None:
    """It got its first answer, then its peer died (and in the end all of them did, and came back):
    what it was told at first is enough to go on anywhere."""
    wanted = alert_pb2.AlertFilter(classroom_id="z-room")
    request = alert_pb2.SubscribeAlertsRequest(filter=wanted, from_now=True)
    leader = await cluster3.aio.leader()
    call = client3.peer(cluster3.address(leader)).alerts.SubscribeAlerts(request, timeout=20)
    cursor = (await anext(aiter(call))).through_sequence
    await cluster3.aio.kill(leader)
    await frustrate(client3, [f"z-{number}" for number in range(5)], "z-room")
    await cluster3.aio.kill(*(node for node in cluster3.node_ids if node != leader))
    await cluster3.aio.restart(*cluster3.node_ids)
    newest = await newest_sequence(client3)
    expected = [
        event
        for event in await all_events(client3, cluster3.addresses[0], newest, wanted)
        if event.sequence > cursor
    ]
    assert sorted(event.alert.student_id for event in expected) == [f"z-{n}" for n in range(5)]
    for address in cluster3.addresses:
        async with client3.alerts.listen(
            classroom_id="z-room", after_sequence=cursor, address=address
        ) as listener:
            assert [await listener.next(5) for _ in expected] == expected
            assert await listener.next(0.2) is None


async def test_alert_events_that_are_trimmed_are_told_with_the_oldest(
    gaia_cluster: MakeCluster,
) -> None:
    """Also to a subscriber that was connected all the time and did not read: never a gap."""
    settings = {"alert.retained_events": "50"}
    cluster = await asyncio.to_thread(lambda: gaia_cluster(3, settings=settings))
    everything = alert_pb2.SubscribeAlertsRequest(after_sequence=0)
    async with cluster.client() as client, stalled(cluster.addresses[1], everything, 1) as [slow]:
        await frustrate(client, ["early"], "t-room")
        for round_number in range(10):
            await frustrate(client, [f"t-{round_number}-{n}" for n in range(40)], "t-room")
        newest = await newest_sequence(client)
        async with asyncio.timeout(20):
            seen = await sequences(aiter(slow))
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) < newest - 50
        assert await slow.code() is grpc.StatusCode.OUT_OF_RANGE
        await cluster.aio.wait_applied_equal()
        for address in cluster.addresses:
            with pytest.raises(OutOfRangeError) as failure:
                await client.alerts.listen(after_sequence=1, address=address).open()
            oldest = int(failure.value.metadata["oldest_sequence"])
            assert oldest == newest - 50 + 1
            async with client.alerts.listen(after_sequence=oldest - 1, address=address) as listener:
                got = [await listener.next(5) for _ in range(50)]
            assert [event.sequence for event in got if event] == list(range(oldest, newest + 1))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [6])
async def test_alert_subscribers_that_roam_while_leaders_are_killed_get_each_alert_once(
    cluster3: Cluster, seed: int
) -> None:
    draw = random.Random(seed)
    rooms = ["r-0", "r-1", "r-2"]
    kinds = [
        alert_pb2.AlertFilter(),
        alert_pb2.AlertFilter(min_severity=HIGH),
        *(alert_pb2.AlertFilter(classroom_id=room) for room in rooms),
        alert_pb2.AlertFilter(student_id="r-1-student-7"),
    ]
    async with cluster3.client() as client, cluster3.client() as watching:
        # Each kind twice: one has seen everything that is retained, one begins from now.
        roamers = [
            Roamer(watching, wanted, random.Random(draw.random()), cursor=cursor)
            for wanted in kinds
            for cursor in (0, None)
        ]
        stopping, news = asyncio.Event(), asyncio.Event()
        raised = 0

        async def teach() -> None:
            nonlocal raised
            while not stopping.is_set():
                room = draw.choice(rooms)
                errors = draw.choice((3, 5))
                await frustrate(client, [f"{room}-student-{raised}"], room, errors=errors)
                await asyncio.sleep(REST_S)
                raised += 1
                news.set()
                if draw.random() < 0.3:
                    [alert, *_] = [one async for one in client.alerts.list(classroom_id=room)]
                    if alert.state == alert_pb2.ALERT_STATE_OPEN:
                        await client.alerts.acknowledge(alert.alert_id, teacher_id="t")

        async with running(roamers):
            teaching = asyncio.create_task(teach())
            try:
                for _ in range(LEADERS):
                    victim = await cluster3.aio.leader()
                    goal = raised + 8
                    await cluster3.aio.kill(victim)
                    async with asyncio.timeout(20):
                        while raised < goal:
                            news.clear()
                            await news.wait()
                    await cluster3.aio.restart(victim)
            finally:
                stopping.set()
                await teaching
            newest = await newest_sequence(client)
            async with asyncio.timeout(20):
                await asyncio.gather(*(roamer.until(newest) for roamer in roamers))
        truth = await all_events(client, cluster3.addresses[0], newest)
        for address in cluster3.addresses[1:]:
            assert await all_events(client, address, newest) == truth
        for roamer in roamers:
            assert roamer.got == [
                told(event)
                for event in truth
                if event.sequence > roamer.began and matches(event, roamer.wanted)
            ]
    report(
        f"{len(roamers)} subscribers, {LEADERS} leaders killed, {len(truth)} events, "
        f"{sum(roamer.visits for roamer in roamers)} subscriptions, "
        f"{sum(roamer.broken for roamer in roamers)} of them broken, 0 missed, 0 twice"
    )
    assert sum(roamer.broken for roamer in roamers) > 0


HEALTHY, STALLED, NOISE = 90, 10, 400
WRITE_TIMEOUT_MS = 500


@pytest.mark.timeout(90)
async def test_alert_subscribers_that_do_not_read_harm_nobody(gaia_cluster: MakeCluster) -> None:
    """A tenth of the subscribers reads nothing. They are closed with their cursor, and go on from
    it with nothing missed; the others get every alert meanwhile. `make bench ONLY=stalled` does it
    with 1,000 of whom 50 stall, and measures."""
    environment = {"GAIA_LIMITS_SUBSCRIBER_WRITE_TIMEOUT_MS": str(WRITE_TIMEOUT_MS)}
    cluster = await asyncio.to_thread(lambda: gaia_cluster(3, environment=environment))
    durations: list[float] = []
    async with cluster.client() as client, cluster.client() as reading:
        await frustrate(client, [f"noise-{number}" for number in range(NOISE)], "s-noise")
        request = alert_pb2.SubscribeAlertsRequest(after_sequence=0)
        address = cluster.addresses[0]
        listeners = [
            reading.alerts.listen(classroom_id="s-room", address=cluster.addresses[place % 3])
            for place in range(HEALTHY)
        ]
        try:
            await asyncio.gather(*(listener.open() for listener in listeners))
            async with stalled(address, request, STALLED) as calls:
                loop = asyncio.get_running_loop()
                given_up_s = loop.time() + 3 * WRITE_TIMEOUT_MS / 1000
                while loop.time() < given_up_s:
                    began_s = loop.time()
                    student = f"s-{len(durations)}"
                    await frustrate(client, [student], "s-room")
                    events = await asyncio.gather(*(one.next(10) for one in listeners))
                    durations.append(loop.time() - began_s)
                    assert {event.alert.student_id for event in events if event} == {student}
                    assert None not in events
                # Only now are they read: all that left before the peer gave them up, then why.
                for call in calls:
                    async with asyncio.timeout(20):
                        got = await sequences(aiter(call))
                    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    assert 0 < len(got) < NOISE
                    assert got == list(range(1, len(got) + 1))
        finally:
            await asyncio.gather(*(listener.close() for listener in listeners))
        assert all(listener.reconnects == 0 for listener in listeners)
        assert "logger=grpc" not in cluster.logs()
        async with client.alerts.listen(after_sequence=len(got)) as listener:
            rest = [await listener.next(5) for _ in range(NOISE - len(got))]
        assert [event.sequence for event in rest if event] == list(range(len(got) + 1, NOISE + 1))
    report(
        f"{HEALTHY} subscribers got {len(durations)} alerts while {STALLED} stalled: median "
        f"{statistics.median(durations) * 1e3:.0f} ms, worst {max(durations) * 1e3:.0f} ms to all"
    )
