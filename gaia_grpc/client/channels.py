"""One kept channel per peer, with the stubs of every service on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc
from gaia.alert.v1.alert_pb2_grpc import AlertServiceStub
from gaia.classroom.v1.classroom_pb2_grpc import ClassroomServiceStub
from gaia.cluster.v1.cluster_pb2_grpc import ClusterServiceStub
from gaia.lock.v1.lock_pb2_grpc import LockServiceStub
from gaia.metrics.v1.metrics_pb2_grpc import MetricsServiceStub
from gaia.session.v1.session_pb2_grpc import SessionServiceStub
from gaia.task.v1.task_pb2_grpc import TaskServiceStub

if TYPE_CHECKING:  # the asyncio views of the stubs exist only as types
    from gaia.alert.v1.alert_pb2_grpc import AlertServiceAsyncStub
    from gaia.classroom.v1.classroom_pb2_grpc import ClassroomServiceAsyncStub
    from gaia.cluster.v1.cluster_pb2_grpc import ClusterServiceAsyncStub
    from gaia.lock.v1.lock_pb2_grpc import LockServiceAsyncStub
    from gaia.metrics.v1.metrics_pb2_grpc import MetricsServiceAsyncStub
    from gaia.session.v1.session_pb2_grpc import SessionServiceAsyncStub
    from gaia.task.v1.task_pb2_grpc import TaskServiceAsyncStub

MAX_MESSAGE_SIZE_BYTES = 64 << 20

# Back-off: gRPC's own would leave a restarted peer unreachable for seconds.
# Own subchannels: two clients in one process must not share a connection's fate.
# No proxy: HTTP_PROXY is meant for the web, and would catch even loopback addresses.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_SIZE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Peer:
    """One peer as seen from here: its channel and the raw stubs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.failed_at = float("-inf")
        """Loop time of the last attempt that got no answer of the peer's own."""
        self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.alerts: AlertServiceAsyncStub = AlertServiceStub(self.channel)
        self.classrooms: ClassroomServiceAsyncStub = ClassroomServiceStub(self.channel)
        self.cluster: ClusterServiceAsyncStub = ClusterServiceStub(self.channel)
        self.locks: LockServiceAsyncStub = LockServiceStub(self.channel)
        self.metrics: MetricsServiceAsyncStub = MetricsServiceStub(self.channel)
        self.sessions: SessionServiceAsyncStub = SessionServiceStub(self.channel)
        self.tasks: TaskServiceAsyncStub = TaskServiceStub(self.channel)


class PeerSet:
    """The known peers in the order they became known, and which of them to ask next."""

    SUSPECT_S = 1.0
    """How long a peer that gave no answer is passed over while another one may answer."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._peers = {address: Peer(address) for address in addresses}
        self._preferred = next(iter(self._peers))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Client addresses of all known peers."""
        return tuple(self._peers)

    @property
    def preferred(self) -> Peer:
        """The peer to ask next; the leader where it is known."""
        return self._peers[self._preferred]

    def get(self, address: str) -> Peer:
        """The peer at `address`, which becomes known by this."""
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address)
        return peer

    def follow(self, leader: str, now: float) -> bool:
        """Asks `leader` next, unless it was silent a moment ago; True where that is a change.

        Without that, a follower that still names a dead leader would send us back to it.
        """
        if leader == self._preferred or now - self.get(leader).failed_at < self.SUSPECT_S:
            return False
        self._preferred = leader
        return True

    def pass_over(self, peer: Peer, now: float, *, silent: bool) -> bool:
        """Asks another peer next; False where every one was silent within SUSPECT_S."""
        if silent:
            peer.failed_at = now
        others = self.after(peer.address)
        fresh = [other for other in others if now - other.failed_at >= self.SUSPECT_S]
        if fresh:
            self._preferred = fresh[0].address
            return True
        if others:
            self._preferred = min(others, key=lambda other: other.failed_at).address
        return False

    def after(self, address: str) -> list[Peer]:
        """All other peers in a ring, beginning with the one after `address`."""
        ring = list(self._peers)
        at = ring.index(address) if address in self._peers else -1
        return [self._peers[name] for name in ring[at + 1 :] + ring[: max(at, 0)]]

    async def close(self) -> None:
        """Closes every channel; calls in flight are cancelled."""
        for peer in self._peers.values():
            await peer.channel.close()
