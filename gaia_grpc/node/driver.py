"""`NodeDriver`: the replicated log of one peer, as the services see it.

Below it stands a `Peer`, from the moment on in which this data directory belongs to a cluster:
founded, joined, or restored. `Inbound` beside it is what the other peers reach.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import (
    GaiaError,
    NotFoundError,
    OutcomeUnknownError,
    StartupError,
    StorageFailedError,
    UnavailableError,
)
from gaia_grpc.node.api import (
    Applied,
    ConfigurationChange,
    LogEntrySummary,
    NodeStatus,
    ReadConsistency,
    SnapshotStream,
    SnapshotSummary,
)
from gaia_grpc.node.clock import Clock, SystemClock
from gaia_grpc.node.disk_thread import SNAPSHOT_THREAD, DiskThread
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.founding import Founder
from gaia_grpc.node.handover import furthest_reachable, transfer
from gaia_grpc.node.inbound import Inbound
from gaia_grpc.node.joining import Joiner
from gaia_grpc.node.members import decode_configuration
from gaia_grpc.node.peer import STATUS_TOPIC, Peer
from gaia_grpc.node.snapshot_transfer import SnapshotContent
from gaia_grpc.node.status import member_status, status_before_start, summaries
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.types import NodeId
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.api import MemberChange, PeerTransport

_FOUNDER_ATTEMPTS = 12
_FOUNDER_STEP_S = 0.025
_HANDOVER_TIMEOUT_S = 1.0
_HANDOVER_TRIES = 3
_THREAD_TIMEOUT_S = 0.5

log = structlog.get_logger("gaia.node")


class NodeDriver:
    """One peer. Implements `ReplicatedLog` and `ClusterControl` for the services."""

    def __init__(
        self,
        config: PeerConfig,
        directory: DataDirectory,
        transport: PeerTransport,
        *,
        clock: Clock | None = None,
        draw_timeout: Callable[[int, int], int] | None = None,
        on_state_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_state_loaded` is called whenever a snapshot has become the state."""
        self.failed: asyncio.Future[GaiaError] = asyncio.get_running_loop().create_future()
        """Set when the peer can't go on; its process must then end with an error."""
        self.disk_hangs = False
        """After `stop`: threads are still at the disk, and the directory can't be closed."""
        self._config = config
        self._directory = directory
        self._transport = transport
        self._clock = clock or SystemClock()
        self._draw_timeout = draw_timeout or random.Random().randint
        self._on_state_loaded = on_state_loaded
        self._topics = TopicBoard()
        self._disk = DiskThread(SNAPSHOT_THREAD)
        self._handed_over = False
        self.inbound = Inbound(config, directory, self._clock, self._topics)

    # --- life ---

    async def start(self) -> None:
        """Founds, joins or restores, then takes part. The peer port must be served already.

        Raises `StartupError`, `StorageDamagedError`, or what applying the log failed with.
        """
        await self._transport.start(self.inbound)
        founded = self._directory.is_empty and self._config.bootstrap
        if self._directory.is_empty:
            await self._enter_cluster()
        peer = Peer(
            self._config,
            self._directory,
            self._transport,
            self._disk,
            self._clock,
            self._draw_timeout,
            self._topics,
            on_failed=self._on_failed,
            on_state_loaded=self._on_state_loaded,
        )
        self.inbound.peer = peer
        peer.start()
        if founded and peer.membership.voters[:1] == (peer.membership.node_id,):
            self._lead_at_once(peer.engine)
        try:
            await peer.catch_up()
        except OutcomeUnknownError as error:
            raise (self.failed.result() if self.failed.done() else error) from None

    def _lead_at_once(self, engine: Engine) -> None:
        """The founder campaigns as soon as the others are there: nobody can lead before it."""
        loop = asyncio.get_running_loop()
        left = _FOUNDER_ATTEMPTS

        def attempt() -> None:
            nonlocal left
            engine.campaign()
            left -= 1
            # One after the other: a stall of the loop must not end in a burst of candidacies.
            if left > 0 and not engine.stopped:
                loop.call_later(_FOUNDER_STEP_S, attempt)

        attempt()

    async def _enter_cluster(self) -> None:
        inbound = self.inbound
        if self._config.bootstrap:
            inbound.founder = Founder(self._config, self._directory, self._transport, self._clock)
            try:
                await inbound.founder.run()
            finally:
                inbound.founder = None
        elif self._config.join:
            inbound.joiner = Joiner(self._directory, self._disk)
            await inbound.joiner.run()
        else:
            raise StartupError(
                f"{self._config.data_dir}: holds no data; start with --bootstrap to found a "
                "cluster, or with --join to be added to one"
            )

    async def stop(self) -> None:
        """Hands leadership over, then stops; the directory may be closed afterwards.

        Raises `StorageFailedError` where the disk hangs: then it may not (`disk_hangs`).
        """
        await self.hand_over()
        timeout_s = self._config.storage.disk_stall_ms / 1000
        peer = self.inbound.peer
        ended = peer is None or await peer.stop(timeout_s)
        # It lets transfers of snapshots finish what they do with a file, which may be never.
        closing = asyncio.ensure_future(self._transport.close())
        await asyncio.wait((closing,), timeout=timeout_s)
        ended = await self._disk.close(_THREAD_TIMEOUT_S) and ended
        await closing
        if not ended:
            self.disk_hangs = True
            raise StorageFailedError(
                f"{self._config.data_dir}: the disk does not answer; what was not acknowledged "
                "may be lost"
            )

    async def hand_over(self) -> None:
        """A leader that is about to stop makes the furthest follower the leader.

        Once more where it leads again: its own election timeout may have run out meanwhile.
        """
        peer = self.inbound.peer
        if peer is None or self._handed_over:
            return
        self._handed_over = True
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _HANDOVER_TIMEOUT_S
        term = 0
        for _ in range(_HANDOVER_TRIES):
            status = self.status()
            target = furthest_reachable(status)
            remaining_s = deadline_s - loop.time()
            if peer.engine.stopped or target is None or remaining_s <= 0 or status.term == term:
                return
            term = status.term
            try:
                await self.transfer_leadership(target, timeout_s=remaining_s)
            except GaiaError as error:
                log.warning("handover_failed", message=error.message)
            else:
                log.info("handed_over", to=target)
                return

    def _on_failed(self, error: GaiaError) -> None:
        if not self.failed.done():
            self.failed.set_result(error)

    # --- ReplicatedLog ---

    async def propose(self, command: bytes, *, timeout_s: float) -> Applied:
        """See `ReplicatedLog.propose`."""
        return await self.inbound.running().router.propose(command, timeout_s)

    async def read(self, query: bytes, *, consistency: ReadConsistency, timeout_s: float) -> bytes:
        """See `ReplicatedLog.read`."""
        peer = self.inbound.running()
        elapsed_ms = 0
        if consistency is not ReadConsistency.LOCAL:
            elapsed_ms = await peer.router.confirm_read(timeout_s)
        # Only now: a snapshot may have replaced the state meanwhile.
        machine = peer.engine.applier.machine
        if machine.applied_index == 0 and peer.engine.applier.restoring:
            raise UnavailableError("the state is being restored", retry_after_ms=100)
        return machine.query(query, max(elapsed_ms, machine.elapsed_ms))

    def topic_version(self, topic: str) -> int:
        """See `ReplicatedLog.topic_version`."""
        return self._topics.version(topic)

    async def wait_topic(self, topic: str, version: int, *, timeout_s: float) -> int:
        """See `ReplicatedLog.wait_topic`."""
        return await self._topics.wait(topic, version, timeout_s)

    def status(self, at_index: int = 0) -> NodeStatus:
        """See `ReplicatedLog.status`; before the founding is done nothing but the name is known."""
        peer = self.inbound.peer
        if peer is None:
            return status_before_start(self._directory.identity())
        return peer.status(at_index)

    async def wait_status(self, seen: NodeStatus, *, timeout_s: float) -> NodeStatus:
        """See `ReplicatedLog.wait_status`."""
        version = self._topics.version(STATUS_TOPIC)
        now = self.status()
        if (now.role, now.term, now.leader_id, now.writable) != (
            seen.role,
            seen.term,
            seen.leader_id,
            seen.writable,
        ):
            return now
        await self._topics.wait(STATUS_TOPIC, version, timeout_s)
        return self.status()

    async def log_entries(self, first: int, count: int) -> tuple[LogEntrySummary, ...]:
        """See `ReplicatedLog.log_entries`."""
        return summaries(self.inbound.running().engine.core, first, count)

    # --- ClusterControl ---

    async def transfer_leadership(self, to_node_id: str, *, timeout_s: float) -> NodeStatus:
        """See `ClusterControl.transfer_leadership`; only the leader itself can hand over."""
        peer = self.inbound.running()
        return await transfer(peer.engine, self, NodeId(to_node_id), peer.breaks, timeout_s)

    async def add_peer(
        self, node_id: str, peer_uuid: str, peer_address: str, *, timeout_s: float
    ) -> ConfigurationChange:
        """See `ClusterControl.add_peer`."""
        change = MemberChange(False, NodeId(node_id), peer_uuid, peer_address)
        return await self._change_members(change, timeout_s)

    async def remove_peer(self, node_id: str, *, timeout_s: float) -> ConfigurationChange:
        """See `ClusterControl.remove_peer`."""
        return await self._change_members(MemberChange(True, NodeId(node_id)), timeout_s)

    async def _change_members(self, change: MemberChange, timeout_s: float) -> ConfigurationChange:
        peer = self.inbound.running()
        done = await peer.reconfiguration.change(change, timeout_s)
        _, members = decode_configuration(done.result)
        return ConfigurationChange(
            done.term,
            done.index,
            tuple(
                member_status(member, peer.engine, peer.membership, peer.reachable())
                for member in members
            ),
        )

    async def take_snapshot(self, *, timeout_s: float) -> SnapshotSummary:
        """See `ClusterControl.take_snapshot`."""
        return await self.inbound.running().snapshots.take(timeout_s)

    async def read_snapshot(self, chunk_size_bytes: int) -> SnapshotStream:
        """See `ClusterControl.read_snapshot`."""
        peer = self.inbound.running()
        file = await peer.transfers.open()
        if file is None:
            raise NotFoundError("this peer has no snapshot yet")
        latest = peer.snapshots.latest
        state_hash = b""
        if latest is not None and latest.index == file.meta.index:
            state_hash = latest.state_hash
        return SnapshotContent(file, state_hash, chunk_size_bytes)
