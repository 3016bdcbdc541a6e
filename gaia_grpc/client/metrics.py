"""MetricsService, typed, and the buffers that student apps use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from pathlib import Path
from typing import TypedDict, Unpack

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client.buffer import (
    FLUSH_INTERVAL_S,
    FLUSH_SIZE,
    MAX_PENDING,
    URGENT_TYPES,
    MetricsBuffer,
)
from gaia_grpc.client.clock import Clock, SteadyClock
from gaia_grpc.client.connection import Connection
from gaia_grpc.client.counters import MetricsCounters
from gaia_grpc.client.presets import (
    ComprehensionApp,
    MathApp,
    PianoApp,
    ReadingApp,
    TypingApp,
)
from gaia_grpc.client.publisher import MetricsPublisher
from gaia_grpc.client.resources import LINEARIZABLE, Consistency
from gaia_grpc.client.spool import SPOOL_BYTES, Spool
from gaia_grpc.client.streams import watch
from gaia_grpc.errors import InvalidArgumentError


class BufferOptions(TypedDict, total=False):
    """What every kind of buffer takes; see `MetricsApi.buffer`."""

    source_id: str | None
    source_epoch: int | None
    timeline_id: str
    clock: Clock | None
    flush_size: int
    flush_interval: float
    max_pending: int
    urgent_types: frozenset[str]
    spool: Spool | None


class MetricsApi:
    """MetricsService."""

    def __init__(self, connection: Connection, clock: Clock | None = None) -> None:
        self._connection = connection
        self._clock = clock or SteadyClock()
        self._publisher: MetricsPublisher | None = None
        self._buffers: dict[int, MetricsBuffer] = {}
        self._buffers_made = 0
        self._closed_buffers = MetricsCounters()
        self._ended: list[MetricsBuffer] = []
        self._spools: dict[Path, Spool] = {}

    @property
    def publisher(self) -> MetricsPublisher:
        """The one sender that all buffers of this client share."""
        if self._publisher is None:
            self._publisher = MetricsPublisher(self._connection, self._clock)
        return self._publisher

    def buffer(
        self,
        *,
        student_id: str,
        app_name: str,
        classroom_id: str = "",
        source_id: str | None = None,
        source_epoch: int | None = None,
        timeline_id: str = "",
        clock: Clock | None = None,
        flush_size: int = FLUSH_SIZE,
        flush_interval: float = FLUSH_INTERVAL_S,
        max_pending: int = MAX_PENDING,
        urgent_types: frozenset[str] = URGENT_TYPES,
        spool: Spool | None = None,
    ) -> MetricsBuffer:
        """A buffer for one student in one app; closing the client flushes it.

        Args:
            student_id: whose metrics.
            app_name: in which app.
            classroom_id: the student's classroom.
            source_id: this installation of the app, stable over restarts; buffers may share it.
                By default one that is unique to this buffer.
            source_epoch: grows at each start of the source; its start time in ms by default.
            timeline_id: names a recorded or simulated timeline; empty for live metrics.
            clock: milliseconds; for a timeline its simulated time.
            flush_size: metrics that seal a batch.
            flush_interval: seconds after which a batch is sealed.
            max_pending: metrics without an outcome beyond which new ones are dropped.
            urgent_types: metric types that seal their batch at once.
            spool: keeps batches on disk until they have an outcome; it is the source then.

        Raises:
            InvalidArgumentError: no student or no app was named.
        """
        _require(student_id=student_id, app_name=app_name)
        self._buffers_made += 1
        number = self._buffers_made
        if spool is not None:
            source = spool.source
        else:
            own_id = source_id or f"{self._connection.client_id}:{number}"
            source = self.publisher.source(own_id, source_epoch)
        buffer = MetricsBuffer(
            self.publisher,
            source,
            student_id=student_id,
            app_name=app_name,
            classroom_id=classroom_id,
            timeline_id=timeline_id,
            clock=clock or self._clock,
            flush_size=flush_size,
            flush_interval=flush_interval,
            max_pending=max_pending,
            urgent_types=urgent_types,
            on_close=lambda _: self._forget(number),
        )
        self._buffers[number] = buffer
        return buffer

    def typing(
        self,
        *,
        student_id: str,
        classroom_id: str = "",
        app_name: str = "typing",
        **options: Unpack[BufferOptions],
    ) -> TypingApp[MetricsBuffer]:
        """Metrics of a typing app, typed; the options are those of `buffer`."""
        return TypingApp(
            self.buffer(
                student_id=student_id, app_name=app_name, classroom_id=classroom_id, **options
            )
        )

    def math(
        self,
        *,
        student_id: str,
        classroom_id: str = "",
        app_name: str = "math",
        **options: Unpack[BufferOptions],
    ) -> MathApp[MetricsBuffer]:
        """Metrics of a math app, typed; the options are those of `buffer`."""
        return MathApp(
            self.buffer(
                student_id=student_id, app_name=app_name, classroom_id=classroom_id, **options
            )
        )

    def reading(
        self,
        *,
        student_id: str,
        classroom_id: str = "",
        app_name: str = "reading",
        **options: Unpack[BufferOptions],
    ) -> ReadingApp[MetricsBuffer]:
        """Metrics of a reading app, typed; the options are those of `buffer`."""
        return ReadingApp(
            self.buffer(
                student_id=student_id, app_name=app_name, classroom_id=classroom_id, **options
            )
        )

    def piano(
        self,
        *,
        student_id: str,
        classroom_id: str = "",
        app_name: str = "piano",
        **options: Unpack[BufferOptions],
    ) -> PianoApp[MetricsBuffer]:
        """Metrics of a piano app, typed; the options are those of `buffer`."""
        return PianoApp(
            self.buffer(
                student_id=student_id, app_name=app_name, classroom_id=classroom_id, **options
            )
        )

    def comprehension(
        self,
        *,
        student_id: str,
        classroom_id: str = "",
        app_name: str = "comprehension",
        **options: Unpack[BufferOptions],
    ) -> ComprehensionApp[MetricsBuffer]:
        """Metrics of a comprehension app, typed; the options are those of `buffer`."""
        return ComprehensionApp(
            self.buffer(
                student_id=student_id, app_name=app_name, classroom_id=classroom_id, **options
            )
        )

    def _forget(self, number: int) -> None:
        buffer = self._buffers.pop(number, None)
        if buffer is not None:
            self._ended = [*self._still_spooled(), buffer]

    @property
    def counters(self) -> MetricsCounters:
        """The counts of all buffers of this client together, closed ones included."""
        self._ended = self._still_spooled()
        parts = [buffer.counters for buffer in (*self._ended, *self._buffers.values())]
        parts += [spool.counters for spool in self._spools.values()]
        return MetricsCounters.total([self._closed_buffers, *parts])

    def _still_spooled(self) -> list[MetricsBuffer]:
        """Closed buffers whose counts may change yet; those of the others are added up."""
        spooled: list[MetricsBuffer] = []
        for buffer in self._ended:
            counts = buffer.counters
            if counts.spooled:
                spooled.append(buffer)
            else:
                self._closed_buffers.add(counts)
        return spooled

    async def open_spool(
        self,
        directory: str | Path,
        *,
        source_id: str = "",
        max_bytes: int = SPOOL_BYTES,
        sync: bool = False,
    ) -> Spool:
        """A directory in which batches are kept until they have an outcome; see `Spool`.

        What an earlier process left there is sent first. Several buffers may use it; a directory
        that is open already is returned again.

        Args:
            directory: made where it is missing; for this client alone.
            source_id: this installation of the app; kept in the directory, random by default.
            max_bytes: size beyond which `record` drops the newest metrics.
            sync: each batch is on the disk itself (fdatasync), so that it survives the loss of
                power too, and not only of the process.

        Raises:
            StorageError: another process uses the directory, or it has another source_id.
        """
        path = _whole(directory)
        spool = self._spools.get(path)
        if spool is None:
            spool = await Spool.open(
                path, source_id=source_id, max_bytes=max_bytes, sync=sync, clock=self._clock
            )
            self._spools[path] = spool
            self.publisher.adopt(spool.source)
        return spool

    async def publish(
        self, batches: Iterable[metrics_pb2.MetricBatch], *, timeout: float | None = None
    ) -> metrics_pb2.PublishMetricsResponse:
        """Publishes batches as they are; their identity makes a retry safe."""
        return await self._connection.call(
            lambda peer: peer.metrics.PublishMetrics,
            metrics_pb2.PublishMetricsRequest(batches=list(batches)),
            timeout=timeout,
        )

    async def aggregate(
        self,
        student_id: str,
        app_name: str,
        *,
        timeline_id: str = "",
        at_ms: int = 0,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> metrics_pb2.GetAggregateResponse:
        """The rolling window of one student in one app."""
        return await self._connection.call(
            lambda peer: peer.metrics.GetAggregate,
            metrics_pb2.GetAggregateRequest(
                student_id=student_id,
                app_name=app_name,
                timeline_id=timeline_id,
                at_ms=at_ms,
                consistency=consistency,
            ),
            timeout=timeout,
        )

    async def aggregates(
        self,
        classroom_id: str,
        *,
        timeline_id: str = "",
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[metrics_pb2.Aggregate]:
        """All windows of a classroom, ordered by student and app, page by page."""
        request = metrics_pb2.ListAggregatesRequest(
            classroom_id=classroom_id,
            timeline_id=timeline_id,
            page_size=page_size,
            consistency=consistency,
        )
        while True:
            page = await self._connection.call(lambda peer: peer.metrics.ListAggregates, request)
            for aggregate in page.aggregates:
                yield aggregate
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def history(
        self,
        student_id: str,
        app_name: str,
        *,
        timeline_id: str = "",
        start_ms: int = 0,
        end_ms: int = 0,
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[metrics_pb2.HistoryWindow]:
        """Tumbling windows of the past, oldest first, page by page."""
        request = metrics_pb2.GetHistoryRequest(
            student_id=student_id,
            app_name=app_name,
            timeline_id=timeline_id,
            start_ms=start_ms,
            end_ms=end_ms,
            page_size=page_size,
            consistency=consistency,
        )
        while True:
            page = await self._connection.call(lambda peer: peer.metrics.GetHistory, request)
            for window in page.windows:
                yield window
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch_classroom(
        self,
        classroom_id: str,
        *,
        timeline_id: str = "",
        interval: float = 5.0,
        address: str | None = None,
    ) -> AsyncGenerator[metrics_pb2.WatchClassroomResponse, None]:
        """Windows on change and at least every `interval` s; all of them after a reconnect."""
        return watch(
            self._connection,
            lambda peer: peer.metrics.WatchClassroom,
            metrics_pb2.WatchClassroomRequest(
                classroom_id=classroom_id,
                timeline_id=timeline_id,
                interval_ms=round(interval * 1000),
            ),
            silence=3 * interval + 1,
            address=address,
        )

    async def close(self) -> None:
        """Flushes and closes every buffer at once, then the publisher.

        Raises:
            UnavailableError: metrics of some buffer could not be delivered.
        """
        ends = await asyncio.gather(
            *(buffer.close() for buffer in list(self._buffers.values())), return_exceptions=True
        )
        if self._publisher is not None:
            await self._publisher.close()
        for end in ends:
            if isinstance(end, BaseException):
                raise end


def _whole(directory: str | Path) -> Path:
    return Path(directory).expanduser().resolve()


def _require(**names: str) -> None:
    """Raises where one is empty: every metric would be refused, and only counters would tell."""
    for name, value in names.items():
        if not value:
            raise InvalidArgumentError(f"{name} is required")
