"""The limits and deadlines of the peer transport, and the gRPC arguments that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

ChannelArguments = list[tuple[str, int | str]]


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Plain parameters; the composition root fills them from `gaia_grpc.config`."""

    vote_timeout_ms: int = 300
    """Deadline of RequestVote and TimeoutNow: one election timeout, later answers are useless."""
    connect_timeout_ms: int = 500
    """How long the opening of a stream may take before it counts as broken."""
    backoff_min_ms: int = 50
    backoff_max_ms: int = 500
    """Waits between connects grow from the first to the second; gRPC's own default of 1 s and more
    would keep a restarted peer out of its cluster."""
    keepalive_interval_ms: int = 5_000
    keepalive_timeout_ms: int = 3_000
    """A peer that vanished without a word (power, cable) is noticed after both together."""
    closing_timeout_ms: int = 300
    """How long `close` waits for a follower to take the CLOSING frame."""
    max_message_size_bytes: int = 64 << 20
    max_queue_frames: int = 4_096
    max_queue_size_bytes: int = 64 << 20
    """Of entries that wait for one peer; beyond either limit messages are dropped and counted."""
    max_votes_in_flight: int = 16
    max_forwards_in_flight: int = 20_000
    """Of one peer to the leader, and of the leader for one peer."""
    max_frame_calls: int = 256
    max_frame_size_bytes: int = 1 << 20
    """Forwarded calls that travel in one frame; a single larger call travels alone."""
    snapshot_chunk_size_bytes: int = 256 << 10
    snapshot_rate_size_bytes_per_s: int = 64 << 20
    """At most that much of a snapshot leaves in a second: heartbeats and entries go between."""
    snapshot_open_timeout_ms: int = 5_000
    """Until the receiver has accepted an offer."""
    snapshot_chunk_timeout_ms: int = 10_000
    """Until a chunk was read and has left, which waits for the receiver's disk; the receiver waits
    as long for the next one."""
    snapshot_finish_timeout_ms: int = 60_000
    """Until the receiver has checked and synced the whole."""


def channel_arguments(options: TransportOptions) -> ChannelArguments:
    """Of the channel to one peer."""
    return [
        ("grpc.initial_reconnect_backoff_ms", options.backoff_min_ms),
        ("grpc.min_reconnect_backoff_ms", options.backoff_min_ms),
        ("grpc.max_reconnect_backoff_ms", options.backoff_max_ms),
        ("grpc.keepalive_time_ms", options.keepalive_interval_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", options.max_message_size_bytes),
        ("grpc.max_send_message_length", options.max_message_size_bytes),
        # A connection of its own: its fate is that of this peer, and a test with several peers in
        # one process shares nothing.
        ("grpc.use_local_subchannel_pool", 1),
        # Peers are named by address; a proxy of the environment must not come between them.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]


def server_arguments(options: TransportOptions) -> ChannelArguments:
    """Of the server on the peer port."""
    return [
        # Without it a second process on the same port starts and gets half of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", options.max_message_size_bytes),
        ("grpc.max_send_message_length", options.max_message_size_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", options.keepalive_interval_ms // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", options.keepalive_interval_ms // 2),
    ]
