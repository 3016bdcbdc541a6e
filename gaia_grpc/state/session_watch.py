"""The messages of a watch over the sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gaia.command.v1 import query_pb2
from gaia.session.v1 import session_pb2

from gaia_grpc.state.changes import ChangeLog
from gaia_grpc.state.context import Context
from gaia_grpc.state.session_record import Mark, Session
from gaia_grpc.state.watching import Event, Kind, Selection, next_step

MOST_PER_STEP = 1_000


class SessionWatch:
    """Answers `WatchSessionsQuery`."""

    def __init__(
        self,
        context: Context,
        changes: ChangeLog[Mark, Session],
        find: Callable[[int], Session | None],
        after: Callable[[int], Iterable[Session]],
    ) -> None:
        self._context = context
        self._changes = changes
        self._find = find
        self._after = after

    def next(self, body: query_pb2.WatchSessionsQuery, now_ms: int) -> query_pb2.QueryResult:
        """What a watch is sent next."""
        del now_ms
        select = body.filter

        def marked(mark: Mark) -> bool:
            tier, provider, health = mark
            return (
                select.tier in (session_pb2.TIER_UNSPECIFIED, tier)
                and select.provider in ("", provider)
                and select.health in (session_pb2.HEALTH_UNSPECIFIED, health)
            )

        selection = Selection[Session, Mark](
            records_after=self._after,
            number_of=lambda session: session.number,
            matches=lambda session: marked(session.mark),
            matched=lambda _, mark: marked(mark),
        )
        step = next_step(
            self._changes,
            self._context.index,
            body.place if body.HasField("place") else None,
            min(body.limit, MOST_PER_STEP) or 1,
            selection,
        )
        result = query_pb2.WatchSessionsResult(
            messages=[self._message(event) for event in step.events],
            place=step.place,
            more=step.more,
        )
        return query_pb2.QueryResult(watch_sessions=result)

    def _message(self, event: Event) -> session_pb2.WatchSessionsResponse:
        message = session_pb2.WatchSessionsResponse(
            kind=session_pb2.WatchKind.Value(f"WATCH_KIND_{event.kind.name}"),
            applied_index=event.index,
            through_index=event.through_index,
        )
        if event.kind is Kind.COMPLETE:
            message.cluster_id = self._context.cluster_id
        for number in event.numbers:
            session = self._find(number) or self._changes.stub_of(number)
            if session is None:
                continue
            if event.kind is Kind.EXISTING:
                message.sessions.append(session.message())
            else:
                message.session.CopyFrom(session.message())
        return message
