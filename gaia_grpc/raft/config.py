"""The settings of one consensus core: who takes part, and every limit, in ticks and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from gaia_grpc.errors import ConfigError
from gaia_grpc.raft.types import NodeId


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Checked on construction; raises `ConfigError`. There are no feature switches."""

    node_id: NodeId
    voters: tuple[NodeId, ...]
    """Sorted: every loop over peers uses this order, so a run is repeatable."""
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
    learners: tuple[NodeId, ...] = ()
    """Get the log, and count in no quorum (thesis 4.2.1)."""

    def __post_init__(self) -> None:
        for name, members in (("voters", self.voters), ("learners", self.learners)):
            if list(members) != sorted(set(members)) or "" in members:
                raise ConfigError(f"{name} must be sorted, unique and not empty names: {members}")
        if len(self.voters) % 2 == 0:
            raise ConfigError(f"a cluster has 1, 3, 5, ... voters, not {len(self.voters)}")
        if [name for name in self.learners if name in self.voters]:
            raise ConfigError("a peer is a voter or a learner, not both")
        if self.node_id not in self.voters + self.learners:
            raise ConfigError(f"{self.node_id!r} is not a member of the cluster it shall serve")
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

    @property
    def peers(self) -> tuple[NodeId, ...]:
        """All other members, sorted."""
        return tuple(sorted(n for n in self.voters + self.learners if n != self.node_id))
