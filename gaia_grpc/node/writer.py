"""The log writer: one thread that makes writes durable, as many at a time as have gathered.

Group commit needs no timer: while one fsync is under way the next writes queue up, and the thread
takes all of them into one transaction. The loop goes on meanwhile, so a slow disk delays
acknowledgements and not heartbeats.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from gaia_grpc.errors import GaiaError, StorageFailedError, StorageFullError
from gaia_grpc.node.disk_thread import LOG_THREAD
from gaia_grpc.raft.types import EntryId, WriteBatch
from gaia_grpc.storage.api import LogStorage

_T = TypeVar("_T")

FULL_RETRY_S = 0.5


class _Clean:
    """Asks to clean the files."""


@dataclass(slots=True)
class WriterStats:
    """What the writer did since the start; read from the loop, written by the thread."""

    transactions: int = 0
    batches: int = 0
    busy_ns: int = 0


class LogWriter:
    """Owns the storage from `start` to `stop`.

    `on_persisted(write_number)`, `on_full(bool)` and `on_failed(error)` are called on the loop.
    """

    def __init__(
        self,
        storage: LogStorage,
        *,
        on_persisted: Callable[[int], None],
        on_full: Callable[[bool], None],
        on_failed: Callable[[GaiaError], None],
    ) -> None:
        self.stats = WriterStats()
        self._storage = storage
        self._on_persisted = on_persisted
        self._on_full = on_full
        self._on_failed = on_failed
        # Bounded from outside: a follower gets no more than the leader's window, and a leader takes
        # no more proposals than `max_pending_proposals` that are not on its own disk.
        self._queue: queue.SimpleQueue[WriteBatch | EntryId | _Clean | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._ended = asyncio.Event()
        self._full = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=LOG_THREAD, daemon=True)

    def start(self) -> None:
        """Starts the thread; must be called on the loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, batch: WriteBatch) -> None:
        """Queues a write; never blocks."""
        self._queue.put(batch)

    def compact(self, base: EntryId) -> None:
        """Queues a compaction of the log; what it removes goes bit by bit between writes."""
        self._queue.put(base)

    def clean(self) -> None:
        """Queues that nothing of what is compacted by then may be left in the files."""
        self._queue.put(_Clean())

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Writes what is queued (unless the disk is full) and ends the thread.

        False where the disk does not let it end in time: it is left behind then.
        """
        self._stopping.set()
        self._queue.put(None)
        if not self._thread.is_alive():
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    # --- on the thread ---

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._call(_set, self._ended)

    def _serve(self) -> None:
        last = more = False
        while not last:
            batches, base, clean, last = self._gather(wait=not more)
            if batches and not self._write(batches):
                return
            if base is not None and not self._guarded(partial(self._storage.compact, base)):
                return
            if clean:
                self._storage.clean()
            if batches or base is not None or clean or more:
                if not self._guarded(self._storage.maintain):
                    return
                more = self._storage.needs_maintenance and not self._full

    def _gather(self, *, wait: bool) -> tuple[list[WriteBatch], EntryId | None, bool, bool]:
        """All that is queued: writes, the last compaction, whether to clean, whether it ends."""
        batches: list[WriteBatch] = []
        base: EntryId | None = None
        clean = last = False
        try:
            item = self._queue.get() if wait else self._queue.get_nowait()
            while True:
                if item is None:
                    last = True
                elif isinstance(item, EntryId):
                    base = item
                elif isinstance(item, _Clean):
                    clean = True
                else:
                    batches.append(item)
                item = self._queue.get_nowait()
        except queue.Empty:
            return batches, base, clean, last

    def _write(self, batches: list[WriteBatch]) -> bool:
        """False where the thread must end: the disk failed, or is full while stopping."""
        started_ns = time.perf_counter_ns()
        full = False
        while True:
            try:
                self._storage.write(batches)
                break
            except StorageFullError:
                if not full:
                    full = True
                    self._call(self._on_full, True)
                if self._stopping.wait(FULL_RETRY_S):
                    return False
            except GaiaError as error:
                self._call(self._on_failed, error)
                return False
            except Exception as error:  # the boundary of a thread: nothing may get lost
                self._call(self._on_failed, StorageFailedError(f"writing the log: {error!r}"))
                return False
        if full:
            self._call(self._on_full, False)
        stats = self.stats
        stats.transactions += 1
        stats.batches += len(batches)
        stats.busy_ns += time.perf_counter_ns() - started_ns
        self._call(self._on_persisted, batches[-1].write_number)
        return True

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Housekeeping: what there is no space for is tried again after the next write."""
        self._full = False
        try:
            work()
        except StorageFullError:
            self._full = True
        except GaiaError as error:
            self._call(self._on_failed, error)
            return False
        except Exception as error:  # a dead thread would leave a peer that never acknowledges
            self._call(self._on_failed, StorageFailedError(f"tending the log: {error!r}"))
            return False
        return True

    def _call(self, callback: Callable[[_T], None], argument: _T) -> None:
        assert self._loop is not None  # noqa: S101 - set by start, before the thread runs
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            self._stopping.set()  # the loop is closed: nobody is left to hear it


def _set(event: asyncio.Event) -> None:
    event.set()
