"""How many metrics one peer holds between their arrival and their acknowledgement.

Calls beyond the limits are refused with a time to come back; streams are not read on, so that flow
control of HTTP/2 holds their senders. Who is told to come back keeps its metrics in its own buffer,
where they cost this peer nothing.

The advice is computed. What was acknowledged lately gives the rate at which room comes about, and
each refused call gets the room behind that of the calls refused before it: a crowd that comes back
all at once would be refused all at once. Rates and times are of this peer alone: none of it is
replicated.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from gaia_grpc.config import LimitsConfig
from gaia_grpc.errors import OverloadedError

SHARE_OF_A_SOURCE = 4
"""One source gets a quarter of the room, so that it can't shut the others out."""
SHARE_OF_STREAMS = 2
"""All streams together get half of it: they wait for room, and calls do not."""
PRESSURE_BEGINS = 0.5
PRESSURE_ENDS = 0.25
"""Of the room: between the two it stays as it was."""
LEAST_RETRY_MS = 10
LONGEST_RETRY_MS = 5_000
UNKNOWN_RETRY_MS = 200
"""While nothing was acknowledged since the start."""
RATE_INTERVAL_S = 0.050
RATE_WEIGHT = 0.2
STALLED_AFTER_S = 1.0
"""Without an acknowledgement for this long the rate of before says nothing any more."""


@dataclass(slots=True)
class Hold:
    """Room that one call, or one batch of a stream, takes up."""

    source_id: str
    metrics: int
    size_bytes: int
    streamed: bool
    released: bool = False


@dataclass(slots=True)
class IngestStats:
    """What became of metrics at this peer since its start."""

    accepted: int = 0
    late: int = 0
    duplicate: int = 0
    """Metrics of batches that were stored before."""
    rejected: int = 0
    sampled: int = 0
    refused: int = 0
    """Metrics of calls that were told to come back later."""
    refused_calls: int = 0


class DrainRate:
    """Metrics acknowledged a second, over the time in which there were any to acknowledge."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._rate = 0.0
        self._since_s: float | None = None
        self._count = 0

    def busy(self) -> None:
        """There is something to acknowledge from now on."""
        if self._since_s is None:
            self._since_s, self._count = self._now_s(), 0

    def idle(self) -> None:
        """There is not."""
        self._take(self._now_s())
        self._since_s = None

    def acknowledged(self, count: int) -> None:
        """Counts metrics that are committed."""
        self._count += count
        now_s = self._now_s()
        if self._since_s is not None and now_s - self._since_s >= RATE_INTERVAL_S:
            self._take(now_s)
            self._since_s, self._count = now_s, 0

    def per_second(self) -> float:
        """The rate; 0 where it is not known."""
        if self._since_s is None:
            return self._rate
        waited_s = self._now_s() - self._since_s
        if waited_s < STALLED_AFTER_S:
            return self._rate
        return min(self._rate, self._count / waited_s)

    def _take(self, now_s: float) -> None:
        if self._since_s is None or not self._count:
            return
        rate = self._count / max(now_s - self._since_s, 1e-3)
        self._rate = rate if not self._rate else self._rate + RATE_WEIGHT * (rate - self._rate)


class MetricGate:
    """Lets metrics in while there is room; all methods are called on the loop."""

    def __init__(self, limits: LimitsConfig, now_s: Callable[[], float] = time.monotonic) -> None:
        self.max_metrics = limits.max_metrics_in_flight
        self.max_size_bytes = limits.max_metric_size_bytes_in_flight
        self.metrics = 0
        """Held now."""
        self.size_bytes = 0
        self.stats = IngestStats()
        self.rate = DrainRate(now_s)
        self._now_s = now_s
        self._streamed = 0
        self._of_source: Counter[str] = Counter()
        self._waiting: deque[tuple[asyncio.Future[None], Hold]] = deque()
        self._promised_s = 0.0
        """Until when the room that comes about was promised to refused calls."""
        self._pressure = False

    @property
    def under_pressure(self) -> bool:
        """Whether so much is held that the lowest classes may be sampled."""
        filled = max(self.metrics / self.max_metrics, self.size_bytes / self.max_size_bytes)
        self._pressure = filled >= (PRESSURE_ENDS if self._pressure else PRESSURE_BEGINS)
        return self._pressure

    def admit(self, source_id: str, metrics: int, size_bytes: int) -> Hold:
        """Room for a call; raises `OverloadedError` where there is none."""
        hold = self._hold(source_id, metrics, size_bytes, streamed=False)
        missing = self._missing(hold)
        if missing > 0:
            self.stats.refused += metrics
            self.stats.refused_calls += 1
            raise OverloadedError(
                f"{self.metrics} metrics are on their way at this peer",
                retry_after_ms=self._retry_after_ms(hold, missing),
                metadata={"metrics_in_flight": str(self.metrics)},
            )
        self._take(hold)
        return hold

    async def wait(self, source_id: str, metrics: int, size_bytes: int) -> Hold:
        """Room for a batch of a stream, once there is some; first come, first served."""
        hold = self._hold(source_id, metrics, size_bytes, streamed=True)
        if not self._waiting and self._missing(hold) <= 0:
            self._take(hold)
            return hold
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((granted, hold))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(hold)
            raise
        return hold

    def release(self, hold: Hold) -> None:
        """Gives room back; a second time does nothing."""
        if hold.released:
            return
        hold.released = True
        self.metrics -= hold.metrics
        self.size_bytes -= hold.size_bytes
        if hold.streamed:
            self._streamed -= hold.metrics
        self._of_source[hold.source_id] -= hold.metrics
        if not self._of_source[hold.source_id]:
            del self._of_source[hold.source_id]
        while self._waiting:
            granted, waiting = self._waiting[0]
            if not granted.done():
                if self._missing(waiting) > 0:
                    break
                self._take(waiting)
                granted.set_result(None)
            self._waiting.popleft()
        if not self.metrics:
            self.rate.idle()

    def _hold(self, source_id: str, metrics: int, size_bytes: int, *, streamed: bool) -> Hold:
        """What is larger than the share of a source counts as that share, or it never got in."""
        return Hold(
            source_id,
            min(max(metrics, 1), -(-self.max_metrics // SHARE_OF_A_SOURCE)),
            min(size_bytes, -(-self.max_size_bytes // SHARE_OF_A_SOURCE)),
            streamed,
        )

    def _missing(self, hold: Hold) -> float:
        """How many metrics must go before there is room; 0 or less where there is."""
        metrics_per_byte = self.max_metrics / self.max_size_bytes
        missing = max(
            self.metrics + hold.metrics - self.max_metrics,
            (self.size_bytes + hold.size_bytes - self.max_size_bytes) * metrics_per_byte,
            self._of_source[hold.source_id]
            + hold.metrics
            - -(-self.max_metrics // SHARE_OF_A_SOURCE),
        )
        if hold.streamed:
            share = -(-self.max_metrics // SHARE_OF_STREAMS)
            missing = max(missing, self._streamed + hold.metrics - share)
        return missing

    def _take(self, hold: Hold) -> None:
        if not self.metrics:
            self.rate.busy()
        self.metrics += hold.metrics
        self.size_bytes += hold.size_bytes
        self._of_source[hold.source_id] += hold.metrics
        if hold.streamed:
            self._streamed += hold.metrics

    def _retry_after_ms(self, hold: Hold, missing: float) -> int:
        rate = self.rate.per_second()
        if rate <= 0:
            return LONGEST_RETRY_MS if self.stats.accepted else UNKNOWN_RETRY_MS
        now_s = self._now_s()
        promised_s = max(self._promised_s, now_s + missing / rate) + hold.metrics / rate
        self._promised_s = min(promised_s, now_s + LONGEST_RETRY_MS / 1000)
        return max(LEAST_RETRY_MS, round((self._promised_s - now_s) * 1000))
