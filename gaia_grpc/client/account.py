"""The books of one buffer: every metric is in one count at every moment, whatever thread asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import gaps
from gaia_grpc.client.clock import Clock
from gaia_grpc.client.counters import MetricsCounters

LOG = logging.getLogger("gaia_grpc.metrics")


class Account:
    """Counters and gap marks of a buffer, or of the batches that a spool had left over.

    It is the `Owner` of its batches. `lock` guards everything here and is held for moments only.
    """

    def __init__(self, clock: Clock, *, spooled: bool, gap_noted: Callable[[], None]) -> None:
        """`gap_noted` is called on the loop when there is something to tell the cluster."""
        self.lock = threading.Lock()
        self.counters = MetricsCounters()
        self.gaps = gaps.GapLedger()
        self.settled_batches = 0
        self.last_refusal = ""
        self._told: set[str] = set()
        """Reasons that were logged: an app that goes on so is told once of each."""
        self._clock = clock
        self._spooled = spooled
        self._gap_noted = gap_noted
        self._ended = False
        self._unsaved = 0
        """Metrics in memory that the spool has not, because the disk refused them."""

    def snapshot(self) -> MetricsCounters:
        """The counts of this moment."""
        with self.lock:
            return self.counters.copy()

    def end(self) -> None:
        """Counts what has no outcome at the close: it stays in the spool, or is given up."""
        with self.lock:
            self._ended = True
            given_up = self._unsaved if self._spooled else self.counters.pending
            self.counters.dropped += given_up
            self.counters.spooled += self.counters.pending - given_up
            self.counters.pending = 0

    def recovered(self, metrics: int) -> None:
        """Batches that an earlier process left on disk."""
        with self.lock:
            self.counters.recovered += metrics
            self.counters.spooled += metrics

    def attempted(self, metrics: int) -> None:
        """A batch is sent for the first time."""
        with self.lock:
            self.counters.sent += metrics

    def parked(self, metrics: int) -> None:
        """A batch is on disk only."""
        with self.lock:
            if not self._ended:
                self.counters.pending -= metrics
                self.counters.spooled += metrics

    def loaded(self, metrics: int) -> None:
        """A batch is in memory again."""
        with self.lock:
            if not self._ended:
                self.counters.spooled -= metrics
                self.counters.pending += metrics

    def unsaved(self, metrics: int) -> None:
        """A batch that is in memory could not be written; less than 0: it has its outcome."""
        with self.lock:
            self._unsaved += metrics
            if self._ended and metrics > 0:
                self.counters.spooled -= metrics
                self.counters.dropped += metrics

    def lost(self, metrics: int) -> None:
        """A batch that was on disk only is not there any more."""
        now_ms = self._clock()
        with self.lock:
            self.settled_batches += 1
            self.counters.spooled -= metrics
            self.counters.dropped += metrics
            if metrics:
                self.gaps.add(gaps.UNKNOWN_TYPE, now_ms, gaps.BUFFER_FULL, metrics)
        self._tell_gaps()

    def settled(self, message: metrics_pb2.MetricBatch, result: metrics_pb2.BatchResult) -> None:
        """A batch has its outcome."""
        metrics = len(message.metrics)
        now_ms = self._clock()
        with self.lock:
            self.settled_batches += 1
            if not self._ended:
                self.counters.pending -= metrics
            elif self._spooled:
                self.counters.spooled -= metrics
            else:
                return  # `end` has counted it as dropped already
            self.counters.settle(metrics, result)
            news = self._note_refusals(message, result, now_ms)
        for text in news:
            LOG.warning("metrics of the app %r are refused: %s", message.app_name, text)
        self._tell_gaps()

    def _tell_gaps(self) -> None:
        if self.gaps and not self._ended:
            self._gap_noted()

    def _note_refusals(
        self, message: metrics_pb2.MetricBatch, result: metrics_pb2.BatchResult, now_ms: int
    ) -> list[str]:
        """What was refused for good is missing: the next batch says so. Returns what is new."""
        news: list[str] = []
        if result.status != metrics_pb2.BATCH_STATUS_REFUSED:
            self.counters.gaps_told += sum(mark.count for mark in message.omissions)
            for refusal in result.rejected:
                metric = message.metrics[refusal.index]
                self._note_refused(metric, refusal.reason, now_ms)
                news += self._new_reason(refusal.reason, f"type {metric.metric_type[:40]!r}")
        elif message.metrics:
            # Marks of a batch with nothing else are not told again: they are what was refused.
            news += self._new_reason(result.reason, result.message)
            self.gaps.add_omissions(message.omissions)
            for metric in message.metrics:
                self._note_refused(metric, result.reason, now_ms)
        return news

    def _new_reason(self, reason: str, detail: str) -> list[str]:
        self.last_refusal = reason
        if reason in self._told:
            return []
        self._told.add(reason)
        return [f"{reason} ({detail})"]

    def _note_refused(self, metric: metrics_pb2.Metric, reason: str, now_ms: int) -> None:
        bad_type = reason == "TYPE_INVALID"
        metric_type = gaps.UNKNOWN_TYPE if bad_type else metric.metric_type
        self.gaps.add(metric_type, min(metric.event_time_ms, now_ms), gaps.REFUSED)
