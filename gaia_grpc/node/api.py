"""The replicated log as the services see it: the narrow seam that nothing above may reach around.

Commands and queries cross it as bytes (`gaia.command.v1`), so that another log (an external
stream, another process) can stand underneath without a change above. `NodeDriver` is the
production side; the twin for service tests lives with the tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gaia_grpc.raft.effects import RoleName as RoleName  # whoever asks for a status needs it


class ReadConsistency(StrEnum):
    """How fresh a read must be."""

    LINEARIZABLE = "linearizable"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Applied:
    """A command that is committed and applied; `result` is a serialized CommandResult."""

    term: int
    index: int
    result: bytes


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What this peer knows of one member."""

    node_id: str
    peer_uuid: str
    peer_address: str
    client_address: str
    reachable: bool
    match_index: int
    voter: bool
    feature_level: int = 0
    """What it announced; 0 where it was not heard since the start."""
    software_version: str = ""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What this peer knows; never waits."""

    node_id: str
    peer_uuid: str
    cluster_id: str
    role: RoleName
    term: int
    leader_id: str
    leader_address: str
    """Client address of the leader; empty where none is known."""
    commit_index: int
    applied_index: int
    last_log_index: int
    elapsed_ms: int
    hash_index: int
    state_hash: bytes
    writable: bool
    """A write would be accepted now, as far as this peer knows (drives the health service)."""
    members: tuple[MemberStatus, ...]
    first_log_index: int = 1
    """The first entry that the log still holds."""
    snapshot_index: int = 0
    """What the newest snapshot stands for; 0 where there is none."""
    feature_level: int = 1
    """Of the cluster: kinds of commands above it are not proposed yet."""
    restored_index: int = 0
    """Snapshot that the state came out of; 0 where this peer applied all itself. It grows when a
    newer snapshot takes the place of the state: nobody saw the changes in between."""


@dataclass(frozen=True, slots=True)
class LogEntrySummary:
    """One committed log entry without its content; `kind` as in `raft.types.EntryKind`."""

    index: int
    term: int
    kind: int
    checksum: bytes
    size_bytes: int


class ReplicatedLog(Protocol):
    """One peer's view of the replicated log and of the state that it produces."""

    async def propose(self, command: bytes, *, timeout_s: float) -> Applied:
        """Commits and applies a serialized Command, from any peer, forwarding as needed.

        The command must be idempotent (request_id, token, key or sequence): within the timeout it
        is repeated after a lost leader. Raises `UnavailableError` (definitely not applied),
        `OutcomeUnknownError` (repeat it with the same identity) or `OverloadedError`.
        """
        ...

    async def read(self, query: bytes, *, consistency: ReadConsistency, timeout_s: float) -> bytes:
        """Answers a serialized Query with a serialized QueryResult.

        Raises `UnavailableError` where a linearizable read can't be confirmed in time.
        """
        ...

    def topic_version(self, topic: str) -> int:
        """A number that grows with each applied change of `topic` (`gaia_grpc.state.topics`)."""
        ...

    async def wait_topic(self, topic: str, version: int, *, timeout_s: float) -> int:
        """Returns the topic's version once it differs from `version`, or after the timeout."""
        ...

    def status(self, at_index: int = 0) -> NodeStatus:
        """The status now. `OutOfRangeError` where the hash at `at_index` is not kept."""
        ...

    async def wait_status(self, seen: NodeStatus, *, timeout_s: float) -> NodeStatus:
        """Returns once role, term, leader or writable differ from `seen`, or after the timeout."""
        ...

    async def log_entries(self, first: int, count: int) -> tuple[LogEntrySummary, ...]:
        """Up to `count` committed entries from `first` on."""
        ...


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """A snapshot that this peer holds durably."""

    index: int
    term: int
    size_bytes: int
    sha256: bytes
    state_hash: bytes
    """Chain hash of the state after `index`."""


class SnapshotStream(Protocol):
    """The content of a snapshot file in chunks; the file stays readable until the end or `close`.

    Raises `StorageDamagedError` where what was read does not fit `summary.sha256`.
    """

    @property
    def summary(self) -> SnapshotSummary:
        """What it is."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def close(self) -> None:
        """Gives the file free; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """A change of the members that is committed."""

    term: int
    index: int
    members: tuple[MemberStatus, ...]


class ClusterControl(Protocol):
    """What an operator asks of the embedded log itself. Another log brings its own tools for it, so
    this is no part of `ReplicatedLog`.

    Every call works at any peer (a follower hands it to the leader) unless it says otherwise.
    """

    async def transfer_leadership(self, to_node_id: str, *, timeout_s: float) -> NodeStatus:
        """Hands leadership over, at the leader only; raises `UnavailableError`."""
        ...

    async def add_peer(
        self, node_id: str, peer_uuid: str, peer_address: str, *, timeout_s: float
    ) -> ConfigurationChange:
        """Adds a learner and promotes it once it has the log up to the commit index of now.

        An empty `peer_uuid` is asked of the peer itself, which must wait there with `--join`.
        Repeating the call for the same data directory goes on where it was. Raises
        `ConfigurationRefusedError`, `UnavailableError` (not caught up in time: it stays a learner,
        and is promoted later).
        """
        ...

    async def remove_peer(self, node_id: str, *, timeout_s: float) -> ConfigurationChange:
        """Removes a member; a leader that removes itself hands over once that is committed."""
        ...

    async def take_snapshot(self, *, timeout_s: float) -> SnapshotSummary:
        """Makes the answering peer write a snapshot of what it has applied now."""
        ...

    async def read_snapshot(self, chunk_size_bytes: int) -> SnapshotStream:
        """Opens the answering peer's newest snapshot; `NotFoundError` where it has none."""
        ...
