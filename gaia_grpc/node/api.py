"""The replicated log as the services see it: the narrow seam that nothing above may reach around.

Commands and queries cross it as bytes (`gaia.command.v1`), so that another log (an external
stream, another process) can stand underneath without a change above. `NodeDriver` is the
production side; the twin for service tests lives with the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gaia_grpc.raft.effects import RoleName


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

    async def transfer_leadership(self, to_node_id: str, *, timeout_s: float) -> NodeStatus:
        """Hands leadership over; raises `UnimplementedError` where it can't yet."""
        ...
