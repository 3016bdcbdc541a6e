"""What the core owes the world: one frozen value per turn, in the order it must be carried out.

The order is the contract. A driver must

1. send `messages` at any time from now on (they depend only on what is already on disk);
2. write `write`, if there is one, and call `RaftNode.persisted(write.write_number)` afterwards;
3. send `messages_after_write` only after that write, and every earlier one, is on disk;
4. replace the state by the snapshot `install`, if there is one, once `write` is on disk;
5. apply `committed` in order, exactly once each, after such a replacement;
6. answer the reads of `read_grants` once `applied index >= grant.index`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.types import Entry, Index, NodeId, SnapshotMeta, Term, WriteBatch


class RoleName(StrEnum):
    """The role of a peer as shown to people and other layers."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
    LEARNER = "learner"
    """Follows without a vote; also a peer that no configuration names (yet, or any more)."""


@dataclass(frozen=True, slots=True)
class ReadId:
    """Names one linearizable read; unique across restarts by `boot` (design section 4)."""

    peer_uuid: str
    boot: int
    counter: int


@dataclass(frozen=True, slots=True)
class ReadGrant:
    """The read may be served from any state that has applied `index` (thesis 6.4)."""

    read_id: ReadId
    index: Index


@dataclass(frozen=True, slots=True)
class RoleChange:
    """The role, term or known leader changed; `leader_id` is `NO_NODE` where none is known."""

    role: RoleName
    term: Term
    leader_id: NodeId


@dataclass(frozen=True, slots=True)
class Effects:
    """The work of one turn. `reads_dropped` must be asked again (leadership was lost).

    Without a `write` there are no `messages_after_write`: what relies on an earlier write that is
    under way stays in the core, and comes with the `messages` after `persisted`.
    """

    messages: tuple[Envelope, ...] = ()
    write: WriteBatch | None = None
    messages_after_write: tuple[Envelope, ...] = ()
    install: SnapshotMeta | None = None
    """Also in `write.snapshot`."""
    committed: tuple[Entry, ...] = ()
    read_grants: tuple[ReadGrant, ...] = ()
    reads_dropped: tuple[ReadId, ...] = ()
    role_change: RoleChange | None = None
    configuration: bytes | None = None
    """The configuration in force, where it changed: appended, taken back, or installed (4.1)."""
