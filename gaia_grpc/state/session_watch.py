"""The messages of a watch over the sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gaia.command.v1 import query_pb2
from gaia.session.v1 import session_pb2

from gaia_grpc.state.changes import ChangeLog
from gaia_grpc.state.context import Context
from gaia_grpc.state.session_record import Labels, Mark, Session
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
        marked = selector(body.filter)
        selection = Selection[Session, Mark](
            records_after=self._after,
            number_of=lambda session: session.number,
            matches=marked,
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


def selector(
    select: session_pb2.ListSessionsRequest | session_pb2.WatchSessionsRequest,
) -> Callable[[Mark | Session], bool]:
    """Whether a session, or one with this mark, is what the request asks for."""
    tier, provider, health, specialty = (
        select.tier,
        select.provider,
        select.health,
        select.specialty,
    )
    labels = tuple((label.key, label.value) for label in select.labels)

    def selected(mark: Mark | Session) -> bool:
        return (
            tier in (session_pb2.TIER_UNSPECIFIED, mark.tier)
            and provider in ("", mark.provider)
            and health in (session_pb2.HEALTH_UNSPECIFIED, mark.health)
            and specialty in ("", mark.specialty)
            and (not labels or _has_labels(mark.labels, labels))
        )

    return selected


def _has_labels(labels: Labels, wanted: Labels) -> bool:
    own = dict(labels)
    return all(key in own and value in ("", own[key]) for key, value in wanted)
