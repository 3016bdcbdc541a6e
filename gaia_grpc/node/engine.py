"""The one loop that owns the clock, the disk and the core (design sections 3 and 4).

Nothing is done in direct reaction to an event. Messages, proposals and reads gather; a *turn*
takes all of them in, lets at most one tick pass, and carries out what the core owes. Batching on
the wire, group commit and shared read rounds fall out of that.

The inbox is drained before the tick, and ticks that a stall missed are dropped: a stalled peer must
not find its leader dead because its own clock ran while its ears were shut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from gaia.command.v1 import command_pb2

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import (
    GaiaError,
    InvariantError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    ResourceExhaustedError,
    UnavailableError,
)
from gaia_grpc.node.api import Applied
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.clock import Clock, LogClock
from gaia_grpc.node.writer import LogWriter
from gaia_grpc.raft.effects import Effects, ReadId, RoleChange, RoleName
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.state.stamp import stamp
from gaia_grpc.storage.api import LogStorage
from gaia_grpc.transport.api import PeerTransport

MAX_INBOX = 50_000
_RETRY_AFTER_MS = 50
_ADVANCE_TIME = command_pb2.Command(advance_time=command_pb2.AdvanceTime()).SerializeToString()

log = structlog.get_logger("gaia.node")


@dataclass(slots=True)
class Proposal:
    """One command on its way into the log. Once `admitted` its fate is decided by the log."""

    command: bytes
    future: asyncio.Future[Applied]
    admitted: bool = False


@dataclass(slots=True)
class EngineStats:
    """What the loop did since the start."""

    turns: int = 0
    ticks: int = 0
    admitted: int = 0
    inbox_dropped: int = 0


class Engine:
    """Drives one `RaftNode`. All methods are called on the loop."""

    def __init__(
        self,
        core: RaftNode,
        *,
        config: ConsensusConfig,
        storage: LogStorage,
        transport: PeerTransport,
        applier: Applier,
        clock: Clock,
        peer_uuid: str,
        boot: int,
        on_role_change: Callable[[RoleChange], None],
        on_failed: Callable[[GaiaError], None],
    ) -> None:
        self.core = core
        self.applier = applier
        self.stats = EngineStats()
        self.log_clock = LogClock(clock)
        self.disk_full = False
        self.writer = LogWriter(
            storage,
            on_persisted=self._on_persisted,
            on_full=self._on_full,
            on_failed=self.fail,
        )
        self._clock = clock
        self._config = config
        self._transport = transport
        self._on_role_change = on_role_change
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Envelope] = deque()
        self._proposals: deque[Proposal] = deque()
        self._proposals_size_bytes = 0
        self._reads: list[asyncio.Future[tuple[int, int]]] = []
        self._granting: dict[ReadId, list[asyncio.Future[tuple[int, int]]]] = {}
        self._after_write: deque[tuple[int, tuple[Envelope, ...]]] = deque()
        self._peer_uuid = peer_uuid
        self._boot = boot
        self._read_counter = 0
        self._tick_due = False
        self._turn_scheduled = False
        self._advance_pending = False
        self._clock_term = Term(0)
        self._tick_handle: asyncio.TimerHandle | None = None
        self.stopped = False

    # --- life ---

    def start(self) -> None:
        """Starts the writer and the clock."""
        self.writer.start()
        self._schedule_tick()
        self.wake()

    async def stop(self) -> None:
        """Ends the loop and the writer; what waits gets `OutcomeUnknownError`."""
        self._halt(OutcomeUnknownError("the peer is stopping; repeat with the same request_id"))
        await self.writer.stop()

    def fail(self, error: GaiaError) -> None:
        """The peer can't go on; whoever runs it is told once."""
        if not self.stopped:
            log.error("peer_failed", reason=error.instance_reason, message=error.message)
            self._halt(OutcomeUnknownError("the peer failed; repeat with the same request_id"))
            self._on_failed(error)

    def _halt(self, error: GaiaError) -> None:
        self.stopped = True
        self.log_clock.stop()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        for proposal in self._proposals:
            if not proposal.future.done():
                proposal.future.set_exception(UnavailableError("the peer is stopping"))
        self._proposals.clear()
        self._drop_reads(self._reads)
        for futures in self._granting.values():
            self._drop_reads(futures)
        self._granting.clear()
        self.applier.abandon(error)

    # --- inputs ---

    def on_message(self, envelope: Envelope) -> None:
        """A peer's message; dropped where the inbox is full, which Raft tolerates."""
        if len(self._inbox) >= MAX_INBOX:
            self.stats.inbox_dropped += 1
            return
        self._inbox.append(envelope)
        self.wake()

    def propose(self, command: bytes) -> Proposal:
        """Queues a command for the log of this leader.

        The future ends in `Applied`, `NotLeaderError` (not applied), `ProposalDroppedError` (not
        applied) or `OutcomeUnknownError`. Raises `OverloadedError`, `ResourceExhaustedError`.
        """
        if self.stopped:
            raise UnavailableError("the peer is stopping", retry_after_ms=_RETRY_AFTER_MS)
        if self.disk_full:
            raise ResourceExhaustedError(
                "the disk of the leader is full", reason="STORAGE_FULL", retry_after_ms=1_000
            )
        waiting = len(self._proposals) + self.applier.waiting_proposals
        if (
            waiting >= self._config.max_pending_proposals
            or self._proposals_size_bytes + len(command) > self._config.max_pending_size_bytes
        ):
            raise OverloadedError(
                f"{waiting} proposals are waiting", retry_after_ms=_RETRY_AFTER_MS
            )
        proposal = Proposal(command, self._loop.create_future())
        self._proposals.append(proposal)
        self._proposals_size_bytes += len(command)
        self.wake()
        return proposal

    def read_index(self) -> asyncio.Future[tuple[int, int]]:
        """Asks for (index, log time) from which a linearizable read may be served.

        Many reads share one round. Ends in `NotLeaderError` where leadership is lost.
        """
        future: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        if self.stopped or self.core.role is not RoleName.LEADER:
            future.set_exception(
                NotLeaderError("this peer does not lead", leader_id=self.core.leader_id)
            )
        elif len(self._reads) >= self._config.max_pending_reads:
            future.set_exception(
                OverloadedError("too many reads are waiting", retry_after_ms=_RETRY_AFTER_MS)
            )
        else:
            self._reads.append(future)
            self.wake()
        return future

    def report_unreachable(self, peer: NodeId) -> None:
        """The append stream to `peer` broke."""
        if not self.stopped:
            self.core.report_unreachable(peer)
            self.wake()

    def peer_lost(self, peer: NodeId, term: Term) -> None:
        """The process of `peer`, which led `term`, is gone."""
        if not self.stopped:
            self.core.peer_lost(peer, term)
            self.wake()

    def transfer(self, to: NodeId) -> None:
        """Hands leadership over; raises `NotLeaderError` or `InvalidArgumentError`."""
        self.core.transfer(to)
        self.wake()

    # --- the turn ---

    def wake(self) -> None:
        """Makes sure that a turn comes."""
        if not self._turn_scheduled and not self.stopped:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _schedule_tick(self) -> None:
        self._tick_handle = self._loop.call_later(self._config.tick_ms / 1000, self._on_tick)

    def _on_tick(self) -> None:
        self._tick_due = True
        self.wake()
        self._schedule_tick()

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self.stopped:
            return
        try:
            self.stats.turns += 1
            self._drain_inbox()
            if self._tick_due:
                self._tick_due = False
                self.stats.ticks += 1
                self.core.tick()
                self._advance_time()
            self._admit()
            if self.core.has_effects:
                self._carry_out(self.core.take_effects())
            more = self.applier.run()
            if more or self._start_clock() or self.core.has_effects:
                self.wake()
        except GaiaError as error:
            self.fail(error)
        except Exception as error:  # the boundary of the loop: a bug ends the peer, visibly
            log.exception("peer_bug")
            self.fail(InvariantError(f"internal error in the peer's loop: {error!r}"))

    def _drain_inbox(self) -> None:
        inbox, step = self._inbox, self.core.step
        while inbox:
            step(inbox.popleft())

    def _admit(self) -> None:
        """Gives what has gathered to the core, as far as this peer leads."""
        core = self.core
        if core.role is not RoleName.LEADER:
            self._refuse_gathered()
            return
        if self._reads:
            self._read_counter += 1
            read_id = ReadId(self._peer_uuid, self._boot, self._read_counter)
            core.request_read(read_id)
            self._granting[read_id], self._reads = self._reads, []
        if self._proposals and self.log_clock.running:
            self._admit_proposals()

    def _admit_proposals(self) -> None:
        admitted = [proposal for proposal in self._proposals if not proposal.future.done()]
        self._proposals.clear()
        self._proposals_size_bytes = 0
        elapsed_ms, wall_ms = self.log_clock.advance_ms(), self._clock.wall_ms()
        try:
            ids = self.core.propose(
                [stamp(proposal.command, elapsed_ms, wall_ms) for proposal in admitted]
            )
        except NotLeaderError as error:  # handing over
            for proposal in admitted:
                proposal.future.set_exception(error)
            return
        self.stats.admitted += len(admitted)
        for entry_id, proposal in zip(ids, admitted, strict=True):
            proposal.admitted = True
            self.applier.expect(entry_id, proposal.future)

    def _refuse_gathered(self) -> None:
        if self._proposals:
            error = NotLeaderError("this peer does not lead", leader_id=self.core.leader_id)
            for proposal in self._proposals:
                if not proposal.future.done():
                    proposal.future.set_exception(error)
            self._proposals.clear()
            self._proposals_size_bytes = 0
        if self._reads:
            self._drop_reads(self._reads)
            self._reads = []

    def _drop_reads(self, futures: list[asyncio.Future[tuple[int, int]]]) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(
                    NotLeaderError("this peer does not lead", leader_id=self.core.leader_id)
                )

    def _carry_out(self, effects: Effects) -> None:
        send = self._transport.send
        for envelope in effects.messages:
            send(envelope)
        if effects.write is not None:
            self._after_write.append((effects.write.write_number, effects.messages_after_write))
            self.writer.submit(effects.write)
        else:
            for envelope in effects.messages_after_write:
                send(envelope)
        if effects.committed:
            self.applier.committed(effects.committed)
        for grant in effects.read_grants:
            elapsed_ms = self._elapsed_ms()
            for future in self._granting.pop(grant.read_id, ()):
                if not future.done():
                    future.set_result((grant.index, elapsed_ms))
        for read_id in effects.reads_dropped:
            self._drop_reads(self._granting.pop(read_id, []))
        if effects.role_change is not None:
            self._change_role(effects.role_change)

    def _elapsed_ms(self) -> int:
        applied_ms = self.applier.machine.elapsed_ms
        if not self.log_clock.running:
            return applied_ms
        return max(self.log_clock.advance_ms(), applied_ms)

    def _change_role(self, change: RoleChange) -> None:
        if self.log_clock.running and (
            change.role is not RoleName.LEADER or change.term != self._clock_term
        ):
            self.log_clock.stop()
            self._advance_pending = False
        log.info("role", role=str(change.role), term=change.term, leader=change.leader_id or "none")
        self._on_role_change(change)

    def _start_clock(self) -> bool:
        """A new leader's log time begins where the applied log ends, so first all is applied."""
        if self.log_clock.running or not self.core.is_ready_leader or self.applier.behind:
            return False
        self.log_clock.start(self.applier.machine.elapsed_ms)
        self._clock_term = self.core.term
        self._advance_pending = False
        self._on_role_change(RoleChange(self.core.role, self.core.term, self.core.leader_id))
        return True

    def _advance_time(self) -> None:
        """Proposes AdvanceTime when something is due; one at a time is enough."""
        if not self.log_clock.running or self._advance_pending or self.disk_full:
            return
        due_ms = self.applier.machine.next_due_ms()
        if due_ms is None or self.log_clock.advance_ms() < due_ms:
            return
        proposal = Proposal(_ADVANCE_TIME, self._loop.create_future())
        proposal.future.add_done_callback(self._advanced)
        self._advance_pending = True
        self._proposals.append(proposal)

    def _advanced(self, future: asyncio.Future[Applied]) -> None:
        self._advance_pending = False
        if not future.cancelled():
            future.exception()  # a lost leader's AdvanceTime is the next leader's business

    # --- from the writer ---

    def _on_persisted(self, write_number: int) -> None:
        if self.stopped:
            return
        self.core.persisted(write_number)
        while self._after_write and self._after_write[0][0] <= write_number:
            for envelope in self._after_write.popleft()[1]:
                self._transport.send(envelope)
        self.wake()

    def _on_full(self, full: bool) -> None:
        self.disk_full = full
        log.warning("disk_full" if full else "disk_has_space")
        self._on_role_change(RoleChange(self.core.role, self.core.term, self.core.leader_id))
