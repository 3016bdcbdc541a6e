"""A loop in a daemon thread, and how the methods of asyncio objects are called on it.

A blocking class names the methods that it has, and gets their signatures, types and documentation
from the asyncio class: `enqueue = blocking(TasksApi.enqueue)`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from gaia_grpc.errors import FailedPreconditionError, UnavailableError

P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")
Inner = TypeVar("Inner")
Outer = TypeVar("Outer")

PAGE_ITEMS = 256
"""Items of a list that one visit to the loop fetches."""


class Portal:
    """One running loop, called from any other thread."""

    def __init__(self) -> None:
        self._started: concurrent.futures.Future[asyncio.AbstractEventLoop] = (
            concurrent.futures.Future()
        )
        self._stop = asyncio.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._main, name="gaia client", daemon=True)
        self._thread.start()
        self.loop = self._started.result()
        # The loop's own threads end before the interpreter takes their modules away.
        atexit.register(self.stop)

    def _main(self) -> None:
        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(_report)
            runner.run(self._live())

    async def _live(self) -> None:
        self._started.set_result(asyncio.get_running_loop())
        await self._stop.wait()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Runs it on the loop and waits; Ctrl-C ends the wait and cancels it.

        Raises:
            UnavailableError: the portal is closed.
            FailedPreconditionError: the caller is on the loop itself, which it would block.
        """
        refusal: Exception | None = None
        if self._closed:
            refusal = UnavailableError("the client is closed")
        elif threading.current_thread() is self._thread:
            refusal = FailedPreconditionError(
                "a blocking call within an async handler would stop its own loop: make the handler "
                "a plain function"
            )
        if refusal is not None:
            coroutine.close()
            raise refusal
        # Not `run_coroutine_threadsafe`: Ctrl-C may come before it has returned what to cancel.
        waiting: concurrent.futures.Future[R] = concurrent.futures.Future()
        try:
            self.loop.call_soon_threadsafe(self._begin, coroutine, waiting)
            return waiting.result()
        except concurrent.futures.CancelledError:
            raise UnavailableError("the client was closed during the call") from None
        finally:
            waiting.cancel()

    def _begin(
        self, coroutine: Coroutine[Any, Any, R], waiting: concurrent.futures.Future[R]
    ) -> None:
        """On the loop: each of the two futures ends the other."""
        task = self.loop.create_task(coroutine)

        def tell(task: asyncio.Task[R]) -> None:
            if task.cancelled():
                waiting.cancel()
                return
            error = task.exception()  # looked at, also where nobody waits any more
            if not waiting.set_running_or_notify_cancel():
                return
            if error is not None:
                waiting.set_exception(error)
            else:
                waiting.set_result(task.result())

        def give_up(waiting: concurrent.futures.Future[R]) -> None:
            if waiting.cancelled() and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(task.cancel)

        task.add_done_callback(tell)
        waiting.add_done_callback(give_up)

    def call(self, function: Callable[[], R]) -> R:
        """Runs a plain function on the loop, for objects that belong to it."""

        async def there() -> R:
            return function()

        return self.run(there())

    def stop(self) -> None:
        """Cancels what runs there and ends the thread; idempotent."""
        if not self._closed:
            self._closed = True
            atexit.unregister(self.stop)
            self.loop.call_soon_threadsafe(self._stop.set)
            if threading.current_thread() is not self._thread:
                self._thread.join()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Where two loops of a process use gRPC, each may find the other's wake-up already taken."""
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


class Facade(Generic[Inner]):
    """An asyncio object behind a portal."""

    def __init__(self, portal: Portal, inner: Inner) -> None:
        self._portal = portal
        self._inner = inner


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Facade[Any], P], R]:
    """The same method, which waits for its result."""

    @functools.wraps(method)
    def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.run(method(self._inner, *args, **kwargs))

    return call


def plain(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Facade[Any], P], R]:
    """The same method, called on the loop."""

    @functools.wraps(method)
    def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.call(lambda: method(self._inner, *args, **kwargs))

    return call


def direct(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Facade[Any], P], R]:
    """The same method, of an object that takes it from any thread: no visit to the loop."""

    @functools.wraps(method)
    def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self._inner, *args, **kwargs)

    return call


def wrapped(
    method: Callable[Concatenate[Any, P], Inner], facade: Callable[[Portal, Inner], Outer]
) -> Callable[Concatenate[Facade[Any], P], Outer]:
    """The same method, whose result is an asyncio object that gets a facade too."""

    @functools.wraps(method, updated=())
    def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> Outer:
        inner = self._portal.call(lambda: method(self._inner, *args, **kwargs))
        return facade(self._portal, inner)

    return call


def listing(
    method: Callable[Concatenate[Any, P], AsyncIterator[Item]],
) -> Callable[Concatenate[Facade[Any], P], Items[Item]]:
    """The same list, as an iterator; it ends by itself, so items are fetched many at a time."""
    return wrapped(method, functools.partial(Items[Item], at_once=PAGE_ITEMS))


def streaming(
    method: Callable[Concatenate[Any, P], AsyncIterator[Item]],
) -> Callable[Concatenate[Facade[Any], P], Items[Item]]:
    """The same stream, as an iterator that waits for each message; close it."""
    return wrapped(method, Items[Item])


class Items(Facade[AsyncIterator[Item]], Iterator[Item]):
    """An iterator over an asynchronous one."""

    def __init__(self, portal: Portal, inner: AsyncIterator[Item], *, at_once: int = 1) -> None:
        super().__init__(portal, inner)
        self._at_once = at_once
        self._fetched: list[Item] = []
        self._end: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if not self._fetched and self._end is None:
            self._portal.run(self._fetch())
            self._fetched.reverse()
        if self._fetched:
            return self._fetched.pop()
        if self._end is None or isinstance(self._end, StopAsyncIteration):
            raise StopIteration
        raise self._end

    async def _fetch(self) -> None:
        """The next items; what ends them comes after those that were still received."""
        try:
            while len(self._fetched) < self._at_once:
                self._fetched.append(await anext(self._inner))
        except Exception as end:
            self._end = end

    def close(self) -> None:
        """Ends the stream at the peer; idempotent."""
        end = getattr(self._inner, "aclose", None) or getattr(self._inner, "close", None)
        if end is not None:
            self._portal.run(end())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
