"""C6: heartbeats every 10 s as they are, on a loop whose time passes as fast as it is asked for."""

from __future__ import annotations

import asyncio
import itertools
import random
import selectors
from contextlib import suppress
from typing import Any, cast

from gaia.session.v1 import session_pb2

from gaia_grpc.client.attempts import WorkerCounters
from gaia_grpc.client.resources import SessionsApi
from gaia_grpc.client.session_keeper import SessionKeeper
from gaia_grpc.errors import UnavailableError

INTERVAL_S = 10.0
DEGRADED_AFTER_S = 15.0
HOUR_S = 3_600.0


class HurriedSelector(selectors.DefaultSelector):
    """Nothing is waited for but other threads: a wait is an entry in `passed_s`."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.passed_s += timeout or 0.0
        return super().select(None if timeout is None else 0)


class HurriedLoop(asyncio.SelectorEventLoop):
    """Time is what was slept."""

    def __init__(self) -> None:
        self._hurried = HurriedSelector()
        super().__init__(self._hurried)

    def time(self) -> float:
        return self._hurried.passed_s


class Sessions:
    """Stands for `SessionsApi`: notes when heartbeats come, and does not answer some of them."""

    def __init__(self, unanswered: frozenset[int] = frozenset()) -> None:
        self.beats_s: list[float] = []
        self._unanswered = unanswered

    async def register(self, name: str, **_: Any) -> session_pb2.RegisterSessionResponse:
        return session_pb2.RegisterSessionResponse(
            session=session_pb2.Session(session_id="s-1", name=name, incarnation=1),
            heartbeat_interval_ms=int(INTERVAL_S * 1_000),
        )

    async def heartbeat(self, session_id: str, **_: Any) -> session_pb2.HeartbeatResponse:
        self.beats_s.append(asyncio.get_running_loop().time())
        if len(self.beats_s) in self._unanswered:
            raise UnavailableError("nobody leads")
        return session_pb2.HeartbeatResponse(session=session_pb2.Session(session_id=session_id))


def beats_of_an_hour(sessions: Sessions, seed: int) -> WorkerCounters:
    """Keeps a session for an hour of the loop."""
    counters = WorkerCounters()

    async def run() -> None:
        keeper = SessionKeeper(
            cast(SessionsApi, sessions),
            session_pb2.RegisterSessionRequest(name="beating"),
            counters,
            interval_s=None,
            name_wait_s=0,
            attempts=tuple,
            draw=random.Random(seed).random,
        )
        await keeper.register_first()
        with suppress(TimeoutError):
            async with asyncio.timeout(HOUR_S):
                await keeper.keep()

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        runner.run(run())
    return counters


def gaps_of(sessions: Sessions) -> list[float]:
    return [after - before for before, after in itertools.pairwise([0.0, *sessions.beats_s])]


def test_session_heartbeat_frequency_is_ten_seconds_with_jitter() -> None:
    starts: dict[int, list[float]] = {seed: [] for seed in range(3)}
    for seed, found in starts.items():
        sessions = Sessions()
        beats_of_an_hour(sessions, seed)
        gaps = gaps_of(sessions)
        assert 360 <= len(gaps) <= 400
        assert all(0.9 * INTERVAL_S <= gap <= INTERVAL_S for gap in gaps)
        assert max(gaps) - min(gaps) > 0.5, "no jitter: sessions of one start would stay in step"
        found += sessions.beats_s[:20]
    assert len({tuple(found) for found in starts.values()}) == 3


def test_session_heartbeat_that_gets_no_answer_does_not_slow_down_the_next() -> None:
    """Two of three unanswered in a row: the third still comes within the 30 s of a failure."""
    sessions = Sessions(frozenset({10, 11, 20}))
    counters = beats_of_an_hour(sessions, 1)
    assert max(gaps_of(sessions)) <= INTERVAL_S < DEGRADED_AFTER_S
    assert len(counters.errors) == 3
    assert counters.registrations == 1
