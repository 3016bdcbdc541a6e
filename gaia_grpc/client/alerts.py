"""AlertService, typed, and the listener that misses nothing and repeats nothing.

Every message of the stream carries `through_sequence`: all matching events up to it were sent. The
listener keeps that number as its cursor, moves it only when an event is handed to the caller, and
goes on with it at any peer after any failure. The sequence is global and made in the replicated
log, so each peer means the same by it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from gaia.alert.v1 import alert_pb2

from gaia_grpc.client.connection import Connection
from gaia_grpc.client.resources import LINEARIZABLE, Consistency, duration
from gaia_grpc.client.streams import ResumableStream
from gaia_grpc.errors import UnavailableError


class AlertListener:
    """Alert events in the order of their sequence: an async iterator and context manager.

    async with client.alerts.listen(teacher_id="t1") as listener:
        async for event in listener:
            ...
    """

    def __init__(
        self,
        connection: Connection,
        alert_filter: alert_pb2.AlertFilter,
        *,
        after_sequence: int | None = None,
        cluster_id: str = "",
        progress_interval: float = 5.0,
        address: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Made by `client.alerts.listen(...)`.

        Args:
            connection: the peers.
            alert_filter: which alerts.
            after_sequence: where to begin; 0 is all that are retained, None is from now on.
            cluster_id: the cluster that `after_sequence` belongs to, where it is known.
            progress_interval: longest silence of a healthy peer, in seconds.
            address: the peer to begin with.
            timeout: seconds without any peer that answers before an error; None tries on for ever.
        """
        self._filter = alert_filter
        self._cursor = after_sequence
        self._cluster_id = cluster_id
        self._progress_ms = round(progress_interval * 1000)
        self._anchored = False
        self._closed = False
        self._stream = ResumableStream(
            connection,
            lambda peer: peer.alerts.SubscribeAlerts,
            self._request,
            silence=3 * progress_interval + 1,
            timeout=timeout,
            address=address,
        )

    @property
    def cursor(self) -> int | None:
        """All matching events up to this sequence were handed out; None before the first answer."""
        return self._cursor

    @property
    def cluster_id(self) -> str:
        """The cluster that the cursor belongs to; empty before the first answer."""
        return self._cluster_id

    @property
    def reconnects(self) -> int:
        """How often the stream had to be opened again."""
        return self._stream.reconnects

    @property
    def interrupted(self) -> bool:
        """Whether the connection is lost at this moment; it is sought again by itself."""
        return self._stream.interrupted

    @property
    def address(self) -> str | None:
        """The peer that serves the stream."""
        return self._stream.address

    def _request(self) -> alert_pb2.SubscribeAlertsRequest:
        request = alert_pb2.SubscribeAlertsRequest(
            filter=self._filter,
            cluster_id=self._cluster_id,
            progress_interval_ms=self._progress_ms,
        )
        if self._cursor is None:
            request.from_now = True
        else:
            request.after_sequence = self._cursor
        return request

    async def open(self) -> Self:
        """Waits for the first answer: from here on, no matching event is missed."""
        while not self._anchored:
            await self._receive(None)
        return self

    async def next(self, timeout: float | None = None) -> alert_pb2.AlertEvent | None:
        """The next event; None where none came within `timeout` seconds.

        Raises:
            OutOfRangeError: the events after the cursor are no longer retained; the metadata
                `oldest_sequence` tells where one could go on.
            DomainError: the subscription was refused.
        """
        loop_time = self._stream.time
        deadline = None if timeout is None else loop_time() + timeout
        while True:
            left = None if deadline is None else deadline - loop_time()
            if left is not None and left < 0:
                return None
            event = await self._receive(left)
            if event is not None:
                return event

    async def _receive(self, timeout: float | None) -> alert_pb2.AlertEvent | None:
        """Takes one message; its event, where it has one that is new."""
        message = await self._stream.next(timeout)
        if message is None:
            return None
        self._anchored = True
        self._cluster_id = message.cluster_id or self._cluster_id
        known = -1 if self._cursor is None else self._cursor
        event = message.event if message.HasField("event") else None
        sequence = 0 if event is None else event.sequence
        self._cursor = max(known, sequence, message.through_sequence)
        return event if sequence > known else None

    def __aiter__(self) -> AsyncIterator[alert_pb2.AlertEvent]:
        return self

    async def __anext__(self) -> alert_pb2.AlertEvent:
        while not self._closed:
            try:
                event = await self.next()
            except UnavailableError:
                if self._closed:
                    break
                raise
            if event is not None:
                return event
        raise StopAsyncIteration

    async def close(self) -> None:
        """Ends the subscription and the iteration; idempotent."""
        self._closed = True
        await self._stream.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AlertsApi:
    """AlertService."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def listen(
        self,
        *,
        classroom_id: str = "",
        student_id: str = "",
        teacher_id: str = "",
        min_severity: alert_pb2.Severity.ValueType = alert_pb2.SEVERITY_UNSPECIFIED,
        timeline_id: str = "",
        kind: alert_pb2.AlertKind.ValueType = alert_pb2.ALERT_KIND_UNSPECIFIED,
        after_sequence: int | None = None,
        cluster_id: str = "",
        progress_interval: float = 5.0,
        address: str | None = None,
        timeout: float | None = None,
    ) -> AlertListener:
        """A listener for matching alert events; see `AlertListener`."""
        return AlertListener(
            self._connection,
            alert_pb2.AlertFilter(
                classroom_id=classroom_id,
                student_id=student_id,
                teacher_id=teacher_id,
                min_severity=min_severity,
                timeline_id=timeline_id,
                kind=kind,
            ),
            after_sequence=after_sequence,
            cluster_id=cluster_id,
            progress_interval=progress_interval,
            address=address,
            timeout=timeout,
        )

    async def list(
        self,
        *,
        classroom_id: str = "",
        student_id: str = "",
        teacher_id: str = "",
        min_severity: alert_pb2.Severity.ValueType = alert_pb2.SEVERITY_UNSPECIFIED,
        timeline_id: str = "",
        kind: alert_pb2.AlertKind.ValueType = alert_pb2.ALERT_KIND_UNSPECIFIED,
        state: alert_pb2.AlertState.ValueType = alert_pb2.ALERT_STATE_UNSPECIFIED,
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[alert_pb2.Alert]:
        """All matching alerts, newest first, page by page."""
        request = alert_pb2.ListAlertsRequest(
            filter=alert_pb2.AlertFilter(
                classroom_id=classroom_id,
                student_id=student_id,
                teacher_id=teacher_id,
                min_severity=min_severity,
                timeline_id=timeline_id,
                kind=kind,
            ),
            state=state,
            page_size=page_size,
            consistency=consistency,
        )
        while True:
            page = await self._connection.call(lambda peer: peer.alerts.ListAlerts, request)
            for alert in page.alerts:
                yield alert
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def acknowledge(
        self,
        alert_id: str,
        *,
        teacher_id: str,
        request_id: str = "",
        timeout: float | None = None,
    ) -> alert_pb2.AcknowledgeAlertResponse:
        """Says that a teacher saw it; mutes it for 5 minutes."""
        return await self._connection.call(
            lambda peer: peer.alerts.AcknowledgeAlert,
            alert_pb2.AcknowledgeAlertRequest(
                alert_id=alert_id, teacher_id=teacher_id, request_id=request_id
            ),
            timeout=timeout,
        )

    async def snooze(
        self,
        alert_id: str,
        *,
        teacher_id: str,
        seconds: float,
        request_id: str = "",
        timeout: float | None = None,
    ) -> alert_pb2.SnoozeAlertResponse:
        """Mutes it for a time, at most a day; if it is still open then, it is pushed again."""
        return await self._connection.call(
            lambda peer: peer.alerts.SnoozeAlert,
            alert_pb2.SnoozeAlertRequest(
                alert_id=alert_id,
                teacher_id=teacher_id,
                duration=duration(seconds),
                request_id=request_id,
            ),
            timeout=timeout,
        )

    async def resolve(
        self,
        alert_id: str,
        *,
        teacher_id: str,
        note: str = "",
        request_id: str = "",
        timeout: float | None = None,
    ) -> alert_pb2.ResolveAlertResponse:
        """Closes it."""
        return await self._connection.call(
            lambda peer: peer.alerts.ResolveAlert,
            alert_pb2.ResolveAlertRequest(
                alert_id=alert_id, teacher_id=teacher_id, note=note, request_id=request_id
            ),
            timeout=timeout,
        )

    async def intervene(
        self,
        kind: str,
        *,
        student_id: str,
        teacher_id: str,
        alert_id: str = "",
        note: str = "",
        app_name: str = "",
        timeline_id: str = "",
        request_id: str = "",
        timeout: float | None = None,
    ) -> alert_pb2.RecordInterventionResponse:
        """Records what a teacher did; one that names an alert acknowledges and mutes it.

        Args:
            kind: help, encouragement, feedback, reassign, referral, guidance or technical_help.
            student_id: the student.
            teacher_id: the teacher.
            alert_id: the alert that it answers, if any.
            note: for people.
            app_name: what it was about, where no alert says so.
            timeline_id: the same.
            request_id: makes a retry of the caller's own safe; the SDK's are.
            timeout: seconds.
        """
        return await self._connection.call(
            lambda peer: peer.alerts.RecordIntervention,
            alert_pb2.RecordInterventionRequest(
                alert_id=alert_id,
                student_id=student_id,
                teacher_id=teacher_id,
                kind=kind,
                note=note,
                app_name=app_name,
                timeline_id=timeline_id,
                request_id=request_id,
            ),
            timeout=timeout,
        )

    async def interventions(
        self,
        *,
        student_id: str = "",
        alert_id: str = "",
        teacher_id: str = "",
        classroom_id: str = "",
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[alert_pb2.Intervention]:
        """All matching interventions, newest first, page by page."""
        request = alert_pb2.ListInterventionsRequest(
            student_id=student_id,
            alert_id=alert_id,
            teacher_id=teacher_id,
            classroom_id=classroom_id,
            page_size=page_size,
            consistency=consistency,
        )
        while True:
            page = await self._connection.call(lambda peer: peer.alerts.ListInterventions, request)
            for intervention in page.interventions:
                yield intervention
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
