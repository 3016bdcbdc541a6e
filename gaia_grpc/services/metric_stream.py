"""Reads a stream of batches ahead, so that what comes during one commit shares the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.services.publishing import MAX_METRICS_PER_COMMAND

READ_AHEAD_REQUESTS = 64
"""Beyond it the client is held back by HTTP/2 flow control."""


class MetricReader:
    """One stream of requests; a task of its own reads it until `close`."""

    def __init__(self, requests: AsyncIterator[metrics_pb2.StreamMetricsRequest]) -> None:
        self._queue: asyncio.Queue[metrics_pb2.StreamMetricsRequest | None] = asyncio.Queue(
            READ_AHEAD_REQUESTS
        )
        self._error: Exception | None = None
        self._ended = False
        self._task = asyncio.get_running_loop().create_task(self._read(requests))

    async def take(self) -> list[metrics_pb2.StreamMetricsRequest]:
        """What has come, at least one and at most one command full; empty at the end.

        Raises what reading raised, once everything read before it was taken.
        """
        taken: list[metrics_pb2.StreamMetricsRequest] = []
        metrics = 0
        while not self._ended and metrics < MAX_METRICS_PER_COMMAND:
            if taken and self._queue.empty():
                break
            request = await self._queue.get()
            if request is None:
                self._ended = True
                break
            taken.append(request)
            metrics += len(request.batch.metrics)
        if not taken and self._error is not None:
            raise self._error
        return taken

    async def _read(self, requests: AsyncIterator[metrics_pb2.StreamMetricsRequest]) -> None:
        try:
            async for request in requests:
                await self._queue.put(request)
        except Exception as error:  # handed to `take`
            self._error = error
        await self._queue.put(None)

    async def close(self) -> None:
        """Ends the reading task."""
        self._task.cancel()
        await asyncio.wait((self._task,))
