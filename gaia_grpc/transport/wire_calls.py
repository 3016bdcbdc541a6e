"""The mapping of forwarded calls, offers of snapshots and founding: `wire` has the rest."""

from __future__ import annotations

from collections.abc import Iterable

from gaia.raft.v1 import raft_pb2 as pb

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.raft.types import Index, NodeId, SnapshotMeta, Term
from gaia_grpc.transport.api import (
    AppliedCommand,
    ForwardedCall,
    ForwardedOutcome,
    ForwardFailure,
    Founding,
    IdentifyRequest,
    IdentifyResponse,
    Member,
    MemberChange,
    ReadIndexGrant,
)
from gaia_grpc.transport.snapshot_intake import SnapshotOffer
from gaia_grpc.transport.wire import checked, entries_from_proto, entries_to_proto

SHA256_SIZE_BYTES = 32

# --- forwarding -----------------------------------------------------------------------------------


def call_to_proto(call_id: int, call: ForwardedCall) -> pb.ForwardedCall:
    """See `call_from_proto`."""
    message = pb.ForwardedCall(call_id=call_id, timeout_ms=call.timeout_ms)
    if call.change is not None:
        message.change_members.CopyFrom(
            pb.ChangeMembersCall(
                remove=call.change.remove,
                node_id=call.change.node_id,
                peer_uuid=call.change.peer_uuid,
                peer_address=call.change.peer_address,
            )
        )
    elif call.command is not None:
        message.command = call.command
    else:
        message.read_index.SetInParent()
    return message


def call_from_proto(message: pb.ForwardedCall) -> ForwardedCall:
    """A call without a body raises: nobody could say what it asks."""
    body = message.WhichOneof("body")
    checked(body is not None, "a forwarded call without a body")
    if body == "change_members":
        change = message.change_members
        return ForwardedCall(
            None,
            message.timeout_ms,
            MemberChange(
                change.remove, NodeId(change.node_id), change.peer_uuid, change.peer_address
            ),
        )
    return ForwardedCall(message.command if body == "command" else None, message.timeout_ms)


def outcome_to_proto(call_id: int, outcome: ForwardedOutcome) -> pb.ForwardedOutcome:
    """See `outcome_from_proto`."""
    match outcome:
        case AppliedCommand(term, index, result):
            applied = pb.AppliedCommand(term=term, index=index, result=result)
            return pb.ForwardedOutcome(call_id=call_id, applied=applied)
        case ReadIndexGrant(index, elapsed_ms):
            grant = pb.ReadIndexGrant(index=index, elapsed_ms=elapsed_ms)
            return pb.ForwardedOutcome(call_id=call_id, read_index=grant)
        case ForwardFailure(reason, text, leader_id, retry_after_ms):
            failure = pb.ForwardFailure(
                reason=reason, message=text, leader_id=leader_id, retry_after_ms=retry_after_ms
            )
            return pb.ForwardedOutcome(call_id=call_id, failure=failure)


def outcome_from_proto(message: pb.ForwardedOutcome) -> ForwardedOutcome:
    """An outcome without a body raises."""
    match message.WhichOneof("body"):
        case "applied":
            applied = message.applied
            return AppliedCommand(Term(applied.term), Index(applied.index), applied.result)
        case "read_index":
            return ReadIndexGrant(Index(message.read_index.index), message.read_index.elapsed_ms)
        case "failure":
            failure = message.failure
            return ForwardFailure(
                failure.reason,
                failure.message,
                NodeId(failure.leader_id),
                failure.retry_after_ms,
            )
        case _:
            raise InvalidArgumentError("a peer sent an outcome without a body")


# --- snapshots ------------------------------------------------------------------------------------


def offer_to_proto(
    term: Term, meta: SnapshotMeta, size_bytes: int, sha256: bytes
) -> pb.InstallSnapshotRequest:
    """Without a Hello; see `offer_from_proto`."""
    return pb.InstallSnapshotRequest(
        term=term,
        last_included_index=meta.index,
        last_included_term=meta.term,
        serialized_configuration=meta.configuration,
        total_size_bytes=size_bytes,
        sha256=sha256,
    )


def offer_from_proto(message: pb.InstallSnapshotRequest, from_node: NodeId) -> SnapshotOffer:
    """The first frame of a transfer, which brings no data."""
    checked(
        message.term > 0
        and message.last_included_index > 0
        and message.last_included_term > 0
        and message.total_size_bytes >= 0
        and len(message.sha256) == SHA256_SIZE_BYTES
        and not message.data,
        "an offer of a snapshot that makes no sense",
    )
    meta = SnapshotMeta(
        Index(message.last_included_index),
        Term(message.last_included_term),
        message.serialized_configuration,
    )
    return SnapshotOffer(
        from_node, Term(message.term), meta, message.total_size_bytes, message.sha256
    )


# --- founding -------------------------------------------------------------------------------------


def _peers_to_proto(peers: Iterable[tuple[NodeId, str]]) -> list[pb.ListedPeer]:
    return [pb.ListedPeer(node_id=node_id, peer_address=address) for node_id, address in peers]


def _peers_from_proto(messages: Iterable[pb.ListedPeer]) -> tuple[tuple[NodeId, str], ...]:
    return tuple((NodeId(message.node_id), message.peer_address) for message in messages)


def _settings_to_proto(settings: Iterable[tuple[str, str]]) -> list[pb.InitialSetting]:
    return [pb.InitialSetting(name=name, value=value) for name, value in settings]


def _settings_from_proto(messages: Iterable[pb.InitialSetting]) -> tuple[tuple[str, str], ...]:
    return tuple((message.name, message.value) for message in messages)


def member_to_proto(member: Member) -> pb.Member:
    """See `member_from_proto`."""
    return pb.Member(
        node_id=member.node_id,
        peer_uuid=member.peer_uuid,
        peer_address=member.peer_address,
        client_address=member.client_address,
        learner=member.learner,
    )


def member_from_proto(message: pb.Member) -> Member:
    """One peer of a configuration."""
    return Member(
        NodeId(message.node_id),
        message.peer_uuid,
        message.peer_address,
        message.client_address,
        message.learner,
    )


def identify_request_to_proto(request: IdentifyRequest) -> pb.IdentifyRequest:
    """See `identify_request_from_proto`."""
    return pb.IdentifyRequest(
        node_id=request.node_id,
        peer_uuid=request.peer_uuid,
        listed_peers=_peers_to_proto(request.listed_peers),
        settings=_settings_to_proto(request.settings),
    )


def identify_request_from_proto(message: pb.IdentifyRequest) -> IdentifyRequest:
    """Nothing is checked: strangers may ask."""
    return IdentifyRequest(
        NodeId(message.node_id),
        message.peer_uuid,
        _peers_from_proto(message.listed_peers),
        _settings_from_proto(message.settings),
    )


def identify_response_to_proto(response: IdentifyResponse) -> pb.IdentifyResponse:
    """See `identify_response_from_proto`."""
    founding = response.founding
    return pb.IdentifyResponse(
        node_id=response.node_id,
        peer_uuid=response.peer_uuid,
        client_address=response.client_address,
        empty=response.empty,
        bootstrapping=response.bootstrapping,
        listed_peers=_peers_to_proto(response.listed_peers),
        settings=_settings_to_proto(response.settings),
        founding=None
        if founding is None
        else pb.Founding(
            cluster_id=founding.cluster_id,
            members=[member_to_proto(member) for member in founding.members],
            entries=entries_to_proto(founding.entries),
        ),
        feature_level=response.feature_level,
        software_version=response.software_version,
    )


def identify_response_from_proto(message: pb.IdentifyResponse) -> IdentifyResponse:
    """The entries of a founding record begin at index 1."""
    founding = None
    if message.HasField("founding"):
        founding = Founding(
            message.founding.cluster_id,
            tuple(member_from_proto(member) for member in message.founding.members),
            entries_from_proto(message.founding.entries, 0),
        )
    return IdentifyResponse(
        NodeId(message.node_id),
        message.peer_uuid,
        message.client_address,
        message.empty,
        message.bootstrapping,
        _peers_from_proto(message.listed_peers),
        _settings_from_proto(message.settings),
        founding,
        message.feature_level,
        message.software_version,
    )
