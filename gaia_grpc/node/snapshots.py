"""Snapshots of this peer's own state: when they are made, and what becomes of the log then.

The state is frozen at one index and taken in slices of a millisecond while commands go on being
applied (`gaia_grpc.state.snapshot`); the file is written by a thread of its own. Committed entries
may be applied here before this peer's own disk holds them, so a snapshot becomes complete only once
the log is durable up to its index: it must never stand for more than the log that it replaces.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

import structlog

from gaia_grpc.config import StorageConfig
from gaia_grpc.errors import (
    GaiaError,
    InvariantError,
    StorageFullError,
    UnavailableError,
)
from gaia_grpc.node.api import SnapshotSummary
from gaia_grpc.node.disk_thread import DiskThread
from gaia_grpc.node.engine import Engine
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import Index, SnapshotMeta
from gaia_grpc.state.snapshot_codec import SnapshotEncoder
from gaia_grpc.storage.api import SnapshotStore, SnapshotWriter

SLICE_NS = 1_000_000
_SLICE_S = SLICE_NS / 1e9
_WRITE_BYTES = 256 << 10
_RECORDS = 2
_FULL_PAUSE_MS = 30_000
_ENTRY_BYTES = 200
"""Of memory that an entry takes beside its data."""
_MAX_HELD_ENTRIES = 200_000
"""To look at more of them would hold the loop up."""

log = structlog.get_logger("gaia.node")


def entries_to_keep(
    core: RaftNode,
    meta: SnapshotMeta,
    config: StorageConfig,
    patience_ticks: int,
    deletion_index: int = 0,
) -> int:
    """How many entries before a snapshot stay in the log, within the limits of `config`.

    None up to `deletion_index`, which hold what was deleted: who lacks them gets the snapshot.

    For a follower that answers, those behind what it has, or behind the snapshot that it is
    getting: they would be compacted while that is on its way (etcd holds compaction as well). One
    that was not heard for `patience_ticks`, or whose connection broke, is not waited for.
    """
    known = (core.progress(name) for name in (*core.members.voters, *core.members.learners))
    reached = (
        max(each.match_index, each.snapshot_index)
        for each in known
        if each and each.state != "probe" and each.heard_ticks_ago <= patience_ticks
    )
    lag = min(meta.index - min(reached, default=meta.index), _MAX_HELD_ENTRIES)
    first = max(
        core.first_index,
        meta.index - max(lag, config.snapshot_keep_entries) + 1,
        deletion_index + 1,
    )
    count = size_bytes = 0
    for entry in reversed(core.entries(Index(first), meta.index - first + 1)):
        size_bytes += len(entry.data) + _ENTRY_BYTES
        kept = (
            count < config.snapshot_keep_entries and size_bytes <= config.snapshot_keep_size_bytes
        )
        held = count < lag and size_bytes <= config.snapshot_hold_size_bytes
        if not kept and not held:
            break
        count += 1
    return count


@dataclass(slots=True)
class SnapshotStats:
    """What making snapshots did since the start."""

    made: int = 0
    slices: int = 0
    longest_slice_ns: int = 0
    """The longest time in which the loop did nothing else."""


class Snapshots:
    """Makes snapshots and compacts the log; all methods are called on the loop."""

    def __init__(
        self,
        engine: Engine,
        store: SnapshotStore,
        disk: DiskThread,
        config: StorageConfig,
        tick_ms: int,
        patience_ticks: int,
    ) -> None:
        """`patience_ticks`: no log is kept for a follower that was not heard for longer."""
        self.stats = SnapshotStats()
        self.latest: SnapshotSummary | None = None
        """The newest one that this peer has made, restored or installed."""
        self._engine = engine
        self._store = store
        self._disk = disk
        self._config = config
        self._tick_ms = tick_ms
        self._patience_ticks = patience_ticks
        self._pause_ticks = 0
        self._ticked = asyncio.Event()
        self._counted_bytes = 0
        self._making: asyncio.Task[SnapshotSummary | None] | None = None
        self._cleaned_index = 0
        """Of the deletion after which the files were cleaned last, since the start."""

    # --- when ---

    def on_tick(self) -> None:
        """Begins a snapshot where one is due; one at a time."""
        self._ticked.set()
        self._pause_ticks = max(0, self._pause_ticks - 1)
        applier, config = self._engine.applier, self._config
        if self._making is not None or self._pause_ticks or applier.restoring:
            return
        done = 0 if self.latest is None else self.latest.index
        if (
            applier.machine.applied_index - done >= config.snapshot_every_entries
            or applier.stats.size_bytes - self._counted_bytes >= config.snapshot_every_size_bytes
        ):
            self._begin()

    async def take(self, timeout_s: float) -> SnapshotSummary:
        """See `ClusterControl.take_snapshot`."""
        applier = self._engine.applier
        wanted = applier.machine.applied_index
        try:
            async with asyncio.timeout(timeout_s):
                while self.latest is None or self.latest.index < wanted:
                    if applier.restoring or wanted == 0 or self._engine.stopped:
                        raise UnavailableError("there is no state yet", retry_after_ms=100)
                    making = self._making or self._begin()
                    await asyncio.wait((making,))
                    if making.cancelled() or making.result() is None:
                        raise UnavailableError("the snapshot was given up", retry_after_ms=1_000)
                return self.latest
        except TimeoutError:
            raise UnavailableError("the snapshot was not complete in time") from None

    def renew(self) -> None:
        """The newest one was found damaged: the state in memory is whole, and is saved again."""
        applier = self._engine.applier
        if self._making is None and not applier.restoring and not self._engine.stopped:
            self._begin()

    def note(self, summary: SnapshotSummary) -> None:
        """A snapshot has become the state: what was being made of the old one is given up."""
        self.give_up()
        self.latest = summary
        self._clean(self._engine.applier.machine.deletion_index)
        self._counted_bytes = self._engine.applier.stats.size_bytes

    def give_up(self) -> None:
        """Ends what is being made."""
        if self._making is not None:
            self._making.cancel()

    async def stop(self) -> None:
        """Ends what is being made, and waits for it."""
        making = self._making
        if making is not None:
            making.cancel()
            await asyncio.wait((making,))

    # --- how ---

    def _begin(self) -> asyncio.Task[SnapshotSummary | None]:
        applier = self._engine.applier
        self._counted_bytes = applier.stats.size_bytes
        meta = SnapshotMeta(
            Index(applier.machine.applied_index), applier.applied_term, applier.configuration
        )
        # Before anything else is applied: the records must be those of this index.
        encoder = applier.machine.begin_snapshot()
        deletion_index = applier.machine.deletion_index
        making = asyncio.create_task(self._make(meta, encoder, deletion_index), name="snapshot")
        self._making = making
        making.add_done_callback(self._made)
        # Also where it was cancelled before its first step.
        making.add_done_callback(lambda _: encoder.close())
        return making

    def _made(self, making: asyncio.Task[SnapshotSummary | None]) -> None:
        if self._making is making:
            self._making = None
        error = None if making.cancelled() else making.exception()
        if isinstance(error, GaiaError):
            self._engine.fail(error)
        elif error is not None:
            log.error("snapshot_bug", exc_info=error)
            self._engine.fail(InvariantError(f"making a snapshot failed: {error!r}"))

    async def _make(
        self, meta: SnapshotMeta, encoder: SnapshotEncoder, deletion_index: int
    ) -> SnapshotSummary | None:
        """None where there is no space for it; it is tried again later."""
        writer: SnapshotWriter | None = None
        started_s = time.monotonic()
        try:
            state_hash = encoder.state_hash
            writer = await self._disk.run(partial(self._store.create, meta))
            await self._copy(encoder, writer)
            while self._engine.core.durable_index < meta.index:
                self._ticked.clear()
                await self._ticked.wait()
            info = await self._disk.run(writer.commit)
            writer = None
        except StorageFullError as error:
            log.warning("snapshot_given_up", message=error.message)
            self._pause_ticks = _FULL_PAUSE_MS // self._tick_ms
            return None
        finally:
            encoder.close()
            if writer is not None and not self._engine.stopped:
                await self._disk.run(writer.abort)
        self.latest = SnapshotSummary(
            meta.index, meta.term, info.size_bytes, info.sha256, state_hash
        )
        self.stats.made += 1
        keep_entries = entries_to_keep(
            self._engine.core, meta, self._config, self._patience_ticks, deletion_index
        )
        base = self._engine.compact(meta, keep_entries)
        self._clean(deletion_index)
        log.info(
            "snapshot",
            index=meta.index,
            size_bytes=info.size_bytes,
            base=base.index,
            ms=round(1000 * (time.monotonic() - started_s)),
        )
        await self._disk.run(partial(self._store.drop_older, meta))
        return self.latest

    def _clean(self, deletion_index: int) -> None:
        """The log no longer holds a deletion: neither may the files. Also once after each start,
        as the last one may have ended in the middle of it."""
        if deletion_index > self._cleaned_index:
            self._cleaned_index = deletion_index
            self._engine.writer.clean()

    async def _copy(self, encoder: SnapshotEncoder, writer: SnapshotWriter) -> None:
        """Takes all records, at most half of the loop's time.

        A record costs from 2 to 150 us, and which comes next is not known: so the clock is asked
        after each few of them.
        """
        chunks: list[bytes] = []
        size_bytes, more = 0, True
        while more:
            started_ns = time.perf_counter_ns()
            while more and time.perf_counter_ns() - started_ns < SLICE_NS:
                chunk = encoder.take(_RECORDS)
                more = chunk != b""
                chunks.append(chunk)
                size_bytes += len(chunk)
            took_ns = time.perf_counter_ns() - started_ns
            self.stats.slices += 1
            self.stats.longest_slice_ns = max(self.stats.longest_slice_ns, took_ns)
            if size_bytes >= _WRITE_BYTES or not more:
                await self._disk.run(partial(writer.write, b"".join(chunks)))
                chunks, size_bytes = [], 0
            await asyncio.sleep(_SLICE_S)
