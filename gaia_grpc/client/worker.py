"""A worker session: registers, stays alive, claims tasks and runs a handler for each.

Claims are exactly-once, handlers at-least-once: a worker that loses its session (paused for longer
than `session.failed_after`, or cut off) finds its claims given to others. It then registers again
under its name, abandons what it still runs, and its late results are refused by their tokens. A
handler with side effects should pass `task.claim_token` on to them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client.client import Client
from gaia_grpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    GaiaError,
    NotFoundError,
    StaleClaimError,
)

Handler = Callable[[task_pb2.Task], Awaitable[bytes | None] | bytes | None]

CLAIM_WAIT_S = 5.0
ERROR_PAUSE_S = 0.5
DRAIN_S = 30.0
OUTCOME_TIMEOUT_S = 60.0
"""Budget for reporting an outcome: worth more patience than a new claim."""
DEFAULT_CLAIM_S = 600.0


class PermanentTaskError(Exception):
    """Raised by a handler: the task can never succeed, so it is not tried again."""


@dataclass(slots=True)
class WorkerCounters:
    """What a worker did so far."""

    claimed: int = 0
    completed: int = 0
    failed: int = 0
    """Attempts that were reported as failed."""
    lost: int = 0
    """Attempts whose claim had passed to somebody else, or whose report got no answer."""
    extended: int = 0
    registrations: int = 0
    errors: list[str] = field(default_factory=list)
    """The latest errors of calls, at most 20, oldest first."""

    def note(self, error: BaseException) -> None:
        """Keeps an error for people."""
        self.errors = [*self.errors[-19:], f"{type(error).__name__}: {error}"]


class Worker:
    """One worker session. `async with Worker(...)`, or `await worker.run()` until `stop()`."""

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        handler: Handler,
        specialty: str = "",
        max_concurrent: int = 1,
        tier: session_pb2.Tier.ValueType = session_pb2.TIER_WORKER,
        provider: str = "",
        task_types: Sequence[str] = (),
        include_unmatched: bool = False,
        claim_wait: float = CLAIM_WAIT_S,
        heartbeat_interval: float | None = None,
        drain: float = DRAIN_S,
    ) -> None:
        """Makes no I/O.

        Args:
            client: a connected client.
            name: the session's name, unique among live sessions.
            handler: gets the claimed task and returns its result. A coroutine function runs on the
                loop, a plain function in a thread. An exception fails the attempt.
            specialty: what the session is good at.
            max_concurrent: most tasks at once.
            tier: role of the session.
            provider: who runs it.
            task_types: only these types; empty is all.
            include_unmatched: also tasks whose affinity does not fit at all.
            claim_wait: seconds that one claim waits for a task in the cluster.
            heartbeat_interval: seconds; by default what the cluster asks for.
            drain: seconds that `stop` waits for running handlers.
        """
        self._client = client
        self.name = name
        self._handler = handler
        self._specialty = specialty
        self._max_concurrent = max_concurrent
        self._tier = tier
        self._provider = provider
        self._task_types = tuple(task_types)
        self._include_unmatched = include_unmatched
        self._claim_wait = claim_wait
        self._heartbeat_interval = heartbeat_interval
        self._drain = drain
        self._session: session_pb2.Session | None = None
        self._interval_s = heartbeat_interval or 10.0
        self._running: set[asyncio.Task[None]] = set()
        self._slot_free = asyncio.Event()
        self._stopping = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._reregistering = asyncio.Lock()
        self.counters = WorkerCounters()

    @property
    def session(self) -> session_pb2.Session | None:
        """The session as registered last; None before `start`."""
        return self._session

    async def start(self) -> Self:
        """Registers and begins to work in the background; errors of the registration are raised."""
        await self._register()
        self._main = asyncio.create_task(self._work(), name=f"worker {self.name}")
        return self

    async def run(self) -> None:
        """Registers and works until `stop` is called or this is cancelled."""
        await self.start()
        if self._main is None:
            return
        try:
            await asyncio.shield(self._main)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Claims nothing more, waits for running handlers, deregisters; idempotent."""
        self._stopping.set()
        main, self._main = self._main, None
        if main is not None:
            await main

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _register(self) -> None:
        response = await self._client.sessions.register(
            self.name,
            specialty=self._specialty,
            max_concurrent_tasks=self._max_concurrent,
            tier=self._tier,
            provider=self._provider,
        )
        self._session = response.session
        self.counters.registrations += 1
        if self._heartbeat_interval is None and response.heartbeat_interval_ms:
            self._interval_s = response.heartbeat_interval_ms / 1000

    async def _work(self) -> None:
        """Heartbeats go on until the last handler is done; only then the session ends."""
        heartbeats = asyncio.create_task(self._heartbeat_loop())
        claims = asyncio.create_task(self._claim_loop())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({heartbeats, claims, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stopping.is_set():
                # Neither loop ends by itself: this raises what ended it.
                await (heartbeats if heartbeats.done() else claims)
            # A cancelled claim frees its waiter; a grant that nobody took is released uncounted.
            claims.cancel()
            await asyncio.wait({claims})
            if self._running:
                await asyncio.wait(self._running, timeout=self._drain)
        finally:
            await _cancel({heartbeats, claims, stopping, *self._running})
        await self._deregister()

    async def _deregister(self) -> None:
        if self._session is None:
            return
        try:
            await self._client.sessions.deregister(
                self._session.session_id, incarnation=self._session.incarnation
            )
        except GaiaError as error:
            # Without it the session fails by its missing heartbeats, with the same result later.
            self.counters.note(error)

    async def _heartbeat_loop(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            session = self._session
            if session is None:
                continue
            try:
                await self._client.sessions.heartbeat(
                    session.session_id,
                    incarnation=session.incarnation,
                    timeout=max(self._interval_s, 1.0),
                )
            except (FailedPreconditionError, NotFoundError) as error:
                self.counters.note(error)
                await self._register_again(session)
            except GaiaError as error:
                self.counters.note(error)

    async def _register_again(self, lost: session_pb2.Session) -> None:
        """Gets a new incarnation after `lost` was refused, trying until it is granted."""
        async with self._reregistering:
            if self._session is not None and self._session.incarnation != lost.incarnation:
                return
            await _cancel(self._running)  # their claims are gone
            while not self._stopping.is_set():
                try:
                    await self._register()
                    return
                except AlreadyExistsError as error:
                    # The cluster still believes in the old incarnation, or somebody took the name.
                    self.counters.note(error)
                    await asyncio.sleep(self._interval_s)
                except GaiaError as error:
                    self.counters.note(error)
                    await asyncio.sleep(ERROR_PAUSE_S)

    async def _claim_loop(self) -> None:
        while not self._stopping.is_set():
            free = self._max_concurrent - len(self._running)
            session = self._session
            if free <= 0 or session is None:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                response = await self._client.tasks.claim(
                    session.session_id,
                    max_tasks=free,
                    wait=self._claim_wait,
                    task_types=self._task_types,
                    include_unmatched=self._include_unmatched,
                )
            except (FailedPreconditionError, NotFoundError) as error:
                self.counters.note(error)
                if error.instance_reason in ("SESSION_FAILED", "STALE_INCARNATION", "NOT_FOUND"):
                    await self._register_again(session)
                await asyncio.sleep(ERROR_PAUSE_S)
                continue
            except GaiaError as error:
                self.counters.note(error)
                await asyncio.sleep(ERROR_PAUSE_S)
                continue
            for task in response.tasks:
                self._begin(task)

    def _begin(self, task: task_pb2.Task) -> None:
        self.counters.claimed += 1
        attempt = asyncio.create_task(self._attempt(task), name=f"task {task.task_id}")
        self._running.add(attempt)
        attempt.add_done_callback(self._ended)

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        self._running.discard(attempt)
        self._slot_free.set()
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            self.counters.note(error)

    async def _attempt(self, task: task_pb2.Task) -> None:
        """Runs the handler beside the renewal of its claim, and reports the outcome."""
        work = asyncio.create_task(self._handle(task))
        renewal = asyncio.create_task(self._renew(task))
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():  # the renewal was refused: somebody else has the task
                self.counters.lost += 1
                return
            await _cancel({renewal})
            await self._report(task, work)
        except asyncio.CancelledError:
            self.counters.lost += 1
            raise
        finally:
            await _cancel({work, renewal})

    async def _handle(self, task: task_pb2.Task) -> bytes:
        if inspect.iscoroutinefunction(self._handler):
            result = await self._handler(task)
        else:
            result = await asyncio.to_thread(self._handler, task)
            if inspect.isawaitable(result):
                result = await result
        return bytes(result or b"")

    async def _renew(self, task: task_pb2.Task) -> None:
        """Extends the claim at each third of its time; returns where it is lost."""
        claim_s = DEFAULT_CLAIM_S
        if task.HasField("claim_expire_time") and task.HasField("update_time"):
            # Both are log time: their difference holds whatever clock this machine has.
            ends_ms = task.claim_expire_time.ToMilliseconds()
            claim_s = max((ends_ms - task.update_time.ToMilliseconds()) / 1000, 0.03)
        while True:
            await asyncio.sleep(claim_s / 3)
            try:
                await self._client.tasks.extend(task, timeout=claim_s)
                self.counters.extended += 1
            except (FailedPreconditionError, NotFoundError) as error:
                self.counters.note(error)
                return
            except GaiaError as error:
                self.counters.note(error)

    async def _report(self, task: task_pb2.Task, work: asyncio.Task[bytes]) -> None:
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        try:
            if error is None:
                await self._client.tasks.complete(task, work.result(), timeout=OUTCOME_TIMEOUT_S)
                self.counters.completed += 1
            else:
                await self._client.tasks.fail(
                    task,
                    f"{type(error).__name__}: {error}",
                    permanent=isinstance(error, PermanentTaskError),
                    timeout=OUTCOME_TIMEOUT_S,
                )
                self.counters.failed += 1
        except StaleClaimError as refusal:
            self.counters.lost += 1
            self.counters.note(refusal)
        except GaiaError as failure:
            # Unreported, the claim runs out and the task is tried again: nothing to undo here.
            self.counters.lost += 1
            self.counters.note(failure)


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancels what still runs and waits for it; results and errors are left in the tasks."""
    pending = {task for task in tasks if task is not None}
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in pending:
        if not task.cancelled():
            task.exception()
