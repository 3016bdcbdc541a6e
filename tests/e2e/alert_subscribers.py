"""Subscribers that a test of alerts needs: one that roams, one that never reads, and the truth."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from gaia.alert.v1 import alert_pb2, alert_pb2_grpc

from gaia_grpc.client import Client

PROGRESS_MS = 100
REST_S = 0.03
"""Between two visits, so that a dead peer is not asked all the time."""
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0))
"""Of a client that takes little without reading it."""

Told = tuple[int, int, str]
"""(sequence, change, alert_id)."""


def told(event: alert_pb2.AlertEvent) -> Told:
    """What of an event must be the same for everyone."""
    return event.sequence, event.change, event.alert.alert_id


async def frustrate(
    client: Client, students: Iterable[str], classroom: str, *, errors: int = 5
) -> None:
    """So many errors of each student at once, one batch a student, all in one call where it can
    be; returns once they are acknowledged."""
    buffers = [
        client.metrics.buffer(
            student_id=student, app_name="math", classroom_id=classroom, urgent_types=frozenset()
        )
        for student in students
    ]
    for buffer in buffers:
        for _ in range(errors):
            buffer.record("error")
    await asyncio.gather(*(buffer.close() for buffer in buffers))


def matches(event: alert_pb2.AlertEvent, wanted: alert_pb2.AlertFilter) -> bool:
    """The filter's rule, written down a second time (but for teachers)."""
    alert = event.alert
    return (
        wanted.classroom_id in ("", alert.classroom_id)
        and wanted.student_id in ("", alert.student_id)
        and alert.severity >= wanted.min_severity
        and alert.timeline_id == wanted.timeline_id
    )


async def all_events(
    client: Client, address: str, newest: int, wanted: alert_pb2.AlertFilter | None = None
) -> list[alert_pb2.AlertEvent]:
    """Every retained event up to `newest`, as one peer tells it."""
    request = alert_pb2.SubscribeAlertsRequest(
        filter=wanted, after_sequence=0, progress_interval_ms=PROGRESS_MS
    )
    call = client.peer(address).alerts.SubscribeAlerts(request, timeout=20, wait_for_ready=True)
    found = []
    try:
        async for message in call:
            if message.HasField("event"):
                found.append(message.event)
            if message.through_sequence >= newest:
                return found
    finally:
        call.cancel()
    raise AssertionError(f"the stream of {address} ended")


async def newest_sequence(client: Client) -> int:
    """The sequence of the newest event that the cluster knows."""
    async with client.alerts.listen() as listener:
        return listener.cursor or 0


@dataclass
class Roamer:
    """Reads a little at one peer, leaves without a word, and goes on at another one.

    It holds nothing but the cursor that it was given: no stub of the SDK that knows better.
    """

    client: Client
    wanted: alert_pb2.AlertFilter
    draw: random.Random
    cursor: int | None = None
    """None: it has had no answer yet, and begins from now."""
    began: int = 0
    got: list[Told] = field(default_factory=list)
    visits: int = 0
    broken: int = 0
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._visit()
            await asyncio.sleep(REST_S * self.draw.random())

    async def _visit(self) -> None:
        request = alert_pb2.SubscribeAlertsRequest(
            filter=self.wanted, progress_interval_ms=PROGRESS_MS
        )
        if self.cursor is None:
            request.from_now = True
        else:
            request.after_sequence = self.cursor
        address = self.draw.choice(self.client.addresses)
        left = self.draw.randint(1, 8)
        call = self.client.peer(address).alerts.SubscribeAlerts(request, timeout=3)
        self.visits += 1
        try:
            async for message in call:
                self._take(message)
                left -= 1
                if not left:
                    break
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE and (
                error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
            ):
                raise
            self.broken += 1
        finally:
            call.cancel()

    def _take(self, message: alert_pb2.SubscribeAlertsResponse) -> None:
        if self.cursor is None:
            self.began = message.through_sequence
        assert message.through_sequence >= (self.cursor or 0), "the cursor went back"
        if message.HasField("event"):
            self.got.append(told(message.event))
        self.cursor = message.through_sequence
        self._moved.set()

    async def until(self, sequence: int) -> None:
        """Waits until it knows all up to a sequence."""
        while self.cursor is None or self.cursor < sequence:
            self._moved.clear()
            await self._moved.wait()


@asynccontextmanager
async def running(roamers: Iterable[Roamer]) -> AsyncIterator[None]:
    """They roam while the block runs; what ended one of them is raised at its end."""
    tasks = [asyncio.create_task(roamer.run()) for roamer in roamers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


@asynccontextmanager
async def stalled(
    address: str, request: alert_pb2.SubscribeAlertsRequest, count: int
) -> AsyncIterator[
    list[
        grpc.aio.UnaryStreamCall[
            alert_pb2.SubscribeAlertsRequest, alert_pb2.SubscribeAlertsResponse
        ]
    ]
]:
    """Open subscriptions of one client that reads none of them."""
    async with grpc.aio.insecure_channel(address, options=SMALL_WINDOW) as channel:
        stub: alert_pb2_grpc.AlertServiceAsyncStub = alert_pb2_grpc.AlertServiceStub(channel)
        calls = [stub.SubscribeAlerts(request) for _ in range(count)]
        try:
            await asyncio.gather(*(call.initial_metadata() for call in calls))
            yield calls
        finally:
            for call in calls:
                call.cancel()
