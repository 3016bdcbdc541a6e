"""A worker's session: registered, kept alive, and registered again after it failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gaia.session.v1 import session_pb2

from gaia_grpc.client.attempts import LOG, Attempt, WorkerCounters
from gaia_grpc.client.resources import SessionsApi
from gaia_grpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    GaiaError,
    NotFoundError,
)

DEFAULT_INTERVAL_S = 10.0
NAME_PAUSE_S = 1.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
BLOCKED_S = 2.0
SESSION_LOST = ("SESSION_FAILED", "STALE_INCARNATION", "NOT_FOUND")
"""Reasons that tell a session to register again."""


class SessionKeeper:
    """Owns the session of one worker; what the session's loss means, it tells the attempts."""

    def __init__(
        self,
        sessions: SessionsApi,
        registration: session_pb2.RegisterSessionRequest,
        counters: WorkerCounters,
        *,
        interval_s: float | None,
        name_wait_s: float,
        attempts: Callable[[], Sequence[Attempt]],
        draw: Callable[[], float],
    ) -> None:
        """Makes no I/O. `interval_s` between heartbeats; None is what the cluster asks for."""
        self.session: session_pb2.Session | None = None
        self.beat_now = asyncio.Event()
        """Ends the pause before the next heartbeat."""
        self._sessions = sessions
        self._registration = registration
        self._counters = counters
        self._fixed_interval = interval_s is not None
        self._interval_s = interval_s or DEFAULT_INTERVAL_S
        self._name_wait_s = name_wait_s
        self._attempts = attempts
        self._draw = draw
        self._registering = asyncio.Lock()

    async def register_first(self) -> None:
        """Registers; waits for the name where that was wanted.

        Raises:
            AlreadyExistsError: a live session has the name.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._name_wait_s
        while True:
            try:
                return await self._register()
            except AlreadyExistsError as error:
                left_s = deadline - loop.time()
                if left_s <= 0:
                    raise AlreadyExistsError(
                        f"{error.message}: choose another name, or give name_wait the seconds "
                        "after which a session without heartbeats fails",
                        metadata=error.metadata,
                    ) from error
                await asyncio.sleep(min(NAME_PAUSE_S, left_s))

    async def _register(self) -> None:
        wanted = self._registration
        response = await self._sessions.register(
            wanted.name,
            specialty=wanted.specialty,
            max_concurrent_tasks=wanted.max_concurrent_tasks,
            tier=wanted.tier,
            provider=wanted.provider,
            labels={label.key: label.value for label in wanted.labels},
        )
        self.session = response.session
        self._counters.registrations += 1
        if not self._fixed_interval and response.heartbeat_interval_ms:
            self._interval_s = response.heartbeat_interval_ms / 1000

    async def deregister(self) -> None:
        """Ends the session; its claims go back uncounted."""
        if self.session is None:
            return
        try:
            ended = await self._sessions.deregister(
                self.session.session_id, incarnation=self.session.incarnation
            )
            self._counters.released += ended.released_tasks
        except GaiaError as error:
            # Without it the session fails by its missing heartbeats, with the same result later.
            self._counters.note(error)

    async def keep(self) -> None:
        """Sends heartbeats until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            pause_s = self._interval_s * (0.9 + 0.1 * self._draw())
            due = loop.time() + pause_s
            try:
                async with asyncio.timeout(pause_s):
                    await self.beat_now.wait()
            except TimeoutError:
                late_s = loop.time() - due
                if late_s > BLOCKED_S:
                    LOG.warning(
                        "worker %s could not run for %.1f s: an async handler that computes stops "
                        "heartbeats; make it a plain function, which runs in a thread",
                        self._registration.name,
                        late_s,
                    )
            self.beat_now.clear()
            if self.session is not None:
                await self._heartbeat(self.session)

    async def _heartbeat(self, session: session_pb2.Session) -> None:
        held = [attempt for attempt in self._attempts() if attempt.in_handler]
        try:
            answer = await self._sessions.heartbeat(
                session.session_id,
                incarnation=session.incarnation,
                timeout=max(self._interval_s, 1.0),
            )
        except (FailedPreconditionError, NotFoundError) as error:
            self._counters.note(error)
            await self.register_again(session)
            return
        except GaiaError as error:
            self._counters.note(error)
            return
        # Whatever was held all the while must be among what the cluster counts.
        held = [attempt for attempt in held if attempt.in_handler]
        if answer.session.claimed_tasks < len(held):
            await asyncio.gather(*(attempt.claim.verify() for attempt in held))

    def is_current(self, session: session_pb2.Session) -> bool:
        """Whether `session` is the newest, and nothing has been heard of its end."""
        return self.session is session and not self._registering.locked()

    async def register_again(self, lost: session_pb2.Session) -> None:
        """Gets a new incarnation after `lost` was refused, trying until it is granted."""
        async with self._registering:
            if self.session is not None and self.session.incarnation != lost.incarnation:
                return
            for attempt in self._attempts():
                attempt.claim.lose("the session failed, its claims went back")
            tries = 0
            while True:
                tries += 1
                try:
                    await self._register()
                except AlreadyExistsError as error:
                    # The cluster still believes in the old incarnation, or somebody took the name.
                    self._counters.note(error)
                    await asyncio.sleep(self._interval_s)
                except GaiaError as error:
                    self._counters.note(error)
                    await asyncio.sleep(backoff_s(tries, self._draw))
                else:
                    LOG.warning(
                        "worker %s lost its session and registered again", self._registration.name
                    )
                    return


def backoff_s(failures: int, draw: Callable[[], float]) -> float:
    """The pause after so many failures in a row, with jitter."""
    pause_s: float = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE_S)
    return pause_s * (0.5 + draw())
