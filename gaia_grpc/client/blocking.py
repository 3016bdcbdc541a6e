"""The SDK without asyncio: the same API for scripts, notebooks and threads.

    with connect_blocking("127.0.0.1:50051,127.0.0.1:50052") as client:
        client.tasks.enqueue("grade", b"essay 7")
        for task in client.tasks.list():
            ...

All calls of a client run on one loop in a thread of its own, so it may be used by any number of
threads at once, also where a loop runs already. Each call has the time budget of its asyncio twin.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, Self, TypeVar, overload

from gaia.session.v1 import session_pb2

from gaia_grpc.client.alerts import AlertsApi
from gaia_grpc.client.attempts import WorkerCounters
from gaia_grpc.client.blocking_handles import (
    BlockingBuffer,
    BlockingListener,
    BlockingLock,
    Closing,
    watching,
)
from gaia_grpc.client.classrooms import ClassroomsApi
from gaia_grpc.client.client import Client
from gaia_grpc.client.codecs import BYTES, Codec
from gaia_grpc.client.counters import MetricsCounters
from gaia_grpc.client.locks import LocksApi
from gaia_grpc.client.metrics import MetricsApi
from gaia_grpc.client.portal import Facade, Portal, blocking, listing, streaming, wrapped
from gaia_grpc.client.presets import (
    ComprehensionApp,
    MathApp,
    PianoApp,
    ReadingApp,
    TypingApp,
)
from gaia_grpc.client.resources import ClusterApi, SessionsApi
from gaia_grpc.client.task_specs import TaskRef
from gaia_grpc.client.tasks import Result, TasksApi
from gaia_grpc.client.worker import SIGNALS, AnyHandler, Worker

P = ParamSpec("P")
Inner = TypeVar("Inner")


class BlockingSessions(Facade[SessionsApi]):
    """See `SessionsApi`."""

    register = blocking(SessionsApi.register)
    heartbeat = blocking(SessionsApi.heartbeat)
    deregister = blocking(SessionsApi.deregister)
    get = blocking(SessionsApi.get)
    list = listing(SessionsApi.list)
    score = blocking(SessionsApi.score)
    watch = watching(SessionsApi.watch)


class BlockingTasks(Facade[TasksApi]):
    """See `TasksApi`."""

    enqueue = blocking(TasksApi.enqueue)
    enqueue_batch = blocking(TasksApi.enqueue_batch)
    run = blocking(TasksApi.run)
    wait = blocking(TasksApi.wait)
    claim = blocking(TasksApi.claim)
    extend = blocking(TasksApi.extend)
    complete = blocking(TasksApi.complete)
    complete_batch = blocking(TasksApi.complete_batch)
    fail = blocking(TasksApi.fail)
    release = blocking(TasksApi.release)
    cancel = blocking(TasksApi.cancel)
    requeue = blocking(TasksApi.requeue)
    get = blocking(TasksApi.get)
    list = listing(TasksApi.list)
    stats = blocking(TasksApi.stats)
    explain = blocking(TasksApi.explain)
    watch = watching(TasksApi.watch)
    put_policy = blocking(TasksApi.put_policy)
    delete_policy = blocking(TasksApi.delete_policy)
    policies = listing(TasksApi.policies)

    @overload
    def result(self, task: TaskRef, *, timeout: float | None = None) -> bytes: ...

    @overload
    def result(
        self, task: TaskRef, *, codec: Codec[Result], timeout: float | None = None
    ) -> Result: ...

    @functools.wraps(TasksApi.result)
    def result(
        self, task: TaskRef, *, codec: Codec[Any] = BYTES, timeout: float | None = None
    ) -> Any:
        """As `TasksApi.result`."""
        return self._portal.run(self._inner.result(task, codec=codec, timeout=timeout))


class BlockingMetrics(Facade[MetricsApi]):
    """See `MetricsApi`."""

    buffer = wrapped(MetricsApi.buffer, BlockingBuffer)
    typing = wrapped(
        MetricsApi.typing,
        lambda portal, app: TypingApp(BlockingBuffer(portal, app.buffer)),
    )
    math = wrapped(
        MetricsApi.math,
        lambda portal, app: MathApp(BlockingBuffer(portal, app.buffer)),
    )
    reading = wrapped(
        MetricsApi.reading,
        lambda portal, app: ReadingApp(BlockingBuffer(portal, app.buffer)),
    )
    piano = wrapped(
        MetricsApi.piano,
        lambda portal, app: PianoApp(BlockingBuffer(portal, app.buffer)),
    )
    comprehension = wrapped(
        MetricsApi.comprehension,
        lambda portal, app: ComprehensionApp(BlockingBuffer(portal, app.buffer)),
    )
    open_spool = blocking(MetricsApi.open_spool)
    publish = blocking(MetricsApi.publish)
    aggregate = blocking(MetricsApi.aggregate)
    aggregates = listing(MetricsApi.aggregates)
    history = listing(MetricsApi.history)
    watch_classroom = streaming(MetricsApi.watch_classroom)

    @property
    def counters(self) -> MetricsCounters:
        """The counts of all buffers of this client together, closed ones included."""
        return self._inner.counters


class BlockingAlerts(Facade[AlertsApi]):
    """See `AlertsApi`."""

    listen = wrapped(AlertsApi.listen, BlockingListener)
    list = listing(AlertsApi.list)
    acknowledge = blocking(AlertsApi.acknowledge)
    snooze = blocking(AlertsApi.snooze)
    resolve = blocking(AlertsApi.resolve)
    intervene = blocking(AlertsApi.intervene)
    interventions = listing(AlertsApi.interventions)


class BlockingLocks(Facade[LocksApi]):
    """See `LocksApi`."""

    hold = wrapped(LocksApi.hold, BlockingLock)
    acquire = blocking(LocksApi.acquire)
    renew = blocking(LocksApi.renew)
    release = blocking(LocksApi.release)
    get = blocking(LocksApi.get)
    list = listing(LocksApi.list)


class BlockingClassrooms(Facade[ClassroomsApi]):
    """See `ClassroomsApi`."""

    put = blocking(ClassroomsApi.put)
    get = blocking(ClassroomsApi.get)
    list = listing(ClassroomsApi.list)
    delete_student_data = blocking(ClassroomsApi.delete_student_data)


class BlockingCluster(Facade[ClusterApi]):
    """See `ClusterApi`."""

    status = blocking(ClusterApi.status)
    statuses = blocking(ClusterApi.statuses)
    watch_status = streaming(ClusterApi.watch_status)
    log_entries = blocking(ClusterApi.log_entries)
    settings = blocking(ClusterApi.settings)
    update_settings = blocking(ClusterApi.update_settings)


class BlockingWorker(Closing[Worker]):
    """See `Worker`. Plain functions run in a thread each and may use the blocking client."""

    stop = blocking(Worker.stop)
    close = stop

    def task(
        self, *task_types: str, codec: Codec[Any] = BYTES, timeout: float | None = None
    ) -> Callable[[AnyHandler], AnyHandler]:
        """As `Worker.task`."""
        return self._inner.task(*task_types, codec=codec, timeout=timeout)

    def start(self) -> Self:
        """As `Worker.start`."""
        self._portal.run(self._inner.start())
        return self

    def run(self, *, signals: bool = False) -> None:
        """As `Worker.run`."""
        with self._stopped_by_signals(signals):
            self._portal.run(self._inner.run())

    def request_stop(self) -> None:
        """As `Worker.request_stop`; from any thread."""
        self._portal.loop.call_soon_threadsafe(self._inner.request_stop)

    @property
    def counters(self) -> WorkerCounters:
        """What it did so far."""
        return self._inner.counters

    @property
    def session(self) -> session_pb2.Session | None:
        """The session as registered last; None before `start`."""
        return self._inner.session

    def __enter__(self) -> Self:
        return self.start()

    @contextmanager
    def _stopped_by_signals(self, wanted: bool) -> Iterator[None]:
        numbers = SIGNALS if wanted else ()
        before = {
            number: signal.signal(number, lambda *_: self.request_stop()) for number in numbers
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class BlockingClient(Closing[Client]):
    """See `Client`. Made by `connect_blocking`."""

    def __init__(self, portal: Portal, inner: Client) -> None:
        """Use `connect_blocking`."""
        super().__init__(portal, inner)
        self._closing = threading.Lock()
        self._closed = False
        self.sessions = BlockingSessions(portal, inner.sessions)
        self.tasks = BlockingTasks(portal, inner.tasks)
        self.metrics = BlockingMetrics(portal, inner.metrics)
        self.alerts = BlockingAlerts(portal, inner.alerts)
        self.locks = BlockingLocks(portal, inner.locks)
        self.classrooms = BlockingClassrooms(portal, inner.classrooms)
        self.cluster = BlockingCluster(portal, inner.cluster)

    worker = wrapped(Worker, BlockingWorker)
    call = blocking(Client.call)

    @property
    def client_id(self) -> str:
        """Scope of the request ids, sent as `gaia-client`."""
        return self._inner.client_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Client addresses of all known peers."""
        return self._inner.addresses

    def close(self) -> None:
        """Flushes metrics buffers, closes the channels and ends the thread; idempotent."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            try:
                self._portal.run(self._inner.close())
            finally:
                self._portal.stop()


def _connected(connect: Callable[P, Client]) -> Callable[P, BlockingClient]:
    @functools.wraps(connect)
    def call(*args: P.args, **kwargs: P.kwargs) -> BlockingClient:
        """Connects; raises `UnavailableError` where no peer answers in time."""

        async def opened() -> Client:
            return await connect(*args, **kwargs).open()

        portal = Portal()
        try:
            return BlockingClient(portal, portal.run(opened()))
        except BaseException:
            portal.stop()
            raise

    return call


connect_blocking = _connected(Client.connect)
