"""Alert events for subscribers: each holds a cursor, none holds a queue.

Subscribers that stand at the same place with the same filter (the teachers of one classroom) share
one read and its messages.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import query_pb2

from gaia_grpc.errors import FailedPreconditionError, OutOfRangeError
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.services.ingress import Ingress, read
from gaia_grpc.state.topics import ALERTS, CLASSROOMS, classroom_alerts, teacher_alerts

DEFAULT_INTERVAL_MS = 5_000
EVENTS_PER_READ = 100
"""About 3 ms of the loop."""
KEPT_READS = 256
NOTHING_AFTER = 2**62
"""A cursor behind every event: a read after it only tells what is newest and oldest."""


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events after a cursor as messages to send; `through_sequence` is the next cursor."""

    version: tuple[int, int]
    messages: Sequence[alert_pb2.SubscribeAlertsResponse]
    through_sequence: int
    oldest_sequence: int
    newest_sequence: int


class AlertFeed:
    """All subscriptions of one peer."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress
        self._log = ingress.log
        self._pages: OrderedDict[tuple[bytes, int], EventPage] = OrderedDict()

    async def subscribe(
        self, request: alert_pb2.SubscribeAlertsRequest
    ) -> AsyncGenerator[alert_pb2.SubscribeAlertsResponse]:
        """Progress first, then every matching event after the start, in order, once; progress
        again after each interval without an event. Raises `OutOfRangeError` where events that are
        due are no longer retained.
        """
        alert_filter = request.filter
        cursor = await self._start(request)
        interval_s = (request.progress_interval_ms or DEFAULT_INTERVAL_MS) / 1000
        topic = _topic(alert_filter)
        loop = asyncio.get_running_loop()
        yield self._progress(cursor)
        sent_s = loop.time()
        while True:
            version = self._log.topic_version(topic)
            page = await self._read(alert_filter, cursor)
            for message in page.messages:
                yield message
            cursor = page.through_sequence
            if page.messages:
                sent_s = loop.time()
            elif loop.time() >= sent_s + interval_s:
                yield self._progress(cursor)
                sent_s = loop.time()
            if cursor < page.newest_sequence:
                await asyncio.sleep(0)
                continue
            remaining_s = max(sent_s + interval_s - loop.time(), 0.0)
            await self._log.wait_topic(topic, version, timeout_s=remaining_s)

    async def _start(self, request: alert_pb2.SubscribeAlertsRequest) -> int:
        """The first cursor.

        `from_now` asks the cluster: this peer may lag behind an alert that was acknowledged
        elsewhere, and would send it as new. A cursor may be ahead of this peer for the same reason.
        """
        cluster_id = self._log.status().cluster_id
        if request.cluster_id and request.cluster_id != cluster_id:
            raise FailedPreconditionError(
                f"the sequence belongs to another cluster than {cluster_id}",
                reason="CLUSTER_MISMATCH",
                metadata={"cluster_id": cluster_id},
            )
        if request.WhichOneof("start") != "after_sequence":
            return (await self._bounds(ReadConsistency.LINEARIZABLE)).newest_sequence
        after = request.after_sequence
        bounds = await self._bounds(ReadConsistency.LOCAL)
        if after > bounds.newest_sequence:
            bounds = await self._bounds(ReadConsistency.LINEARIZABLE)
        if after > bounds.newest_sequence:
            raise _out_of_range(f"sequence {after} has not been given out yet", bounds)
        if after == 0:
            return bounds.oldest_sequence - 1
        if after + 1 < bounds.oldest_sequence:
            # At once: a first message would say that all up to here were sent.
            raise _out_of_range(f"events after {after} are no longer retained", bounds)
        return after

    async def _bounds(self, consistency: ReadConsistency) -> query_pb2.AlertEventsResult:
        query = query_pb2.Query(
            alert_events=query_pb2.AlertEventsQuery(after_sequence=NOTHING_AFTER, limit=1)
        )
        timeout_s = self._ingress.consensus.default_timeout_ms / 1000
        return (await read(self._log, query, consistency, timeout_s)).alert_events

    async def _read(self, alert_filter: alert_pb2.AlertFilter, cursor: int) -> EventPage:
        """Events after the cursor, from this peer's state."""
        key = (alert_filter.SerializeToString(deterministic=True), cursor)
        # A teacher's classrooms are those of the rosters now.
        version = (self._log.topic_version(ALERTS), self._log.topic_version(CLASSROOMS))
        page = self._pages.get(key)
        if page is None or page.version != version:
            page = await self._fresh_page(alert_filter, cursor, version)
            self._pages[key] = page
            if len(self._pages) > KEPT_READS:
                self._pages.popitem(last=False)
        return page

    async def _fresh_page(
        self, alert_filter: alert_pb2.AlertFilter, cursor: int, version: tuple[int, int]
    ) -> EventPage:
        query = query_pb2.Query(
            alert_events=query_pb2.AlertEventsQuery(
                filter=alert_filter, after_sequence=cursor, limit=EVENTS_PER_READ
            )
        )
        timeout_s = self._ingress.consensus.default_timeout_ms / 1000
        found = (await read(self._log, query, ReadConsistency.LOCAL, timeout_s)).alert_events
        if cursor + 1 < found.oldest_sequence:
            raise _out_of_range(f"events after {cursor} are no longer retained", found)
        cluster_id = self._log.status().cluster_id
        messages = [
            alert_pb2.SubscribeAlertsResponse(
                event=event, through_sequence=event.sequence, cluster_id=cluster_id
            )
            for event in found.events
        ]
        # A peer that lags knows less than the cursor: it must not move it back.
        through = max(found.through_sequence, cursor)
        if messages:
            messages[-1].through_sequence = through
        return EventPage(version, messages, through, found.oldest_sequence, found.newest_sequence)

    def _progress(self, cursor: int) -> alert_pb2.SubscribeAlertsResponse:
        return alert_pb2.SubscribeAlertsResponse(
            through_sequence=cursor, cluster_id=self._log.status().cluster_id
        )


def _topic(wanted: alert_pb2.AlertFilter) -> str:
    """The narrowest topic that every matching event touches."""
    if wanted.classroom_id:
        return classroom_alerts(wanted.classroom_id)
    if wanted.teacher_id:
        return teacher_alerts(wanted.teacher_id)
    return ALERTS


def _out_of_range(message: str, bounds: query_pb2.AlertEventsResult) -> OutOfRangeError:
    return OutOfRangeError(
        message,
        metadata={
            "oldest_sequence": str(bounds.oldest_sequence),
            "newest_sequence": str(bounds.newest_sequence),
        },
    )
