"""A cluster without Raft: three client ports over one log in memory, on real time.

What another log underneath would look like from outside: every port takes every call, all see the
same order. It has the questions of `gaia_grpc.testing.Cluster` that are not about processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol, Self

from gaia_grpc.client import Client
from gaia_grpc.node.api import (
    Applied,
    LogEntrySummary,
    MemberStatus,
    NodeStatus,
    ReadConsistency,
    RoleName,
)
from gaia_grpc.services.client_port import ClientPort
from tests.support.fake_node import FakeNode
from tests.support.served_peer import peer_config

NODE_IDS = ("n1", "n2", "n3")
TICK_S = 0.01


class AsyncServed(Protocol):
    """Questions that take a moment."""

    async def leader(self) -> str:
        """Node id of the leader."""
        ...

    async def wait_applied_equal(self) -> int:
        """Waits until all peers applied what is committed now; returns that index."""
        ...

    async def assert_equal_logs_and_hashes(self) -> int:
        """All peers have the same log and state hash."""
        ...


class Served(Protocol):
    """What a test may know of three ports, whichever log is underneath."""

    @property
    def node_ids(self) -> tuple[str, ...]:
        """All node ids."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Client addresses in their order."""
        ...

    def address(self, node_id: str) -> str:
        """Client address of one peer."""
        ...

    def client(self, **options: Any) -> Client:
        """A client that knows every peer."""
        ...

    @property
    def aio(self) -> AsyncServed:
        """Questions that take a moment."""
        ...


class TwinPeer:
    """One peer's view of the shared log; implements `ReplicatedLog`."""

    def __init__(self, shared: FakeNode, node_id: str, look_at_clock: Callable[[], None]) -> None:
        self.members: tuple[MemberStatus, ...] = ()
        self._shared = shared
        self._look_at_clock = look_at_clock
        self._node_id = node_id

    async def propose(self, command: bytes, *, timeout_s: float) -> Applied:
        """See `ReplicatedLog.propose`."""
        self._look_at_clock()
        return await self._shared.propose(command, timeout_s=timeout_s)

    async def read(self, query: bytes, *, consistency: ReadConsistency, timeout_s: float) -> bytes:
        """See `ReplicatedLog.read`."""
        return await self._shared.read(query, consistency=consistency, timeout_s=timeout_s)

    def topic_version(self, topic: str) -> int:
        """See `ReplicatedLog.topic_version`."""
        return self._shared.topic_version(topic)

    async def wait_topic(self, topic: str, version: int, *, timeout_s: float) -> int:
        """See `ReplicatedLog.wait_topic`."""
        return await self._shared.wait_topic(topic, version, timeout_s=timeout_s)

    def status(self, at_index: int = 0) -> NodeStatus:
        """See `ReplicatedLog.status`. The first peer stands in for the one that orders the log."""
        leads = self._node_id == NODE_IDS[0]
        return replace(
            self._shared.status(at_index),
            node_id=self._node_id,
            peer_uuid=f"uuid-{self._node_id}",
            role=RoleName.LEADER if leads else RoleName.FOLLOWER,
            leader_id=NODE_IDS[0],
            leader_address=self.members[0].client_address,
            members=self.members,
        )

    async def wait_status(self, seen: NodeStatus, *, timeout_s: float) -> NodeStatus:
        """See `ReplicatedLog.wait_status`; it never changes."""
        await asyncio.wait((asyncio.get_running_loop().create_future(),), timeout=timeout_s)
        return self.status()

    async def log_entries(self, first: int, count: int) -> tuple[LogEntrySummary, ...]:
        """See `ReplicatedLog.log_entries`."""
        return await self._shared.log_entries(first, count)


class TwinCluster:
    """Implements `Served`; see the module."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._node = FakeNode(dict(settings or {}))
        self._stack = AsyncExitStack()
        self._members: tuple[MemberStatus, ...] = ()
        self._ticking: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self._passed_ms = 0
        self.aio = self

    async def __aenter__(self) -> Self:
        self._began_s = asyncio.get_running_loop().time()
        views = [TwinPeer(self._node, node_id, self._look_at_clock) for node_id in NODE_IDS]
        ports = [ClientPort(view, peer_config(drain_timeout_ms=0)) for view in views]
        for port in ports:
            port.bind()
        self._members = tuple(
            MemberStatus(
                node_id=node_id,
                peer_uuid=f"uuid-{node_id}",
                peer_address="127.0.0.1:1",
                client_address=f"127.0.0.1:{port.port}",
                reachable=True,
                match_index=0,
                voter=True,
            )
            for node_id, port in zip(NODE_IDS, ports, strict=True)
        )
        for view, port in zip(views, ports, strict=True):
            view.members = self._members
            await port.start()
            self._stack.push_async_callback(port.stop)
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait({self._ticking})
        await self._stack.aclose()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        """Log time is real time."""
        now_ms = int((asyncio.get_running_loop().time() - self._began_s) * 1_000)
        passed_ms, self._passed_ms = now_ms - self._passed_ms, now_ms
        self._node.advance(passed_ms)

    @property
    def node_ids(self) -> tuple[str, ...]:
        """See `Served`."""
        return NODE_IDS

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `Served`."""
        return tuple(member.client_address for member in self._members)

    def address(self, node_id: str) -> str:
        """See `Served`."""
        return self.addresses[NODE_IDS.index(node_id)]

    def client(self, **options: Any) -> Client:
        """See `Served`."""
        return Client.connect(self.addresses, **options)

    async def leader(self) -> str:
        """See `AsyncServed`."""
        return NODE_IDS[0]

    async def wait_applied_equal(self) -> int:
        """See `AsyncServed`."""
        return self._node.status().applied_index

    async def assert_equal_logs_and_hashes(self) -> int:
        """See `AsyncServed`: there is but one log and one state."""
        return self._node.status().applied_index
