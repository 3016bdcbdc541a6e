"""A cluster whose every connection goes through a proxy: `Cluster` with a network to injure.

    with InjuredCluster(3) as cluster:
        cluster.network.isolate(cluster.leader(), cluster.node_ids)

Peers are founded with their real addresses, since founding compares them, and started again with a
list of their own each: the addresses of the proxies to the others. Clients that go through
`client_addresses` can lose replies (`lose_replies`); the probes of `Cluster` itself go direct, so
that a test sees a peer that its clients do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from gaia_grpc.errors import ConfigError
from gaia_grpc.testing.cluster import Cluster
from gaia_grpc.testing.disk import SmallDisk
from gaia_grpc.testing.network import Network
from gaia_grpc.testing.observed import START_TIMEOUT_S

CLIENTS = "clients"
"""The source of all connections of clients."""


class InjuredCluster(Cluster):
    """Peers n1, n2, ... with a `network` between them and, where asked, a small disk for some."""

    def __init__(
        self,
        peers: int = 3,
        *,
        small_disks: Mapping[str, int] | None = None,
        **options: Any,
    ) -> None:
        """Starts nothing yet.

        Args:
            peers: how many.
            small_disks: node id to the size in bytes of a disk of its own.
            options: those of `Cluster`.
        """
        super().__init__(peers, **options)
        self._small_disks = dict(small_disks or {})
        self._proxied = False
        self.disks: dict[str, SmallDisk] = {}
        self.former_logs: dict[str, str] = {}
        """What peers wrote before they were replaced."""
        self._network: Network | None = None

    @property
    def network(self) -> Network:
        """What connects peers and clients; `ConfigError` before the start."""
        if self._network is None:
            raise ConfigError("the cluster was not started")
        return self._network

    def start(self, timeout: float = START_TIMEOUT_S) -> Self:
        """Founds the cluster directly, then starts every peer again behind its proxies."""
        self._network = Network()
        try:
            super().start(timeout)
            self._proxied = True
            # All proxies while the peers hold their ports: none may take a port of theirs.
            for node_id in self.node_ids:
                self.peer_addresses(node_id)
            for node_id in self.client_addresses:
                self.terminate(node_id)
            for node_id in self.node_ids:
                self.respawn(node_id)
            self.wait_ready(timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends peers, proxies and disks; idempotent."""
        super().stop()
        self._proxied = False
        if self._network is not None:
            self._network.close()
            self._network = None

    def _prepare(self) -> None:
        super()._prepare()
        for node_id, size_bytes in self._small_disks.items():
            peer = self.peer(node_id)
            self.disks[node_id] = SmallDisk(peer.data_dir, size_bytes)
            peer.prefix = self.disks[node_id].prefix

    def _remove(self) -> None:
        for peer in self._peers.values():
            peer.kill()
        for disk in self.disks.values():
            disk.close()
        self.disks = {}
        super()._remove()

    def peer_addresses(self, node_id: str) -> dict[str, str]:
        """Its own address as it is; those of the others through the network."""
        addresses = super().peer_addresses(node_id)
        if not self._proxied:
            return addresses
        return {
            other: address if other == node_id else self.network.link(node_id, other, address)
            for other, address in addresses.items()
        }

    @property
    def client_addresses(self) -> dict[str, str]:
        """Node id to the address at which clients reach it through the network."""
        return {
            node_id: self.network.link(CLIENTS, node_id, self.address(node_id))
            for node_id in self.node_ids
        }

    def lose_replies(self, node_id: str) -> None:
        """Calls of clients reach the peer, and its answers reach nobody, until `heal_clients`."""
        self.network.lose(node_id, CLIENTS)

    def heal_clients(self, node_id: str) -> None:
        """Breaks the connections whose answers were lost; clients connect again."""
        self.network.reset(CLIENTS, node_id)
        self.network.heal(CLIENTS, node_id)
        self.network.heal(node_id, CLIENTS)

    def kill(self, *node_ids: str) -> None:
        """SIGKILL; whoever connects to these peers is refused until they run again."""
        super().kill(*node_ids)
        for node_id in node_ids:
            self.network.refuse(node_id)

    def respawn(self, node_id: str, *arguments: str) -> None:
        """Starts a peer that has ended, without waiting for anything."""
        super().respawn(node_id, *arguments)
        self.network.accept(node_id)

    def restart(self, *node_ids: str, timeout: float = START_TIMEOUT_S) -> None:
        """Starts peers again on their directories and waits for them."""
        for node_id in node_ids:
            self.network.accept(node_id)
        super().restart(*node_ids, timeout=timeout)

    def replace(self, node_id: str, timeout: float = START_TIMEOUT_S) -> None:
        """A peer whose disk is gone: removed, and joined again under its name and addresses."""
        self.kill(node_id)
        self._probe.remove_peer(self.address(self.leader(timeout)), node_id, timeout)
        self.wipe(node_id)
        peer = self.peer(node_id)
        self.former_logs[node_id] = self.former_logs.get(node_id, "") + peer.log()
        peer.log_path.unlink(missing_ok=True)  # `join` waits for a line in it
        self.network.accept(node_id)
        self.join(node_id, timeout)

    def heal(self, timeout: float = START_TIMEOUT_S) -> None:
        """Heals the network, resumes the paused, starts the ended, waits until all is well."""
        self.network.heal()
        for node_id in self.node_ids:
            self.network.accept(node_id)
        super().heal(timeout)
