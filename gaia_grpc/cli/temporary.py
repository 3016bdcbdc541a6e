"""A temporary local cluster for commands that were given none."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gaia_grpc.cli.local_cluster import LocalCluster, LocalPeer, wait_ready

READY_TIMEOUT_S = 30.0


@asynccontextmanager
async def temporary_cluster(
    peer_count: int = 3, settings: Sequence[str] = ()
) -> AsyncIterator[LocalCluster]:
    """Peers on free ports, with their data in a directory that goes away with them.

    Raises `StartupError` where they do not come up.
    """
    directory = Path(tempfile.mkdtemp(prefix="gaia-"))
    ports = free_ports(2 * peer_count)
    peers = [
        LocalPeer(
            node_id=f"n{number + 1}",
            client_address=f"127.0.0.1:{ports[2 * number]}",
            peer_address=f"127.0.0.1:{ports[2 * number + 1]}",
            data_dir=directory / f"n{number + 1}",
            log_path=directory / f"n{number + 1}.log",
        )
        for number in range(peer_count)
    ]
    cluster = LocalCluster(peers, settings)
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(cluster.stop)
        cluster.start()
        await asyncio.to_thread(wait_ready, cluster, READY_TIMEOUT_S)
        yield cluster


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
