"""One attempt of a worker: runs the handler beside its claim and reports how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from gaia.task.v1 import task_pb2

from gaia_grpc.client.client import Client
from gaia_grpc.client.codecs import BYTES, Codec
from gaia_grpc.client.held_claim import HeldClaim
from gaia_grpc.client.jobs import AnyJob, BlockingJob, Fail, Job, Release, Retry, current
from gaia_grpc.client.tasks import MAX_ERROR_CHARACTERS, MAX_ERROR_TYPE_CHARACTERS
from gaia_grpc.errors import (
    DomainError,
    FailedPreconditionError,
    GaiaError,
    NotFoundError,
    StaleClaimError,
    UndecodableError,
)

LOG = logging.getLogger("gaia_grpc.worker")

OUTCOME_TIMEOUT_S = 60.0
"""Budget of one call that reports an outcome; without an answer it is repeated."""
REPORT_PAUSE_S = 1.0
RELEASE_PAUSE_S = 1.0

Call = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class WorkerCounters:
    """What a worker did so far."""

    busy: int = 0
    """Handlers that run now, also of claims that were lost."""
    claimed: int = 0
    completed: int = 0
    failed: int = 0
    """Attempts that were reported as failed."""
    released: int = 0
    """Attempts that were given back uncounted."""
    lost: int = 0
    """Attempts whose claim passed away: cancelled, expired, or with a session that failed."""
    extended: int = 0
    registrations: int = 0
    errors: list[str] = field(default_factory=list)
    """The latest errors of calls, at most 20, oldest first."""

    def note(self, error: BaseException | str) -> None:
        """Keeps an error for people."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.errors = [*self.errors[-19:], text]


@dataclass(frozen=True, slots=True)
class TaskHandler:
    """A handler and what it is called with: a job, or the bare task."""

    function: Callable[[Any], Any]
    wants_task: bool
    timeout_s: float | None = None
    """Longest that it may run: the claim of one that hangs would be renewed for ever."""
    codec: Codec[Any] = BYTES
    """How payloads and results are read and written."""

    def encode(self, result: object) -> bytes:
        """What CompleteTask stores. Raises `TypeError` for what the codec does not take."""
        if self.codec is BYTES:
            if result is None:
                return b""
            if not isinstance(result, bytes | bytearray | memoryview):
                kind = type(result).__name__
                raise TypeError(
                    f"the handler returned {kind}; it may return bytes or None, or name a codec"
                )
        try:
            return self.codec.encode(result)
        except Exception as error:
            raise TypeError(f"the handler's codec does not take its result: {error}") from error

    @property
    def is_async(self) -> bool:
        """Whether it runs on the loop; a plain function runs in a thread of its own."""
        return inspect.iscoroutinefunction(self.function)


class Attempt:
    """From a grant to its reported outcome; occupies a slot until the handler really ended."""

    def __init__(
        self,
        client: Client,
        task: task_pb2.Task,
        handler: TaskHandler | None,
        counters: WorkerCounters,
        *,
        draw: Callable[[], float],
    ) -> None:
        """Without a handler the task is given back."""
        self.task = task
        self._tasks = client.tasks
        self._handler = handler
        self._counters = counters
        self._interrupted = False
        self._overrun: TimeoutError | None = None
        self._work: asyncio.Future[Any] | None = None
        self.claim = HeldClaim(
            client,
            task,
            draw=draw,
            on_lost=self._lost,
            on_extended=self._extended,
            on_error=counters.note,
        )

    @property
    def in_handler(self) -> bool:
        """Whether the handler runs and its claim is believed to be held."""
        return self._work is not None and not self._work.done() and not self.claim.lost.is_set()

    @property
    def is_stuck_in_thread(self) -> bool:
        """Whether the handler is a plain function that still runs: nothing can cancel it."""
        threaded = self._handler is not None and not self._handler.is_async
        return threaded and self._work is not None and not self._work.done()

    def leave(self) -> None:
        """Ends the attempt although its handler goes on; a thread is told, and sends nothing."""
        self.claim.abandon("the worker stopped")

    def interrupt(self) -> None:
        """Cancels the handler because the worker stops; its task is given back."""
        self._interrupted = True
        if self._work is not None and self._handler is not None and self._handler.is_async:
            self._work.cancel()

    async def run(self, *, verify: bool) -> None:
        """Runs the handler and reports; `verify` where the claim may have ended already."""
        if self._handler is None:
            named = f"{self.task.task_id} of type {self.task.task_type!r}"
            self._counters.note(f"gave task {named} back: it has no handler here")
            await self._release()
            return
        if verify:
            await self.claim.verify()
        if self.claim.lost.is_set():
            return
        work = asyncio.ensure_future(self._handle(self._handler))
        self._work = work
        self.claim.victim = work if self._handler.is_async else None
        guards = [
            asyncio.create_task(self.claim.keep()),
            asyncio.create_task(self.claim.watch()),
            asyncio.create_task(self.claim.expect_deadline()),
        ]
        self._counters.busy += 1
        try:
            await asyncio.wait({work}, timeout=self._handler.timeout_s)
            if not work.done():
                await self._end_overrun(work, guards, self._handler)
        finally:
            self._counters.busy -= 1
            await cancel({work, *guards})
        if self.claim.lost.is_set():
            return
        report = asyncio.ensure_future(self._report_end(work))
        self.claim.victim = report
        try:
            await asyncio.wait({report})
        finally:
            await cancel({report})

    async def _end_overrun(
        self,
        work: asyncio.Future[Any],
        guards: Iterable[asyncio.Future[Any]],
        handler: TaskHandler,
    ) -> None:
        """Fails an attempt that takes too long; a thread keeps its slot until it ends."""
        self._overrun = TimeoutError(f"the handler ran longer than {handler.timeout_s:g} s")
        if handler.is_async:
            work.cancel()
        else:
            await cancel(guards)
            if not self.claim.lost.is_set():
                self.claim.abandon(str(self._overrun))
                await self._fail(self._overrun)
        await asyncio.wait({work})

    async def _handle(self, handler: TaskHandler) -> object:
        kind = Job if handler.is_async else BlockingJob
        job: AnyJob = kind(self.claim, handler.codec)
        current.set(job)
        argument = self.task if handler.wants_task else job
        try:
            if handler.is_async:
                return await handler.function(argument)
            result = await in_thread(handler.function, argument, name=f"task {self.task.task_id}")
            return await result if inspect.isawaitable(result) else result
        except SystemExit as leaving:  # it would end the whole worker, and its other handlers
            raise RuntimeError(f"the handler called for an exit: {leaving!r}") from leaving

    async def _report_end(self, work: asyncio.Future[Any]) -> None:
        cancelled = self._overrun or asyncio.CancelledError()
        error = cancelled if work.cancelled() else work.exception()
        if isinstance(error, Release) or (work.cancelled() and self._interrupted):
            await self._release()
        elif error is not None:
            await self._fail(error)
        else:
            await self._complete(work.result())

    async def _release(self) -> None:
        await self._report(
            lambda: self._tasks.release(self.task, timeout=OUTCOME_TIMEOUT_S), "released"
        )
        # Whoever gives a task back leaves the others a moment to take it.
        if not self.claim.stopping.is_set():
            await asyncio.sleep(RELEASE_PAUSE_S)

    async def _complete(self, result: object) -> None:
        try:
            data = b"" if self._handler is None else self._handler.encode(result)
        except TypeError as error:
            await self._fail(error)
            return
        try:
            await self._report(
                lambda: self._tasks.complete(self.task, data, timeout=OUTCOME_TIMEOUT_S),
                "completed",
            )
        except DomainError as refusal:
            # Unreported, the task would be held by nobody until its claim ends.
            await self._fail(refusal)

    async def _fail(self, error: BaseException) -> None:
        text = error_text(error)
        permanent = isinstance(error, Fail | UndecodableError)
        after_s = error.after if isinstance(error, Retry) else None
        if not isinstance(error, Fail | Retry):
            LOG.info("task %s failed", self.task.task_id, exc_info=error)

        async def fail() -> None:
            answer = await self._tasks.fail(
                self.task,
                text,
                permanent=permanent,
                error_type=error_type_of(error),
                retry_delay=after_s,
                timeout=OUTCOME_TIMEOUT_S,
            )
            if answer.task.state == task_pb2.TASK_STATE_FAILED:
                LOG.warning(
                    "task %s (%s) is a dead letter after %d attempts: %r",
                    self.task.task_id,
                    self.task.task_type,
                    answer.task.retry_count,
                    text,
                    exc_info=None if permanent else error,
                )

        try:
            await self._report(fail, "failed")
        except DomainError as refusal:
            self._counters.note(refusal)
            self._lost(refusal.message)

    async def _report(self, call: Call, counter: str) -> None:
        """Makes the call until it has a definite answer: an outcome is worth an outage's wait.

        Repeating is safe, by the token. The log's clock stands still while nobody leads, so the
        claim survives what the call has to wait for.

        Raises:
            DomainError: the report itself was refused (a result that is too large).
        """
        while True:
            try:
                await call()
            except (StaleClaimError, NotFoundError, FailedPreconditionError) as refusal:
                self._counters.note(refusal)
                self.claim.victim = None
                self.claim.lose(refusal.message)
                return
            except DomainError:
                raise
            except GaiaError as failure:
                self._counters.note(failure)
                await asyncio.sleep(REPORT_PAUSE_S)
                continue
            setattr(self._counters, counter, getattr(self._counters, counter) + 1)
            return

    def _lost(self, why: str) -> None:
        self._counters.lost += 1
        LOG.info("task %s was lost by this worker: %r", self.task.task_id, why)

    def _extended(self) -> None:
        self._counters.extended += 1


def error_text(error: BaseException) -> str:
    """What FailTask stores: bounded, and UTF-8 whatever the exception holds."""
    text = str(error)
    if not isinstance(error, Fail | Retry) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[: MAX_ERROR_CHARACTERS - 1]}…"


def error_type_of(error: BaseException) -> str:
    """The kind of the error: as the handler named it, or the name of the exception.

    `Fail` and `Retry` say what to do and not what went wrong: what they were raised from does.
    """
    if isinstance(error, Fail | Retry):
        cause = error.__cause__ or error
        name = error.error_type or type(cause).__name__
    else:
        name = type(error).__name__
    # The cluster takes names of one line.
    clean = "".join(letter if letter.isprintable() else "?" for letter in name)
    return clean.encode("utf-8", "replace").decode()[:MAX_ERROR_TYPE_CHARACTERS]


async def in_thread(function: Callable[[Any], Any], argument: object, *, name: str) -> Any:
    """The function's result from a thread of its own.

    A thread for each, and a daemon: the loop's pool is as small as the machine, and a handler that
    hangs must not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def finish(result: object, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result: object = None
        error: BaseException | None = None
        try:
            result = function(argument)
        except StopIteration as stop:  # no future takes it
            error = RuntimeError(f"the handler raised {stop!r}")
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name=name, daemon=True).start()
    return await done


async def cancel(tasks: Iterable[asyncio.Future[Any] | None]) -> None:
    """Cancels what still runs and waits for it; results and errors are left in the tasks."""
    pending = {task for task in tasks if task is not None}
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in pending:
        if not task.cancelled():
            task.exception()
