"""Sends sealed batches of all buffers of a client, coalesced, each until it has an outcome.

A source (one installation of an app) numbers its batches; several buffers may share it. The
batches of a source leave in order and are in flight at most once; batches of many sources share a
call. A batch that could not be delivered stays at the head of its source and is sent again with the
same sequence, for ever: the cluster counts it once, however often it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client.clock import Clock
from gaia_grpc.client.connection import Connection
from gaia_grpc.client.source import Owner, SealedBatch, Source
from gaia_grpc.errors import DomainError, GaiaError, ResourceExhaustedError

MAX_CALL_BATCHES = 500
MAX_CALL_METRICS = 20_000
MAX_CALLS = 4
"""Calls in flight; what is sealed meanwhile travels together in the next one."""
CALL_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.5

Taken = list[tuple[Source, list[SealedBatch]]]


class MetricsPublisher:
    """One per client. Its tasks run while there is something to send."""

    def __init__(self, connection: Connection, wall_clock: Clock) -> None:
        self._connection = connection
        self._wall_clock = wall_clock
        self._sources: dict[str, Source] = {}
        self._ready: dict[int, Source] = {}
        """Sources that have something to send and nothing in flight, oldest wish first."""
        self._calls: set[asyncio.Task[None]] = set()
        self._loads: set[asyncio.Task[None]] = set()
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

    def adopt(self, source: Source) -> None:
        """Sends what a source with a spool has left over, and from now on all it gets."""
        self._sources[source.source_id] = source
        self._continue(source)

    def submit(self, source: Source, batch: SealedBatch) -> None:
        """Numbers the batch and sends it as soon as its turn comes; never waits."""
        source.add(batch)
        self._continue(source)

    def withdraw(self, source: Source, owner: Owner) -> None:
        """Gives up the batches of `owner`; those in a call may arrive all the same."""
        source.withdraw(owner)

    def _continue(self, source: Source) -> None:
        if source.wants_load and not self._closed:
            source.loading = True
            self._keep_task(self._loads, self._load(source))
        self._offer(source)
        self._start_calls()

    async def _load(self, source: Source) -> None:
        try:
            if source.spool is not None:
                for batch in await source.spool.load():
                    source.push(batch)
        finally:
            source.loading = False
        self._continue(source)

    def _offer(self, source: Source) -> None:
        if self._closed or not source.queue or source.in_flight or id(source) in self._ready:
            return
        loop = asyncio.get_running_loop()
        if source.not_before > loop.time():
            handle = loop.call_at(source.not_before, self._continue, source)
            self._wakeups = {timer for timer in self._wakeups if timer.when() > loop.time()}
            self._wakeups.add(handle)
            return
        self._ready[id(source)] = source

    def _start_calls(self) -> None:
        while self._ready and len(self._calls) < MAX_CALLS and not self._closed:
            self._keep_task(self._calls, self._send(self._take()))

    def _keep_task(
        self, tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]
    ) -> None:
        task = asyncio.create_task(coroutine)
        tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self._task_ended(task)

        task.add_done_callback(ended)

    def _take(self) -> Taken:
        """Batches for one call, in the order in which their sources became ready."""
        taken: Taken = []
        batches = metrics = 0
        for source in list(self._ready.values()):
            mine: list[SealedBatch] = []
            for batch in source.queue:
                # One epoch a call: the cluster remembers few epochs of a source, and the answer of
                # one must have come before a later one can push it out.
                if mine and batch.message.source_epoch != mine[0].message.source_epoch:
                    break
                size = len(batch.message.metrics)
                full = batches >= MAX_CALL_BATCHES or metrics + size > MAX_CALL_METRICS
                if (full or batch.alone) and batches:
                    break
                mine.append(batch)
                batches, metrics = batches + 1, metrics + size
                if batch.alone:
                    break
            if not mine:
                if source.queue:
                    break
                del self._ready[id(source)]  # its batches were withdrawn
                continue
            del self._ready[id(source)]
            source.in_flight = len(mine)
            taken.append((source, mine))
            if mine[-1].alone:
                break
        return taken

    async def _send(self, taken: Taken) -> None:
        batches = [batch for _, mine in taken for batch in mine]
        if not batches:
            return
        for batch in batches:
            if not batch.was_attempted:
                batch.was_attempted = True
                batch.owner.attempted(len(batch.message.metrics))
        try:
            await self._deliver(taken, batches)
        finally:
            for source, _ in taken:
                source.in_flight = 0
                self._continue(source)

    async def _deliver(self, taken: Taken, batches: list[SealedBatch]) -> None:
        def stamp(outgoing: metrics_pb2.PublishMetricsRequest) -> None:
            for item, message in zip(batches, outgoing.batches, strict=True):
                item.stamp(message)

        self.calls_total += 1
        try:
            response = await self._connection.call(
                lambda peer: peer.metrics.PublishMetrics,
                metrics_pb2.PublishMetricsRequest(batches=[item.message for item in batches]),
                timeout=CALL_TIMEOUT_S,
                before_attempt=stamp,
            )
        except GaiaError as error:
            self._call_failed(taken, batches, error)
            return
        if len(response.results) != len(batches):
            self._keep(taken, GaiaError("the answer has another number of results"))
            return
        self.last_error = None
        results = iter(response.results)
        for source, mine in taken:
            self._settle(source, [(batch, next(results)) for batch in mine])

    def _settle(
        self, source: Source, outcomes: list[tuple[SealedBatch, metrics_pb2.BatchResult]]
    ) -> None:
        for _, result in outcomes:
            if (
                result.status == metrics_pb2.BATCH_STATUS_REFUSED
                and result.reason == ResourceExhaustedError.reason
            ):
                # For want of room, not for good: this one and those behind it come again.
                error = ResourceExhaustedError(result.message, reason=result.reason)
                self._keep([(source, [])], error)
                return
            batch = source.pop()
            batch.owner.settled(batch.message, result)

    def _call_failed(self, taken: Taken, batches: list[SealedBatch], error: GaiaError) -> None:
        refused = isinstance(error, DomainError) and not isinstance(error, ResourceExhaustedError)
        if not refused:
            self._keep(taken, error)
        elif len(batches) == 1:
            self.last_error = error
            batch = taken[0][0].pop()
            batch.owner.settled(
                batch.message,
                metrics_pb2.BatchResult(
                    status=metrics_pb2.BATCH_STATUS_REFUSED,
                    reason=error.instance_reason,
                    message=error.message,
                ),
            )
        else:
            # One bad batch must not take the others with it: each shows its own outcome alone.
            for batch in batches:
                batch.alone = True

    def _keep(self, taken: Taken, error: GaiaError) -> None:
        self.last_error = error
        pause_s = max(RETRY_PAUSE_S, (error.retry_after_ms or 0) / 1000)
        again_at = asyncio.get_running_loop().time() + pause_s
        for source, _ in taken:
            source.not_before = again_at

    def _task_ended(self, task: asyncio.Task[None]) -> None:
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
        """Stops sending; what is not delivered stays undelivered, in its spool if it has one."""
        self._closed = True
        for handle in self._wakeups:
            handle.cancel()
        tasks = [*self._calls, *self._loads]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for source in self._sources.values():
            if source.spool is not None:
                await source.spool.close()
