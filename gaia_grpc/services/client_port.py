"""The client port of a peer: every public service, health, reflection behind one interceptor."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import StartupError
from gaia_grpc.node.api import ClusterControl, ReplicatedLog
from gaia_grpc.services.drain import Drain
from gaia_grpc.services.health import HealthService
from gaia_grpc.services.interceptor import CallInterceptor
from gaia_grpc.services.leader_hint import LeaderHint
from gaia_grpc.services.metric_gate import MetricGate
from gaia_grpc.services.reflection import add_reflection
from gaia_grpc.services.registry import NOT_SERVED, SERVICES, PublicServices

HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
MAX_NEW_CALLS = 20_000
"""Calls that have come and are not looked at yet; from then on the interceptor's limits hold."""
KEEPALIVE_INTERVAL_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
"""A client that vanished without a word frees its streams after both together."""
LEAST_CLIENT_PING_INTERVAL_MS = 5_000
"""Clients that ping more often are cut off (GOAWAY too_many_pings)."""

ServerArguments = list[tuple[str, int]]


def server_arguments(max_message_size_bytes: int) -> ServerArguments:
    """gRPC arguments of the client port."""
    return [
        # Without it a second process on the same port starts and gets half of the connections.
        ("grpc.so_reuseport", 0),
        # Room for the interceptor to say how much too large a request is.
        ("grpc.max_receive_message_length", 2 * max_message_size_bytes),
        ("grpc.max_send_message_length", max_message_size_bytes),
        # Who comes in a crowd (subscribers of a peer that died) is not thrown out at random with a
        # bare CANCELLED: gRPC does that from 1,000 new calls on.
        ("grpc.server.max_pending_requests", MAX_NEW_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_NEW_CALLS),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", LEAST_CLIENT_PING_INTERVAL_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", LEAST_CLIENT_PING_INTERVAL_MS),
    ]


def bind(server: grpc.aio.Server, address: str, what: str) -> int:
    """Binds the address and returns the port; `StartupError` where that can't be."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise StartupError(f"the {what} {address} is in use or can't be bound")
    return port


class ClientPort:
    """Serves clients from `start` to `stop`; `port` is the bound one.

    Without `control`, what only the embedded log can do (handing over, members, snapshots) answers
    UNIMPLEMENTED.
    """

    def __init__(
        self, log: ReplicatedLog, config: PeerConfig, control: ClusterControl | None = None
    ) -> None:
        self.port = 0
        self.drain = Drain()
        self.health = HealthService(log, (*SERVICES, HEALTH_NAME))
        self.interceptor = CallInterceptor(
            leader_address=LeaderHint(log),
            drain=self.drain,
            limits=config.limits,
            consensus=config.consensus,
            not_served=NOT_SERVED,
        )
        self._config = config
        self._services = PublicServices(log, config, control)
        self._server = grpc.aio.server(
            interceptors=(self.interceptor,),
            options=server_arguments(config.limits.max_message_size_bytes),
        )
        self._services.add_to(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        add_reflection(self._server, (*SERVICES, HEALTH_NAME))
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger("services")

    def bind(self) -> None:
        """Takes the port, so that a used one is found before anything is founded."""
        self.port = bind(self._server, self._config.listen, "client address")

    @property
    def metric_gate(self) -> MetricGate:
        """How many metrics are on their way, and what became of them."""
        return self._services.metric_gate

    async def start(self) -> None:
        """Begins to serve."""
        if self.port == 0:
            self.bind()
        self.health.start()
        await self._server.start()

    async def stop(self) -> None:
        """Ends streams with their cursors and lets calls in flight finish, within the limit.

        Call `health.drain()` before, and hand leadership over: clients go to another peer then.
        """
        ended = self.drain.begin()
        if ended:
            self._log.info("streams ended", count=ended)
        grace_s = self._config.limits.drain_timeout_ms / 1000
        if self.interceptor.calls or self.interceptor.streams:
            # Until here a new call is told DRAINING. Once the server stops, gRPC cancels calls that
            # come before the client has heard of it, and CANCELLED leaves their outcome open.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.interceptor.idle.wait()
        # Answers and the ends of streams need a moment to leave; with 0 they would be cut off.
        await self._server.stop(max(grace_s, 0.1))
        try:
            async with asyncio.timeout(max(grace_s, 0.1)):
                await self._services.close()
        except TimeoutError:
            self._log.warning("commands were still under way")
        await self.health.close()
