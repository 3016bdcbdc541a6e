"""What an engine tells its owner."""

from __future__ import annotations

from typing import Protocol

from gaia_grpc.errors import GaiaError
from gaia_grpc.raft.effects import RoleChange
from gaia_grpc.raft.types import SnapshotMeta


class EngineEvents(Protocol):
    """What the engine tells its owner; called on the loop, within a turn."""

    def on_role_change(self, change: RoleChange) -> None:
        """Role, term, leader or the readiness to serve changed."""
        ...

    def on_failed(self, error: GaiaError) -> None:
        """The peer can't go on; once."""
        ...

    def on_configuration(self, data: bytes) -> None:
        """Another configuration is in force."""
        ...

    def on_install(self, meta: SnapshotMeta) -> None:
        """A received snapshot is the durable base of the log: the state must become it."""
        ...

    def on_tick(self) -> None:
        """A tick has passed."""
        ...
