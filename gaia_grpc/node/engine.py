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

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import (
    GaiaError,
    InvariantError,
    NotLeaderError,
    OutcomeUnknownError,
    UnavailableError,
)
from gaia_grpc.node.admission import Admission
from gaia_grpc.node.api import Applied
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.clock import Clock
from gaia_grpc.node.disk_watch import DiskWatch
from gaia_grpc.node.events import EngineEvents
from gaia_grpc.node.leader_time import LeaderTime
from gaia_grpc.node.outbox import Outbox
from gaia_grpc.node.pending import RETRY_AFTER_MS, Proposal, ReadFuture, ReadQueue
from gaia_grpc.node.writer import LogWriter
from gaia_grpc.raft.effects import Effects, RoleChange, RoleName
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import EntryId, NodeId, SnapshotMeta, Term
from gaia_grpc.state.stamp import stamp
from gaia_grpc.storage.api import LogStorage
from gaia_grpc.transport.api import PeerTransport

MAX_INBOX = 50_000

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
        admission: Admission,
        disk_stall_ms: int,
        events: EngineEvents,
    ) -> None:
        self.core = core
        self.applier = applier
        self.stats = EngineStats()
        self.admission = admission
        self.time = LeaderTime(core, applier, clock, self._propose_own)
        self.disk = DiskWatch(-(-disk_stall_ms // config.tick_ms))
        self.writer = LogWriter(
            storage,
            on_persisted=self._on_persisted,
            on_full=self._on_full,
            on_failed=self.fail,
        )
        self._clock = clock
        self._config = config
        self._outbox = Outbox(transport.send, applier.checksum)
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Envelope] = deque()
        self._proposals = admission.proposals
        self._reads = ReadQueue(peer_uuid, boot, config.max_pending_reads)
        self._after_write: deque[tuple[int, tuple[Envelope, ...], SnapshotMeta | None]] = deque()
        self._tick_due = False
        self._turn_scheduled = False
        self._tick_handle: asyncio.TimerHandle | None = None
        self.stopped = False

    # --- life ---

    def start(self) -> None:
        """Starts the writer and the clock."""
        self.writer.start()
        self._schedule_tick()
        self.wake()

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Ends the loop and the writer; what waits gets `OutcomeUnknownError`.

        False where the disk hangs: the writer is left behind then.
        """
        self._halt("the peer is stopping")
        return await self.writer.stop(timeout_s)

    def fail(self, error: GaiaError) -> None:
        """The peer can't go on; whoever runs it is told once."""
        if not self.stopped:
            log.error("peer_failed", reason=error.instance_reason, message=error.message)
            self._halt("the peer failed")
            self._events.on_failed(error)

    def _fail_with(self, error: Exception) -> None:
        """The boundary of every callback of the loop: a bug ends the peer, visibly."""
        if isinstance(error, GaiaError):
            self.fail(error)
        else:
            log.error("peer_bug", exc_info=error)
            self.fail(InvariantError(f"internal error in the peer's loop: {error!r}"))

    def _halt(self, why: str) -> None:
        self.stopped = True
        self.time.stop()
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
        applied) or `OutcomeUnknownError`. Raises `OverloadedError`, `ResourceExhaustedError`,
        `InvalidArgumentError`, `FailedPreconditionError`.
        """
        if self.stopped:
            raise UnavailableError("the peer is stopping", retry_after_ms=RETRY_AFTER_MS)
        proposal = self.admission.put(command)
        self.wake()
        return proposal

    def _propose_own(self, command: bytes) -> asyncio.Future[Applied]:
        return self._proposals.put(command).future

    def propose_configuration(self, data: bytes) -> asyncio.Future[Applied]:
        """Changes the members; the future ends like that of a proposal.

        Raises `NotLeaderError`, `ConfigurationRefusedError`, `UnavailableError`.
        """
        if self.stopped:
            raise UnavailableError("the peer is stopping", retry_after_ms=RETRY_AFTER_MS)
        entry_id = self.core.propose_configuration(data)
        future: asyncio.Future[Applied] = self._loop.create_future()
        self.applier.expect(entry_id, future, len(data))
        self.wake()
        return future

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

    def compact(self, meta: SnapshotMeta, keep_entries: int) -> EntryId:
        """A durable snapshot stands for the log up to `meta`; returns the new base."""
        base = self.core.compact(meta, keep_entries)
        self.writer.compact(base)
        return base

    def report_snapshot(self, peer: NodeId, delivered: bool) -> None:
        """How a transfer to `peer` ended."""
        self._tell_core(self.core.report_snapshot, peer, delivered)

    def step_down(self) -> None:
        """Gives leadership up."""
        self._tell_core(self.core.step_down)

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
                self.disk.tick()
                self.time.pass_on(may_propose=not self.disk_full)
                self._events.on_tick()
            self._admit()
            if self.core.has_effects:
                self._carry_out(self.core.take_effects())
            more = self.applier.run()
            self._outbox.hurry(self.applier.urgent_index)
            if self.time.start_if_ready():
                self._events.on_role_change(self._role_now())
                more = True
            if more or self.core.has_effects:
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
        if self._proposals and self.time.running:
            self._admit_proposals()

    def _admit_proposals(self) -> None:
        admitted = self._proposals.take()
        if not admitted:
            return
        elapsed_ms, wall_ms = self.time.clock.advance_ms(), self._clock.wall_ms()
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
        send, write = self._outbox.send, effects.write
        if effects.configuration is not None:
            # First of all: a new member must be known where the messages to it leave.
            self._events.on_configuration(effects.configuration)
        for envelope in effects.messages:
            send(envelope)
        if effects.install is not None:
            self.applier.hold()
        if write is not None:
            self._after_write.append(
                (write.write_number, effects.messages_after_write, effects.install)
            )
            self.disk.submitted(write.write_number)
            self.writer.submit(write)
        else:
            for envelope in effects.messages_after_write:
                send(envelope)
        if effects.committed:
            self.applier.committed(effects.committed)
        for grant in effects.read_grants:
            self._reads.grant(grant.read_id, grant.index, self.time.now_ms())
        for read_id in effects.reads_dropped:
            self._reads.drop(read_id, self._not_leader)
        if effects.role_change is not None:
            self._change_role(effects.role_change)

    def _change_role(self, change: RoleChange) -> None:
        self.time.role_changed(change)
        log.info("role", role=str(change.role), term=change.term, leader=change.leader_id or "none")
        self._events.on_role_change(change)

    def _role_now(self) -> RoleChange:
        return RoleChange(self.core.role, self.core.term, self.core.leader_id)

    @property
    def is_settled_leader(self) -> bool:
        """Whether this peer leads, and the configuration in force is committed."""
        core = self.core
        return core.role is RoleName.LEADER and core.commit_index >= core.configuration_index

    @property
    def disk_full(self) -> bool:
        """Whether the last write found no space."""
        return self.admission.disk_full

    # --- from the writer ---

    def _on_persisted(self, write_number: int) -> None:
        if self.stopped:
            return
        try:
            self.disk.persisted(write_number)
            self.core.persisted(write_number)
            while self._after_write and self._after_write[0][0] <= write_number:
                _, messages, install = self._after_write.popleft()
                for envelope in messages:
                    self._outbox.send(envelope)
                if install is not None:
                    self._events.on_install(install)
        except Exception as error:
            self._fail_with(error)
        self.wake()

    def _on_full(self, full: bool) -> None:
        self.admission.disk_full = full
        log.warning("disk_full" if full else "disk_has_space")
        self._events.on_role_change(self._role_now())
