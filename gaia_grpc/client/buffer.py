"""The metrics buffer of one student in one app.

`record` never waits and never touches the network. A batch is sealed at 100 metrics, one second
after its first metric, on `flush()`, and at once for the urgent types (error, hesitation, help),
since a teacher waits for those.

Memory is bounded: beyond `max_pending` metrics that have no outcome yet, `record` refuses the
newest one, returns False and counts it as dropped. The oldest are kept, because they may have
reached the cluster already, and dropping those would make the counts lie. At all times

    recorded == pending + acknowledged + late + rejected + dropped
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client.publisher import Clock, MetricsPublisher, SealedBatch, Source
from gaia_grpc.errors import GaiaError, UnavailableError

FLUSH_SIZE = 100
FLUSH_INTERVAL_S = 1.0
MAX_PENDING = 10_000
URGENT_TYPES = frozenset({"error", "hesitation", "help"})


def wall_clock_ms() -> int:
    """Milliseconds since 1970 by this machine's clock."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class MetricsCounters:
    """What became of the metrics of a buffer; see the module for the sum that always holds."""

    recorded: int = 0
    """Calls of `record`."""
    sent: int = 0
    """Metrics in batches that were sent at least once."""
    acknowledged: int = 0
    """Stored in a window."""
    late: int = 0
    """Stored in the history only, because their window had passed."""
    rejected: int = 0
    """Refused by the cluster, alone or with their batch."""
    dropped: int = 0
    """Never sent: the buffer was full, or it was closed before they could be delivered."""
    batches: int = 0
    """Batches sealed."""
    duplicates: int = 0
    """Batches of which an earlier attempt had arrived already."""
    pending: int = 0
    """Recorded, without an outcome yet."""


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
        self._open: list[metrics_pb2.Metric] = []
        self._opened_at_ms = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._counters = MetricsCounters()
        self.last_refusal = ""
        """Reason of the latest batch or metric that the cluster refused."""

    @property
    def counters(self) -> MetricsCounters:
        """The counts now; the object goes on counting."""
        return self._counters

    @property
    def buffered(self) -> int:
        """Metrics that are not in a sealed batch yet."""
        return len(self._open)

    def record(
        self, metric_type: str, value: float = 1.0, event_time_ms: int | None = None
    ) -> bool:
        """Takes one measurement; False where the buffer is full and it was dropped.

        Args:
            metric_type: what was measured.
            value: how much.
            event_time_ms: when, by the buffer's clock; now where it is None.

        Raises:
            UnavailableError: the buffer is closed.
        """
        if self._closed:
            raise UnavailableError("the metrics buffer is closed")
        self.tick()
        self._counters.recorded += 1
        if self._counters.pending >= self._max_pending:
            self._counters.dropped += 1
            return False
        now_ms = self._clock()
        self._counters.pending += 1
        self._open.append(
            metrics_pb2.Metric(
                metric_type=metric_type,
                value=value,
                event_time_ms=now_ms if event_time_ms is None else event_time_ms,
            )
        )
        if len(self._open) >= self._flush_size or metric_type in self._urgent_types:
            self.seal()
        elif self._timer is None:
            self._opened_at_ms = now_ms
            self._timer = asyncio.get_running_loop().call_later(self._flush_interval, self.seal)
        return True

    def tick(self) -> None:
        """Seals what is older than the flush interval by the buffer's own clock.

        A simulated clock may run faster than the loop's, whose timer would then come too late.
        """
        if self._open and self._clock() - self._opened_at_ms >= self._flush_interval * 1000:
            self.seal()

    def seal(self) -> None:
        """Hands what is buffered to the publisher; does not wait for its outcome."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._open:
            return
        message = metrics_pb2.MetricBatch()
        message.CopyFrom(self._template)
        message.metrics.extend(self._open)
        message.sent_at_ms = self._clock()
        self._open = []
        self._counters.batches += 1
        # On a timeline sent_at_ms is its clock: a retry that stamped it anew would drive the clock
        # ahead of other students' metrics which are still on their way.
        live = not self._template.timeline_id
        self._publisher.submit(
            self._source,
            SealedBatch(
                message,
                settled=lambda result: self._settled(len(message.metrics), result),
                stamp=self._clock if live else None,
                attempted=self._attempted,
            ),
        )

    async def flush(self, timeout: float = 30.0) -> None:
        """Seals what is buffered and waits until everything recorded so far has an outcome.

        Raises:
            UnavailableError: it has not within `timeout` seconds. Nothing is lost by that: the
                batches are kept and sent again.
        """
        self.seal()
        target = self._counters.recorded - self._counters.dropped
        try:
            async with asyncio.timeout(timeout):
                while self._resolved() < target:
                    await self._publisher.wait_call()
        except TimeoutError as error:
            last = self._publisher.last_error
            raise UnavailableError(
                f"{target - self._resolved()} metrics not delivered within {timeout:g} s; "
                f"kept for another try ({last.message if last else 'no answer yet'})"
            ) from error

    async def close(self, timeout: float = 30.0) -> None:
        """Flushes and ends. What can't be delivered within `timeout` seconds counts as dropped.

        Raises:
            UnavailableError: some metrics could not be delivered.
        """
        if self._closed:
            return
        self._closed = True
        try:
            await self.flush(timeout)
        finally:
            lost = self._counters.pending
            self._counters.pending = 0
            self._counters.dropped += lost
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

    def _resolved(self) -> int:
        counters = self._counters
        return counters.acknowledged + counters.late + counters.rejected

    def _attempted(self, metrics: int) -> None:
        self._counters.sent += metrics

    def _settled(self, metrics: int, result: metrics_pb2.BatchResult) -> None:
        counters = self._counters
        if self._closed and counters.pending < metrics:
            return  # close() has counted it as dropped already
        counters.pending -= metrics
        if result.status == metrics_pb2.BATCH_STATUS_REFUSED:
            counters.rejected += metrics
            self.last_refusal = result.reason
            return
        if result.status == metrics_pb2.BATCH_STATUS_DUPLICATE:
            counters.duplicates += 1
        rejected, late = len(result.rejected), result.late_count
        if rejected:
            self.last_refusal = result.rejected[0].reason
        counters.rejected += rejected
        counters.late += late
        counters.acknowledged += metrics - rejected - late
