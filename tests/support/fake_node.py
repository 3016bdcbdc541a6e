"""The twin of the replicated log: one peer in memory with the real state machine.

`propose` stamps and applies at once; time stands still until `advance`. What real clusters do to
callers (no quorum, lost answers, another leader, lag) is set by hand.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2

from gaia_grpc.errors import (
    GaiaError,
    NotFoundError,
    OutOfRangeError,
)
from gaia_grpc.node.api import (
    Applied,
    ConfigurationChange,
    LogEntrySummary,
    MemberStatus,
    NodeStatus,
    ReadConsistency,
    SnapshotSummary,
)
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.stamp import stamp
from tests.support.handled_log import HandledLog

START_MS = 1_700_000_000_000
MAX_ADVANCES = 1_000


class FakeNode(HandledLog):
    """The twin in process; see the module."""

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        super().__init__()
        self._machine = StateMachine()
        self.elapsed_ms = START_MS
        self.term = 3
        self._topics = TopicBoard()
        self._sizes: list[tuple[int, int]] = []
        members = tuple(
            MemberStatus(
                node_id=f"n{number}",
                peer_uuid=f"uuid-{number}",
                peer_address=f"127.0.0.1:{7000 + number}",
                client_address=f"127.0.0.1:{5000 + number}",
                reachable=True,
                match_index=number,
                voter=True,
            )
            for number in (1, 2, 3)
        )
        self._founded = NodeStatus(
            node_id="n1",
            peer_uuid="uuid-1",
            cluster_id="c-test",
            role=RoleName.LEADER,
            term=self.term,
            leader_id="n1",
            leader_address="127.0.0.1:5001",
            commit_index=0,
            applied_index=0,
            last_log_index=0,
            elapsed_ms=0,
            hash_index=0,
            state_hash=b"",
            writable=True,
            members=members,
            feature_level=FEATURE_LEVEL,
        )
        self._apply(EntryKind.CONFIGURATION, b"")
        changes = [
            cluster_pb2.SettingChange(name=name, value=value)
            for name, value in sorted((settings or {}).items())
        ]
        found = command_pb2.FoundCluster(
            cluster_id="c-test", settings=changes, feature_level=FEATURE_LEVEL
        )
        self._apply_command(command_pb2.Command(found_cluster=found).SerializeToString())

    # --- by hand -----------------------------------------------------------------------------

    @property
    def machine(self) -> StateMachine:
        """See `HandledLog`."""
        return self._machine

    async def let_pass(self, milliseconds: int) -> None:
        """See `HandledLog`."""
        self.advance(milliseconds)

    def advance(self, milliseconds: int) -> None:
        """Lets log time pass; everything that is due happens."""
        self.elapsed_ms += milliseconds
        advance = command_pb2.Command(advance_time=command_pb2.AdvanceTime()).SerializeToString()
        for _ in range(MAX_ADVANCES):
            due_ms = self.machine.next_due_ms()
            if due_ms is None or due_ms > self.elapsed_ms:
                return
            self._apply_command(advance)
        raise AssertionError("timers never come to an end")

    def install(self, machine: StateMachine) -> None:
        """A newer snapshot takes the place of the state."""
        self._machine = machine
        self._founded = replace(self._founded, restored_index=machine.applied_index)
        self._topics.touch_all()

    # --- ReplicatedLog -------------------------------------------------------------------------

    def topic_version(self, topic: str) -> int:
        """See `HandledLog`."""
        return self._topics.version(topic)

    async def log_entries(self, first: int, count: int) -> tuple[LogEntrySummary, ...]:
        """See `HandledLog`."""
        first = max(first, 1)
        return tuple(
            LogEntrySummary(
                index=index,
                term=self.term,
                kind=kind,
                checksum=hashlib.sha256(str(index).encode()).digest(),
                size_bytes=size_bytes,
            )
            for index, (kind, size_bytes) in enumerate(self._sizes, 1)
            if first <= index < first + count
        )

    async def _propose(self, command: bytes, timeout_s: float) -> Applied:
        return self._apply_command(command)

    async def _read(self, query: bytes, consistency: ReadConsistency, timeout_s: float) -> bytes:
        return self.machine.query(query, self.elapsed_ms)

    async def _wait_topic(self, topic: str, version: int, timeout_s: float) -> int:
        return await self._topics.wait(topic, version, timeout_s)

    def _status(self, at_index: int) -> NodeStatus:
        found = self.machine.state_hash(at_index)
        if found is None:
            raise OutOfRangeError(f"the state hash at index {at_index} is not kept")
        index = self.machine.applied_index
        return replace(
            self._founded,
            term=self.term,
            commit_index=index,
            applied_index=index,
            last_log_index=index,
            elapsed_ms=self.machine.elapsed_ms,
            hash_index=found[0],
            state_hash=found[1],
        )

    async def _wait_status(self, timeout_s: float) -> object:
        # It changes only by hand, and then nobody waits for this.
        return await asyncio.wait((asyncio.get_running_loop().create_future(),), timeout=timeout_s)

    # --- inside --------------------------------------------------------------------------------

    def _apply_command(self, command: bytes) -> Applied:
        return self._apply(EntryKind.COMMAND, stamp(command, self.elapsed_ms, self.elapsed_ms))

    def _apply(self, kind: EntryKind, data: bytes) -> Applied:
        index = self.machine.applied_index + 1
        result = self.machine.apply(index, int(kind), data)
        self._sizes.append((int(kind), len(data)))
        self._topics.touch(self.machine.take_touched())
        return Applied(self.term, index, result)


class FakeSnapshotStream:
    """Implements `SnapshotStream`."""

    def __init__(self, summary: SnapshotSummary, content: bytes, size_bytes: int) -> None:
        self.summary = summary
        self.closed = False
        self._content = content
        self._size_bytes = size_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for offset in range(0, len(self._content), self._size_bytes):
            yield self._content[offset : offset + self._size_bytes]

    async def close(self) -> None:
        self.closed = True


class FakeControl:
    """Implements `ClusterControl` beside a `FakeNode`: what is asked for happens at once."""

    def __init__(self, node: FakeNode) -> None:
        self.transferred_to = ""
        self.error: GaiaError | None = None
        """Raised by every call."""
        self.snapshot = b""
        """The content of the newest snapshot file."""
        self.taken: SnapshotSummary | None = None
        self._node = node

    async def transfer_leadership(self, to_node_id: str, *, timeout_s: float) -> NodeStatus:
        self._raise()
        self.transferred_to = to_node_id
        self._node.term += 1
        self._node.set_status(role=RoleName.FOLLOWER, leader=to_node_id)
        return self._node.status()

    async def add_peer(
        self, node_id: str, peer_uuid: str, peer_address: str, *, timeout_s: float
    ) -> ConfigurationChange:
        self._raise()
        added = MemberStatus(
            node_id=node_id,
            peer_uuid=peer_uuid or f"uuid-of-{node_id}",
            peer_address=peer_address,
            client_address="",
            reachable=True,
            match_index=self._node.machine.applied_index,
            voter=True,
        )
        return self._change((*self._without(node_id), added))

    async def remove_peer(self, node_id: str, *, timeout_s: float) -> ConfigurationChange:
        self._raise()
        return self._change(self._without(node_id))

    async def take_snapshot(self, *, timeout_s: float) -> SnapshotSummary:
        self._raise()
        status = self._node.status()
        self.snapshot = f"state at {status.applied_index}".encode()
        self.taken = SnapshotSummary(
            index=status.applied_index,
            term=status.term,
            size_bytes=len(self.snapshot),
            sha256=hashlib.sha256(self.snapshot).digest(),
            state_hash=status.state_hash,
        )
        return self.taken

    async def read_snapshot(self, chunk_size_bytes: int) -> FakeSnapshotStream:
        self._raise()
        if self.taken is None:
            raise NotFoundError("no snapshot yet")
        return FakeSnapshotStream(self.taken, self.snapshot, chunk_size_bytes)

    # --- inside --------------------------------------------------------------------------------

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _without(self, node_id: str) -> tuple[MemberStatus, ...]:
        members = self._node.status().members
        return tuple(member for member in members if member.node_id != node_id)

    def _change(self, members: tuple[MemberStatus, ...]) -> ConfigurationChange:
        self._node.set_status(members=members)
        index = self._node.status().applied_index
        return ConfigurationChange(self._node.term, index, members)
