"""The I/O configuration of one peer: one frozen, validated value with every limit by name.

Nothing here may change what the state machine does: timers and limits that `apply` depends on are
replicated settings (`gaia_grpc.state.settings`). Two peers may run with different values of this
file and still produce the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gaia_grpc.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """Timing and batching of consensus. The defaults are the guide's figures."""

    tick_ms: int = 10
    """Length of a tick; all other times are rounded up to ticks."""
    heartbeat_interval_ms: int = 150
    election_timeout_min_ms: int = 300
    election_timeout_max_ms: int = 500
    max_entries_per_append: int = 512
    max_append_size_bytes: int = 1 << 20
    max_inflight_appends: int = 64
    max_pending_proposals: int = 20_000
    """Proposals waiting at one peer; beyond it OVERLOADED with a retry time."""
    max_pending_size_bytes: int = 256 << 20
    max_pending_reads: int = 20_000
    default_timeout_ms: int = 5_000
    """Deadline of a call that brings none."""
    max_timeout_ms: int = 60_000
    peer_lost_rank_delay_ms: int = 25
    """A follower of rank r waits r times this before it campaigns after its leader's process died."""

    def __post_init__(self) -> None:
        if self.tick_ms < 1:
            raise ConfigError("consensus.tick_ms must be at least 1")
        if not self.tick_ms <= self.heartbeat_interval_ms < self.election_timeout_min_ms:
            raise ConfigError(
                "consensus: tick_ms <= heartbeat_interval_ms < election_timeout_min_ms must hold"
            )
        if self.election_timeout_min_ms >= self.election_timeout_max_ms:
            raise ConfigError("consensus.election_timeout_max_ms must exceed the minimum")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Bounds of what a client may ask of one peer."""

    max_message_size_bytes: int = 16 << 20
    max_payload_size_bytes: int = 1 << 20
    max_batch_items: int = 1_000
    max_metrics_per_batch: int = 10_000
    max_page_size: int = 1_000
    default_page_size: int = 100
    max_concurrent_streams: int = 5_000
    """Streams that one peer serves at once (subscriptions and watches)."""
    max_concurrent_calls: int = 4_000
    """Unary calls in flight; beyond it OVERLOADED with a retry time."""
    subscriber_write_timeout_ms: int = 5_000
    heartbeat_collect_ms: int = 20
    """How long heartbeats are collected before they are logged together; at most 100."""
    drain_timeout_ms: int = 5_000
    """How long SIGTERM waits for calls in flight."""
    peer_max_message_size_bytes: int = 64 << 20
    peer_queue_frames: int = 4_096


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Everything `gaia serve` needs."""

    node_id: str
    listen: str
    """Client address, host:port."""
    peer_listen: str
    """Peer address, host:port."""
    peers: tuple[tuple[str, str], ...]
    """(node id, peer address) of every peer, sorted by node id, this one included."""
    data_dir: str
    bootstrap: bool = False
    join: bool = False
    settings: tuple[tuple[str, str], ...] = ()
    """First values of replicated settings, sorted by name; used at founding only."""
    log_level: str = "info"
    log_format: str = "text"
    """`text` or `json`."""
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @property
    def peer_ids(self) -> tuple[str, ...]:
        """Node ids of all peers, sorted."""
        return tuple(node_id for node_id, _ in self.peers)
