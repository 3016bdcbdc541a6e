"""SessionService: sessions register, send heartbeats and are listed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from gaia.command.v1 import command_pb2, query_pb2
from gaia.session.v1 import session_pb2, session_pb2_grpc

from gaia_grpc.services.deadlines import Context, log_timeout_s
from gaia_grpc.services.heartbeats import HeartbeatCollector
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.listing import read_page
from gaia_grpc.services.settings_cache import SettingsCache
from gaia_grpc.services.state_watch import watch_sessions

GENERAL = "general"


class SessionService(session_pb2_grpc.SessionServiceServicer):
    """See `protos/gaia/session/v1/session.proto`."""

    def __init__(
        self, ingress: Ingress, heartbeats: HeartbeatCollector, settings: SettingsCache
    ) -> None:
        self._ingress = ingress
        self._heartbeats = heartbeats
        self._settings = settings

    async def RegisterSession(
        self, request: session_pb2.RegisterSessionRequest, context: Context
    ) -> session_pb2.RegisterSessionResponse:
        """Adds a session, or renews one of the same name that failed."""
        self._ingress.check(request)
        body = command_pb2.RegisterSession(
            name=request.name,
            tier=request.tier or session_pb2.TIER_WORKER,
            provider=request.provider,
            specialty=request.specialty or GENERAL,
            max_concurrent_tasks=request.max_concurrent_tasks or 1,
            labels=sorted(request.labels, key=lambda label: label.key),
        )
        command = command_pb2.Command(register_session=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return session_pb2.RegisterSessionResponse(
            session=outcome.result.session.session,
            term=outcome.term,
            applied_index=outcome.index,
            heartbeat_interval_ms=await self._settings.milliseconds("session.heartbeat_interval"),
        )

    async def Heartbeat(
        self, request: session_pb2.HeartbeatRequest, context: Context
    ) -> session_pb2.HeartbeatResponse:
        """Answers once the heartbeat, with others of the same moment, is committed."""
        self._ingress.check(request)
        timeout_s = log_timeout_s(context, self._ingress.consensus)
        answer = await self._heartbeats.beat(request.session_id, request.incarnation, timeout_s)
        return session_pb2.HeartbeatResponse(
            session=answer.session, term=answer.term, applied_index=answer.index
        )

    async def DeregisterSession(
        self, request: session_pb2.DeregisterSessionRequest, context: Context
    ) -> session_pb2.DeregisterSessionResponse:
        """Removes a session; its claims go back uncounted."""
        self._ingress.check(request)
        body = command_pb2.DeregisterSession(
            session_id=request.session_id, incarnation=request.incarnation
        )
        command = command_pb2.Command(deregister_session=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return session_pb2.DeregisterSessionResponse(
            session=outcome.result.session.session,
            released_tasks=outcome.result.session.released_tasks,
            term=outcome.term,
            applied_index=outcome.index,
        )

    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        """Reads one session."""
        self._ingress.check(request)
        query = query_pb2.Query(get_session=request)
        return (await self._ingress.query(context, query, request.consistency)).get_session

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        """Reads a page of sessions."""
        self._ingress.check(request)
        query = query_pb2.Query(list_sessions=request)
        page: session_pb2.ListSessionsResponse = await read_page(self._ingress, context, query)
        return page

    async def WatchSessions(
        self, request: session_pb2.WatchSessionsRequest, context: Context
    ) -> AsyncIterator[session_pb2.WatchSessionsResponse]:
        """Sends all sessions and then each change."""
        self._ingress.check(request)
        async with aclosing(watch_sessions(self._ingress, request)) as messages:
            async for message in messages:
                yield message

    async def ScoreSessions(
        self, request: session_pb2.ScoreSessionsRequest, context: Context
    ) -> session_pb2.ScoreSessionsResponse:
        """Reads how well sessions fit an affinity."""
        self._ingress.check(request)
        request.page_size = self._ingress.page_size(request.page_size)
        query = query_pb2.Query(score_sessions=request)
        return (await self._ingress.query(context, query, request.consistency)).score_sessions
