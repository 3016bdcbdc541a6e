"""What blocks on snapshot files, in order, on one thread beside the log writer's.

The thread is a daemon, and nobody waits for it without a limit: on a disk that hangs it may never
come back, and the process must be able to end all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from gaia_grpc.errors import StorageFailedError, UnavailableError

LOG_THREAD = "log-writer"
SNAPSHOT_THREAD = "snapshot-files"
DISK_THREADS = (LOG_THREAD, SNAPSHOT_THREAD)

_T = TypeVar("_T")
_Work = tuple[Callable[[], object], asyncio.Future[object]]


class DiskThread:
    """Runs one piece of work at a time; started by the first one."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._name = name
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ended = asyncio.Event()
        self._waiting: set[asyncio.Future[object]] = set()

    async def run(self, work: Callable[[], _T]) -> _T:
        """The result of `work()`; cancelling gives up the wait only, not the work."""
        if self._closed:
            raise UnavailableError("the peer is stopping")
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(loop,), name=self._name, daemon=True
            )
            self._thread.start()
        future: asyncio.Future[object] = loop.create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._queue.put((work, future))
        return await future  # type: ignore[return-value]  # the future of this very work

    async def close(self, timeout_s: float) -> bool:
        """Ends the thread once its work is done; False where that takes longer.

        Who waits for work gets `StorageFailedError` then: nobody may wait for a disk that hangs.
        """
        self._closed = True
        self._queue.put(None)
        if self._thread is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            for future in list(self._waiting):
                _settle(future, None, StorageFailedError("the disk does not answer"))
            return False
        return True

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while (item := self._queue.get()) is not None:
            work, future = item
            result: object = None
            error: BaseException | None = None
            try:
                result = work()
            except Exception as raised:  # goes to who waits for it
                error = raised
            _tell(loop, partial(_settle, future, result, error))
        _tell(loop, self._ended.set)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    # A closed loop: nobody is left to hear it.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(what)


def _settle(future: asyncio.Future[object], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
