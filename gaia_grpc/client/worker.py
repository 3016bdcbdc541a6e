"""A worker session: registers, stays alive, claims tasks and runs a handler for each.

Claims are exactly-once, handlers at-least-once: a worker that loses its session (paused for longer
than `session.failed_after`, or cut off) finds its claims given to others. It then registers again
under its name, tells the handlers of the lost claims and sends nothing more with their tokens; what
was already on its way is refused by its token. A handler with side effects should pass
`job.claim_token` on to them.
"""

from __future__ import annotations

import asyncio
import random
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client.attempts import LOG, Attempt, TaskHandler, WorkerCounters, cancel
from gaia_grpc.client.client import Client
from gaia_grpc.client.codecs import BYTES, Codec
from gaia_grpc.client.jobs import BlockingJob, Job
from gaia_grpc.client.resources import session_labels
from gaia_grpc.client.session_keeper import SESSION_LOST, SessionKeeper, backoff_s
from gaia_grpc.errors import (
    ConfigError,
    DomainError,
    FailedPreconditionError,
    GaiaError,
    OutcomeUnknownError,
)

Result: TypeAlias = bytes | None
Handler = Callable[[task_pb2.Task], Awaitable[Result] | Result]
JobHandler: TypeAlias = Callable[[Job], Awaitable[Any]] | Callable[[BlockingJob], Any]
"""Returns bytes or None; with a codec, what the codec takes."""
AnyHandler = TypeVar("AnyHandler", bound=JobHandler)

CLAIM_WAIT_S = 5.0
GRACE_S = 30.0
CANCEL_S = 5.0
"""How long cancelled handlers may take to clean up before the worker leaves without them."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class ClaimCall:
    """One claim, the same over all its repetitions: its answer may be lost and not its tasks."""

    request_id: str
    session: session_pb2.Session
    max_tasks: int
    task_types: tuple[str, ...]


class Worker:
    """One worker session.

        worker = Worker(client, name="grader-1", specialty="math", concurrency=4)

        @worker.task("grade")
        async def grade(job: Job) -> bytes:
            ...

        await worker.run(signals=True)      # or: async with worker

    Handlers are found by task type, and only their types are claimed. `async` functions run on the
    loop, plain functions in a thread each. A handler returns the result or raises: `Retry`,
    `Fail` (no retry), `Release` (uncounted), anything else like `Retry`. `Retry("busy", after=30)`
    says when; the name of the exception is stored as the error's type.

    Args:
        client: a connected client.
        name: the session's name, unique among live sessions.
        handler: for tasks whose type has no handler of its own (`@worker.task`); gets the
            claimed task and returns its result. `current_job()` is the job there.
        specialty: what the session is good at.
        concurrency: most tasks at once; no task is claimed before a slot is free for it.
        tier: role of the session.
        provider: who runs it.
        labels: free labels of the session.
        task_types: the types that `handler` takes; empty is all.
        include_unmatched: also tasks whose affinity does not fit at all.
        claim_wait: seconds that one claim waits for a task in the cluster.
        heartbeat_interval: seconds; by default what the cluster asks for.
        grace: seconds that `stop` lets running handlers finish.
        name_wait: seconds to wait for a name that is taken, as it is for a while after a
            worker of that name was killed.
        draw: random number in [0, 1); spreads workers that began together.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        handler: Handler | None = None,
        specialty: str = "",
        concurrency: int = 1,
        tier: session_pb2.Tier.ValueType = session_pb2.TIER_WORKER,
        provider: str = "",
        labels: Mapping[str, str] | None = None,
        task_types: Sequence[str] = (),
        include_unmatched: bool = False,
        claim_wait: float = CLAIM_WAIT_S,
        heartbeat_interval: float | None = None,
        grace: float = GRACE_S,
        name_wait: float = 0.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Makes no I/O; `ConfigError` where `concurrency` is less than 1."""
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; a worker needs at least 1")
        self._client = client
        self.name = name
        self._default = None if handler is None else TaskHandler(handler, True)
        self._handlers: dict[str, TaskHandler] = {}
        self._concurrency = concurrency
        self._task_types = tuple(task_types)
        self._include_unmatched = include_unmatched
        self._claim_wait = claim_wait
        self._grace = grace
        self._draw = draw
        self._running: dict[asyncio.Task[None], Attempt] = {}
        self._open_claim: ClaimCall | None = None
        self._slot_free = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self.counters = WorkerCounters()
        self._keeper = SessionKeeper(
            client.sessions,
            session_pb2.RegisterSessionRequest(
                name=name,
                specialty=specialty,
                max_concurrent_tasks=concurrency,
                tier=tier,
                provider=provider,
                labels=session_labels(labels),
            ),
            self.counters,
            interval_s=heartbeat_interval,
            name_wait_s=name_wait,
            attempts=lambda: list(self._running.values()),
            draw=draw,
        )

    def task(
        self, *task_types: str, codec: Codec[Any] = BYTES, timeout: float | None = None
    ) -> Callable[[AnyHandler], AnyHandler]:
        """Decorator: the function handles tasks of these types.

        Args:
            task_types: at least one.
            codec: reads `job.data` and writes what the function returns: `JSON`, or one of
                your own; by default it returns bytes or None.
            timeout: seconds after which an attempt fails, and its handler is cancelled or finds
                its job lost; None lets it run for ever, with its claim renewed.

        Raises:
            ConfigError: no type is named, or one of them has a handler already.
        """
        if not task_types:
            raise ConfigError('name the task types: @worker.task("grade")')

        def register(function: AnyHandler) -> AnyHandler:
            for task_type in task_types:
                if task_type in self._handlers:
                    raise ConfigError(f"task type {task_type} has a handler already")
                self._handlers[task_type] = TaskHandler(function, False, timeout, codec)
            return function

        return register

    @property
    def session(self) -> session_pb2.Session | None:
        """The session as registered last; None before `start`."""
        return self._keeper.session

    async def start(self) -> Self:
        """Registers and begins to work in the background; errors of the registration are raised.

        Raises:
            ConfigError: there is no handler.
            AlreadyExistsError: a live session has the name, also after `name_wait`.
            FailedPreconditionError: it works already.
        """
        if self._default is None and not self._handlers:
            raise ConfigError('the worker has no handler: write @worker.task("...") on one')
        if self._main is not None:
            raise FailedPreconditionError(f"worker {self.name} works already")
        self._stopping.clear()
        self._hurry.clear()
        await self._keeper.register_first()
        self._main = asyncio.create_task(self._work(), name=f"worker {self.name}")
        return self

    async def run(self, *, signals: bool = False) -> None:
        """Registers and works until `stop` is called or this is cancelled.

        With `signals` SIGTERM and SIGINT (Ctrl-C) stop it: the first lets handlers finish within
        the grace time, the second gives their tasks back at once. Only in the main thread.
        """
        await self.start()
        if self._main is None:
            return
        try:
            with self._stopped_by_signals(signals):
                await asyncio.shield(self._main)
        finally:
            await self.stop()

    def request_stop(self) -> None:
        """As `stop`, without waiting; the second time without the grace time."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        for attempt in self._running.values():
            attempt.claim.stopping.set()

    async def stop(self) -> None:
        """Claims nothing more, waits for running handlers, deregisters; idempotent."""
        if not self._stopping.is_set():
            self.request_stop()
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

    @contextmanager
    def _stopped_by_signals(self, wanted: bool) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = SIGNALS if wanted else ()
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            loop.add_signal_handler(number, self.request_stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    async def _work(self) -> None:
        """Heartbeats go on until the last handler is done; only then the session ends."""
        heartbeats = asyncio.create_task(self._keeper.keep())
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
            await self._drain()
        finally:
            await cancel({heartbeats, claims, stopping})
        await self._keeper.deregister()

    async def _drain(self) -> None:
        """Lets handlers finish within the grace time, then cancels them, then leaves them."""
        hurry = asyncio.create_task(self._hurry.wait())
        handlers = asyncio.gather(*self._running, return_exceptions=True)
        first_of: set[asyncio.Future[Any]] = {handlers, hurry}
        try:
            await asyncio.wait(first_of, timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel({hurry})
        for attempt in self._running.values():
            attempt.interrupt()
        ending = {task for task, attempt in self._running.items() if not attempt.is_stuck_in_thread}
        if ending:
            await asyncio.wait(ending, timeout=CANCEL_S)
        for left in list(self._running):
            # A thread, or a handler that does not want to end: its task goes back all the same.
            self._running[left].leave()
            left.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=CANCEL_S)

    # --- claims

    def _wanted_types(self) -> tuple[str, ...]:
        """The types to claim; empty is all."""
        if self._default is not None and not self._task_types:
            return ()
        return tuple(dict.fromkeys((*self._handlers, *self._task_types)))

    def _handler_of(self, task_type: str) -> TaskHandler | None:
        own = self._handlers.get(task_type)
        if own is not None:
            return own
        return self._default if not self._task_types or task_type in self._task_types else None

    async def _claim_loop(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            free = self._concurrency - len(self._running)
            session = self._keeper.session
            if free <= 0 or session is None:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            call = self._open_claim
            if call is None or call.session is not session:
                call = ClaimCall(uuid.uuid4().hex, session, free, self._wanted_types())
            failures = await self._claim(call, failures)
            if failures:
                await asyncio.sleep(backoff_s(failures, self._draw))

    async def _claim(self, call: ClaimCall, failures: int) -> int:
        """One claim and what it brings; returns how many in a row brought trouble.

        A claim with an unknown outcome may hold tasks for us: it is asked again by its request_id.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._open_claim = call
        try:
            response = await self._client.tasks.claim(
                call.session.session_id,
                max_tasks=call.max_tasks,
                wait=self._claim_wait,
                task_types=call.task_types,
                include_unmatched=self._include_unmatched,
                incarnation=call.session.incarnation,
                request_id=call.request_id,
            )
        except OutcomeUnknownError as error:
            self.counters.note(error)
            return failures + 1
        except GaiaError as error:
            self._open_claim = None
            self.counters.note(error)
            if error.instance_reason in SESSION_LOST:
                await self._keeper.register_again(call.session)
            elif error.instance_reason == "SESSION_DEGRADED":
                self._keeper.beat_now.set()
            elif isinstance(error, DomainError):
                LOG.warning("worker %s is refused tasks: %r", self.name, error.message)
            return failures + 1
        self._open_claim = None
        for task in response.tasks:
            self._begin(task, granted_to=call.session)
        if response.tasks or loop.time() - began >= min(self._claim_wait, 1.0) / 2:
            return 0
        return failures + 1  # nothing, and without waiting: ask less often

    def _begin(self, task: task_pb2.Task, *, granted_to: session_pb2.Session) -> None:
        self.counters.claimed += 1
        attempt = Attempt(
            self._client,
            task,
            self._handler_of(task.task_type),
            self.counters,
            draw=self._draw,
        )
        if self._stopping.is_set():
            attempt.claim.stopping.set()
        # A grant that arrives after its session failed belongs to nobody by now.
        running = asyncio.create_task(
            attempt.run(verify=not self._keeper.is_current(granted_to)),
            name=f"task {task.task_id}",
        )
        self._running[running] = attempt
        running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.pop(running, None)
        self._slot_free.set()
        if not running.cancelled() and (error := running.exception()) is not None:
            self.counters.note(error)
