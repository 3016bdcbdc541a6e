"""Sessions: who is there, and whether they are alive, by heartbeats in log time.

healthy -> degraded after session.degraded_after without a heartbeat -> failed after
session.failed_after. A heartbeat heals a degraded session; a failed one registers again under its
name and keeps its id with a higher incarnation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from gaia.command.v1 import command_pb2, query_pb2, snapshot_pb2
from gaia.session.v1 import session_pb2

from gaia_grpc.state import page_tokens, refusal, topics
from gaia_grpc.state.affinity import GENERAL, NONE
from gaia_grpc.state.changes import ChangeLog
from gaia_grpc.state.context import SESSION_FAILED, CommandHandler, Context, QueryHandler
from gaia_grpc.state.refusal import Refused, refused
from gaia_grpc.state.session_record import DEGRADED, FAILED, HEALTHY, Mark, Session
from gaia_grpc.state.session_score import best, scored
from gaia_grpc.state.session_watch import SessionWatch, selector
from gaia_grpc.state.snapshot import FrozenInOrder, Part, records_section, single_section
from gaia_grpc.state.timers import Timer

HEALTH_TIMER = "session.health"
FULL_RETRY_MS = 1_000
HEALTH_WORDS: Mapping[int, str] = {HEALTHY: "healthy", DEGRADED: "degraded", FAILED: "failed"}


class SessionListener(Protocol):
    """Who hands tasks to sessions."""

    def session_lost(self, session: Session, *, counted: bool) -> int:
        """Takes all claims and waits from the session; returns how many claims it held."""
        ...

    def session_changed(self, session: Session) -> None:
        """The session's readiness for tasks may have changed."""
        ...


class SessionTable:
    """All sessions, failed ones included."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sessions: dict[int, Session] = {}  # by number, which is the order of the log
        self._by_id: dict[str, Session] = {}
        self._by_name: dict[str, Session] = {}
        self._numbers: list[int] = []  # of all sessions, in their order
        self._timers: dict[int, Timer] = {}
        self._last_number = 0
        self._listener: SessionListener | None = None
        self._changes = ChangeLog[Mark, Session](context)
        watch = SessionWatch(context, self._changes, self.numbered, self.after)
        self._frozen = FrozenInOrder(self._sessions, lambda number, session: session.encode())
        self.parts: Sequence[Part] = (
            single_section("session_counters", self._encode_counters, self._load_counters),
            records_section("session", self._frozen, self._load),
        )
        context.timers.register(HEALTH_TIMER, self._health_due)
        self.commands: Mapping[str, CommandHandler] = {
            "register_session": self.register,
            "record_heartbeats": self.record_heartbeats,
            "deregister_session": self.deregister,
        }
        self.queries: Mapping[str, QueryHandler] = {
            "get_session": self.get,
            "list_sessions": self.list_page,
            "score_sessions": self.score,
            "watch_sessions": watch.next,
        }

    def listen(self, listener: SessionListener) -> None:
        """Names who hears of lost and changed sessions; once, when the tables are built."""
        self._listener = listener

    def __iter__(self) -> Iterator[Session]:
        """Sessions in the order of their ids."""
        return iter(self._sessions.values())

    def find(self, session_id: str) -> Session | None:
        """The session, or None."""
        return self._by_id.get(session_id)

    def existing(self, session_id: str) -> Session:
        """The session. Raises `Refused` (NOT_FOUND)."""
        session = self._by_id.get(session_id)
        if session is None:
            raise refusal.not_found("session", session_id)
        return session

    def numbered(self, number: int) -> Session | None:
        """The session with this number, or None."""
        return self._sessions.get(number)

    def after(self, number: int) -> Iterator[Session]:
        """Sessions with higher numbers, in their order."""
        for place in range(bisect_right(self._numbers, number), len(self._numbers)):
            yield self._sessions[self._numbers[place]]

    def claims_changed(self, session: Session) -> None:
        """The session holds one task more or less."""
        mark = session.mark
        self._changes.note(session.number, mark, mark)
        self._context.touch(topics.SESSIONS)

    def settings_changed(self) -> None:
        """Times may be shorter now: looks at each session again."""
        for session in self:
            self._set_timer(session)

    # --- commands

    def register(self, body: command_pb2.RegisterSession) -> command_pb2.CommandResult:
        """Adds a session, or lets a failed one begin again under its name."""
        if not body.name:
            raise refusal.invalid("name", "name is empty")
        if body.max_concurrent_tasks < 1:
            raise refusal.invalid("max_concurrent_tasks", "max_concurrent_tasks is less than 1")
        known = self._by_name.get(body.name)
        if known is not None and known.health != FAILED:
            raise self._name_taken(known)
        before = None if known is None else known.mark
        session = self._renewed(known) if known is not None else self._added(body.name)
        if known is not None:
            self._context.report(SESSION_FAILED, known.name, over=True)
        session.describe(body)
        session.specialty = session.specialty or GENERAL
        session.health = HEALTHY
        session.register_ms = session.last_heartbeat_ms = self._context.now_ms
        self._set_timer(session)
        self._changed(session, before)
        return session_result(session)

    def record_heartbeats(self, body: command_pb2.RecordHeartbeats) -> command_pb2.CommandResult:
        """Each heartbeat has an outcome of its own."""
        outcomes = []
        for heartbeat in body.heartbeats:
            try:
                session = self.current(heartbeat.session_id, heartbeat.incarnation)
                if session.health == FAILED:
                    raise session_failed(session)
            except Refused as no:
                outcomes.append(command_pb2.HeartbeatOutcome(refusal=no.refusal))
                continue
            self._frozen.changing(session.number)
            session.last_heartbeat_ms = self._context.now_ms
            if session.health == DEGRADED:
                self._set_health(session, HEALTHY)
            # A timer that were left to fire would make a log entry of its own for each session.
            self._set_timer(session)
            outcomes.append(command_pb2.HeartbeatOutcome(session=session.message()))
        results = command_pb2.HeartbeatResults(outcomes=outcomes)
        return command_pb2.CommandResult(heartbeats=results)

    def deregister(self, body: command_pb2.DeregisterSession) -> command_pb2.CommandResult:
        """Removes a session; its claims go back at once and count as no attempt."""
        session = self.current(body.session_id, body.incarnation)
        held = session.message()
        released = (
            0 if self._listener is None else self._listener.session_lost(session, counted=False)
        )
        self._remove(session)
        result = command_pb2.SessionResult(session=held, released_tasks=released)
        return command_pb2.CommandResult(session=result)

    # --- queries

    def get(self, body: session_pb2.GetSessionRequest, now_ms: int) -> query_pb2.QueryResult:
        """One session."""
        del now_ms
        answer = session_pb2.GetSessionResponse(session=self.existing(body.session_id).message())
        return query_pb2.QueryResult(get_session=answer)

    def list_page(
        self, body: session_pb2.ListSessionsRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """One page in the order of the ids."""
        del now_ms
        size = page_tokens.page_size(body.page_size)
        after = page_tokens.decode(body, body.page_token)
        select = selector(body)
        answer = session_pb2.ListSessionsResponse()
        for session in self:
            if session.session_id <= after or not select(session):
                continue
            if len(answer.sessions) == size:
                last = answer.sessions[-1].session_id
                answer.next_page_token = page_tokens.encode(body, last)
                break
            answer.sessions.append(session.message())
        return query_pb2.QueryResult(list_sessions=answer)

    def score(self, body: session_pb2.ScoreSessionsRequest, now_ms: int) -> query_pb2.QueryResult:
        """The best sessions for an affinity, in the order that the contract states."""
        del now_ms
        size = page_tokens.page_size(body.page_size)
        affinity = body.affinity or GENERAL
        answer = session_pb2.ScoreSessionsResponse(
            scores=[_score_message(session, affinity) for session in best(self, affinity, size)]
        )
        return query_pb2.QueryResult(score_sessions=answer)

    # --- health

    def _health_due(self, key: int | str) -> None:
        session = self._sessions[int(key)]
        del self._timers[session.number]
        if self._due_ms(session) <= self._context.now_ms:
            if session.health == FAILED:
                self._remove(session)
                return
            self._set_health(session, DEGRADED if session.health == HEALTHY else FAILED)
        self._set_timer(session)

    def _due_ms(self, session: Session) -> int:
        settings = self._context.settings
        after_ms = settings.milliseconds("session.degraded_after")
        if session.health != HEALTHY:
            after_ms = settings.milliseconds("session.failed_after")
        if session.health == FAILED:
            after_ms += settings.milliseconds("session.retention")
        return session.last_heartbeat_ms + after_ms

    def _set_timer(self, session: Session) -> None:
        timer = self._timers.pop(session.number, None)
        if timer is not None:
            self._context.timers.cancel(timer)
        self._timers[session.number] = self._context.timers.schedule(
            self._due_ms(session), HEALTH_TIMER, session.number
        )

    def _set_health(self, session: Session, health: session_pb2.Health.ValueType) -> None:
        self._frozen.changing(session.number)
        before = session.mark
        session.health = health
        self._changed(session, before)
        if health == FAILED:
            self._context.report(SESSION_FAILED, session.name)
        if self._listener is None:
            return
        if health == FAILED:
            self._listener.session_lost(session, counted=True)
        else:
            self._listener.session_changed(session)

    def _changed(self, session: Session, before: Mark | None) -> None:
        self._changes.note(session.number, before, session.mark)
        self._context.touch(topics.SESSIONS)

    # --- records

    def current(self, session_id: str, incarnation: int) -> Session:
        """The session; 0 skips the check. Raises `Refused` (NOT_FOUND, STALE_INCARNATION)."""
        session = self.existing(session_id)
        if incarnation not in (0, session.incarnation):
            raise refused(
                refusal.FAILED_PRECONDITION,
                "STALE_INCARNATION",
                f"session {session_id} has the incarnation {session.incarnation}, "
                f"not {incarnation}: it registered again",
                details={"session_id": session_id, "incarnation": str(session.incarnation)},
            )
        return session

    def _added(self, name: str) -> Session:
        if len(self._sessions) >= self._context.settings.integer("session.max_sessions"):
            raise refused(
                refusal.RESOURCE_EXHAUSTED,
                "TOO_MANY_SESSIONS",
                f"there are {len(self._sessions)} sessions (session.max_sessions)",
                retry_after_ms=FULL_RETRY_MS,
            )
        self._last_number += 1
        session = Session(self._last_number, incarnation=1)
        session.name = name
        self._insert(session)
        return session

    def _insert(self, session: Session) -> None:
        self._sessions[session.number] = session
        self._by_id[session.session_id] = session
        self._by_name[session.name] = session
        self._numbers.append(session.number)

    def _renewed(self, known: Session) -> Session:
        self._frozen.changing(known.number)
        known.incarnation += 1
        return known

    def _remove(self, session: Session) -> None:
        timer = self._timers.pop(session.number, None)
        if timer is not None:
            self._context.timers.cancel(timer)
        self._frozen.changing(session.number)
        del self._sessions[session.number]
        del self._by_id[session.session_id]
        del self._by_name[session.name]
        del self._numbers[bisect_left(self._numbers, session.number)]
        if session.health == FAILED:
            self._context.report(SESSION_FAILED, session.name, over=True)
        self._changes.note(session.number, session.mark, None, session)
        self._context.touch(topics.SESSIONS)

    # --- snapshots

    def _encode_counters(self) -> bytes:
        return snapshot_pb2.SessionCounters(last_number=self._last_number).SerializeToString(
            deterministic=True
        )

    def _load_counters(self, record: bytes) -> None:
        self._last_number = snapshot_pb2.SessionCounters.FromString(record).last_number
        self._changes.restored()

    def _load(self, record: bytes) -> None:
        session = Session.decode(record)
        if session.number in self._sessions or session.name in self._by_name:
            raise ValueError(f"the session {session.session_id} is there twice")
        self._insert(session)
        self._set_timer(session)

    def _name_taken(self, known: Session) -> Refused:
        word = HEALTH_WORDS[known.health]
        failed_ms = known.last_heartbeat_ms + self._context.settings.milliseconds(
            "session.failed_after"
        )
        return refused(
            refusal.ALREADY_EXISTS,
            "NAME_TAKEN",
            f"the name {known.name!r} belongs to the {word} session {known.session_id}",
            field="name",
            details={"session_id": known.session_id, "health": word},
            retry_after_ms=max(1, failed_ms - self._context.now_ms),
        )


def session_result(session: Session) -> command_pb2.CommandResult:
    """The session as a command's result."""
    return command_pb2.CommandResult(session=command_pb2.SessionResult(session=session.message()))


def session_failed(session: Session) -> Refused:
    """FAILED_PRECONDITION: the session must register again."""
    return refused(
        refusal.FAILED_PRECONDITION,
        "SESSION_FAILED",
        f"session {session.session_id} has failed: register {session.name!r} again",
        details={"session_id": session.session_id, "name": session.name},
    )


def _score_message(session: Session, affinity: str) -> session_pb2.SessionScore:
    parts = scored(session, affinity)
    return session_pb2.SessionScore(
        session=session.message(),
        affinity_score=parts.affinity_score,
        free_capacity=parts.free_capacity,
        eligible=parts.eligible,
        explanation=explain(session, affinity, parts.affinity_score),
        score=parts.score,
        capacity_score=parts.capacity_score,
        health_score=parts.health_score,
    )


def explain(session: Session, affinity: str, score: float) -> str:
    """Why a session fits as it does, in plain words."""
    if score == NONE:
        fit = f"specialty {session.specialty} does not match {affinity}"
    elif session.specialty == affinity:
        fit = f"specialty is {affinity}"
    else:
        fit = f"{session.specialty} and {affinity} match by half"
    held = f"holds {len(session.claims)} of {session.max_concurrent_tasks} tasks"
    return f"{fit}; {HEALTH_WORDS[session.health]}; {held}"
