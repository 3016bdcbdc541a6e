"""ClusterService: what this peer knows of the cluster, and the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc import __version__
from gaia_grpc.errors import FieldViolation, InvalidArgumentError
from gaia_grpc.node.api import ClusterControl, NodeStatus, RoleName
from gaia_grpc.services.cluster_control import ClusterControlCalls, member_message
from gaia_grpc.services.deadlines import Context
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.metric_gate import MetricGate

DEFAULT_INTERVAL_MS = 5_000
DEFAULT_LOG_PAGE_SIZE = 1_000

_ROLES: Mapping[RoleName, cluster_pb2.PeerRole.ValueType] = {
    RoleName.FOLLOWER: cluster_pb2.PEER_ROLE_FOLLOWER,
    RoleName.PRE_CANDIDATE: cluster_pb2.PEER_ROLE_PRE_CANDIDATE,
    RoleName.CANDIDATE: cluster_pb2.PEER_ROLE_CANDIDATE,
    RoleName.LEADER: cluster_pb2.PEER_ROLE_LEADER,
    RoleName.LEARNER: cluster_pb2.PEER_ROLE_LEARNER,
}


class ClusterService(ClusterControlCalls):
    """See `protos/gaia/cluster/v1/cluster.proto`."""

    def __init__(self, ingress: Ingress, control: ClusterControl | None, gate: MetricGate) -> None:
        super().__init__(ingress, control)
        self._gate = gate

    async def GetStatus(
        self, request: cluster_pb2.GetStatusRequest, context: Context
    ) -> cluster_pb2.GetStatusResponse:
        """What this peer knows; never waits."""
        self._ingress.check(request)
        return status_message(self._log.status(request.at_index), self._gate)

    async def WatchStatus(
        self, request: cluster_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:
        """The status now, at each change, and after each interval without one."""
        self._ingress.check(request)
        interval_s = (request.interval_ms or DEFAULT_INTERVAL_MS) / 1000
        loop = asyncio.get_running_loop()
        while True:
            status = self._log.status()
            yield cluster_pb2.WatchStatusResponse(status=status_message(status, self._gate))
            until_s = loop.time() + interval_s
            seen = status
            # Whoever watches the log may be woken without a change that is to be shown.
            while _shown(seen) == _shown(status) and loop.time() < until_s:
                timeout_s = until_s - loop.time()
                seen = await self._log.wait_status(status, timeout_s=timeout_s)

    async def ListLogEntries(
        self, request: cluster_pb2.ListLogEntriesRequest, context: Context
    ) -> cluster_pb2.ListLogEntriesResponse:
        """A page of this peer's committed log, without content."""
        self._ingress.check(request)
        first = max(page_start(request), self._log.status().first_log_index)
        count = request.page_size or DEFAULT_LOG_PAGE_SIZE
        entries = await self._log.log_entries(first, count)
        commit_index = self._log.status().commit_index
        response = cluster_pb2.ListLogEntriesResponse(commit_index=commit_index)
        for entry in entries:
            response.entries.add(
                index=entry.index,
                term=entry.term,
                kind=cluster_pb2.LogEntryKind.ValueType(entry.kind),
                checksum=entry.checksum,
                size_bytes=entry.size_bytes,
            )
        if entries and entries[-1].index < commit_index:
            response.next_page_token = str(entries[-1].index + 1)
        return response

    async def GetSettings(
        self, request: cluster_pb2.GetSettingsRequest, context: Context
    ) -> cluster_pb2.GetSettingsResponse:
        """All replicated settings."""
        self._ingress.check(request)
        query = query_pb2.Query(get_settings=request)
        return (await self._ingress.query(context, query, request.consistency)).get_settings

    async def UpdateSettings(
        self, request: cluster_pb2.UpdateSettingsRequest, context: Context
    ) -> cluster_pb2.UpdateSettingsResponse:
        """Changes settings: all or none."""
        self._ingress.check(request)
        changes = sorted(request.changes, key=lambda change: change.name)
        body = command_pb2.UpdateSettings(changes=changes)
        if request.HasField("expected_version"):
            body.expected_version = request.expected_version
        command = command_pb2.Command(update_settings=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return cluster_pb2.UpdateSettingsResponse(
            settings=outcome.result.settings, term=outcome.term, applied_index=outcome.index
        )


def _shown(status: NodeStatus) -> tuple[str, int, str, bool]:
    return (status.role, status.term, status.leader_id, status.writable)


def page_start(request: cluster_pb2.ListLogEntriesRequest) -> int:
    """The first index that is asked for: the token's, or the request's."""
    if not request.page_token:
        return max(request.start_index, 1)
    if not request.page_token.isascii() or not request.page_token.isdigit():
        description = "is no next_page_token of this list"
        raise InvalidArgumentError(
            f"page_token {description}", [FieldViolation("page_token", description)]
        )
    return int(request.page_token[:18])


def status_message(status: NodeStatus, gate: MetricGate) -> cluster_pb2.GetStatusResponse:
    """The status as clients see it."""
    return cluster_pb2.GetStatusResponse(
        node_id=status.node_id,
        role=_ROLES[status.role],
        term=status.term,
        leader_id=status.leader_id,
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        state_hash=status.state_hash,
        peers=map(member_message, status.members),
        cluster_id=status.cluster_id,
        peer_uuid=status.peer_uuid,
        hash_index=status.hash_index,
        last_log_index=status.last_log_index,
        elapsed_ms=status.elapsed_ms,
        software_version=__version__,
        leader_address=status.leader_address,
        writable=status.writable,
        first_log_index=status.first_log_index,
        snapshot_index=status.snapshot_index,
        feature_level=status.feature_level,
        metrics=ingest_message(gate),
    )


def ingest_message(gate: MetricGate) -> cluster_pb2.MetricIngest:
    """What became of the metrics at this peer, as clients see it."""
    stats = gate.stats
    return cluster_pb2.MetricIngest(
        in_flight_count=gate.metrics,
        max_in_flight_count=gate.max_metrics,
        acknowledged_per_second=gate.rate.per_second(),
        accepted_total=stats.accepted,
        late_total=stats.late,
        duplicate_total=stats.duplicate,
        rejected_total=stats.rejected,
        sampled_total=stats.sampled,
        refused_total=stats.refused,
        refused_call_total=stats.refused_calls,
    )
