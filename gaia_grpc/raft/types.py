"""Plain values of the consensus core: what the log holds and what must outlive a crash.

Nothing here does work. Every value is immutable, so it may be handed to another thread (the log
writer) or kept in a trace without copying.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

Term = NewType("Term", int)
"""A term of the Raft paper, section 5.1; terms start at 1, 0 means "none"."""

Index = NewType("Index", int)
"""A position in the log; the first entry has index 1, 0 means "before the log"."""

NodeId = NewType("NodeId", str)
"""The name of a peer (`n1`); unique in a cluster, chosen by the operator."""

NO_NODE = NodeId("")


class EntryKind(IntEnum):
    """What an entry is for. Stored on disk: numbers never change their meaning."""

    NOOP = 1
    """Appended by a new leader so that it can commit in its own term (section 8)."""
    COMMAND = 2
    """`data` is a serialized `gaia.command.v1.Command`."""
    CONFIGURATION = 3
    """`data` is a serialized `gaia.raft.v1.Configuration` (members and cluster id)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the replicated log."""

    term: Term
    index: Index
    kind: EntryKind
    data: bytes


@dataclass(frozen=True, slots=True)
class EntryId:
    """Names an entry: two logs that hold the same id hold the same entry (Log Matching, 5.3)."""

    term: Term
    index: Index


@dataclass(frozen=True, slots=True)
class HardState:
    """What Figure 2 calls persistent state, without the log.

    `commit_index` is not required by the paper; it is written along with other changes only (never
    ahead of the entries) and lets a restarted peer apply before it hears from a leader.
    """

    term: Term = Term(0)
    voted_for: NodeId = NO_NODE
    commit_index: Index = Index(0)


@dataclass(frozen=True, slots=True)
class Members:
    """Who takes part by one configuration: both sorted, unique, and with nobody in both."""

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    """Get the log, and count in no quorum (thesis 4.2.1)."""


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """The log prefix that a snapshot stands for, with the configuration in force at its end."""

    index: Index
    term: Term
    configuration: bytes


@dataclass(frozen=True, slots=True)
class Restored:
    """Everything a peer knows after a restart: the input that a core is built from.

    Invariant: `entries` are contiguous from `base.index + 1` on, and `base.index <= snapshot.index
    <= last index`: some entries that the snapshot stands for are kept for followers that lag.
    Without a snapshot the base is (0, 0).
    """

    hard_state: HardState
    entries: tuple[Entry, ...]
    snapshot: SnapshotMeta | None = None
    base: EntryId = EntryId(Term(0), Index(0))


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """One durable write: all of it is on disk or none of it.

    `entries` replace every stored entry at or after `entries[0].index`. With `snapshot` the whole
    stored log goes first, and begins anew behind it: the received snapshot becomes the current one
    in the same step.
    """

    write_number: int
    hard_state: HardState | None
    entries: tuple[Entry, ...]
    snapshot: SnapshotMeta | None = None
