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
    InvalidArgumentError,
    InvariantError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    ResourceExhaustedError,
    UnavailableError,
)
from gaia_grpc.node.api import Applied
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.clock import Clock, LogClock, entry_needed_ms
from gaia_grpc.node.outbox import Outbox
from gaia_grpc.node.pending import RETRY_AFTER_MS, Proposal, ProposalQueue, ReadFuture, ReadQueue
from gaia_grpc.node.writer import LogWriter
from gaia_grpc.raft.effects import Effects, RoleChange, RoleName
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.state.stamp import stamp
from gaia_grpc.storage.api import LogStorage
from gaia_grpc.transport.api import PeerTransport

MAX_INBOX = 50_000
_ADVANCE_TIME = command_pb2.Command(advance_time=command_pb2.AdvanceTime()).SerializeToString()

log = structlog.get_logger("gaia.node")


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
        max_command_size_bytes: int,
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
        self._outbox = Outbox(transport.send, applier.checksum)
        self._on_role_change = on_role_change
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Envelope] = deque()
        self._proposals = ProposalQueue()
        self._reads = ReadQueue(peer_uuid, boot, config.max_pending_reads)
        self._after_write: deque[tuple[int, tuple[Envelope, ...]]] = deque()
        self._max_command_size_bytes = max_command_size_bytes
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
        self._halt("the peer is stopping")
        await self.writer.stop()

    def fail(self, error: GaiaError) -> None:
        """The peer can't go on; whoever runs it is told once."""
        if not self.stopped:
            log.error("peer_failed", reason=error.instance_reason, message=error.message)
            self._halt("the peer failed")
            self._on_failed(error)

    def _fail_with(self, error: Exception) -> None:
        """The boundary of every callback of the loop: a bug ends the peer, visibly."""
        if isinstance(error, GaiaError):
            self.fail(error)
        else:
            log.error("peer_bug", exc_info=error)
            self.fail(InvariantError(f"internal error in the peer's loop: {error!r}"))

    def _halt(self, why: str) -> None:
        self.stopped = True
        self.log_clock.stop()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._inbox.clear()
        self._outbox.close()
        self._proposals.refuse(lambda: UnavailableError(why))
        self._reads.drop_all(lambda: UnavailableError(why))
        self.applier.abandon(lambda: OutcomeUnknownError(f"{why}; repeat with the same request_id"))

    # --- inputs ---

    def on_message(self, envelope: Envelope) -> None:
        """A peer's message; dropped where the inbox is full, which Raft tolerates."""
        if self.stopped or len(self._inbox) >= MAX_INBOX:
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
            raise UnavailableError("the peer is stopping", retry_after_ms=RETRY_AFTER_MS)
        self.check_size(command)
        if self.disk_full:
            raise ResourceExhaustedError(
                "the disk of the leader is full", reason="STORAGE_FULL", retry_after_ms=1_000
            )
        # Followers commit what the disk of a slow leader does not hold yet: that is bounded too.
        not_durable = self.core.last_index - self.core.durable_index
        waiting = len(self._proposals) + max(self.applier.waiting_proposals, not_durable)
        size_bytes = self._proposals.size_bytes + self.applier.waiting_size_bytes
        # A command that is larger than the whole budget passes alone.
        if waiting and (
            waiting >= self._config.max_pending_proposals
            or size_bytes + len(command) > self._config.max_pending_size_bytes
        ):
            raise OverloadedError(f"{waiting} proposals are waiting", retry_after_ms=RETRY_AFTER_MS)
        proposal = self._proposals.put(command)
        self.wake()
        return proposal

    def check_size(self, command: bytes) -> None:
        """Raises `InvalidArgumentError` for a command that no frame between peers can hold: in the
        log it would break the append stream of each follower, again and again."""
        if len(command) > self._max_command_size_bytes:
            raise InvalidArgumentError(
                f"a command of {len(command)} bytes exceeds {self._max_command_size_bytes}",
                reason="COMMAND_TOO_LARGE",
            )

    def read_index(self) -> ReadFuture:
        """Asks for (index, log time) from which a linearizable read may be served.

        Many reads share one round. Raises `NotLeaderError`, `OverloadedError`; the future ends in
        `NotLeaderError` where leadership is lost, `UnavailableError` where the peer stops.
        """
        if self.stopped:
            raise UnavailableError("the peer is stopping", retry_after_ms=RETRY_AFTER_MS)
        if self.core.role is not RoleName.LEADER:
            raise self._not_leader()
        future = self._reads.put()
        self.wake()
        return future

    def _not_leader(self) -> NotLeaderError:
        return NotLeaderError("this peer does not lead", leader_id=self.core.leader_id)

    def report_unreachable(self, peer: NodeId) -> None:
        """The append stream to `peer` broke."""
        self._tell_core(self.core.report_unreachable, peer)

    def peer_lost(self, peer: NodeId, term: Term) -> None:
        """The process of `peer`, which led `term`, is gone."""
        self._tell_core(self.core.peer_lost, peer, term)

    def _tell_core(self, tell: Callable[..., None], *what: object) -> None:
        if self.stopped:
            return
        try:
            tell(*what)
        except Exception as error:
            self._fail_with(error)
        self.wake()

    def campaign(self) -> None:
        """Stands for election now, if no leader is known."""
        self._tell_core(self.core.campaign)

    def transfer(self, to: NodeId) -> None:
        """Hands leadership over; raises `NotLeaderError`, `InvalidArgumentError` or
        `UnavailableError`."""
        if self.stopped:
            raise UnavailableError("the peer is stopping", retry_after_ms=RETRY_AFTER_MS)
        self.core.transfer(to)
        self.wake()

    # --- the turn ---

    def wake(self) -> None:
        """Makes sure that a turn comes."""
        if not self._turn_scheduled and not self.stopped:
            self._turn_scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _schedule_tick(self) -> None:
        self._tick_handle = self._loop.call_later(self._config.tick_ms / 1000, self._on_tick)

    def _on_tick(self) -> None:
        self._tick_due = True
        self.wake()
        self._schedule_tick()

    def _scheduled_turn(self) -> None:
        self._turn_scheduled = False
        self._turn()

    def _turn(self) -> None:
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
        except Exception as error:
            self._fail_with(error)

    def _drain_inbox(self) -> None:
        inbox, step, checked = self._inbox, self.core.step, self.applier.checked
        while inbox:
            step(checked(inbox.popleft()))

    def _admit(self) -> None:
        """Gives what has gathered to the core, as far as this peer leads."""
        core = self.core
        if core.role is not RoleName.LEADER:
            self._refuse_gathered()
            return
        read_id = self._reads.start_round()
        if read_id is not None:
            core.request_read(read_id)
        if self._proposals and self.log_clock.running:
            self._admit_proposals()

    def _admit_proposals(self) -> None:
        admitted = self._proposals.take()
        if not admitted:
            return
        elapsed_ms, wall_ms = self.log_clock.advance_ms(), self._clock.wall_ms()
        commands = [stamp(proposal.command, elapsed_ms, wall_ms) for proposal in admitted]
        try:
            ids = self.core.propose(commands)
        except NotLeaderError as error:  # handing over
            for proposal in admitted:
                proposal.future.set_exception(NotLeaderError(error.message))
            return
        self.stats.admitted += len(admitted)
        for entry_id, proposal in zip(ids, admitted, strict=True):
            proposal.admitted = True
            self.applier.expect(entry_id, proposal.future, len(proposal.command))

    def _refuse_gathered(self) -> None:
        if self._proposals:
            self._proposals.refuse(self._not_leader)
        self._reads.drop_gathered(self._not_leader)

    def _carry_out(self, effects: Effects) -> None:
        send = self._outbox.send
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
            self._reads.grant(grant.read_id, grant.index, self._elapsed_ms())
        for read_id in effects.reads_dropped:
            self._reads.drop(read_id, self._not_leader)
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
        """Lets log time pass, and proposes AdvanceTime when it is needed; one at a time.

        Time passes in each tick, needed or not: what passes in one go is cut to `MAX_ADVANCE_MS`,
        so an idle leader that did not look would lose all of its idle time.
        """
        if not self.log_clock.running:
            return
        now_ms = self.log_clock.advance_ms()
        machine = self.applier.machine
        needed = now_ms >= entry_needed_ms(machine.elapsed_ms, machine.next_due_ms())
        if needed and not self._advance_pending and not self.disk_full:
            self._advance_pending = True
            self._proposals.put(_ADVANCE_TIME).future.add_done_callback(self._advanced)

    def _advanced(self, future: asyncio.Future[Applied]) -> None:
        self._advance_pending = False
        if not future.cancelled():
            future.exception()  # a lost leader's AdvanceTime is the next leader's business

    # --- from the writer ---

    def _on_persisted(self, write_number: int) -> None:
        if self.stopped:
            return
        try:
            self.core.persisted(write_number)
            while self._after_write and self._after_write[0][0] <= write_number:
                for envelope in self._after_write.popleft()[1]:
                    self._outbox.send(envelope)
        except Exception as error:
            self._fail_with(error)
        self.wake()

    def _on_full(self, full: bool) -> None:
        self.disk_full = full
        log.warning("disk_full" if full else "disk_has_space")
        self._on_role_change(RoleChange(self.core.role, self.core.term, self.core.leader_id))
