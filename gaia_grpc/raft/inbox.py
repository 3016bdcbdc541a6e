"""Messages on their way in: the rules for terms (section 5.1), then to whom each kind belongs."""

from __future__ import annotations

from typing import assert_never

from gaia_grpc.raft import election, following, leading
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    SnapshotRequest,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import NO_NODE

_ANSWERS = (PreVoteResponse, VoteResponse, AppendResponse)
MAX_TERM_LEAD = 1 << 32
"""No honest peer is so many elections ahead. Followed once, a forged or damaged term of 2^63 - 1
would be the last that fits the wire and the disk: nobody could ever be elected again."""


def follow_term(core: Core, envelope: Envelope) -> bool:
    """The rules for a message of another term (section 5.1); True if it is to be handled."""
    if envelope.term > core.term + MAX_TERM_LEAD:
        return False
    payload = envelope.payload
    if isinstance(payload, PreVoteRequest):
        return True
    if envelope.term < core.term:
        if isinstance(payload, AppendRequest):
            following.refuse_stale_leader(core, envelope.from_node, payload.previous_index)
        elif isinstance(payload, SnapshotRequest):
            following.refuse_stale_leader(core, envelope.from_node, payload.meta.index)
        elif isinstance(payload, VoteRequest):
            core.send_when_durable(envelope.from_node, VoteResponse(granted=False))
        return False
    if isinstance(payload, PreVoteResponse) and payload.granted:
        return True
    if isinstance(payload, _ANSWERS) and envelope.from_node not in core.peers:
        return False  # a peer that was removed does not disturb (thesis 4.2.3)
    by_transfer = isinstance(payload, VoteRequest) and payload.leadership_transfer
    if isinstance(payload, VoteRequest) and not by_transfer and election.has_lease(core):
        return False
    from_leader = isinstance(payload, AppendRequest | SnapshotRequest)
    core.become_follower(envelope.term, envelope.from_node if from_leader else NO_NODE)
    return True


def dispatch(core: Core, envelope: Envelope) -> None:
    from_node, payload = envelope.from_node, envelope.payload
    match payload:
        case AppendResponse():
            leading.on_append_response(core, from_node, payload)
        case AppendRequest():
            following.on_append_request(core, from_node, payload)
        case SnapshotRequest():
            following.on_snapshot_request(core, from_node, payload)
        case VoteRequest():
            election.on_vote_request(core, from_node, payload)
        case VoteResponse():
            election.on_vote_response(core, from_node, payload)
        case PreVoteRequest():
            election.on_pre_vote_request(core, from_node, envelope.term, payload)
        case PreVoteResponse():
            election.on_pre_vote_response(core, from_node, envelope.term, payload)
        case TimeoutNow():
            election.on_timeout_now(core, from_node, payload)
        case _:
            assert_never(payload)
