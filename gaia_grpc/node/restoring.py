"""The state out of a snapshot file: at the start, and where a leader's snapshot was installed.

It is read in slices, so that the loop answers heartbeats meanwhile; nothing is applied until the
new state is complete and takes the place of the old one in one step.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog

from gaia_grpc.errors import GaiaError, InvariantError
from gaia_grpc.node.api import SnapshotSummary
from gaia_grpc.node.discarding import discard
from gaia_grpc.node.disk_thread import DiskThread
from gaia_grpc.node.engine import Engine
from gaia_grpc.raft.types import SnapshotMeta
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.restore import SnapshotDecoder
from gaia_grpc.storage.api import SnapshotReader, SnapshotStore

_SLICE_NS = 2_000_000
_READ_BYTES = 256 << 10
_PIECE_BYTES = 4 << 10
_PAUSE_S = 0.001

log = structlog.get_logger("gaia.node")


_pauses = 0
_was_enabled = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage is collected in this process meanwhile.

    All that is made of a snapshot stays: to look through it again and again would hold the loop up
    and cost a third more. Who owns the process freezes it before this ends.
    """
    global _pauses, _was_enabled
    if _pauses == 0:
        _was_enabled = gc.isenabled()
        gc.disable()
    _pauses += 1
    try:
        yield
    finally:
        _pauses -= 1
        if _pauses == 0 and _was_enabled:
            gc.enable()


class Restorer:
    """Replaces the state of an engine's applier; one snapshot at a time, the newest counts."""

    def __init__(
        self,
        engine: Engine,
        store: SnapshotStore,
        disk: DiskThread,
        on_restored: Callable[[SnapshotSummary], None],
    ) -> None:
        self.longest_slice_ns = 0
        """The longest time in which the loop did nothing else."""
        self._engine = engine
        self._store = store
        self._disk = disk
        self._on_restored = on_restored
        self._task: asyncio.Task[None] | None = None

    def start(self, meta: SnapshotMeta) -> None:
        """Begins to restore; gives an older one up."""
        self._engine.applier.hold()
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._restore(meta), name="restore")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Gives up."""
        if self._task is not None:
            self._task.cancel()
            await self.ended()

    async def ended(self) -> None:
        """Returns once nothing is being restored, or let go of."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, GaiaError):
            self._engine.fail(error)
        elif error is not None:
            log.error("restore_bug", exc_info=error)
            self._engine.fail(InvariantError(f"restoring a snapshot failed: {error!r}"))

    async def _restore(self, meta: SnapshotMeta) -> None:
        with collector_paused():
            replaced = await self._replace(meta)
        if replaced is not None:
            for _ in discard(replaced):
                await asyncio.sleep(_PAUSE_S)
            await self._disk.run(partial(self._store.drop_older, meta))

    async def _replace(self, meta: SnapshotMeta) -> StateMachine | None:
        """Puts the state of the snapshot in place and returns the old one; None if it may not."""
        started_s = time.monotonic()
        reader = await self._disk.run(partial(self._store.open, meta))
        try:
            info = reader.info
            machine = await self._read(reader)
        finally:
            if not self._engine.stopped:
                await self._disk.run(reader.close)
        if self._engine.core.is_installing:
            # A newer one is being written, and what is committed behind that one waits already: it
            # would be applied to this state. `start` comes once the newer one is durable.
            log.info("restore_superseded", index=meta.index)
            return None
        replaced = self._engine.applier.replace(machine, meta)
        self._engine.wake()
        state_hash = machine.state_hash(meta.index)
        log.info(
            "restored",
            index=meta.index,
            size_bytes=info.size_bytes,
            ms=round(1000 * (time.monotonic() - started_s)),
        )
        self._on_restored(
            SnapshotSummary(
                meta.index,
                meta.term,
                info.size_bytes,
                info.sha256,
                b"" if state_hash is None else state_hash[1],
            )
        )
        return replaced

    async def _read(self, reader: SnapshotReader) -> StateMachine:
        decoder = SnapshotDecoder()
        offset = 0
        while data := await self._disk.run(partial(reader.read, offset, _READ_BYTES)):
            offset += len(data)
            start = 0
            while start < len(data):
                start = self._feed(decoder, data, start)
                await asyncio.sleep(0)
        machine: list[StateMachine] = []
        self._timed(lambda: machine.append(decoder.finish()))
        return machine[0]

    def _feed(self, decoder: SnapshotDecoder, data: bytes, start: int) -> int:
        """Feeds one slice of time from `start` on; returns how far it came."""

        def feed() -> None:
            nonlocal start
            until_ns = time.perf_counter_ns() + _SLICE_NS
            while start < len(data) and time.perf_counter_ns() < until_ns:
                decoder.feed(data[start : start + _PIECE_BYTES])
                start += _PIECE_BYTES

        self._timed(feed)
        return start

    def _timed(self, work: Callable[[], None]) -> None:
        started_ns = time.perf_counter_ns()
        work()
        took_ns = time.perf_counter_ns() - started_ns
        self.longest_slice_ns = max(self.longest_slice_ns, took_ns)
