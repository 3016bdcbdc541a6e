"""grpc.health.v1: SERVING while this peer can take writes, for load balancers and for probes.

The stock aio servicer lacks List, and holds a lock while it writes to a watcher, so one that does
not read would hold up all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from gaia_grpc.errors import NotFoundError
from gaia_grpc.node.api import ReplicatedLog
from gaia_grpc.services.deadlines import Context

FOLLOW_INTERVAL_S = 1.0
"""`writable` is asked anew at least this often."""

# The published type stubs do not know List yet.
_untyped: Any = health_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(health_pb2_grpc.HealthServicer):
    """One status for the peer and all of its services: they stand and fall with the log."""

    def __init__(self, log: ReplicatedLog, service_names: Iterable[str]) -> None:
        self._log = log
        self._names = ("", *sorted(service_names))
        self._draining = False
        self._serving = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to follow the log's status."""
        self._update()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Stops following."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def drain(self) -> None:
        """NOT_SERVING for good."""
        self._draining = True
        self._update()

    @property
    def serving(self) -> bool:
        """Whether this peer takes writes, as far as it knows."""
        return self._serving

    def _update(self) -> None:
        serving = not self._draining and self._log.status().writable
        if serving != self._serving:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    async def _follow(self) -> None:
        while True:
            await self._log.wait_status(self._log.status(), timeout_s=FOLLOW_INTERVAL_S)
            self._update()
            # A log whose status changes all the time must not take the loop for itself.
            await asyncio.sleep(0)

    def _status(self, name: str) -> int:
        if name not in self._names:
            return SERVICE_UNKNOWN
        return SERVING if self._serving else NOT_SERVING

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that this port does not have."""
        self._update()  # who was told by the log that it takes writes must not hear less here
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            raise NotFoundError(f"no service {request.service[:200]!r} at this port")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and at each change."""
        sent = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            await changed.wait()

    async def List(self, request: Any, context: Context) -> Any:
        """The status of every service."""
        response = _untyped.HealthListResponse()
        for name in self._names:
            response.statuses[name].status = self._status(name)
        return response
