"""One stream of batches: read while there is room for them, answered in the order they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.services.deadlines import Context, log_timeout_s
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.publishing import Publisher, Submission
from gaia_grpc.services.refused_batches import invalid_result

READ_AHEAD_REQUESTS = 64
"""Batches of one stream that are not answered; beyond it, or where the peer has no room for more
metrics, the client is held back by HTTP/2 flow control."""

_Answer = Submission | metrics_pb2.BatchResult


class MetricStream:
    """A task of its own reads the requests, until `close`."""

    def __init__(
        self,
        requests: AsyncIterator[metrics_pb2.StreamMetricsRequest],
        context: Context,
        ingress: Ingress,
        publisher: Publisher,
    ) -> None:
        self._requests = requests
        self._context = context
        self._ingress = ingress
        self._publisher = publisher
        self._answers: asyncio.Queue[_Answer | None] = asyncio.Queue(READ_AHEAD_REQUESTS)
        self._error: Exception | None = None
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def answers(self) -> AsyncIterator[metrics_pb2.StreamMetricsResponse]:
        """One a request. Raises what reading raised, once all that was read before is answered."""
        turns = self._publisher.turns
        while (answer := await self._answers.get()) is not None:
            if isinstance(answer, metrics_pb2.BatchResult):
                yield metrics_pb2.StreamMetricsResponse(result=answer)
                continue
            published = await answer.wait()
            await turns.wait()
            yield metrics_pb2.StreamMetricsResponse(
                result=published.results[0], applied_index=published.index
            )
        if self._error is not None:
            raise self._error

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                await self._answers.put(await self._take(request))
        except Exception as error:  # handed to `answers`
            self._error = error
        await self._answers.put(None)

    async def _take(self, request: metrics_pb2.StreamMetricsRequest) -> _Answer:
        batch = request.batch
        await self._publisher.turns.wait()
        try:
            self._ingress.check(request)
        except InvalidArgumentError as error:
            return invalid_result(batch, error)
        publisher = self._publisher
        hold = await publisher.gate.wait(batch.source_id, len(batch.metrics), request.ByteSize())
        timeout_s = log_timeout_s(self._context, self._ingress.consensus)
        return publisher.submit((batch,), hold, time.monotonic() + timeout_s)

    async def close(self) -> None:
        """Ends the reading task; nobody waits for what is not answered."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        while not self._answers.empty():
            answer = self._answers.get_nowait()
            if isinstance(answer, Submission):
                answer.future.cancel()
