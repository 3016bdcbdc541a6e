"""A spool: batches on disk until they have an outcome, for apps that must not lose their metrics.

Every sealed batch is written, and taken back when the cluster has it. Up to 10,000 metrics are in
memory as well; what comes beyond that is on disk only and is loaded in its turn, so an outage of a
day needs disk and no memory. When the app starts again, also after `kill -9`, what is left over is
sent first, with the source_id, epochs and sequences it had: the cluster counts it once.

What it promises:

- **A killed process** loses what was not in a sealed batch, at most 99 metrics or the last second
  of each buffer, and what the writing thread had not handed to the system, some milliseconds.
- **A power failure** loses what the system had not written, unless `sync=True`.
- **A full spool** (`max_bytes`) keeps the oldest: the newest metrics are dropped, counted, and told
  to the cluster as gap marks. A disk that refuses counts as full; what memory holds is still sent.
- **Once** goes as far as the cluster's memory of a source: after an hour without a batch of it, an
  attempt whose answer was never seen would count again.
- Time: what was left over is placed by its age, so a device whose clock was set in between shifts
  it. Within one process the clock is never set.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from gaia_grpc.client.account import Account
from gaia_grpc.client.clock import Clock
from gaia_grpc.client.counters import MetricsCounters
from gaia_grpc.client.source import Key, Owner, SealedBatch, Source
from gaia_grpc.client.spool_files import NOTHING, SpoolFiles

SPOOL_BYTES = 64 * 1024 * 1024
MAX_UNWRITTEN_BYTES = 4 * 1024 * 1024
"""Batches on their way to a disk that has fallen behind; beyond it the spool counts as full."""
LOAD_METRICS = 5_000
REFUSED_PAUSE_S = 0.5
"""Before a disk that refused is asked again."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Parked:
    """What memory keeps of a batch that is on disk only."""

    owner: Owner
    metrics: int
    clock: Clock


class Spool:
    """One directory and the source that it belongs to. Made by `client.metrics.open_spool(...)`."""

    def __init__(
        self,
        files: SpoolFiles,
        thread: ThreadPoolExecutor,
        *,
        max_bytes: int,
        sync: bool,
        clock: Clock,
    ) -> None:
        """Use `open`."""
        self._files = files
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._max_bytes = max_bytes
        self._sync = sync
        self._used_bytes = files.used_bytes
        self._unwritten_bytes = 0
        self._refusing = False
        self._closed = False
        self._done: Key = NOTHING
        self._done_noted = True
        self._unsaved: OrderedDict[Key, Parked] = OrderedDict()
        self._left_over = Account(clock, spooled=True, gap_noted=lambda: None)
        self._waiting: OrderedDict[Key, Parked] = OrderedDict()
        for key, metrics in files.left_over:
            self._waiting[key] = Parked(self._left_over, metrics, clock)
            self._left_over.recovered(metrics)
        self.last_error = ""
        """Why the disk refused last; empty after a success."""
        self.source = Source(files.source_id, files.epoch, spool=self)

    @classmethod
    async def open(
        cls, directory: Path, *, source_id: str, max_bytes: int, sync: bool, clock: Clock
    ) -> Self:
        """Locks and reads the directory; see `MetricsApi.open_spool`."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="gaia spool")
        try:
            files = await asyncio.get_running_loop().run_in_executor(
                thread,
                lambda: SpoolFiles(
                    directory,
                    source_id=source_id,
                    fresh_id=f"spool-{uuid.uuid4().hex}",
                    now_ms=clock(),
                    max_bytes=max_bytes,
                ),
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(files, thread, max_bytes=max_bytes, sync=sync, clock=clock)

    @property
    def source_id(self) -> str:
        """The installation that the directory belongs to."""
        return self.source.source_id

    @property
    def counters(self) -> MetricsCounters:
        """What became of the metrics that an earlier process had left over."""
        return self._left_over.snapshot()

    @property
    def damaged_bytes(self) -> int:
        """Bytes that could not be read at the start, such as a torn tail."""
        return self._files.damaged_bytes

    @property
    def used_bytes(self) -> int:
        """Size on disk."""
        return self._used_bytes

    @property
    def backlog(self) -> int:
        """Batches that are on disk only."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether `record` has to drop; asked by any thread."""
        return (
            self._refusing
            or self._used_bytes + self._unwritten_bytes >= self._max_bytes
            or self._unwritten_bytes >= MAX_UNWRITTEN_BYTES
        )

    def keep(self, batch: SealedBatch, *, in_memory: bool) -> None:
        """Writes the batch; where it is not in memory, `load` brings it back in its turn."""
        parked = Parked(batch.owner, len(batch.message.metrics), batch.clock)
        size = batch.message.ByteSize()
        self._unwritten_bytes += size
        if not in_memory:
            self._waiting[batch.key] = parked
            parked.owner.parked(parked.metrics)
        writing = self._on_thread(
            partial(self._files.append, batch.message, read_back=not in_memory, sync=self._sync)
        )
        writing.add_done_callback(partial(self._written, batch.key, parked, size))

    def _on_thread(self, work: Callable[[], Answer]) -> asyncio.Future[Answer]:
        return self._loop.run_in_executor(self._thread, work)

    def _written(self, key: Key, parked: Parked, size: int, writing: asyncio.Future[None]) -> None:
        self._unwritten_bytes -= size
        if not self._note(writing):
            return
        if self._waiting.pop(key, None) is not None:
            parked.owner.lost(parked.metrics)
        elif key > self._done:
            self._unsaved[key] = parked
            parked.owner.unsaved(parked.metrics)

    def _note(self, work: asyncio.Future[None]) -> bool:
        """Takes note of what the disk said; whether it refused."""
        error = None if work.cancelled() else work.exception()
        self._used_bytes = self._files.used_bytes
        if error is None:
            self._refusing, self.last_error = False, ""
            return False
        if not isinstance(error, OSError):
            self._loop.call_exception_handler(
                {"message": "a spool failed inside", "exception": error}
            )
        self.last_error = str(error)
        if not self._refusing:
            self._refusing = True
            self._loop.call_later(REFUSED_PAUSE_S, self._try_again)
        return True

    def _try_again(self) -> None:
        self._refusing = False

    def done(self, key: Key) -> None:
        """Everything up to `key` has its outcome."""
        self._done = key
        while self._unsaved and next(iter(self._unsaved)) <= key:
            _, parked = self._unsaved.popitem(last=False)
            parked.owner.unsaved(-parked.metrics)
        if self._done_noted:
            # One note for all outcomes of an answer.
            self._done_noted = False
            self._loop.call_soon(self._note_done)

    def _note_done(self) -> None:
        if not self._done_noted and not self._closed:
            self._done_noted = True
            noting = self._on_thread(partial(self._files.settle, self._done))
            noting.add_done_callback(self._note)

    async def load(self) -> list[SealedBatch]:
        """The next batches of the backlog, in order; may be none."""
        try:
            read = await self._on_thread(partial(self._files.read, LOAD_METRICS))
        except OSError as error:
            self.last_error = str(error)
            await asyncio.sleep(REFUSED_PAUSE_S)
            return []
        found = {(batch.source_epoch, batch.sequence): batch for batch in read.batches}
        loaded: list[SealedBatch] = []
        while self._waiting and next(iter(self._waiting)) <= read.through:
            key, parked = self._waiting.popitem(last=False)
            message = found.get(key)
            if message is None:
                parked.owner.lost(parked.metrics)
            else:
                parked.owner.loaded(parked.metrics)
                loaded.append(SealedBatch(message, parked.owner, parked.clock))
        return loaded

    async def close(self) -> None:
        """Writes what is left and lets other processes have the directory; idempotent."""
        if self._closed:
            return
        self._note_done()
        self._closed = True
        self._left_over.end()
        try:
            await self._on_thread(self._files.close)
        finally:
            self._thread.shutdown(wait=False)
