"""Sends sealed batches of all buffers of a client, coalesced, each until it has an outcome.

A source (one installation of an app) numbers its batches; several buffers may share it. The
batches of a source leave in order and are in flight at most once; batches of many sources share a
call. A batch that could not be delivered stays at the head of its source and is sent again with the
same sequence, for ever: the cluster counts it once, however often it comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client.connection import Connection
from gaia_grpc.errors import DomainError, GaiaError, ResourceExhaustedError

MAX_CALL_BATCHES = 500
MAX_CALL_METRICS = 20_000
MAX_CALLS = 4
"""Calls in flight; what is sealed meanwhile travels together in the next one."""
CALL_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.5

Clock = Callable[[], int]


@dataclass(slots=True)
class SealedBatch:
    """A batch with its number. `settled` is called once, with its final outcome."""

    message: metrics_pb2.MetricBatch
    settled: Callable[[metrics_pb2.BatchResult], None]
    stamp: Clock | None
    """Clock for `sent_at_ms` at each attempt; None keeps the time at which it was sealed."""
    attempted: Callable[[int], None]
    """Called with the number of metrics when the batch is sent for the first time."""
    was_attempted: bool = False
    alone: bool = False
    """Sent in a call of its own, since a call that held it was refused as a whole."""


@dataclass(slots=True)
class Source:
    """One sender: its identity, its numbering and what it still has to deliver, in order."""

    source_id: str
    source_epoch: int
    next_sequence: int = 1
    queue: deque[SealedBatch] = field(default_factory=deque)
    in_flight: int = 0
    """How many batches at the head of `queue` are in a call."""
    not_before: float = 0.0
    """Loop time before which nothing of it is sent, after a failure."""


class MetricsPublisher:
    """One per client. Its task runs while there is something to send."""

    def __init__(self, connection: Connection, wall_clock: Clock) -> None:
        self._connection = connection
        self._wall_clock = wall_clock
        self._sources: dict[str, Source] = {}
        self._ready: dict[str, Source] = {}
        """Sources that have something to send and nothing in flight, oldest wish first."""
        self._calls: set[asyncio.Task[None]] = set()
        self._wakeups: set[asyncio.TimerHandle] = set()
        self._changed: list[asyncio.Future[None]] = []
        self._closed = False
        self.last_error: GaiaError | None = None
        """Why the latest failed call failed; None after a success."""
        self.calls_total = 0

    def source(self, source_id: str, epoch: int | None = None) -> Source:
        """The source with this id. Its epoch is its start time in ms where none is given."""
        source = self._sources.get(source_id)
        if source is None:
            source = Source(source_id, self._wall_clock() if epoch is None else epoch)
            self._sources[source_id] = source
        return source

    def submit(self, source: Source, batch: SealedBatch) -> None:
        """Numbers the batch and sends it as soon as its turn comes; never waits."""
        batch.message.source_id = source.source_id
        batch.message.source_epoch = source.source_epoch
        batch.message.sequence = source.next_sequence
        source.next_sequence += 1
        source.queue.append(batch)
        self._offer(source)
        self._start_calls()

    def _offer(self, source: Source) -> None:
        if self._closed or not source.queue or source.in_flight or source.source_id in self._ready:
            return
        loop = asyncio.get_running_loop()
        if source.not_before > loop.time():
            handle = loop.call_at(source.not_before, self._retry, source)
            self._wakeups = {timer for timer in self._wakeups if timer.when() > loop.time()}
            self._wakeups.add(handle)
            return
        self._ready[source.source_id] = source

    def _retry(self, source: Source) -> None:
        self._offer(source)
        self._start_calls()

    def _start_calls(self) -> None:
        while self._ready and len(self._calls) < MAX_CALLS and not self._closed:
            taken = self._take()
            task = asyncio.create_task(self._send(taken))
            self._calls.add(task)
            task.add_done_callback(self._call_done)

    def _take(self) -> list[tuple[Source, list[SealedBatch]]]:
        """Batches for one call, in the order in which their sources became ready."""
        taken: list[tuple[Source, list[SealedBatch]]] = []
        batches = metrics = 0
        for source_id in list(self._ready):
            source = self._ready[source_id]
            mine: list[SealedBatch] = []
            for batch in source.queue:
                size = len(batch.message.metrics)
                full = batches >= MAX_CALL_BATCHES or metrics + size > MAX_CALL_METRICS
                if (full or batch.alone) and batches:
                    break
                mine.append(batch)
                batches, metrics = batches + 1, metrics + size
                if batch.alone:
                    break
            if not mine:
                break
            del self._ready[source_id]
            source.in_flight = len(mine)
            taken.append((source, mine))
            if mine[-1].alone:
                break
        return taken

    async def _send(self, taken: list[tuple[Source, list[SealedBatch]]]) -> None:
        batches = [batch for _, mine in taken for batch in mine]
        for batch in batches:
            if not batch.was_attempted:
                batch.was_attempted = True
                batch.attempted(len(batch.message.metrics))
        request = metrics_pb2.PublishMetricsRequest(batches=[item.message for item in batches])

        def stamp(outgoing: metrics_pb2.PublishMetricsRequest) -> None:
            for item, message in zip(batches, outgoing.batches, strict=True):
                if item.stamp is not None:
                    message.sent_at_ms = item.stamp()

        self.calls_total += 1
        try:
            await self._deliver(taken, batches, request, stamp)
        finally:
            for source, _ in taken:
                source.in_flight = 0
                self._offer(source)

    async def _deliver(
        self,
        taken: list[tuple[Source, list[SealedBatch]]],
        batches: list[SealedBatch],
        request: metrics_pb2.PublishMetricsRequest,
        stamp: Callable[[metrics_pb2.PublishMetricsRequest], None],
    ) -> None:
        try:
            response = await self._connection.call(
                lambda peer: peer.metrics.PublishMetrics,
                request,
                timeout=CALL_TIMEOUT_S,
                before_attempt=stamp,
            )
        except GaiaError as error:
            self._call_failed(taken, batches, error)
            return
        self.last_error = None
        results = deque(response.results)
        if len(results) != len(batches):
            self._keep(taken, GaiaError("the answer has another number of results"))
            return
        for source, mine in taken:
            for batch in mine:
                source.queue.popleft()
                batch.settled(results.popleft())

    def _call_failed(
        self,
        taken: list[tuple[Source, list[SealedBatch]]],
        batches: list[SealedBatch],
        error: GaiaError,
    ) -> None:
        refused = isinstance(error, DomainError) and not isinstance(error, ResourceExhaustedError)
        if not refused:
            self._keep(taken, error)
        elif len(batches) == 1:
            self.last_error = error
            source, (batch,) = taken[0]
            source.queue.popleft()
            batch.settled(
                metrics_pb2.BatchResult(
                    status=metrics_pb2.BATCH_STATUS_REFUSED,
                    reason=error.instance_reason,
                    message=error.message,
                )
            )
        else:
            # One bad batch must not take the others with it: each shows its own outcome alone.
            for batch in batches:
                batch.alone = True

    def _keep(self, taken: list[tuple[Source, list[SealedBatch]]], error: GaiaError) -> None:
        self.last_error = error
        again_at = asyncio.get_running_loop().time() + RETRY_PAUSE_S
        for source, _ in taken:
            source.not_before = again_at

    def _call_done(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "publishing metrics failed inside", "exception": task.exception()}
            )
        waiting, self._changed = self._changed, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._start_calls()

    async def wait_call(self) -> None:
        """Returns when the next call has ended, well or not."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        await waiter

    async def close(self) -> None:
        """Stops sending; what is not delivered stays undelivered."""
        self._closed = True
        for handle in self._wakeups:
            handle.cancel()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
