"""What a peer tells about itself: built from what it has in memory, without waiting."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection

from gaia_grpc.errors import OutOfRangeError
from gaia_grpc.node.api import LogEntrySummary, MemberStatus, NodeStatus
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.members import Membership
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import Index, NodeId
from gaia_grpc.storage.directory import Identity
from gaia_grpc.transport.api import Member


def status_before_start(identity: Identity) -> NodeStatus:
    """The status of a peer that has not joined its cluster yet."""
    return NodeStatus(
        node_id=identity.node_id,
        peer_uuid=identity.peer_uuid,
        cluster_id=identity.cluster_id or "",
        role=RoleName.FOLLOWER,
        term=0,
        leader_id="",
        leader_address="",
        commit_index=0,
        applied_index=0,
        last_log_index=0,
        elapsed_ms=0,
        hash_index=0,
        state_hash=b"",
        writable=False,
        members=(),
    )


def status_of(
    engine: Engine,
    membership: Membership,
    *,
    at_index: int,
    reachable: Collection[NodeId],
    writable: bool,
    snapshot_index: int,
) -> NodeStatus:
    """The status of a running peer; `OutOfRangeError` where the hash at `at_index` is not kept."""
    core, machine = engine.core, engine.applier.machine
    state_hash = machine.state_hash(at_index)
    if state_hash is None:
        if at_index:
            raise OutOfRangeError(f"the state hash at index {at_index} is not kept")
        state_hash = (0, b"")
    return NodeStatus(
        node_id=core.node_id,
        peer_uuid=membership.peer_uuid,
        cluster_id=membership.cluster_id,
        role=core.role,
        term=core.term,
        leader_id=core.leader_id,
        leader_address=membership.client_address(core.leader_id),
        commit_index=core.commit_index,
        applied_index=machine.applied_index,
        last_log_index=core.last_index,
        elapsed_ms=machine.elapsed_ms,
        hash_index=state_hash[0],
        state_hash=state_hash[1],
        writable=writable,
        members=tuple(
            member_status(member, engine, membership, reachable) for member in membership.members
        ),
        first_log_index=core.first_index,
        snapshot_index=snapshot_index,
        feature_level=machine.feature_level,
        restored_index=engine.applier.restored_index,
    )


def member_status(
    member: Member, engine: Engine, membership: Membership, reachable: Collection[NodeId]
) -> MemberStatus:
    """What a running peer knows of one member."""
    core, announced = engine.core, membership.announced(member.node_id)
    return MemberStatus(
        node_id=member.node_id,
        peer_uuid=member.peer_uuid,
        peer_address=member.peer_address,
        client_address=member.client_address,
        reachable=member.node_id == core.node_id or member.node_id in reachable,
        match_index=core.match_index(member.node_id),
        voter=not member.learner,
        feature_level=0 if announced is None else announced.feature_level,
        software_version="" if announced is None else announced.software_version,
    )


def summaries(core: RaftNode, first: int, count: int) -> tuple[LogEntrySummary, ...]:
    """Up to `count` committed entries from `first` on; the checksum covers all that is stored."""
    first = max(first, core.first_index)
    count = min(count, core.commit_index - first + 1)
    if count <= 0:
        return ()
    return tuple(
        LogEntrySummary(
            index=entry.index,
            term=entry.term,
            kind=int(entry.kind),
            checksum=hashlib.sha256(
                struct.pack(">QQB", entry.term, entry.index, entry.kind) + entry.data
            ).digest(),
            size_bytes=len(entry.data),
        )
        for entry in core.entries(Index(first), count)
    )
