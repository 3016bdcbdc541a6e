"""The SDK: cluster client, metrics buffer, worker, alert listener.

It needs only the generated stubs and the error tree, and talks to the cluster over nothing but the
public contracts, so whatever it does a client in another language can do too.
"""

from gaia_grpc.client.alerts import AlertListener, AlertsApi
from gaia_grpc.client.attempts import WorkerCounters
from gaia_grpc.client.blocking import BlockingClient, connect_blocking
from gaia_grpc.client.buffer import MetricsBuffer
from gaia_grpc.client.channels import Peer
from gaia_grpc.client.classrooms import ClassroomsApi
from gaia_grpc.client.client import Client
from gaia_grpc.client.codecs import BYTES, JSON, Codec
from gaia_grpc.client.connection import Connection
from gaia_grpc.client.counters import MetricsCounters
from gaia_grpc.client.jobs import (
    BlockingJob,
    Fail,
    Job,
    PermanentTaskError,
    Release,
    Retry,
    current_job,
)
from gaia_grpc.client.locks import HeldLock, LocksApi
from gaia_grpc.client.metrics import MetricsApi
from gaia_grpc.client.presets import (
    ComprehensionApp,
    MathApp,
    PianoApp,
    ReadingApp,
    TypingApp,
)
from gaia_grpc.client.resources import (
    LINEARIZABLE,
    LOCAL,
    ClusterApi,
    SessionsApi,
)
from gaia_grpc.client.spool import Spool
from gaia_grpc.client.task_specs import TaskRef, new_task
from gaia_grpc.client.tasks import TasksApi
from gaia_grpc.client.watches import StateWatch
from gaia_grpc.client.worker import Worker

__all__ = [
    "BYTES",
    "JSON",
    "LINEARIZABLE",
    "LOCAL",
    "AlertListener",
    "AlertsApi",
    "BlockingClient",
    "BlockingJob",
    "ClassroomsApi",
    "Client",
    "ClusterApi",
    "Codec",
    "ComprehensionApp",
    "Connection",
    "Fail",
    "HeldLock",
    "Job",
    "LocksApi",
    "MathApp",
    "MetricsApi",
    "MetricsBuffer",
    "MetricsCounters",
    "Peer",
    "PermanentTaskError",
    "PianoApp",
    "ReadingApp",
    "Release",
    "Retry",
    "SessionsApi",
    "Spool",
    "StateWatch",
    "TaskRef",
    "TasksApi",
    "TypingApp",
    "Worker",
    "WorkerCounters",
    "connect_blocking",
    "current_job",
    "new_task",
]
