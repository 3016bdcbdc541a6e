"""What each peer holds when all is over, asked directly and locally."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from gaia.alert.v1 import alert_pb2
from gaia.alert.v1.alert_pb2_grpc import AlertServiceStub
from gaia.common.v1 import common_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.metrics.v1.metrics_pb2_grpc import MetricsServiceStub
from gaia.task.v1 import task_pb2
from gaia.task.v1.task_pb2_grpc import TaskServiceStub

from gaia_grpc.testing.cluster import Cluster
from tests.chaos.caller import OPTIONS
from tests.chaos.end_checks import StudentTotals
from tests.chaos.streams import CLASSROOM

if TYPE_CHECKING:  # these names exist for type checkers only
    from gaia.alert.v1.alert_pb2_grpc import AlertServiceAsyncStub
    from gaia.metrics.v1.metrics_pb2_grpc import MetricsServiceAsyncStub
    from gaia.task.v1.task_pb2_grpc import TaskServiceAsyncStub

TIMEOUT_S = 20.0
PAGE_SIZE = 1_000
AT_ONCE = 50
LOCAL = common_pb2.CONSISTENCY_LOCAL


@dataclass(slots=True)
class FinalState:
    """By node id."""

    tasks: dict[str, list[task_pb2.Task]] = field(default_factory=dict)
    students: dict[str, dict[str, StudentTotals]] = field(default_factory=dict)
    events: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    """Of students' alerts."""
    operational: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    """Of alerts about the cluster: they have their places in the one order too."""
    hashes: dict[str, str] = field(default_factory=dict)
    hash_index: int = 0

    def cut_events(self, newest: int) -> None:
        """Forgets events after `newest`: time goes on, and with it alerts end."""
        for kind in (self.events, self.operational):
            for node_id, events in kind.items():
                kind[node_id] = [event for event in events if event[0] <= newest]


async def read_final_state(cluster: Cluster) -> FinalState:
    """Asks every peer; all of them have applied what was acknowledged."""
    final = FinalState()
    final.hash_index = await cluster.aio.wait_applied_equal()
    newest = 0
    for node_id in cluster.node_ids:
        status = await asyncio.to_thread(cluster.status, node_id, at_index=final.hash_index)
        final.hashes[node_id] = status.state_hash.hex()
        async with grpc.aio.insecure_channel(cluster.address(node_id), options=OPTIONS) as channel:
            final.tasks[node_id] = await _tasks(TaskServiceStub(channel))
            final.students[node_id] = await _students(MetricsServiceStub(channel))
            alerts = AlertServiceStub(channel)
            students, operational = alert_pb2.ALERT_KIND_STUDENT, alert_pb2.ALERT_KIND_OPERATIONAL
            final.events[node_id], through = await _events(alerts, newest, students)
            newest = newest or through
            final.operational[node_id], _ = await _events(alerts, newest, operational)
    final.cut_events(newest)
    return final


async def _tasks(stub: TaskServiceAsyncStub) -> list[task_pb2.Task]:
    """All tasks. A list leaves payloads and histories out, so each task is read by itself."""
    found: list[task_pb2.Task] = []
    request = task_pb2.ListTasksRequest(page_size=PAGE_SIZE, consistency=LOCAL)
    while True:
        page = await stub.ListTasks(request, timeout=TIMEOUT_S)
        for first in range(0, len(page.tasks), AT_ONCE):
            requests = [
                task_pb2.GetTaskRequest(task_id=task.task_id, consistency=LOCAL)
                for task in page.tasks[first : first + AT_ONCE]
            ]
            answers = [stub.GetTask(one, timeout=TIMEOUT_S) for one in requests]
            found += [(await answer).task for answer in answers]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def _students(stub: MetricsServiceAsyncStub) -> dict[str, StudentTotals]:
    found: dict[str, StudentTotals] = {}
    request = metrics_pb2.ListAggregatesRequest(
        classroom_id=CLASSROOM, page_size=PAGE_SIZE, consistency=LOCAL
    )
    while True:
        page = await stub.ListAggregates(request, timeout=TIMEOUT_S)
        for one in page.aggregates:
            found[one.student_id] = StudentTotals(
                one.accepted_total,
                one.late_total,
                sum(metric.count for metric in one.metrics),
                sum(metric.sum for metric in one.metrics),
            )
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def _events(
    stub: AlertServiceAsyncStub, newest: int, kind: alert_pb2.AlertKind.ValueType
) -> tuple[list[tuple[int, bytes]], int]:
    """All events up to `newest` and how far that is; 0 takes those that are there now."""
    found: list[tuple[int, bytes]] = []
    through = 0
    request = alert_pb2.SubscribeAlertsRequest(
        after_sequence=0, progress_interval_ms=200, filter=alert_pb2.AlertFilter(kind=kind)
    )
    stream = stub.SubscribeAlerts(request, timeout=TIMEOUT_S)
    first = True
    async for message in stream:
        through = message.through_sequence
        if message.HasField("event"):
            found.append((message.event.sequence, message.event.SerializeToString()))
        elif not first and message.through_sequence >= newest:
            break
        first = False
        if newest and message.through_sequence >= newest:
            break
    stream.cancel()
    return found, through
