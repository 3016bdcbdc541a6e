"""Applies committed entries in order and answers those who wait for them."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gaia_grpc.errors import OutcomeUnknownError, invariant
from gaia_grpc.node.api import Applied
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.messages import AppendRequest, Envelope, StateChecksum
from gaia_grpc.raft.types import Entry, EntryId, EntryKind, Index, SnapshotMeta, Term
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.topics import ALERTS

APPLY_SLICE_NS = 2_000_000
"""After this long the loop gets its turn, so that a long catch-up delays no heartbeat."""
MAX_FORSAKEN_READS = 100
"""Readers that gave up and are kept in the heap nevertheless, beside as many as still wait."""


class ProposalDroppedError(Exception):
    """Another entry was committed in the proposal's place: it was never applied, and never will."""


@dataclass(slots=True)
class ApplyStats:
    """What applying did since the start."""

    entries: int = 0
    size_bytes: int = 0
    busy_ns: int = 0


class Applier:
    """Owns the state machine and the futures that depend on what it has applied."""

    def __init__(self, machine: StateMachine, topics: TopicBoard) -> None:
        self.machine = machine
        self.topics = topics
        self.stats = ApplyStats()
        self._committed: deque[Entry] = deque()
        self._proposals: dict[int, tuple[int, asyncio.Future[Applied], int]] = {}
        self.waiting_size_bytes = 0
        """Bytes of the proposals in the log that are not applied yet."""
        self._reads: list[tuple[int, int, asyncio.Future[None]]] = []
        self._read_number = 0
        self.waiting_reads = 0
        self._abandoned: Callable[[], Exception] | None = None
        self.applied_term = Term(0)
        self.configuration = b""
        """The configuration in force at the applied index."""
        self.restored_index = 0
        """Of the snapshot that the state came out of."""
        self.urgent_index = 0
        """The last entry that brought an alert: people wait for it, at all peers."""
        self.restoring = False
        """A snapshot takes the place of the state: nothing is applied until it has."""

    @property
    def behind(self) -> bool:
        """Whether anything committed is not applied yet."""
        return self.restoring or bool(self._committed)

    @property
    def waiting_proposals(self) -> int:
        """Proposals in the log that are not applied yet."""
        return len(self._proposals)

    def expect(self, entry_id: EntryId, future: asyncio.Future[Applied], size_bytes: int) -> None:
        """`future` gets the outcome of the entry, once its index is applied.

        It stays right across a change of leader: whatever is committed at that index decides. An
        older proposal at the same index, which a truncation must have removed, gets its answer
        then too.
        """
        older = self._proposals.get(entry_id.index)
        if older is not None:
            self.waiting_size_bytes -= older[2]
            if not older[1].done():
                older[1].set_exception(ProposalDroppedError())
        self._proposals[entry_id.index] = (entry_id.term, future, size_bytes)
        self.waiting_size_bytes += size_bytes

    def checksum(self) -> StateChecksum | None:
        """What a leader tells of its state; None before anything was applied."""
        known = self.machine.state_hash()
        return None if known is None or known[0] == 0 else StateChecksum(Index(known[0]), known[1])

    def checked(self, envelope: Envelope) -> Envelope:
        """Stops a peer whose state differs from that of a leader, rather than let it answer.

        Any leader's, of any term: what it has applied is committed, so the entry at that index is
        the same here. Raises `InvariantError`. An index that is not reached here, or no longer
        kept, is passed over: the next heartbeat names another.
        """
        payload = envelope.payload
        if not isinstance(payload, AppendRequest) or payload.checksum is None:
            return envelope
        theirs, mine = payload.checksum, self.machine.state_hash(payload.checksum.index)
        invariant(
            mine is None or mine[1] == theirs.state_hash,
            f"the state after entry {theirs.index} differs from that of {envelope.from_node}: "
            "one of the two is wrong; compare the logs and state hashes of all peers",
        )
        return envelope

    def committed(self, entries: Sequence[Entry]) -> None:
        """Queues entries to apply."""
        self._committed.extend(entries)

    def hold(self) -> None:
        """A snapshot has come: what is committed from now on waits for `replace`."""
        self.restoring = True

    def replace(self, machine: StateMachine, meta: SnapshotMeta) -> StateMachine:
        """The state is that of the snapshot from now on; applying goes on behind it.

        Returns the one that it replaces.
        """
        invariant(
            machine.applied_index == meta.index,
            f"the snapshot holds the state after {machine.applied_index}, not {meta.index}",
        )
        replaced, self.machine = self.machine, machine
        self.restored_index = meta.index
        self.applied_term, self.configuration = meta.term, meta.configuration
        while self._committed and self._committed[0].index <= meta.index:
            self._committed.popleft()
        # Which entries the leader's log held at their places, this peer will never see.
        for index in [index for index in self._proposals if index <= meta.index]:
            _, future, size_bytes = self._proposals.pop(index)
            self.waiting_size_bytes -= size_bytes
            if not future.done():
                future.set_exception(
                    OutcomeUnknownError("a snapshot stands in its place; repeat the request")
                )
        self.restoring = False
        self.topics.touch_all()
        self._wake(machine.applied_index)
        return replaced

    async def wait_applied(self, index: int) -> None:
        """Returns when `index` is applied; raises `OutcomeUnknownError` where the peer stops."""
        if self.machine.applied_index >= index:
            return
        if self._abandoned is not None:
            raise self._abandoned()
        if len(self._reads) > 2 * self.waiting_reads + MAX_FORSAKEN_READS:
            self._reads = [read for read in self._reads if not read[2].done()]
            heapq.heapify(self._reads)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._read_number += 1
        heapq.heappush(self._reads, (index, self._read_number, future))
        self.waiting_reads += 1
        try:
            await future
        finally:
            self.waiting_reads -= 1

    def run(self) -> bool:
        """Applies for one slice of time; True where more is left."""
        if self.restoring or not self._committed:
            return False
        started_ns = time.perf_counter_ns()
        limit_ns = started_ns + APPLY_SLICE_NS
        machine, proposals, committed = self.machine, self._proposals, self._committed
        count = size_bytes = 0
        while committed:
            entry = committed.popleft()
            result = machine.apply(entry.index, int(entry.kind), entry.data)
            count += 1
            size_bytes += len(entry.data)
            if entry.term > self.applied_term:
                self._drop_before(entry.term, entry.index)
            self.applied_term = entry.term
            if entry.kind is EntryKind.CONFIGURATION:
                self.configuration = entry.data
            waiting = proposals.pop(entry.index, None)
            if waiting is not None:
                self.waiting_size_bytes -= waiting[2]
                if waiting[1].done():
                    pass
                elif waiting[0] == entry.term:
                    waiting[1].set_result(Applied(entry.term, entry.index, result))
                else:
                    waiting[1].set_exception(ProposalDroppedError())
            if time.perf_counter_ns() >= limit_ns:
                break
        self._wake(machine.applied_index)
        self.stats.entries += count
        self.stats.size_bytes += size_bytes
        self.stats.busy_ns += time.perf_counter_ns() - started_ns
        return bool(committed)

    def _drop_before(self, term: Term, index: Index) -> None:
        """Proposals of earlier terms behind a committed entry of this one are never committed: in
        every log that holds it, no entry behind it has a lower term. Without this they waited for
        their index to be reached, which may need the very callers that wait."""
        for at in [at for at, waiting in self._proposals.items() if at > index]:
            if self._proposals[at][0] >= term:
                continue
            _, future, size_bytes = self._proposals.pop(at)
            self.waiting_size_bytes -= size_bytes
            if not future.done():
                future.set_exception(ProposalDroppedError())

    def _wake(self, applied_index: int) -> None:
        touched = self.machine.take_touched()
        if touched:
            self.topics.touch(touched)
            if ALERTS in touched:
                self.urgent_index = applied_index
        while self._reads and self._reads[0][0] <= applied_index:
            future = heapq.heappop(self._reads)[2]
            if not future.done():
                future.set_result(None)

    def abandon(self, error: Callable[[], Exception]) -> None:
        """The peer stops: nobody who waits, or comes to wait, will get another answer."""
        self._abandoned = error
        waiting: list[asyncio.Future[Applied] | asyncio.Future[None]] = [
            future for _, future, _ in self._proposals.values()
        ]
        waiting += [future for _, _, future in self._reads]
        self._proposals.clear()
        self._reads.clear()
        self.waiting_size_bytes = 0
        for future in waiting:
            if not future.done():
                future.set_exception(error())
