"""Metrics that go in, and alert streams that come out and roam from peer to peer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from gaia.alert.v1 import alert_pb2
from gaia.alert.v1.alert_pb2_grpc import AlertServiceStub
from gaia.metrics.v1 import metrics_pb2

from tests.chaos.caller import OPTIONS
from tests.chaos.history import Call, Outcome
from tests.chaos.workload import Worker

APP = "math"
CLASSROOM = "c-chaos"
PROGRESS_MS = 300


class Source(Worker):
    """Sends batches of a few students, in order, repeating each until it is answered.

    A student's errors raise alerts, a new student's each time, so that the alert streams have
    something to tell all along.
    """

    batches_a_student = 4

    async def run(self) -> None:
        sequence = 0
        while not self.stopping.is_set():
            sequence += 1
            student = f"{self.name}-s{sequence // self.batches_a_student}"
            batch = metrics_pb2.MetricBatch(
                source_id=self.name,
                source_epoch=1,
                sequence=sequence,
                classroom_id=CLASSROOM,
                student_id=student,
                app_name=APP,
            )
            for number in range(self.draw.randint(2, 6)):
                kind = self.draw.choice(("error", "error", "keypress"))
                batch.metrics.add(metric_type=kind, value=float(number + 1))
            await self._publish(batch)
            await self.pause(0.1, 0.4)

    async def _publish(self, batch: metrics_pb2.MetricBatch) -> None:
        request = metrics_pb2.PublishMetricsRequest(batches=[batch])
        key = f"{batch.source_id}/{batch.source_epoch}/{batch.sequence}"
        argument = {
            "student": batch.student_id,
            "metrics": len(batch.metrics),
            "sum": sum(metric.value for metric in batch.metrics),
        }
        call = await self.caller.insist("publish_metrics", key, request, argument)
        if call.is_ok and self.draw.random() < 0.1:  # once more: it must count once
            await self.caller.call("publish_metrics", key, request, argument)


@dataclass(slots=True)
class Received:
    """What one subscriber got: each message's events in the order in which they came."""

    name: str
    events: list[tuple[int, bytes]] = field(default_factory=list)
    """(sequence, serialized event)."""
    through: int = 0
    connects: int = 0
    peers: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    """Answers that end a subscription for good: none may come."""


class Listener:
    """Subscribes to all alerts and goes on at another peer after each break, and at random."""

    def __init__(self, name: str, addresses: Mapping[str, str], draw: random.Random) -> None:
        self.received = Received(name)
        self._addresses = dict(addresses)
        self._draw = draw

    async def run(self, stopping: asyncio.Event) -> None:
        """Until the end of the run, a few seconds at each peer."""
        while not stopping.is_set():
            await self._stay(self._draw.choice(sorted(self._addresses)), stopping)

    async def catch_up(self, through: int, timeout_s: float = 20.0) -> None:
        """Goes on until every event up to `through` has come."""
        async with asyncio.timeout(timeout_s):
            while self.received.through < through:
                peer = self._draw.choice(sorted(self._addresses))
                await self._stay(peer, asyncio.Event(), through)

    async def _stay(self, peer: str, stopping: asyncio.Event, through: int | None = None) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._draw.uniform(1.0, 5.0)
        received = self.received
        async with grpc.aio.insecure_channel(self._addresses[peer], options=OPTIONS) as channel:
            request = alert_pb2.SubscribeAlertsRequest(
                after_sequence=received.through, progress_interval_ms=PROGRESS_MS
            )
            stream = AlertServiceStub(channel).SubscribeAlerts(request, timeout=15)
            received.connects += 1
            try:
                while not stopping.is_set() and loop.time() < until_s:
                    async with asyncio.timeout_at(until_s):
                        message = await stream.read()
                    if not isinstance(message, alert_pb2.SubscribeAlertsResponse):
                        break
                    received.peers.add(peer)
                    self._take(message)
                    if through is not None and received.through >= through:
                        break
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                if error.code() in (
                    grpc.StatusCode.OUT_OF_RANGE,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.INTERNAL,
                ):
                    received.refusals.append(f"{peer}: {error.code().name} {error.details()}")
                await asyncio.sleep(self._draw.uniform(0.05, 0.2))
            finally:
                stream.cancel()

    def _take(self, message: alert_pb2.SubscribeAlertsResponse) -> None:
        if message.HasField("event"):
            event = message.event
            self.received.events.append((event.sequence, event.SerializeToString()))
        self.received.through = message.through_sequence


def published_totals(calls: list[Call]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Student to what must be counted, and the batches whose outcome nobody knows.

    Each batch counts once: several calls of one key are repetitions of the same batch.
    """
    batches: dict[str, list[Call]] = {}
    for call in calls:
        batches.setdefault(call.key, []).append(call)
    totals: dict[str, dict[str, Any]] = {}
    unknown = []
    for key, attempts in batches.items():
        total = totals.setdefault(
            attempts[0].argument["student"], {"count": 0, "sum": 0.0, "open": 0}
        )
        if any(call.is_ok for call in attempts):
            total["count"] += attempts[0].argument["metrics"]
            total["sum"] += attempts[0].argument["sum"]
        elif any(call.outcome is Outcome.UNKNOWN for call in attempts):
            total["open"] += 1
            unknown.append(key)
    return totals, unknown
