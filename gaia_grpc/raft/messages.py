"""The messages peers exchange: one frozen class each, and the envelope that carries them.

They know nothing of protobuf; `gaia_grpc.transport.wire` maps them both ways.
"""

from __future__ import annotations

from dataclasses import dataclass

from gaia_grpc.raft.types import Entry, Index, NodeId, SnapshotMeta, Term


@dataclass(frozen=True, slots=True)
class PreVoteRequest:
    """Asks whether a vote would be granted in `Envelope.term` (thesis 9.6); changes no state."""

    last_index: Index
    last_term: Term


@dataclass(frozen=True, slots=True)
class PreVoteResponse:
    """`Envelope.term` is the asked term when granted, the voter's own term when refused."""

    granted: bool


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """RequestVote of Figure 2. `leadership_transfer` bypasses the lease check (thesis 4.2.3)."""

    last_index: Index
    last_term: Term
    leadership_transfer: bool = False


@dataclass(frozen=True, slots=True)
class VoteResponse:
    """Sent only after the vote is on disk."""

    granted: bool


@dataclass(frozen=True, slots=True)
class StateChecksum:
    """The chain hash of the sender's state after `index`; the core passes it by."""

    index: Index
    state_hash: bytes


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """AppendEntries of Figure 2; without entries it is a heartbeat.

    `round` grows by one with each heartbeat round of a leader in a term; a response echoes the
    highest round seen, which is what ReadIndex and check-quorum count (thesis 6.4).
    """

    previous_index: Index
    previous_term: Term
    entries: tuple[Entry, ...]
    commit_index: Index
    round: int
    checksum: StateChecksum | None = None


@dataclass(frozen=True, slots=True)
class AppendResponse:
    """Answers an AppendRequest, unless that fits and brings neither entries nor a new round.

    On success `match_index` is `previous_index + len(entries)` of the request (never the
    follower's own last index) and the message leaves only after those entries are on disk. On
    refusal `match_index` is 0 and `hint_index`/`hint_term` name the last entry of the follower
    that could still match (section 5.3, last paragraph), `rejected_index` the request's
    `previous_index`.
    """

    success: bool
    match_index: Index
    rejected_index: Index
    hint_index: Index
    hint_term: Term
    round: int


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """The leader asks this peer to start an election at once (thesis 3.10)."""


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """InstallSnapshot (section 7): the follower needs entries that the leader has compacted.

    A leader's core asks its transport to send the snapshot; a follower's core gets the same message
    once all of it has arrived and its digest fits. The answer is an `AppendResponse`.
    """

    meta: SnapshotMeta


Payload = (
    PreVoteRequest
    | PreVoteResponse
    | VoteRequest
    | VoteResponse
    | AppendRequest
    | AppendResponse
    | TimeoutNow
    | SnapshotRequest
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on its way. `term` is the sender's current term (the asked one in a pre-vote)."""

    from_node: NodeId
    to_node: NodeId
    term: Term
    payload: Payload
