"""Typed calls by area: sessions, tasks and the cluster itself.

Each method returns the RPC's own response message. Every argument that an RPC knows and a method
here does not is reachable through `Client.call` with the raw request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TypeAlias

import grpc
from gaia.cluster.v1 import cluster_pb2
from gaia.common.v1 import common_pb2
from gaia.session.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.client.connection import Connection
from gaia_grpc.client.rpc_errors import to_gaia_error
from gaia_grpc.client.streams import watch
from gaia_grpc.client.watches import DEFAULT_INTERVAL_S, SessionWatch, watch_sessions
from gaia_grpc.errors import InvalidArgumentError

Consistency: TypeAlias = "common_pb2.Consistency.ValueType"
LINEARIZABLE = common_pb2.CONSISTENCY_LINEARIZABLE
LOCAL = common_pb2.CONSISTENCY_LOCAL


def duration(seconds: float) -> Duration:
    """Seconds as a protobuf Duration, to the millisecond.

    Raises:
        InvalidArgumentError: they are no number.
    """
    value = Duration()
    try:
        value.FromMilliseconds(round(seconds * 1000))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"{seconds!r} is no number of seconds") from error
    return value


def session_labels(labels: Mapping[str, str] | None) -> list[session_pb2.Label]:
    """Labels as a request has them."""
    return [
        session_pb2.Label(key=key, value=value) for key, value in sorted((labels or {}).items())
    ]


class SessionsApi:
    """SessionService."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def register(
        self,
        name: str,
        *,
        specialty: str = "",
        max_concurrent_tasks: int = 1,
        tier: session_pb2.Tier.ValueType = session_pb2.TIER_WORKER,
        provider: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> session_pb2.RegisterSessionResponse:
        """Registers a session; the name of a live one raises `AlreadyExistsError`."""
        request = session_pb2.RegisterSessionRequest(
            name=name,
            specialty=specialty,
            max_concurrent_tasks=max_concurrent_tasks,
            tier=tier,
            provider=provider,
            request_id=request_id,
            labels=session_labels(labels),
        )
        return await self._connection.call(
            lambda peer: peer.sessions.RegisterSession, request, timeout=timeout
        )

    async def heartbeat(
        self, session_id: str, *, incarnation: int = 0, timeout: float | None = None
    ) -> session_pb2.HeartbeatResponse:
        """Tells that a session is alive; `FailedPreconditionError` asks to register again."""
        return await self._connection.call(
            lambda peer: peer.sessions.Heartbeat,
            session_pb2.HeartbeatRequest(session_id=session_id, incarnation=incarnation),
            timeout=timeout,
        )

    async def deregister(
        self,
        session_id: str,
        *,
        incarnation: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> session_pb2.DeregisterSessionResponse:
        """Removes a session; its claims go back to the queue, uncounted."""
        return await self._connection.call(
            lambda peer: peer.sessions.DeregisterSession,
            session_pb2.DeregisterSessionRequest(
                session_id=session_id, incarnation=incarnation, request_id=request_id
            ),
            timeout=timeout,
        )

    async def get(
        self,
        session_id: str,
        *,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> session_pb2.GetSessionResponse:
        """Reads one session."""
        return await self._connection.call(
            lambda peer: peer.sessions.GetSession,
            session_pb2.GetSessionRequest(session_id=session_id, consistency=consistency),
            timeout=timeout,
        )

    async def list(
        self,
        *,
        health: session_pb2.Health.ValueType = session_pb2.HEALTH_UNSPECIFIED,
        tier: session_pb2.Tier.ValueType = session_pb2.TIER_UNSPECIFIED,
        provider: str = "",
        specialty: str = "",
        labels: Mapping[str, str] | None = None,
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[session_pb2.Session]:
        """All matching sessions in the order of their ids, page by page.

        Those with all of the `labels`; an empty value fits any.
        """
        request = session_pb2.ListSessionsRequest(
            health=health,
            tier=tier,
            provider=provider,
            specialty=specialty,
            labels=session_labels(labels),
            page_size=page_size,
            consistency=consistency,
        )
        while True:
            page = await self._connection.call(lambda peer: peer.sessions.ListSessions, request)
            for session in page.sessions:
                yield session
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def score(
        self,
        affinity: str = "",
        *,
        page_size: int = 100,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> session_pb2.ScoreSessionsResponse:
        """How well each session fits an affinity, best first."""
        return await self._connection.call(
            lambda peer: peer.sessions.ScoreSessions,
            session_pb2.ScoreSessionsRequest(
                affinity=affinity, page_size=page_size, consistency=consistency
            ),
            timeout=timeout,
        )

    def watch(
        self,
        *,
        tier: session_pb2.Tier.ValueType = session_pb2.TIER_UNSPECIFIED,
        provider: str = "",
        health: session_pb2.Health.ValueType = session_pb2.HEALTH_UNSPECIFIED,
        specialty: str = "",
        labels: Mapping[str, str] | None = None,
        interval: float = DEFAULT_INTERVAL_S,
        address: str | None = None,
        timeout: float | None = None,
    ) -> SessionWatch:
        """Every matching session and then each change, across reconnects; see `StateWatch`."""
        request = session_pb2.WatchSessionsRequest(
            tier=tier,
            provider=provider,
            health=health,
            specialty=specialty,
            labels=session_labels(labels),
        )
        return watch_sessions(
            self._connection, request, interval=interval, address=address, timeout=timeout
        )


class ClusterApi:
    """ClusterService."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def status(
        self, *, address: str | None = None, at_index: int = 0, timeout: float | None = None
    ) -> cluster_pb2.GetStatusResponse:
        """What one peer knows: the one at `address`, or any that answers."""
        request = cluster_pb2.GetStatusRequest(at_index=at_index)
        if address is None:
            return await self._connection.call(
                lambda peer: peer.cluster.GetStatus, request, timeout=timeout
            )
        try:
            return await self._connection.peers.get(address).cluster.GetStatus(
                request,
                timeout=timeout or self._connection.attempt_timeout,
                metadata=self._connection.metadata,
            )
        except grpc.aio.AioRpcError as error:
            raise to_gaia_error(error) from error

    async def statuses(
        self, *, at_index: int = 0, timeout: float = 2.0
    ) -> dict[str, cluster_pb2.GetStatusResponse | Exception]:
        """The status of every known peer by its client address, or why it has none."""
        addresses = self._connection.peers.addresses
        answers = await asyncio.gather(
            *(
                self.status(address=address, at_index=at_index, timeout=timeout)
                for address in addresses
            ),
            return_exceptions=True,
        )
        found: dict[str, cluster_pb2.GetStatusResponse | Exception] = {}
        for address, answer in zip(addresses, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
            found[address] = answer
        return found

    def watch_status(
        self, *, interval: float = 5.0, address: str | None = None
    ) -> AsyncGenerator[cluster_pb2.WatchStatusResponse, None]:
        """The status on every change of role, term or leader, and at least every `interval` s."""
        return watch(
            self._connection,
            lambda peer: peer.cluster.WatchStatus,
            cluster_pb2.WatchStatusRequest(interval_ms=round(interval * 1000)),
            silence=3 * interval + 1,
            address=address,
        )

    async def log_entries(
        self, *, address: str, start_index: int = 0, page_size: int = 10_000
    ) -> list[cluster_pb2.LogEntry]:
        """All committed log entries that the peer at `address` keeps, without their content."""
        request = cluster_pb2.ListLogEntriesRequest(start_index=start_index, page_size=page_size)
        entries: list[cluster_pb2.LogEntry] = []
        while True:
            try:
                page = await self._connection.peers.get(address).cluster.ListLogEntries(
                    request,
                    timeout=self._connection.attempt_timeout,
                    metadata=self._connection.metadata,
                )
            except grpc.aio.AioRpcError as error:
                raise to_gaia_error(error) from error
            entries += page.entries
            if not page.next_page_token:
                return entries
            request.page_token = page.next_page_token

    async def settings(
        self, *, consistency: Consistency = LINEARIZABLE, timeout: float | None = None
    ) -> cluster_pb2.GetSettingsResponse:
        """The replicated settings."""
        return await self._connection.call(
            lambda peer: peer.cluster.GetSettings,
            cluster_pb2.GetSettingsRequest(consistency=consistency),
            timeout=timeout,
        )

    async def update_settings(
        self,
        changes: Mapping[str, str],
        *,
        expected_version: int | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> cluster_pb2.UpdateSettingsResponse:
        """Changes settings through the log, all or none: `{"task.retry_base": "200ms"}`."""
        return await self._connection.call(
            lambda peer: peer.cluster.UpdateSettings,
            cluster_pb2.UpdateSettingsRequest(
                changes=[
                    cluster_pb2.SettingChange(name=name, value=value)
                    for name, value in sorted(changes.items())
                ],
                expected_version=expected_version,
                request_id=request_id,
            ),
            timeout=timeout,
        )
