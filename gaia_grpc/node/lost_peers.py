"""The leader tells the state which members do not answer, and which are back.

What is told already is state (an open operational alert), so a new leader neither repeats it nor
forgets to take it back. Every leader begins to count anew: it has to have missed a member itself
for `alert.peer_lost_after`. Nothing is proposed below the feature level that has these alerts.
"""

from __future__ import annotations

import asyncio

import structlog
from gaia.command.v1 import command_pb2

from gaia_grpc.errors import GaiaError
from gaia_grpc.node.api import Applied
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.members import Membership
from gaia_grpc.raft.types import NodeId
from gaia_grpc.state.feature_levels import required_level

_LOOK_EVERY_MS = 500

log = structlog.get_logger("gaia.node")


class LostPeers:
    """Looks at the members now and then; all methods are called on the loop."""

    def __init__(self, engine: Engine, membership: Membership, tick_ms: int) -> None:
        self._engine = engine
        self._membership = membership
        self._tick_ms = tick_ms
        self._every_ticks = max(1, _LOOK_EVERY_MS // tick_ms)
        self._ticks = 0
        self._proposed: asyncio.Future[Applied] | None = None

    def on_tick(self) -> None:
        """Proposes one report where this peer leads and something changed."""
        self._ticks += 1
        if self._ticks % self._every_ticks or self._proposed is not None:
            return
        if not self._engine.is_settled_leader or not self._engine.time.running:
            return
        machine = self._engine.applier.machine
        if machine.feature_level < required_level("report_peer"):
            return
        change = self._change(machine.lost_peers(), machine.peer_lost_after_ms())
        if change is None:
            return
        node_id, lost = change
        report = command_pb2.ReportPeer(node_id=node_id, lost=lost)
        command = command_pb2.Command(report_peer=report)
        try:
            proposed = self._engine.propose(command.SerializeToString()).future
        except GaiaError:
            return  # no room now: the next look proposes it
        log.warning("peer_lost" if lost else "peer_back", peer=node_id)
        self._proposed = proposed
        proposed.add_done_callback(self._ended)

    def _change(self, known: tuple[str, ...], lost_after_ms: int) -> tuple[str, bool] | None:
        """The first member that is to be reported, and whether it is lost."""
        members = {member.node_id for member in self._membership.members}
        for node_id in sorted(members - {self._membership.node_id}):
            silent_ms = self._silent_ms(node_id)
            if silent_ms is None:
                continue
            if silent_ms >= lost_after_ms and node_id not in known:
                return node_id, True
            if silent_ms < lost_after_ms and node_id in known:
                return node_id, False
        # A leader answers itself, and whoever was removed is not missed.
        for subject in known:
            if subject not in members or subject == self._membership.node_id:
                return subject, False
        return None

    def _silent_ms(self, node_id: NodeId) -> int | None:
        progress = self._engine.core.progress(node_id)
        return None if progress is None else progress.heard_ticks_ago * self._tick_ms

    def _ended(self, future: asyncio.Future[Applied]) -> None:
        self._proposed = None
        if not future.cancelled():
            future.exception()  # a lost leader's proposal is the next leader's business
