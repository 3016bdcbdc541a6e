"""Blocking questions to single peers, each on a channel that is kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import grpc
from gaia.cluster.v1 import cluster_pb2
from gaia.cluster.v1.cluster_pb2_grpc import ClusterServiceStub

TIMEOUT_S = 2.0

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

LogLine = tuple[int, int, int, bytes]
"""(index, term, kind, checksum) of one log entry."""


class Probe:
    """Asks peers for their status and their log. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}

    def _stub(self, address: str) -> ClusterServiceStub:
        with self._lock:
            channel = self._channels.get(address)
            if channel is None:
                channel = grpc.insecure_channel(address, options=_OPTIONS)
                self._channels[address] = channel
        return ClusterServiceStub(channel)

    def status(self, address: str, at_index: int = 0) -> cluster_pb2.GetStatusResponse:
        """The status of the peer at `address`."""
        return self._stub(address).GetStatus(
            cluster_pb2.GetStatusRequest(at_index=at_index), timeout=TIMEOUT_S
        )

    def entries(self, address: str, through_index: int) -> list[LogLine]:
        """The committed log of the peer at `address` up to an index."""
        request = cluster_pb2.ListLogEntriesRequest(page_size=10_000)
        found: list[LogLine] = []
        while True:
            page = self._stub(address).ListLogEntries(request, timeout=5 * TIMEOUT_S)
            found += [
                (entry.index, entry.term, entry.kind, entry.checksum)
                for entry in page.entries
                if entry.index <= through_index
            ]
            reached = bool(page.entries) and page.entries[-1].index >= through_index
            if reached or not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def add_peer(
        self, address: str, node_id: str, peer_address: str, timeout_s: float
    ) -> Sequence[cluster_pb2.PeerStatus]:
        """Asks the peer at `address` to add a member; returns all members."""
        request = cluster_pb2.AddPeerRequest(node_id=node_id, peer_address=peer_address)
        return self._stub(address).AddPeer(request, timeout=timeout_s).peers

    def remove_peer(self, address: str, node_id: str, timeout_s: float) -> None:
        """Asks the peer at `address` to remove a member."""
        self._stub(address).RemovePeer(
            cluster_pb2.RemovePeerRequest(node_id=node_id), timeout=timeout_s
        )

    def close(self) -> None:
        """Closes the channels; the next question opens new ones."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()
