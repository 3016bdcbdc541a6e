"""The metrics buffer of one student in one app.

`record` may be called from any thread, never waits and never touches network or disk. A batch is
sealed at 100 metrics, one second after its first metric, on `flush()`, and at once for the urgent
types (error, hesitation, help), since a teacher waits for those.

Memory is bounded: beyond `max_pending` metrics that have no outcome yet, `record` refuses the
newest one, returns False and counts it as dropped. The oldest are kept, because they may have
reached the cluster already, and dropping those would make the counts lie. What was dropped is told
to the cluster as gap marks, so that the windows can say how complete they are. With a spool,
batches that memory has no room for are on disk, and the limit is the spool's size.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import gaps
from gaia_grpc.client.account import Account
from gaia_grpc.client.clock import Clock, wall_clock_ms
from gaia_grpc.client.counters import MetricsCounters
from gaia_grpc.client.publisher import MetricsPublisher
from gaia_grpc.client.source import SealedBatch, Source
from gaia_grpc.errors import GaiaError, UnavailableError

FLUSH_SIZE = 100
FLUSH_INTERVAL_S = 1.0
MAX_PENDING = 10_000
CLOSE_TIMEOUT_S = 30.0
SPOOLED_CLOSE_TIMEOUT_S = 2.0
"""Nothing is lost by closing early where there is a spool."""
URGENT_TYPES = frozenset({"error", "hesitation", "help"})

Ripe = tuple[list[metrics_pb2.Metric], list[metrics_pb2.Omission]]


class MetricsBuffer:
    """Collects metrics and has them published. Made by `client.metrics.buffer(...)`."""

    def __init__(
        self,
        publisher: MetricsPublisher,
        source: Source,
        *,
        student_id: str,
        app_name: str,
        classroom_id: str = "",
        timeline_id: str = "",
        clock: Clock = wall_clock_ms,
        flush_size: int = FLUSH_SIZE,
        flush_interval: float = FLUSH_INTERVAL_S,
        max_pending: int = MAX_PENDING,
        urgent_types: frozenset[str] = URGENT_TYPES,
        on_close: Callable[[MetricsBuffer], None] | None = None,
    ) -> None:
        """Use within a running loop. `clock` gives milliseconds, a timeline's simulated ones."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._on_close = on_close
        self._publisher = publisher
        self._source = source
        self._template = metrics_pb2.MetricBatch(
            student_id=student_id,
            app_name=app_name,
            classroom_id=classroom_id,
            timeline_id=timeline_id,
        )
        self._clock = clock
        self._flush_size = flush_size
        self._flush_interval = flush_interval
        self._max_pending = max_pending
        self._urgent_types = urgent_types
        self._timer: asyncio.TimerHandle | None = None
        self._account = Account(clock, spooled=source.spool is not None, gap_noted=self._gap_noted)
        # What follows is changed by any thread, under the lock, which is held for moments only.
        self._lock = self._account.lock
        self._open: list[metrics_pb2.Metric] = []
        self._opened_at_ms = 0
        self._opened_at_s = 0.0
        self._ripe: list[Ripe] = []
        self._gaps = self._account.gaps
        self._unsealed = 0
        self._woken = False
        self._closed = False
        self._counters = self._account.counters

    @property
    def counters(self) -> MetricsCounters:
        """The counts of this moment; a copy, which adds up."""
        return self._account.snapshot()

    @property
    def last_refusal(self) -> str:
        """Reason of the latest batch or metric that the cluster refused."""
        return self._account.last_refusal

    @property
    def buffered(self) -> int:
        """Metrics that are not in a sealed batch yet."""
        return self._unsealed

    def now_ms(self) -> int:
        """The buffer's clock, which `event_time_ms` goes by."""
        return self._clock()

    def record(
        self, metric_type: str, value: float = 1.0, event_time_ms: int | None = None
    ) -> bool:
        """Takes one measurement, from any thread; False where there is no room and it was dropped.

        Args:
            metric_type: what was measured.
            value: how much.
            event_time_ms: when, by the buffer's clock; now where it is None.

        Raises:
            UnavailableError: the buffer is closed.
        """
        now_ms = self._clock()
        metric = metrics_pb2.Metric(
            metric_type=metric_type,
            value=value,
            event_time_ms=now_ms if event_time_ms is None else event_time_ms,
        )
        with self._lock:
            if self._closed:
                raise UnavailableError("the metrics buffer is closed")
            self._ripen_old(now_ms)
            taken = self._has_room()
            self._counters.recorded += 1
            if taken:
                self._take(metric, now_ms)
            else:
                self._counters.dropped += 1
                self._gaps.add(metric_type, metric.event_time_ms, gaps.BUFFER_FULL)
            wake = not self._woken and (bool(self._ripe) or (taken and len(self._open) == 1))
            self._woken |= wake
        if wake:
            self._wake()
        return taken

    def _has_room(self) -> bool:
        spool = self._source.spool
        if spool is None:
            return self._counters.pending < self._max_pending
        return not spool.full and self._unsealed < self._max_pending

    def _take(self, metric: metrics_pb2.Metric, now_ms: int) -> None:
        if not self._open:
            self._opened_at_ms = now_ms
            self._opened_at_s = time.monotonic()
        self._open.append(metric)
        self._unsealed += 1
        self._counters.pending += 1
        if len(self._open) >= self._flush_size or metric.metric_type in self._urgent_types:
            self._ripen()

    def _ripen_old(self, now_ms: int) -> None:
        """A simulated clock may run faster than the loop's, whose timer would come too late."""
        if self._open and now_ms - self._opened_at_ms >= self._flush_interval * 1000:
            self._ripen()

    def _ripen(self) -> None:
        """The open batch is complete; under the lock."""
        if self._open or self._gaps:
            self._ripe.append((self._open, self._gaps.take()))
            self._open = []
            self._counters.batches += 1

    def tick(self) -> None:
        """Seals what is older than the flush interval by the buffer's own clock."""
        now_ms = self._clock()
        with self._lock:
            self._ripen_old(now_ms)
        self._wake()

    def seal(self) -> None:
        """Hands what is buffered to the publisher; does not wait for its outcome."""
        with self._lock:
            self._ripen()
        self._wake()

    def _wake(self) -> None:
        if threading.get_ident() == self._loop_thread:
            self._advance()
            return
        try:
            self._loop.call_soon_threadsafe(self._advance)
        except RuntimeError:
            raise UnavailableError("the loop of the metrics buffer has ended") from None

    def _advance(self) -> None:
        """On the loop: passes on the batches that are complete, and sets the timer for the next."""
        with self._lock:
            self._woken = False
            ripe, self._ripe = self._ripe, []
            self._unsealed = len(self._open)
            opened_at_s = self._opened_at_s if self._open else None
        if ripe and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for metrics, omissions in ripe:
            message = metrics_pb2.MetricBatch()
            message.CopyFrom(self._template)
            message.metrics.extend(metrics)
            message.omissions.extend(omissions)
            message.sent_at_ms = self._clock()
            self._publisher.submit(self._source, SealedBatch(message, self._account, self._clock))
        if opened_at_s is not None and self._timer is None:
            age_s = time.monotonic() - opened_at_s
            self._set_timer(max(self._flush_interval - age_s, 0.0))

    def _set_timer(self, delay_s: float) -> None:
        self._timer = self._loop.call_later(delay_s, self._timer_came)

    def _gap_noted(self) -> None:
        if self._timer is None and not self._closed:
            self._set_timer(self._flush_interval)

    def _timer_came(self) -> None:
        self._timer = None
        self.seal()

    async def flush(self, timeout: float = 30.0) -> None:
        """Seals what is buffered and waits until everything recorded so far has an outcome.

        Raises:
            UnavailableError: it has not within `timeout` seconds. Nothing is lost by that: the
                batches are kept and sent again.
        """
        self.seal()
        target = self._counters.batches
        try:
            async with asyncio.timeout(timeout):
                while self._account.settled_batches < target:
                    await self._publisher.wait_call()
        except TimeoutError as error:
            counts, last = self.counters, self._publisher.last_error
            raise UnavailableError(
                f"{counts.pending + counts.spooled} metrics not delivered within {timeout:g} s; "
                f"kept for another try ({last.message if last else 'no answer yet'})"
            ) from error

    async def close(self, timeout: float | None = None) -> None:
        """Flushes and ends. What can't be delivered within `timeout` seconds (30, or 2 with a
        spool) counts as dropped, or stays in the spool for the next start.

        Raises:
            UnavailableError: metrics were dropped.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        spooled = self._source.spool is not None
        if timeout is None:
            timeout = SPOOLED_CLOSE_TIMEOUT_S if spooled else CLOSE_TIMEOUT_S
        try:
            await self.flush(timeout)
        except UnavailableError:
            if not spooled:
                raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if not spooled:
                self._publisher.withdraw(self._source, self._account)
            self._account.end()
            if self._on_close is not None:
                self._on_close(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except GaiaError:
            if error is None:
                raise
