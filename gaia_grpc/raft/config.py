"""The settings of one consensus core: its name, and every limit, in ticks and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from gaia_grpc.errors import ConfigError
from gaia_grpc.raft.membership import NOBODY, flaw_of
from gaia_grpc.raft.types import Members, NodeId


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Checked on construction; raises `ConfigError`. There are no feature switches."""

    node_id: NodeId
    election_ticks_min: int
    """Also the lease: votes are ignored for this long after a leader was heard (thesis 4.2.3)."""
    election_ticks_max: int
    """Also how long a leader goes on without answers from a quorum (thesis 6.2)."""
    heartbeat_ticks: int
    max_entries_per_append: int
    max_bytes_per_append: int
    """Of entry data; one entry is always sent, however large."""
    max_inflight_appends: int
    """Appends with entries under way to one follower without an answer."""
    max_inflight_partial_appends: int = 1 << 20
    """Once so many are under way, entries that fill no whole append gather until an answer comes:
    under load appends get fuller, while a lone entry still leaves at once."""
    initial_members: Members = NOBODY
    """In force as long as neither the log nor a snapshot holds a configuration; nobody for a peer
    that joins: it hears of the members from a leader."""

    def __post_init__(self) -> None:
        if not self.node_id:
            raise ConfigError("a peer needs a name")
        flaw = None if self.initial_members == NOBODY else flaw_of(self.initial_members)
        if flaw is not None:
            raise ConfigError(flaw)
        if not 1 <= self.heartbeat_ticks < self.election_ticks_min <= self.election_ticks_max:
            raise ConfigError(
                "1 <= heartbeat_ticks < election_ticks_min <= election_ticks_max does not hold: "
                f"{self.heartbeat_ticks}, {self.election_ticks_min}, {self.election_ticks_max}"
            )
        for limit in (
            "max_entries_per_append",
            "max_bytes_per_append",
            "max_inflight_appends",
            "max_inflight_partial_appends",
        ):
            if getattr(self, limit) < 1:
                raise ConfigError(f"{limit} must be at least 1")
