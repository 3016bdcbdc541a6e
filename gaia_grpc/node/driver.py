"""`NodeDriver`: the replicated log of one peer, as services and other peers see it.

Below it the `Engine` runs consensus; this file adds what concerns more than one peer: founding,
identity, forwarding to the leader, and the patience to repeat a command within its deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import structlog

from gaia_grpc import __version__
from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import (
    GaiaError,
    OutcomeUnknownError,
    StartupError,
    UnavailableError,
    invariant,
)
from gaia_grpc.node.api import (
    Applied,
    LogEntrySummary,
    NodeStatus,
    ReadConsistency,
)
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.clock import Clock, SystemClock
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.founding import Founder
from gaia_grpc.node.handover import furthest_reachable, transfer
from gaia_grpc.node.members import (
    Membership,
    decode_configuration,
    decode_members,
    latest_configuration,
)
from gaia_grpc.node.pending import max_command_size_bytes
from gaia_grpc.node.routing import Router
from gaia_grpc.node.status import status_before_start, status_of, summaries
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.effects import RoleChange, RoleName
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import NO_NODE, EntryKind, Index, NodeId, Restored, Term
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.api import (
    ForwardedCall,
    ForwardedOutcome,
    Founding,
    Hello,
    IdentifyRequest,
    IdentifyResponse,
    PeerTransport,
)

FEATURE_LEVEL = 1
_FOUNDER_ATTEMPTS = 12
_FOUNDER_STEP_S = 0.025
_STATUS_TOPIC = "node/status"
_LOST_ATTEMPTS = 4
_HANDOVER_TIMEOUT_S = 1.0

log = structlog.get_logger("gaia.node")


class NodeDriver:
    """One peer. Implements `ReplicatedLog` for the services, `InboundHandler` for the transport."""

    def __init__(
        self,
        config: PeerConfig,
        directory: DataDirectory,
        transport: PeerTransport,
        *,
        clock: Clock | None = None,
        draw_timeout: Callable[[int, int], int] | None = None,
    ) -> None:
        self.failed: asyncio.Future[GaiaError] = asyncio.get_running_loop().create_future()
        """Set when the peer can't go on; its process must then end with an error."""
        self._config = config
        self._directory = directory
        self._identity = directory.identity()
        self._transport = transport
        self._clock = clock or SystemClock()
        self._draw_timeout = draw_timeout or random.Random().randint
        self._topics = TopicBoard()
        self._founder: Founder | None = None
        self._membership: Membership | None = None
        self._engine: Engine | None = None
        self._router: Router | None = None
        self._heard_ns: dict[NodeId, int] = {}
        self._breaks: Counter[NodeId] = Counter()
        self._handed_over = False

    # --- life ---

    async def start(self) -> None:
        """Founds or restores, then takes part. The peer port must be served already.

        Raises `StartupError`, `StorageDamagedError`, or what applying the log failed with.
        """
        await self._transport.start(self)
        founded = self._directory.is_empty
        if founded:
            await self._found()
        self._identity = self._directory.identity()
        restored = self._directory.log.load()
        self._membership = self._restore_membership(restored)
        self._membership.check_peer_list(NodeId(name) for name in self._config.peer_ids)
        machine = StateMachine()
        applier = Applier(machine, self._topics)
        self._engine = Engine(
            self._make_core(restored, self._membership),
            config=self._config.consensus,
            storage=self._directory.log,
            transport=self._transport,
            applier=applier,
            clock=self._clock,
            peer_uuid=self._identity.peer_uuid,
            boot=self._identity.boot,
            max_command_size_bytes=max_command_size_bytes(self._config.limits),
            on_role_change=self._on_role_change,
            on_failed=self._on_failed,
        )
        self._router = Router(self._engine, self._transport, self._topics, _STATUS_TOPIC)
        self._engine.start()
        self._topics.touch((_STATUS_TOPIC,))
        if founded and self._identity.node_id == self._membership.voters[0]:
            self._lead_at_once(self._engine)
        await self._catch_up(self._engine)

    def _lead_at_once(self, engine: Engine) -> None:
        """The founder campaigns as soon as the others are there: nobody can lead before it."""
        loop = asyncio.get_running_loop()
        for attempt in range(_FOUNDER_ATTEMPTS):
            loop.call_later(attempt * _FOUNDER_STEP_S, engine.campaign)

    async def _catch_up(self, engine: Engine) -> None:
        """Whoever says READY has applied what it had on disk, and can apply it."""
        try:
            await engine.applier.wait_applied(engine.core.commit_index)
        except OutcomeUnknownError as error:
            raise (self.failed.result() if self.failed.done() else error) from None

    async def _found(self) -> None:
        if not self._config.bootstrap:
            raise StartupError(
                f"{self._config.data_dir}: holds no data; start with --bootstrap to found a cluster"
            )
        self._founder = Founder(self._config, self._directory, self._transport, self._clock)
        try:
            await self._founder.run()
        finally:
            self._founder = None

    def _restore_membership(self, restored: Restored) -> Membership:
        configuration = latest_configuration(restored.entries)
        if configuration is None and restored.snapshot is not None:
            configuration = decode_configuration(restored.snapshot.configuration)
        if configuration is None:
            raise StartupError(f"{self._config.data_dir}: the log holds no configuration")
        cluster_id, members = configuration
        invariant(
            cluster_id == self._identity.cluster_id,
            f"the log is of cluster {cluster_id}, the directory of {self._identity.cluster_id}",
        )
        return Membership(
            cluster_id,
            members,
            node_id=self._identity.node_id,
            peer_uuid=self._identity.peer_uuid,
            peer_addresses={NodeId(name): address for name, address in self._config.peers},
            client_address=self._config.listen,
        )

    def _make_core(self, restored: Restored, membership: Membership) -> RaftNode:
        consensus = self._config.consensus
        tick_ms = consensus.tick_ms
        return RaftNode(
            RaftConfig(
                node_id=self._identity.node_id,
                election_ticks_min=-(-consensus.election_timeout_min_ms // tick_ms),
                election_ticks_max=-(-consensus.election_timeout_max_ms // tick_ms),
                heartbeat_ticks=-(-consensus.heartbeat_interval_ms // tick_ms),
                max_entries_per_append=consensus.max_entries_per_append,
                max_bytes_per_append=consensus.max_append_size_bytes,
                max_inflight_appends=consensus.max_inflight_appends,
                max_inflight_partial_appends=consensus.max_inflight_partial_appends,
            ),
            restored,
            self._draw_timeout,
            decode_members,
        )

    async def stop(self) -> None:
        """Hands leadership over, then stops; the directory may be closed afterwards."""
        await self.hand_over()
        if self._engine is not None:
            await self._engine.stop()
            self._topics.touch((_STATUS_TOPIC,))
        await self._transport.close()

    async def hand_over(self) -> None:
        """A leader that is about to stop makes the furthest follower the leader; tried once."""
        if self._engine is None or self._handed_over:
            return
        self._handed_over = True
        target = furthest_reachable(self.status())
        if self._engine.stopped or target is None:
            return
        try:
            await self.transfer_leadership(target, timeout_s=_HANDOVER_TIMEOUT_S)
            log.info("handed_over", to=target)
        except GaiaError as error:
            log.warning("handover_failed", message=error.message)

    def _on_failed(self, error: GaiaError) -> None:
        self._topics.touch((_STATUS_TOPIC,))
        if not self.failed.done():
            self.failed.set_result(error)

    # --- ReplicatedLog ---

    async def propose(self, command: bytes, *, timeout_s: float) -> Applied:
        """See `ReplicatedLog.propose`."""
        return await self._running_router().propose(command, timeout_s)

    async def read(self, query: bytes, *, consistency: ReadConsistency, timeout_s: float) -> bytes:
        """See `ReplicatedLog.read`."""
        router = self._running_router()
        machine = router.engine.applier.machine
        if consistency is ReadConsistency.LOCAL:
            return machine.query(query, machine.elapsed_ms)
        elapsed_ms = await router.confirm_read(timeout_s)
        return machine.query(query, max(elapsed_ms, machine.elapsed_ms))

    def topic_version(self, topic: str) -> int:
        """See `ReplicatedLog.topic_version`."""
        return self._topics.version(topic)

    async def wait_topic(self, topic: str, version: int, *, timeout_s: float) -> int:
        """See `ReplicatedLog.wait_topic`."""
        return await self._topics.wait(topic, version, timeout_s)

    def status(self, at_index: int = 0) -> NodeStatus:
        """See `ReplicatedLog.status`; before the founding is done nothing but the name is known."""
        if self._engine is None or self._membership is None:
            return status_before_start(self._identity)
        heard_since_ns = self._clock.monotonic_ns() - (
            2 * self._config.consensus.election_timeout_max_ms * 1_000_000
        )
        return status_of(
            self._engine,
            self._membership,
            at_index=at_index,
            reachable={
                node_id for node_id, at_ns in self._heard_ns.items() if at_ns >= heard_since_ns
            },
            writable=self._is_writable(),
        )

    async def wait_status(self, seen: NodeStatus, *, timeout_s: float) -> NodeStatus:
        """See `ReplicatedLog.wait_status`."""
        version = self._topics.version(_STATUS_TOPIC)
        now = self.status()
        if (now.role, now.term, now.leader_id, now.writable) != (
            seen.role,
            seen.term,
            seen.leader_id,
            seen.writable,
        ):
            return now
        await self._topics.wait(_STATUS_TOPIC, version, timeout_s)
        return self.status()

    async def log_entries(self, first: int, count: int) -> tuple[LogEntrySummary, ...]:
        """See `ReplicatedLog.log_entries`."""
        return summaries(self._running_router().engine.core, first, count)

    async def transfer_leadership(self, to_node_id: str, *, timeout_s: float) -> NodeStatus:
        """See `ReplicatedLog.transfer_leadership`; only the leader itself can hand over."""
        engine = self._running_router().engine
        return await transfer(engine, self, NodeId(to_node_id), self._breaks, timeout_s)

    # --- InboundHandler ---

    def hello(self, peer: NodeId) -> Hello:
        """See `InboundHandler.hello`."""
        return self._known_membership().hello(peer, __version__, FEATURE_LEVEL)

    def accepts(self, hello: Hello) -> str | None:
        """See `InboundHandler.accepts`."""
        if self._membership is None:
            return f"{self._identity.node_id} is not part of a cluster yet"
        return self._membership.accepts(hello)

    def on_hello(self, hello: Hello) -> None:
        """See `InboundHandler.on_hello`."""

    def on_message(self, envelope: Envelope) -> None:
        """See `InboundHandler.on_message`."""
        if self._engine is not None:
            self._heard_ns[envelope.from_node] = self._clock.monotonic_ns()
            self._engine.on_message(envelope)

    def on_stream_broken(self, peer: NodeId) -> None:
        """See `InboundHandler.on_stream_broken`."""
        if self._engine is not None:
            self._engine.report_unreachable(peer)
            self._heard_ns.pop(peer, None)
            self._breaks[peer] += 1
            self._topics.touch((_STATUS_TOPIC,))

    def on_leader_gone(self, peer: NodeId, term: Term) -> None:
        """A killed leader is replaced at once.

        The followers take turns by rank, a step apart: rank r campaigns at steps r, r + n, r + 2n.
        Had each repeated a refused pre-vote at the next step, rank 0 (refused because rank 1 had
        not noticed yet) and rank 1 would campaign at the same moment and split the votes.
        """
        engine, membership = self._engine, self._membership
        if engine is None or membership is None or engine.stopped:
            return
        candidates = [node_id for node_id in membership.voters if node_id != peer]
        if engine.core.node_id not in candidates:
            return
        step_s = self._config.consensus.peer_lost_rank_delay_ms / 1000
        rank = candidates.index(engine.core.node_id)
        log.info("leader_gone", leader=peer, term=term)
        loop, now_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        for attempt in range(_LOST_ATTEMPTS):
            loop.call_at(
                now_s + (rank + attempt * len(candidates)) * step_s,
                self._campaign,
                engine,
                peer,
                term,
            )

    def _campaign(self, engine: Engine, peer: NodeId, term: Term) -> None:
        core = engine.core
        if not engine.stopped and core.term == term and core.leader_id in (NO_NODE, peer):
            engine.peer_lost(peer, term)

    async def on_forward(self, call: ForwardedCall) -> ForwardedOutcome:
        """See `InboundHandler.on_forward`."""
        return await self._running_router().answer_forwarded(call)

    def on_identify(self, request: IdentifyRequest) -> IdentifyResponse:
        """See `InboundHandler.on_identify`."""
        if self._founder is not None:
            self._founder.note_asker(request)
        empty = self._directory.is_empty
        return IdentifyResponse(
            node_id=self._identity.node_id,
            peer_uuid=self._identity.peer_uuid,
            client_address=self._config.listen,
            empty=empty,
            bootstrapping=self._config.bootstrap,
            listed_peers=tuple((NodeId(name), address) for name, address in self._config.peers),
            settings=self._config.settings,
            founding=None if empty else self._founding(),
        )

    def _founding(self) -> Founding | None:
        """The first entries of the log, for founding peers that were late."""
        engine = self._engine
        entries = (
            engine.core.entries(Index(1), 2)
            if engine is not None and engine.core.first_index == 1
            else self._directory.log.read_entries(Index(1), 2)
        )
        if len(entries) < 2 or entries[0].kind is not EntryKind.CONFIGURATION:
            return None
        cluster_id, members = decode_configuration(entries[0].data)
        return Founding(cluster_id, members, entries)

    # --- inside ---

    def _running_router(self) -> Router:
        if self._router is None:
            raise UnavailableError("the peer has not started yet", retry_after_ms=100)
        return self._router

    def _known_membership(self) -> Membership:
        if self._membership is None:
            raise UnavailableError("the peer is not part of a cluster yet", retry_after_ms=100)
        return self._membership

    def _is_writable(self) -> bool:
        engine = self._engine
        if engine is None or engine.stopped or engine.disk_full:
            return False
        if engine.core.role is RoleName.LEADER:
            return engine.log_clock.running
        return engine.core.leader_id != NO_NODE

    def _on_role_change(self, change: RoleChange) -> None:
        self._topics.touch((_STATUS_TOPIC,))
        if self._router is not None:
            self._router.leader_changed(change.leader_id)
