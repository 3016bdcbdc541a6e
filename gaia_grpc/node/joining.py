"""`--join`: an empty data directory that waits until a leader speaks to it.

Nothing is asked for from here. An operator adds the peer to the cluster; the leader then speaks to
this very data directory by its uuid, and that is the moment in which it becomes part of the
leader's cluster, durably, with an empty log.
"""

from __future__ import annotations

import asyncio

import structlog

from gaia_grpc.node.disk_thread import DiskThread
from gaia_grpc.storage.directory import DataDirectory, Identity
from gaia_grpc.transport.api import Hello

log = structlog.get_logger("gaia.node")


class Joiner:
    """Waits for one Hello."""

    def __init__(self, directory: DataDirectory, disk: DiskThread) -> None:
        self._directory = directory
        self._disk = disk
        self._identity: Identity = directory.identity()
        self._cluster_id: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def accepts(self, hello: Hello) -> str:
        """Why the speaker is not heard yet; who means this directory is heard a moment later."""
        own = self._identity
        if hello.to_node != own.node_id or hello.to_peer_uuid != own.peer_uuid:
            return f"{own.node_id} with {own.peer_uuid} waits to be added to a cluster"
        if not self._cluster_id.done():
            self._cluster_id.set_result(hello.cluster_id)
        return f"{own.node_id} is joining, in a moment"

    async def run(self) -> None:
        """Returns once the directory belongs to a cluster."""
        log.info(
            "waiting_to_be_added", node=self._identity.node_id, peer_uuid=self._identity.peer_uuid
        )
        cluster_id = await self._cluster_id
        await self._disk.run(lambda: self._directory.adopt(cluster_id))
        log.info("joined", cluster=cluster_id)
