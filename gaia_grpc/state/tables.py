"""Which tables make up the state. A table names the ones that it uses; lower ones come first."""

from __future__ import annotations

from collections.abc import Mapping

from gaia_grpc.state.alerts import AlertsTable
from gaia_grpc.state.cluster import ClusterTable
from gaia_grpc.state.context import Context, Table
from gaia_grpc.state.locks import LockTable
from gaia_grpc.state.metrics import MetricsTable
from gaia_grpc.state.requests import Replay
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.tasks import TaskTable
from gaia_grpc.state.timelines import Timelines


def build_tables(context: Context) -> tuple[tuple[Table, ...], Mapping[str, Replay]]:
    """All tables, in the order in which `settings_changed` reaches them.

    Beside them, by command, how a kept outcome is told again where it is more than its bytes.
    """
    cluster = ClusterTable(context)
    sessions = SessionTable(context)
    tasks = TaskTable(context, sessions)
    timelines = Timelines()
    alerts = AlertsTable(context, timelines)
    metrics = MetricsTable(context, timelines, alerts)
    locks = LockTable(context)
    tables = (cluster, sessions, tasks, metrics, alerts, locks)
    return tables, {"claim_tasks": tasks.claims, "acquire_lock": locks}
