"""Which tables make up the state. A table names the ones that it uses; lower ones come first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gaia_grpc.state.alerts import AlertsTable
from gaia_grpc.state.classrooms import ClassroomTable
from gaia_grpc.state.cluster import ClusterTable
from gaia_grpc.state.context import Context, Table
from gaia_grpc.state.history import Histories
from gaia_grpc.state.history_table import HistoryTable
from gaia_grpc.state.locks import LockTable
from gaia_grpc.state.metrics import MetricsTable
from gaia_grpc.state.requests import Replay, RequestTable
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.student_data import StudentDataTable
from gaia_grpc.state.tasks import TaskTable
from gaia_grpc.state.timelines import Timelines


class Tables(NamedTuple):
    """What the state is made of."""

    ordered: tuple[Table, ...]
    """All of them, in the order in which `settings_changed` reaches them."""
    replays: Mapping[str, Replay]
    """By command: how a kept outcome is told again where it is more than its bytes."""
    student_data: StudentDataTable
    alerts: AlertsTable


def build_tables(context: Context, requests: RequestTable) -> Tables:
    """All tables of one machine."""
    cluster = ClusterTable(context)
    sessions = SessionTable(context)
    tasks = TaskTable(context, sessions)
    timelines = Timelines()
    classrooms = ClassroomTable(context)
    alerts = AlertsTable(context, timelines, classrooms)
    histories = Histories(context, timelines)
    metrics = MetricsTable(context, timelines, alerts, histories)
    history = HistoryTable(context, timelines, histories)
    locks = LockTable(context)
    student_data = StudentDataTable(context, requests, metrics, histories, alerts, classrooms)
    return Tables(
        (cluster, sessions, tasks, metrics, history, alerts, locks, classrooms, student_data),
        {"claim_tasks": tasks.claims, "acquire_lock": locks, "put_classroom": classrooms},
        student_data,
        alerts,
    )
