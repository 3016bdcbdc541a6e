"""Which services a peer offers, and which of their methods it does not serve yet.

`NOT_SERVED` is the one list of methods that are part of the contract and answer UNIMPLEMENTED; the
contract tests read it, and each message tells a caller what to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from gaia.alert.v1 import alert_pb2, alert_pb2_grpc
from gaia.classroom.v1 import classroom_pb2, classroom_pb2_grpc
from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gaia.lock.v1 import lock_pb2, lock_pb2_grpc
from gaia.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from gaia.session.v1 import session_pb2, session_pb2_grpc
from gaia.task.v1 import task_pb2, task_pb2_grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from gaia_grpc.config import PeerConfig
from gaia_grpc.node.api import ClusterControl, ReplicatedLog
from gaia_grpc.services.alert_feed import AlertFeed
from gaia_grpc.services.alerts import AlertService
from gaia_grpc.services.claims import claim_waits
from gaia_grpc.services.classrooms import ClassroomService
from gaia_grpc.services.cluster import ClusterService
from gaia_grpc.services.heartbeats import HeartbeatCollector
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.locks import LOCK_WAIT, LockService
from gaia_grpc.services.metric_gate import MetricGate
from gaia_grpc.services.metrics import MetricsService
from gaia_grpc.services.publishing import Publisher
from gaia_grpc.services.sessions import SessionService
from gaia_grpc.services.settings_cache import SettingsCache
from gaia_grpc.services.tasks import TaskService
from gaia_grpc.services.waits import Waits

_FILES: tuple[FileDescriptor, ...] = (
    alert_pb2.DESCRIPTOR,
    classroom_pb2.DESCRIPTOR,
    cluster_pb2.DESCRIPTOR,
    lock_pb2.DESCRIPTOR,
    metrics_pb2.DESCRIPTOR,
    session_pb2.DESCRIPTOR,
    task_pb2.DESCRIPTOR,
)

SERVICES: Mapping[str, ServiceDescriptor] = {
    service.full_name: service for file in _FILES for service in file.services_by_name.values()
}
"""Public services by their full name."""

_LATER = "is part of the contract and not served yet"

_NOT_SERVED_METHODS: Mapping[str, str] = {}

NOT_SERVED: Mapping[str, str] = {
    f"/{method}": f"{method} {_LATER}; {advice}" for method, advice in _NOT_SERVED_METHODS.items()
}
"""Full method name as it goes over the wire -> what the caller is told."""


class PublicServices:
    """The servicers of one peer with what they share."""

    def __init__(
        self, log: ReplicatedLog, config: PeerConfig, control: ClusterControl | None = None
    ) -> None:
        ingress = Ingress(log, config)
        settings = SettingsCache(log)
        self._heartbeats = HeartbeatCollector(log, config)
        self._waits = claim_waits(ingress)
        self._sessions = SessionService(ingress, self._heartbeats, settings)
        self._lock_waits = Waits(ingress, LOCK_WAIT)
        self._locks = LockService(ingress, self._lock_waits)
        self._tasks = TaskService(ingress, self._waits)
        self.metric_gate = MetricGate(config.limits)
        self._publisher = Publisher(ingress, settings, self.metric_gate)
        self._metrics = MetricsService(ingress, self._publisher)
        self._alerts = AlertService(ingress, AlertFeed(ingress))
        self._classrooms = ClassroomService(ingress)
        self._cluster = ClusterService(ingress, control, self.metric_gate)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers every public service, those that are not served yet too."""
        session_pb2_grpc.add_SessionServiceServicer_to_server(self._sessions, server)
        task_pb2_grpc.add_TaskServiceServicer_to_server(self._tasks, server)
        metrics_pb2_grpc.add_MetricsServiceServicer_to_server(self._metrics, server)
        alert_pb2_grpc.add_AlertServiceServicer_to_server(self._alerts, server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(self._cluster, server)
        lock_pb2_grpc.add_LockServiceServicer_to_server(self._locks, server)
        classroom_pb2_grpc.add_ClassroomServiceServicer_to_server(self._classrooms, server)

    async def close(self) -> None:
        """Finishes what no caller waits for any more."""
        await self._heartbeats.close()
        await self._waits.close()
        await self._lock_waits.close()
        await self._publisher.close()
