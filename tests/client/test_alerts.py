"""The alert listener: nothing missed and nothing twice, at any peer, after any failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from gaia.alert.v1 import alert_pb2

from gaia_grpc.client import AlertListener
from gaia_grpc.client import streams as streams_module
from gaia_grpc.errors import FailedPreconditionError, OutOfRangeError, UnavailableError
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse

Peers = tuple[FakePeer, FakePeer]
Request = alert_pb2.SubscribeAlertsRequest
Message = alert_pb2.SubscribeAlertsResponse


class EventLog:
    """The replicated events, served by any number of peers from a cursor."""

    def __init__(self, *peers: FakePeer) -> None:
        self.last = 0
        self.grown = asyncio.Event()
        self.cut_after: dict[str, int] = {}
        """Peer address -> events after which its stream breaks, once."""
        self.code = grpc.StatusCode.UNAVAILABLE
        for peer in peers:
            peer.streams["SubscribeAlerts"] = self._server_of(peer)

    def add(self, count: int = 1) -> None:
        self.last += count
        self.grown.set()
        self.grown = asyncio.Event()

    def _server_of(self, peer: FakePeer):  # type: ignore[no-untyped-def]  # a generator function
        async def serve(request: Request, context: Context) -> AsyncIterator[Message]:
            at_sequence = request.after_sequence
            if request.WhichOneof("start") == "from_now":
                at_sequence = self.last
            yield Message(through_sequence=at_sequence, cluster_id="c1")
            sent = 0
            while True:
                while at_sequence < self.last:
                    at_sequence += 1
                    yield Message(
                        event=alert_pb2.AlertEvent(sequence=at_sequence),
                        through_sequence=at_sequence,
                        cluster_id="c1",
                    )
                    sent += 1
                    if self.cut_after.get(peer.address) == sent:
                        del self.cut_after[peer.address]
                        await refuse(context, self.code, retry_after_ms=10)
                await self.grown.wait()

        return serve


async def take(listener: AlertListener, count: int) -> list[int]:
    got: list[int] = []
    async with asyncio.timeout(10):
        async for event in listener:
            got.append(event.sequence)
            if len(got) == count:
                break
    return got


async def test_events_come_in_order_from_the_moment_of_opening(
    peers: Peers, connect: Connect
) -> None:
    events = EventLog(*peers)
    events.add(5)
    client = await connect(peers[0])
    async with client.alerts.listen(teacher_id="t1") as listener:
        assert listener.cursor == 5
        assert listener.cluster_id == "c1"
        events.add(3)
        assert await take(listener, 3) == [6, 7, 8]
        assert listener.cursor == 8
    assert peers[0].of("SubscribeAlerts")[0].filter.teacher_id == "t1"


async def test_a_break_goes_on_at_the_other_peer_with_the_cursor(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers
    events = EventLog(a, b)
    events.cut_after = {a.address: 4, b.address: 3}
    events.add(20)
    client = await connect(a)
    async with client.alerts.listen(after_sequence=0) as listener:
        assert await take(listener, 20) == list(range(1, 21))
        assert listener.reconnects == 2
    assert b.of("SubscribeAlerts")[0].after_sequence == 4
    assert b.of("SubscribeAlerts")[0].cluster_id == "c1"


async def test_a_peer_that_dies_is_replaced(peers: Peers, connect: Connect) -> None:
    a, b = peers
    events = EventLog(a, b)
    client = await connect(a)
    async with client.alerts.listen() as listener:
        assert listener.address == a.address
        events.add(2)
        assert await take(listener, 2) == [1, 2]
        await a.stop()
        events.add(2)
        assert await take(listener, 2) == [3, 4]
        assert listener.address == b.address


async def test_being_closed_for_slowness_is_resumed(peers: Peers, connect: Connect) -> None:
    a, b = peers
    events = EventLog(a, b)
    events.code = grpc.StatusCode.RESOURCE_EXHAUSTED
    events.cut_after = {a.address: 1}
    events.add(3)
    client = await connect(a)
    async with client.alerts.listen(after_sequence=0) as listener:
        assert await take(listener, 3) == [1, 2, 3]


async def test_peers_that_fail_inside_again_and_again_are_outlived(
    peers: Peers, connect: Connect
) -> None:
    failures = 0

    async def broken(request: Request, context: Context) -> AsyncIterator[Message]:
        nonlocal failures
        failures += 1
        if failures > 5:
            events = EventLog(*peers)
            events.add(request.after_sequence + 1)
        await refuse(context, grpc.StatusCode.INTERNAL, "INTERNAL")
        yield Message()

    for peer in peers:
        peer.streams["SubscribeAlerts"] = broken
    client = await connect(peers[0])
    async with client.alerts.listen(after_sequence=0) as listener:
        assert await take(listener, 1) == [1]
    assert failures == 6


async def test_a_silent_peer_is_given_up(
    peers: Peers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "FIRST_MESSAGE_S", 0.2)
    a, b = peers
    events = EventLog(a, b)
    events.add(2)

    async def hang(request: Request, context: Context) -> AsyncIterator[Message]:
        await asyncio.Event().wait()
        yield Message()

    a.streams["SubscribeAlerts"] = hang
    client = await connect(a)
    listener = client.alerts.listen(after_sequence=0, progress_interval=0.1)
    async with listener:
        assert await take(listener, 2) == [1, 2]
        assert listener.address == b.address


async def test_a_cancelled_wait_loses_nothing_and_keeps_the_stream(
    peers: Peers, connect: Connect
) -> None:
    events = EventLog(*peers)
    client = await connect(peers[0])
    async with client.alerts.listen() as listener:
        for _ in range(3):
            waiting = asyncio.create_task(listener.next())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            assert await listener.next(timeout=0.01) is None
        events.add(2)
        assert await take(listener, 2) == [1, 2]
        assert listener.reconnects == 0
    assert len(peers[0].of("SubscribeAlerts")) == 1


async def test_a_repeated_event_is_handed_out_once(peers: Peers, connect: Connect) -> None:
    async def twice(request: Request, context: Context) -> AsyncIterator[Message]:
        yield Message(through_sequence=0, cluster_id="c1")
        for sequence in (1, 1, 2, 1, 3):
            yield Message(event=alert_pb2.AlertEvent(sequence=sequence), through_sequence=sequence)
        await asyncio.Event().wait()

    peers[0].streams["SubscribeAlerts"] = twice
    client = await connect(peers[0])
    async with client.alerts.listen() as listener:
        assert await take(listener, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (grpc.StatusCode.OUT_OF_RANGE, "OUT_OF_RANGE", OutOfRangeError),
        (grpc.StatusCode.FAILED_PRECONDITION, "OTHER_CLUSTER", FailedPreconditionError),
    ],
)
async def test_a_cursor_that_can_not_be_served_is_an_error(
    peers: Peers,
    connect: Connect,
    code: grpc.StatusCode,
    reason: str,
    expected: type[Exception],
) -> None:
    async def trimmed(request: Request, context: Context) -> AsyncIterator[Message]:
        await refuse(context, code, reason, metadata={"oldest_sequence": "17"})
        yield Message()

    peers[0].streams["SubscribeAlerts"] = trimmed
    client = await connect(peers[0])
    with pytest.raises(expected) as caught:
        await client.alerts.listen(after_sequence=3, cluster_id="c1").open()
    assert isinstance(caught.value, OutOfRangeError | FailedPreconditionError)
    assert caught.value.metadata["oldest_sequence"] == "17"


async def test_closing_ends_the_iteration(peers: Peers, connect: Connect) -> None:
    EventLog(*peers)
    client = await connect(peers[0])
    listener = await client.alerts.listen().open()
    reading = asyncio.create_task(take(listener, 1))
    await asyncio.sleep(0)
    await listener.close()
    assert await reading == []


async def test_without_any_peer_the_listener_gives_up_after_its_timeout(
    peers: Peers, connect: Connect
) -> None:
    EventLog(*peers)
    client = await connect(peers[0])
    listener = client.alerts.listen(timeout=0.3)
    for peer in peers:
        await peer.stop()
    with pytest.raises(UnavailableError):
        await listener.open()


async def test_a_listener_that_nobody_opened_begins_with_an_event_too(
    peers: Peers, connect: Connect
) -> None:
    """The first message says where the stream begins and is no event, also in an empty cluster."""
    events = EventLog(*peers)
    client = await connect(peers[0])
    listener = client.alerts.listen()
    assert await listener.next(timeout=0.2) is None
    events.add()
    event = await listener.next(timeout=10)
    await listener.close()
    assert event is not None
    assert event.sequence == 1
