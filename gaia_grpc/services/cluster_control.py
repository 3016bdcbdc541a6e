"""ClusterService's other half: what an operator does to the embedded log itself.

Leadership, members and snapshots belong to the log underneath. Another log is operated with tools
of its own: these calls answer UNIMPLEMENTED then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc

from gaia_grpc.errors import (
    FailedPreconditionError,
    NotFoundError,
    NotLeaderError,
    UnimplementedError,
)
from gaia_grpc.node.api import (
    ClusterControl,
    MemberStatus,
    NodeStatus,
    RoleName,
    SnapshotSummary,
)
from gaia_grpc.services.deadlines import Context, log_timeout_s
from gaia_grpc.services.ingress import Ingress

CHUNK_SIZE_BYTES = 256 << 10


class ClusterControlCalls(cluster_pb2_grpc.ClusterServiceServicer):
    """TransferLeadership, AddPeer, RemovePeer, TakeSnapshot and DownloadSnapshot."""

    def __init__(self, ingress: Ingress, control: ClusterControl | None) -> None:
        self._ingress = ingress
        self._log = ingress.log
        self._optional_control = control

    async def TransferLeadership(
        self, request: cluster_pb2.TransferLeadershipRequest, context: Context
    ) -> cluster_pb2.TransferLeadershipResponse:
        """Makes another peer the leader; only the leader itself can do it."""
        self._ingress.check(request)
        status = self._log.status()
        target = request.node_id or furthest_voter(status)
        if target not in (member.node_id for member in status.members):
            raise NotFoundError(f"no peer {target!r}", metadata={"node_id": target})
        if status.leader_id != target:
            if status.role is not RoleName.LEADER:
                raise NotLeaderError(
                    "only the leader hands leadership over", leader_id=status.leader_id
                )
            timeout_s = self._timeout_s(context)
            status = await self._control.transfer_leadership(target, timeout_s=timeout_s)
        return cluster_pb2.TransferLeadershipResponse(leader_id=status.leader_id, term=status.term)

    async def AddPeer(
        self, request: cluster_pb2.AddPeerRequest, context: Context
    ) -> cluster_pb2.AddPeerResponse:
        """Adds a learner and promotes it once it has caught up."""
        self._ingress.check(request)
        change = await self._control.add_peer(
            request.node_id,
            request.peer_uuid,
            request.peer_address,
            timeout_s=self._timeout_s(context),
        )
        return cluster_pb2.AddPeerResponse(
            peers=map(member_message, change.members),
            term=change.term,
            applied_index=change.index,
        )

    async def RemovePeer(
        self, request: cluster_pb2.RemovePeerRequest, context: Context
    ) -> cluster_pb2.RemovePeerResponse:
        """Removes a member."""
        self._ingress.check(request)
        change = await self._control.remove_peer(
            request.node_id, timeout_s=self._timeout_s(context)
        )
        return cluster_pb2.RemovePeerResponse(
            peers=map(member_message, change.members),
            term=change.term,
            applied_index=change.index,
        )

    async def TakeSnapshot(
        self, request: cluster_pb2.TakeSnapshotRequest, context: Context
    ) -> cluster_pb2.TakeSnapshotResponse:
        """Writes a snapshot of what this peer has applied now."""
        self._ingress.check(request)
        summary = await self._control.take_snapshot(timeout_s=self._timeout_s(context))
        return cluster_pb2.TakeSnapshotResponse(
            index=summary.index,
            term=summary.term,
            size_bytes=summary.size_bytes,
            sha256=summary.sha256,
            state_hash=summary.state_hash,
        )

    async def DownloadSnapshot(
        self, request: cluster_pb2.DownloadSnapshotRequest, context: Context
    ) -> AsyncIterator[cluster_pb2.DownloadSnapshotResponse]:
        """The newest snapshot of this peer: first what it is, then its content."""
        self._ingress.check(request)
        stream = await self._control.read_snapshot(CHUNK_SIZE_BYTES)
        try:
            yield cluster_pb2.DownloadSnapshotResponse(
                file=_file_message(stream.summary, self._log.status().cluster_id)
            )
            async for data in stream:
                yield cluster_pb2.DownloadSnapshotResponse(data=data)
        finally:
            await stream.close()

    def _timeout_s(self, context: Context) -> float:
        return log_timeout_s(context, self._ingress.consensus)

    @property
    def _control(self) -> ClusterControl:
        """The embedded log's own controls. `UnimplementedError` where another log is underneath."""
        if self._optional_control is None:
            raise UnimplementedError("the log underneath is operated with tools of its own")
        return self._optional_control


def furthest_voter(status: NodeStatus) -> str:
    """The other voter whose log is furthest, as the leader knows it."""
    others = [
        (member.match_index, member.reachable, member.node_id)
        for member in status.members
        if member.voter and member.node_id != status.node_id
    ]
    if not others:
        raise FailedPreconditionError("there is no other peer that could lead")
    return max(others)[2]


def member_message(member: MemberStatus) -> cluster_pb2.PeerStatus:
    """A member as clients see it."""
    return cluster_pb2.PeerStatus(
        node_id=member.node_id,
        peer_uuid=member.peer_uuid,
        peer_address=member.peer_address,
        client_address=member.client_address,
        reachable=member.reachable,
        match_index=member.match_index,
        voter=member.voter,
        feature_level=member.feature_level,
        software_version=member.software_version,
    )


def _file_message(summary: SnapshotSummary, cluster_id: str) -> cluster_pb2.SnapshotFile:
    return cluster_pb2.SnapshotFile(
        index=summary.index,
        term=summary.term,
        size_bytes=summary.size_bytes,
        sha256=summary.sha256,
        cluster_id=cluster_id,
        state_hash=summary.state_hash,
    )
