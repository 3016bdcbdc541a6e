"""The methods of `Cluster` for coroutines: each runs in a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaia_grpc.testing.cluster import Cluster


class AsyncCluster:
    """`cluster.aio`; see the methods of the same names."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def start(self) -> None:
        """Founds the cluster."""
        await asyncio.to_thread(self._cluster.start)

    async def stop(self) -> None:
        """Ends the cluster."""
        await asyncio.to_thread(self._cluster.stop)

    async def kill(self, *node_ids: str) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self._cluster.kill, *node_ids)

    async def terminate(self, node_id: str) -> int:
        """SIGTERM; returns the exit code."""
        return await asyncio.to_thread(self._cluster.terminate, node_id)

    async def restart(self, *node_ids: str) -> None:
        """Starts peers again and waits for them."""
        await asyncio.to_thread(self._cluster.restart, *node_ids)

    async def heal(self) -> None:
        """Resumes and starts what is missing."""
        await asyncio.to_thread(self._cluster.heal)

    async def leader(self, timeout: float = 10.0) -> str:
        """Node id of the leader."""
        return await asyncio.to_thread(self._cluster.leader, timeout)

    async def follower(self, timeout: float = 10.0) -> str:
        """Node id of a follower."""
        return await asyncio.to_thread(self._cluster.follower, timeout)

    async def wait_applied_equal(self, timeout: float = 10.0) -> int:
        """Waits until all peers applied what is committed now."""
        return await asyncio.to_thread(self._cluster.wait_applied_equal, timeout)

    async def assert_equal_logs_and_hashes(self, timeout: float = 10.0) -> int:
        """All peers have the same log and state hash."""
        return await asyncio.to_thread(self._cluster.assert_equal_logs_and_hashes, timeout)
