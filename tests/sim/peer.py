"""One simulated peer: the core, its disk with a writer that takes time, and its state machine.

It follows the driver's rules of order (`gaia_grpc.raft.effects`): a write is submitted, begun as
part of a transaction, and done later; the state is replaced after the write of an install; entries
are applied after such a replacement.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gaia_grpc.errors import StorageFullError
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.effects import Effects, ReadGrant, RoleName
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import (
    Entry,
    EntryId,
    EntryKind,
    Members,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.api import SnapshotWriter
from gaia_grpc.storage.memory import MemoryLog, MemorySnapshotStore
from tests.sim.identity import Membership, decoder_for, membership, name_of
from tests.sim.machine import Machine
from tests.sim.options import Options

Draw = Callable[[int, int], int]


@dataclass(slots=True)
class Submitted:
    """A write on its way to the disk."""

    batch: WriteBatch
    messages: tuple[Envelope, ...]
    install: SnapshotMeta | None
    at_tick: int


@dataclass(slots=True)
class Making:
    """A snapshot of the own state that is being written."""

    meta: SnapshotMeta
    content: bytes
    writer: SnapshotWriter
    written: int = 0


class SimPeer:
    """A machine with one identity; wiped, it is replaced by another object."""

    def __init__(self, identity: str, options: Options, start: Restored | None, draw: Draw) -> None:
        self.identity = identity
        self.node_id = NodeId(name_of(identity))
        self.store = MemorySnapshotStore()
        self.disk = MemoryLog(start, self.store)
        self.config = RaftConfig(
            node_id=self.node_id,
            initial_members=Members(()),
            election_ticks_min=10,
            election_ticks_max=20,
            heartbeat_ticks=3,
            max_entries_per_append=options.max_entries,
            max_bytes_per_append=1 << 16,
            max_inflight_appends=options.max_inflight,
            max_inflight_partial_appends=options.max_partial,
        )
        self._draw = draw
        self._decode = decoder_for(identity)
        self._running: RaftNode | None = None
        self.boots = 0
        self.is_damaged = False
        """Its disk fails its checks: it must refuse to start."""
        self.is_refused = False
        self.heard: dict[NodeId, str] = {}
        """Who spoke last under a name, whatever the configuration here says: it gets the answer."""
        # Of the machine, not of the process.
        self.rate = 1.0
        self.wall_offset_ms = 0
        self._clock = 0.0
        self.stalled_until = 0
        self.begin()

    # --- life -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """What a process has at its start, before it has read anything."""
        self.queue: deque[Submitted] = deque()
        self.under_way: list[Submitted] = []
        self.done_at = 0
        self.compact_to: EntryId | None = None
        self.machine = Machine()
        self.applied_term = Term(0)
        self.configuration = b""
        """As of the last entry applied, for the meta data of a snapshot."""
        self.to_apply: deque[Entry] = deque()
        self.holding = False
        """An install is not restored yet: nothing is applied meanwhile."""
        self.restoring: tuple[SnapshotMeta, int] | None = None
        self.making: Making | None = None
        self.pause_making_until = 0
        self.snapshot_index = 0
        self.grants: list[ReadGrant] = []
        self.ticks = 0
        self.abdicating = False

    @property
    def node(self) -> RaftNode:
        assert self._running is not None, f"{self.identity} is down"
        return self._running

    @property
    def is_up(self) -> bool:
        return self._running is not None

    @property
    def is_leader(self) -> bool:
        return self._running is not None and self._running.role is RoleName.LEADER

    @property
    def members(self) -> Membership:
        """By the configuration in force here."""
        return membership(self.node.configuration)

    def start(self) -> SnapshotMeta | None:
        """Reads the disk and runs; raises `StorageDamagedError`. Returns the snapshot it began
        with."""
        self.store.restart()
        stored = self.disk.load()
        self.boots += 1
        self.begin()
        if stored.snapshot is not None:
            self.replace_state(stored.snapshot, self.read_snapshot(stored.snapshot))
        self._running = RaftNode(self.config, stored, self._draw, self._decode)
        return stored.snapshot

    def crash(self, draw: Draw | None) -> list[WriteBatch]:
        """Loses memory, and of the disk what was not synced; returns the writes that survived."""
        survived = self.disk.crash(draw)
        batches = [each.batch for each in self.under_way] if survived else []
        self._running = None
        self.heard.clear()
        self.begin()
        return batches

    def read_snapshot(self, meta: SnapshotMeta) -> bytes:
        """The whole content of a complete one."""
        reader = self.store.open(meta)
        try:
            return reader.read(0, reader.info.size_bytes)
        finally:
            reader.close()

    def replace_state(self, meta: SnapshotMeta, content: bytes) -> None:
        """The state is that of the snapshot from now on."""
        self.machine = Machine.load(content)
        self.snapshot_index = self.machine.index
        self.applied_term, self.configuration = meta.term, meta.configuration
        self.holding = False

    def apply(self) -> tuple[Entry, str]:
        """The next committed entry, and its answer."""
        entry = self.to_apply.popleft()
        answer = self.machine.apply(entry)
        self.applied_term = entry.term
        if entry.kind is EntryKind.CONFIGURATION:
            self.configuration = entry.data
        return entry, answer

    # --- time -------------------------------------------------------------------------------------

    def ticks_due(self) -> int:
        """How many ticks of its own clock pass in one turn of the world."""
        self._clock += self.rate
        due = int(self._clock)
        self._clock -= due
        return due

    def wall_ms(self, now: int) -> int:
        """What its clock shows."""
        return max(0, int(now * self.rate) + self.wall_offset_ms)

    def write_age_ticks(self) -> int:
        """How long the oldest write has been on its way."""
        waiting = self.under_way or self.queue
        return self.ticks - waiting[0].at_tick if waiting else 0

    # --- what the core owes -----------------------------------------------------------------------

    def take(self) -> Effects:
        """Takes what is owed; the caller sends the messages."""
        effects = self.node.take_effects()
        if effects.install is not None:
            self.holding = True
            self.to_apply.clear()
        if effects.write is not None:
            self.queue.append(
                Submitted(effects.write, effects.messages_after_write, effects.install, self.ticks)
            )
        self.to_apply += effects.committed
        self.grants += effects.read_grants
        return effects

    @property
    def installing(self) -> bool:
        """Whether a received snapshot is on its way to become the base of the log."""
        return any(each.install for each in (*self.under_way, *self.queue))

    # --- the disk ---------------------------------------------------------------------------------

    def begin_write(self, group: int, done_at: int) -> bool:
        """Begins a transaction with what has gathered; False where there is no space for it.

        Raises `StorageFailedError`.
        """
        writes = [self.queue[each] for each in range(min(group, len(self.queue)))]
        try:
            self.disk.stage([each.batch for each in writes])
        except StorageFullError:
            return False
        for _ in writes:
            self.queue.popleft()
        self.under_way = writes
        self.done_at = done_at
        return True

    def end_write(self) -> list[Submitted]:
        """It is on disk; raises `StorageFailedError`."""
        self.disk.sync_one()
        done, self.under_way = self.under_way, []
        return done
