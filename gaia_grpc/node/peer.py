"""One peer that belongs to a cluster: all parts of it, made from its directory and wired together.

Implements `EngineEvents`: what the engine tells goes to the parts that it concerns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import structlog

from gaia_grpc import __version__
from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import GaiaError, invariant
from gaia_grpc.node.admission import Admission
from gaia_grpc.node.api import NodeStatus, SnapshotSummary
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.clock import Clock
from gaia_grpc.node.disk_thread import DiskThread
from gaia_grpc.node.disk_watch import Abdication
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.events import EngineEvents
from gaia_grpc.node.feature_levels import FeatureLevels, announced_level
from gaia_grpc.node.handover import furthest_reachable
from gaia_grpc.node.lost_peers import LostPeers
from gaia_grpc.node.members import (
    Membership,
    decode_configuration,
    decode_members_for,
    latest_configuration,
)
from gaia_grpc.node.pending import max_command_size_bytes
from gaia_grpc.node.reconfiguration import Promoter, Reconfiguration
from gaia_grpc.node.restoring import Restorer
from gaia_grpc.node.routing import Router
from gaia_grpc.node.snapshot_transfer import SnapshotTransfer
from gaia_grpc.node.snapshots import Snapshots
from gaia_grpc.node.status import status_of
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.effects import RoleChange, RoleName
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import NO_NODE, Index, NodeId, Restored, SnapshotMeta, Term
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.api import PeerTransport

STATUS_TOPIC = "node/status"

log = structlog.get_logger("gaia.node")


class Peer:
    """Made once the directory belongs to a cluster; `start` lets it take part."""

    def __init__(
        self,
        config: PeerConfig,
        directory: DataDirectory,
        transport: PeerTransport,
        disk: DiskThread,
        clock: Clock,
        draw_timeout: Callable[[int, int], int],
        topics: TopicBoard,
        *,
        on_failed: Callable[[GaiaError], None],
        on_state_loaded: Callable[[], None],
    ) -> None:
        """Raises `StorageDamagedError`, `InvariantError`."""
        self.heard_ns: dict[NodeId, int] = {}
        """When each peer was heard last."""
        self.breaks: Counter[NodeId] = Counter()
        """Broken streams to each peer."""
        self._config = config
        self._clock = clock
        self._topics = topics
        self._transport = transport
        self._disk = disk
        self._tell_failed = on_failed
        self._on_state_loaded = on_state_loaded
        self._led = False
        self._settled: tuple[Term, Index] | None = None
        self._restored = directory.log.load()
        self.membership = restored_membership(config, directory, self._restored)
        tick_ms = config.consensus.tick_ms
        patience_ticks = -(-config.consensus.election_timeout_max_ms // tick_ms)
        core = make_core(config, self.membership.peer_uuid, self._restored, draw_timeout)
        applier = Applier(StateMachine(), topics)
        self.engine = make_engine(config, directory, transport, core, applier, clock, self)
        store = directory.snapshots
        self.router = Router(
            self.engine,
            transport,
            topics,
            STATUS_TOPIC,
            lambda change, timeout_s: self.reconfiguration.change_here(change, timeout_s),
        )
        self.snapshots = Snapshots(
            self.engine, store, disk, config.storage, tick_ms, patience_ticks
        )
        self.restorer = Restorer(self.engine, store, disk, self._on_restored)
        self.transfers = SnapshotTransfer(self.engine, store, disk, self.snapshots.renew)
        self.reconfiguration = Reconfiguration(
            self.engine, self.membership, self.router, transport, topics, STATUS_TOPIC
        )
        self._promoter = Promoter(self.engine, tick_ms, patience_ticks)
        self._levels = FeatureLevels(self.engine, self.membership, tick_ms)
        self._lost_peers = LostPeers(self.engine, self.membership, tick_ms)
        self._abdication = Abdication(
            self.engine,
            lambda: furthest_reachable(self.status()),
            self._touch_status,
            patience_ticks,
        )

    # --- life ---

    def start(self) -> None:
        """Takes part; the state of a snapshot is restored meanwhile."""
        self._transport.set_peers(self.membership.other_addresses())
        snapshot = self._restored.snapshot
        if snapshot is not None:
            self.restorer.start(snapshot)
        self._restored = Restored(self._restored.hard_state, ())  # its entries are the core's now
        self.engine.start()
        self._touch_status()

    async def catch_up(self) -> None:
        """Returns once all is applied that was on disk; raises what that failed with."""
        engine = self.engine
        await engine.applier.wait_applied(engine.core.commit_index)
        self._levels.check(engine.applier.machine.feature_level)

    async def stop(self, timeout_s: float) -> bool:
        """Ends everything; False where the disk hangs, and threads are left behind with it."""
        ended = await self.engine.stop(timeout_s)
        await self.snapshots.stop()
        await self.restorer.stop()
        self._touch_status()
        return ended

    # --- status ---

    def status(self, at_index: int = 0) -> NodeStatus:
        """See `ReplicatedLog.status`."""
        latest = self.snapshots.latest
        return status_of(
            self.engine,
            self.membership,
            at_index=at_index,
            reachable=self.reachable(),
            writable=self._is_writable(),
            snapshot_index=0 if latest is None else latest.index,
        )

    def reachable(self) -> set[NodeId]:
        """The peers that were heard lately."""
        since_ns = self._clock.monotonic_ns() - (
            2 * self._config.consensus.election_timeout_max_ms * 1_000_000
        )
        return {name for name, at_ns in self.heard_ns.items() if at_ns >= since_ns}

    def _is_writable(self) -> bool:
        engine = self.engine
        if engine.stopped or engine.disk_full:
            return False
        if engine.core.role is RoleName.LEADER:
            return engine.time.running and not engine.disk.stalled
        return engine.core.leader_id != NO_NODE

    def _touch_status(self) -> None:
        self._topics.touch((STATUS_TOPIC,))

    # --- EngineEvents ---

    def on_role_change(self, change: RoleChange) -> None:
        """See `EngineEvents`."""
        leads = change.role is RoleName.LEADER
        if self._led and not leads:
            self._transport.cancel_snapshots()
        self._led = leads
        self._touch_status()
        self.router.leader_changed(change.leader_id)

    def on_failed(self, error: GaiaError) -> None:
        """See `EngineEvents`."""
        self._touch_status()
        self._tell_failed(error)

    def on_configuration(self, data: bytes) -> None:
        """See `EngineEvents`."""
        was_member = self.membership.is_member
        self.membership.follow(data)
        self._transport.set_peers(self.membership.other_addresses())
        members = ", ".join(member.node_id for member in self.membership.members)
        log.info("members", members=members, voters=", ".join(self.membership.voters))
        if was_member and not self.membership.is_member:
            log.warning("removed_from_the_cluster", node=self.membership.node_id)
        self._touch_status()

    def on_install(self, meta: SnapshotMeta) -> None:
        """See `EngineEvents`."""
        self.snapshots.give_up()
        self.restorer.start(meta)

    def on_tick(self) -> None:
        """See `EngineEvents`."""
        self._end_streams_of_removed()
        self.snapshots.on_tick()
        self._promoter.on_tick()
        self._levels.on_tick()
        self._lost_peers.on_tick()
        self._abdication.on_tick()

    def _end_streams_of_removed(self) -> None:
        """Once for each configuration that is committed under this leader."""
        core = self.engine.core
        settled = (core.term, core.configuration_index)
        if self.engine.is_settled_leader and settled != self._settled:
            self._settled = settled
            self._transport.set_peers(self.membership.other_addresses())

    def _on_restored(self, summary: SnapshotSummary) -> None:
        self.snapshots.note(summary)
        self._levels.check(self.engine.applier.machine.feature_level)
        self._on_state_loaded()


def restored_membership(
    config: PeerConfig, directory: DataDirectory, restored: Restored
) -> Membership:
    """Who the members are by a peer's own log, committed or not (thesis 4.1)."""
    identity = directory.identity()
    found = latest_configuration(restored.entries)
    if found is None and restored.snapshot is not None and restored.snapshot.configuration:
        found = decode_configuration(restored.snapshot.configuration)
    invariant(
        found is None or found[0] == identity.cluster_id,
        f"the log is of cluster {found and found[0]}, the directory of {identity.cluster_id}",
    )
    members = () if found is None else found[1]
    names = {member.node_id for member in members}
    for name in config.peer_ids:
        if members and name not in names:
            log.warning("listed_peer_is_no_member", peer=name)
    membership = Membership(
        identity.cluster_id or "",
        members,
        node_id=identity.node_id,
        peer_uuid=identity.peer_uuid,
        peer_addresses={NodeId(name): address for name, address in config.peers},
        client_address=config.listen,
        feature_level=announced_level(config.consensus),
        software_version=__version__,
    )
    if members and not membership.is_member:
        log.warning("not_a_member", node=identity.node_id, peer_uuid=identity.peer_uuid)
    return membership


def make_engine(
    config: PeerConfig,
    directory: DataDirectory,
    transport: PeerTransport,
    core: RaftNode,
    applier: Applier,
    clock: Clock,
    events: EngineEvents,
) -> Engine:
    """The loop over a core and its state."""
    identity = directory.identity()
    return Engine(
        core,
        config=config.consensus,
        storage=directory.log,
        transport=transport,
        applier=applier,
        clock=clock,
        peer_uuid=identity.peer_uuid,
        boot=identity.boot,
        admission=Admission(
            core,
            applier,
            config.consensus,
            max_command_size_bytes=max_command_size_bytes(config.limits),
        ),
        disk_stall_ms=config.storage.disk_stall_ms,
        events=events,
    )


def make_core(
    config: PeerConfig,
    peer_uuid: str,
    restored: Restored,
    draw_timeout: Callable[[int, int], int],
) -> RaftNode:
    """The core with all times in ticks, rounded up."""
    consensus = config.consensus
    tick_ms = consensus.tick_ms
    return RaftNode(
        RaftConfig(
            node_id=NodeId(config.node_id),
            election_ticks_min=-(-consensus.election_timeout_min_ms // tick_ms),
            election_ticks_max=-(-consensus.election_timeout_max_ms // tick_ms),
            heartbeat_ticks=-(-consensus.heartbeat_interval_ms // tick_ms),
            max_entries_per_append=consensus.max_entries_per_append,
            max_bytes_per_append=consensus.max_append_size_bytes,
            max_inflight_appends=consensus.max_inflight_appends,
            max_inflight_partial_appends=consensus.max_inflight_partial_appends,
        ),
        restored,
        draw_timeout,
        partial(decode_members_for, NodeId(config.node_id), peer_uuid),
    )
