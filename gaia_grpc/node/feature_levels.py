"""Raises the cluster's feature level once all of its members understand the next one.

Until then nothing is proposed that an older member could not apply; from then on a peer that does
not understand it is refused, and stops where it finds the level in its own log.
"""

from __future__ import annotations

import asyncio

import structlog
from gaia.command.v1 import command_pb2

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import GaiaError, StartupError
from gaia_grpc.node.api import Applied
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.members import Membership
from gaia_grpc.state.feature_levels import FEATURE_LEVEL

_LOOK_EVERY_MS = 100

log = structlog.get_logger("gaia.node")


def announced_level(config: ConsensusConfig) -> int:
    """What this peer says that it understands."""
    return min(FEATURE_LEVEL, config.max_feature_level or FEATURE_LEVEL)


class FeatureLevels:
    """Looks at the levels now and then; all methods are called on the loop."""

    def __init__(self, engine: Engine, membership: Membership, tick_ms: int) -> None:
        self._engine = engine
        self._membership = membership
        self._every_ticks = max(1, _LOOK_EVERY_MS // tick_ms)
        self._ticks = 0
        self._proposed: asyncio.Future[Applied] | None = None

    def on_tick(self) -> None:
        """Proposes the next level where this peer leads and everybody is ready for it."""
        self._ticks += 1
        if self._ticks % self._every_ticks:
            return
        level = self._engine.applier.machine.feature_level
        self.check(level)
        if self._proposed is not None or not self._engine.time.running:
            return
        common = min(self._membership.common_feature_level(), FEATURE_LEVEL)
        if common <= level:
            return
        command = command_pb2.Command(
            raise_feature_level=command_pb2.RaiseFeatureLevel(level=common)
        )
        try:
            proposed = self._engine.propose(command.SerializeToString()).future
        except GaiaError:
            return  # no room now: the next look proposes it
        log.info("feature_level_proposed", level=common, before=level)
        self._proposed = proposed
        proposed.add_done_callback(self._ended)

    def check(self, level: int) -> None:
        """A peer that was held back, or is older, must not go on above what it understands."""
        if level > self._membership.feature_level and not self._engine.applier.restoring:
            self._engine.fail(
                StartupError(
                    f"the cluster has feature level {level}, this peer understands "
                    f"{self._membership.feature_level}: start a newer version here, or take away "
                    "consensus.max_feature_level (GAIA_CONSENSUS_MAX_FEATURE_LEVEL)"
                )
            )

    def _ended(self, future: asyncio.Future[Applied]) -> None:
        self._proposed = None
        if not future.cancelled():
            future.exception()  # a lost leader's proposal is the next leader's business
