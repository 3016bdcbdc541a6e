"""AlertService: who needs help, to whom it concerns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from gaia.alert.v1 import alert_pb2, alert_pb2_grpc
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc.services.alert_feed import AlertFeed
from gaia_grpc.services.deadlines import Context
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.listing import read_page
from gaia_grpc.services.task_specs import milliseconds


class AlertService(alert_pb2_grpc.AlertServiceServicer):
    """See `protos/gaia/alert/v1/alert.proto`."""

    def __init__(self, ingress: Ingress, feed: AlertFeed) -> None:
        self._ingress = ingress
        self._feed = feed

    async def SubscribeAlerts(
        self, request: alert_pb2.SubscribeAlertsRequest, context: Context
    ) -> AsyncIterator[alert_pb2.SubscribeAlertsResponse]:
        """Sends alert events by their sequence, from a cursor or from now on."""
        self._ingress.check(request)
        async with aclosing(self._feed.subscribe(request)) as messages:
            async for message in messages:
                yield message

    async def ListAlerts(
        self, request: alert_pb2.ListAlertsRequest, context: Context
    ) -> alert_pb2.ListAlertsResponse:
        """Reads a page of alerts."""
        self._ingress.check(request)
        query = query_pb2.Query(list_alerts=request)
        page: alert_pb2.ListAlertsResponse = await read_page(self._ingress, context, query)
        return page

    async def AcknowledgeAlert(
        self, request: alert_pb2.AcknowledgeAlertRequest, context: Context
    ) -> alert_pb2.AcknowledgeAlertResponse:
        """A teacher saw it."""
        self._ingress.check(request)
        body = command_pb2.AcknowledgeAlert(
            alert_id=request.alert_id, teacher_id=request.teacher_id
        )
        command = command_pb2.Command(acknowledge_alert=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return alert_pb2.AcknowledgeAlertResponse(
            alert=outcome.result.alert, term=outcome.term, applied_index=outcome.index
        )

    async def SnoozeAlert(
        self, request: alert_pb2.SnoozeAlertRequest, context: Context
    ) -> alert_pb2.SnoozeAlertResponse:
        """A teacher mutes it for a time."""
        self._ingress.check(request)
        body = command_pb2.SnoozeAlert(
            alert_id=request.alert_id,
            teacher_id=request.teacher_id,
            duration_ms=milliseconds(request.duration),
        )
        command = command_pb2.Command(snooze_alert=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return alert_pb2.SnoozeAlertResponse(
            alert=outcome.result.alert, term=outcome.term, applied_index=outcome.index
        )

    async def ResolveAlert(
        self, request: alert_pb2.ResolveAlertRequest, context: Context
    ) -> alert_pb2.ResolveAlertResponse:
        """A teacher closes it."""
        self._ingress.check(request)
        body = command_pb2.ResolveAlert(
            alert_id=request.alert_id, teacher_id=request.teacher_id, note=request.note
        )
        command = command_pb2.Command(resolve_alert=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return alert_pb2.ResolveAlertResponse(
            alert=outcome.result.alert, term=outcome.term, applied_index=outcome.index
        )

    async def RecordIntervention(
        self, request: alert_pb2.RecordInterventionRequest, context: Context
    ) -> alert_pb2.RecordInterventionResponse:
        """A teacher did something."""
        self._ingress.check(request)
        body = command_pb2.RecordIntervention(
            alert_id=request.alert_id,
            student_id=request.student_id,
            teacher_id=request.teacher_id,
            kind=request.kind,
            note=request.note,
            app_name=request.app_name,
            timeline_id=request.timeline_id,
        )
        command = command_pb2.Command(record_intervention=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return alert_pb2.RecordInterventionResponse(
            intervention=outcome.result.intervention,
            term=outcome.term,
            applied_index=outcome.index,
        )

    async def ListInterventions(
        self, request: alert_pb2.ListInterventionsRequest, context: Context
    ) -> alert_pb2.ListInterventionsResponse:
        """Reads a page of interventions."""
        self._ingress.check(request)
        query = query_pb2.Query(list_interventions=request)
        page: alert_pb2.ListInterventionsResponse = await read_page(self._ingress, context, query)
        return page
