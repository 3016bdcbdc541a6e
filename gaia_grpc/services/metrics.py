"""MetricsService: batches in, windows out."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gaia.command.v1 import query_pb2
from gaia.metrics.v1 import metrics_pb2, metrics_pb2_grpc

from gaia_grpc.services.classroom_watch import ClassroomWatch, ReadBudget
from gaia_grpc.services.deadlines import Context, log_timeout_s
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.listing import read_page
from gaia_grpc.services.metric_stream import MetricStream
from gaia_grpc.services.publishing import Publisher
from gaia_grpc.services.refused_batches import batch_refusal


class MetricsService(metrics_pb2_grpc.MetricsServiceServicer):
    """See `protos/gaia/metrics/v1/metrics.proto`."""

    def __init__(self, ingress: Ingress, publisher: Publisher) -> None:
        self._ingress = ingress
        self._publisher = publisher
        self._read_budget = ReadBudget()

    async def PublishMetrics(
        self, request: metrics_pb2.PublishMetricsRequest, context: Context
    ) -> metrics_pb2.PublishMetricsResponse:
        """Stores batches; a single refused batch is the status of the call."""
        await self._publisher.turns.wait()
        self._ingress.check(request)
        timeout_s = log_timeout_s(context, self._ingress.consensus)
        published = await self._publisher.publish(request, timeout_s)
        if len(published.results) == 1:
            refusal = batch_refusal(published.results[0])
            if refusal is not None:
                raise refusal
        return metrics_pb2.PublishMetricsResponse(
            results=published.results, term=published.term, applied_index=published.index
        )

    async def StreamMetrics(
        self,
        request_iterator: AsyncIterator[metrics_pb2.StreamMetricsRequest],
        context: Context,
    ) -> AsyncIterator[metrics_pb2.StreamMetricsResponse]:
        """Stores batches as they come; what came meanwhile is committed together."""
        stream = MetricStream(request_iterator, context, self._ingress, self._publisher)
        try:
            async for answer in stream.answers():
                yield answer
        finally:
            await stream.close()

    async def GetAggregate(
        self, request: metrics_pb2.GetAggregateRequest, context: Context
    ) -> metrics_pb2.GetAggregateResponse:
        """Reads one window."""
        self._ingress.check(request)
        query = query_pb2.Query(get_aggregate=request)
        return (await self._ingress.query(context, query, request.consistency)).get_aggregate

    async def ListAggregates(
        self, request: metrics_pb2.ListAggregatesRequest, context: Context
    ) -> metrics_pb2.ListAggregatesResponse:
        """Reads a page of a classroom's windows."""
        self._ingress.check(request)
        query = query_pb2.Query(list_aggregates=request)
        page: metrics_pb2.ListAggregatesResponse = await read_page(self._ingress, context, query)
        return page

    async def ListDetectorInputs(
        self, request: metrics_pb2.ListDetectorInputsRequest, context: Context
    ) -> metrics_pb2.ListDetectorInputsResponse:
        """Reads what the detector saw of a classroom."""
        self._ingress.check(request)
        query = query_pb2.Query(list_detector_inputs=request)
        page: metrics_pb2.ListDetectorInputsResponse = await read_page(
            self._ingress, context, query
        )
        return page

    async def GetHistory(
        self, request: metrics_pb2.GetHistoryRequest, context: Context
    ) -> metrics_pb2.GetHistoryResponse:
        """Reads a page of past windows."""
        self._ingress.check(request)
        query = query_pb2.Query(get_history=request)
        page: metrics_pb2.GetHistoryResponse = await read_page(self._ingress, context, query)
        return page

    async def WatchClassroom(
        self, request: metrics_pb2.WatchClassroomRequest, context: Context
    ) -> AsyncIterator[metrics_pb2.WatchClassroomResponse]:
        """Sends a classroom's windows as they change."""
        self._ingress.check(request)
        watch = ClassroomWatch(self._ingress, request, self._read_budget)
        while True:
            yield await watch.next_update()
