"""The pure two-way mapping between the core's messages and `gaia.raft.v1`; see also `wire_calls`.

What comes from the wire is checked here, once: a message that no correct peer can send (negative
numbers, entries with a gap, an unknown kind) raises `InvalidArgumentError`, so the core sees only
well-formed values. The names of both ends come from the Hello of the stream or call.
"""

from __future__ import annotations

from collections.abc import Iterable

from gaia.raft.v1 import raft_pb2 as pb

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    StateChecksum,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Entry, EntryKind, Index, NodeId, Term
from gaia_grpc.transport.api import Hello

_KINDS = {int(kind): kind for kind in EntryKind}
_NUMBERS = {
    EntryKind.NOOP: pb.ENTRY_KIND_NOOP,
    EntryKind.COMMAND: pb.ENTRY_KIND_COMMAND,
    EntryKind.CONFIGURATION: pb.ENTRY_KIND_CONFIGURATION,
}


def checked(condition: bool, what: str) -> None:
    """Raises `InvalidArgumentError` unless `condition`."""
    if not condition:
        raise InvalidArgumentError(f"a peer sent {what}")


# --- who speaks -----------------------------------------------------------------------------------


def hello_to_proto(hello: Hello) -> pb.Hello:
    """See `hello_from_proto`."""
    return pb.Hello(
        cluster_id=hello.cluster_id,
        from_node_id=hello.from_node,
        from_peer_uuid=hello.from_peer_uuid,
        to_node_id=hello.to_node,
        to_peer_uuid=hello.to_peer_uuid,
        client_address=hello.client_address,
        feature_level=hello.feature_level,
        software_version=hello.software_version,
        configuration_index=hello.configuration_index,
        configuration_term=hello.configuration_term,
    )


def hello_from_proto(message: pb.Hello) -> Hello:
    """Whether it fits is for `InboundHandler.accepts` to say."""
    return Hello(
        message.cluster_id,
        NodeId(message.from_node_id),
        message.from_peer_uuid,
        NodeId(message.to_node_id),
        message.to_peer_uuid,
        message.client_address,
        message.feature_level,
        message.software_version,
        message.configuration_index,
        message.configuration_term,
    )


# --- entries --------------------------------------------------------------------------------------


def entries_to_proto(entries: Iterable[Entry]) -> list[pb.Entry]:
    """See `entries_from_proto`."""
    return [
        pb.Entry(term=entry.term, index=entry.index, kind=_NUMBERS[entry.kind], data=entry.data)
        for entry in entries
    ]


def entries_from_proto(messages: Iterable[pb.Entry], previous: int) -> tuple[Entry, ...]:
    """Entries that follow `previous` without a gap."""
    entries = []
    index = previous
    for message in messages:
        index += 1
        kind = _KINDS.get(message.kind)
        term = message.term
        if kind is None or message.index != index or term < 1:
            raise InvalidArgumentError(
                f"a peer sent entry {message.index} of kind {message.kind} and term {term} "
                f"where entry {index} was due"
            )
        entries.append(Entry(Term(term), Index(index), kind, message.data))
    return tuple(entries)


# --- votes ----------------------------------------------------------------------------------------


def vote_request_to_proto(
    term: Term, payload: PreVoteRequest | VoteRequest, hello: Hello
) -> pb.RequestVoteRequest:
    """See `vote_request_from_proto`."""
    return pb.RequestVoteRequest(
        hello=hello_to_proto(hello),
        term=term,
        last_log_index=payload.last_index,
        last_log_term=payload.last_term,
        pre_vote=isinstance(payload, PreVoteRequest),
        leadership_transfer=isinstance(payload, VoteRequest) and payload.leadership_transfer,
    )


def vote_request_from_proto(
    message: pb.RequestVoteRequest, from_node: NodeId, to_node: NodeId
) -> Envelope:
    """A PreVoteRequest or VoteRequest."""
    checked(
        message.term > 0 and message.last_log_index >= 0 and message.last_log_term >= 0,
        "a vote request with negative numbers",
    )
    index, term = Index(message.last_log_index), Term(message.last_log_term)
    payload: PreVoteRequest | VoteRequest
    if message.pre_vote:
        payload = PreVoteRequest(index, term)
    else:
        payload = VoteRequest(index, term, message.leadership_transfer)
    return Envelope(from_node, to_node, Term(message.term), payload)


def vote_response_to_proto(
    term: Term, payload: PreVoteResponse | VoteResponse
) -> pb.RequestVoteResponse:
    """See `vote_response_from_proto`."""
    return pb.RequestVoteResponse(
        term=term,
        vote_granted=payload.granted,
        pre_vote=isinstance(payload, PreVoteResponse),
    )


def vote_response_from_proto(
    message: pb.RequestVoteResponse, from_node: NodeId, to_node: NodeId
) -> Envelope:
    """A PreVoteResponse or VoteResponse."""
    checked(message.term >= 0, "a vote with a negative term")
    granted = message.vote_granted
    payload = PreVoteResponse(granted) if message.pre_vote else VoteResponse(granted)
    return Envelope(from_node, to_node, Term(message.term), payload)


def timeout_now_from_proto(
    message: pb.TimeoutNowRequest, from_node: NodeId, to_node: NodeId
) -> Envelope:
    """A TimeoutNow."""
    checked(message.term > 0, "a TimeoutNow without a term")
    return Envelope(from_node, to_node, Term(message.term), TimeoutNow())


# --- replication ----------------------------------------------------------------------------------


def append_request_to_proto(term: Term, payload: AppendRequest) -> pb.AppendEntriesRequest:
    """Without a Hello: the stream puts it on its first frame."""
    message = pb.AppendEntriesRequest(
        term=term,
        previous_log_index=payload.previous_index,
        previous_log_term=payload.previous_term,
        entries=entries_to_proto(payload.entries),
        leader_commit=payload.commit_index,
        round=payload.round,
    )
    if payload.checksum is not None:
        message.state_checksum.index = payload.checksum.index
        message.state_checksum.state_hash = payload.checksum.state_hash
    return message


def append_request_from_proto(
    message: pb.AppendEntriesRequest, from_node: NodeId, to_node: NodeId
) -> Envelope:
    """An AppendRequest."""
    previous = message.previous_log_index
    checked(
        message.term > 0
        and previous >= 0
        and message.previous_log_term >= 0
        and message.leader_commit >= 0
        and message.round >= 0,
        "an append with negative numbers",
    )
    checksum = None
    if message.HasField("state_checksum"):
        checksum = StateChecksum(
            Index(message.state_checksum.index), message.state_checksum.state_hash
        )
    payload = AppendRequest(
        Index(previous),
        Term(message.previous_log_term),
        entries_from_proto(message.entries, previous) if message.entries else (),
        Index(message.leader_commit),
        message.round,
        checksum,
    )
    return Envelope(from_node, to_node, Term(message.term), payload)


def append_response_to_proto(term: Term, payload: AppendResponse) -> pb.AppendEntriesResponse:
    """See `append_response_from_proto`."""
    return pb.AppendEntriesResponse(
        term=term,
        success=payload.success,
        match_index=payload.match_index,
        rejected_index=payload.rejected_index,
        hint_index=payload.hint_index,
        hint_term=payload.hint_term,
        round=payload.round,
    )


def append_response_from_proto(
    message: pb.AppendEntriesResponse, from_node: NodeId, to_node: NodeId
) -> Envelope:
    """An AppendResponse."""
    checked(
        message.term >= 0
        and message.match_index >= 0
        and message.rejected_index >= 0
        and message.hint_index >= 0
        and message.hint_term >= 0
        and message.round >= 0,
        "an answer with negative numbers",
    )
    payload = AppendResponse(
        message.success,
        Index(message.match_index),
        Index(message.rejected_index),
        Index(message.hint_index),
        Term(message.hint_term),
        message.round,
    )
    return Envelope(from_node, to_node, Term(message.term), payload)
