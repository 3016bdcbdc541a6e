"""One watch of a classroom's windows: what changed since the update before.

An update can't say that a window went (moved to another classroom, or idle for long), nor does a
peer know what happened before the snapshot that took the place of its state. Then the watch sends
the whole classroom again and says so (`resync`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gaia.command.v1 import query_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.services.ingress import Ingress, read
from gaia_grpc.state.topics import classroom_metrics

DEFAULT_INTERVAL_MS = 5_000
LEAST_PAUSE_S = 0.002
"""Between two updates: what is committed together is told together."""
READ_SHARE = 0.25
"""Of the peer's time: all its watches together read no longer than this."""
WINDOWS_PER_READ = 20
"""A read can't be interrupted, so a large classroom is read in pieces."""

_Key = tuple[str, str]
"""(student_id, app_name)."""


class ReadBudget:
    """Time that all watches of a peer may spend on reading windows: a quarter of each second.

    A few watches of small classes see each change at once, a thousand of busy ones see it later;
    none of them delays what is written.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._left_s = READ_SHARE
        self._at_s = now_s()

    def spend(self, seconds: float) -> None:
        """Takes the time of one read."""
        now_s = self._now_s()
        refill_s = (now_s - self._at_s) * READ_SHARE
        self._left_s = min(self._left_s + refill_s, READ_SHARE) - seconds
        self._at_s = now_s

    def pause_s(self) -> float:
        """How long a watch waits before its next read."""
        self.spend(0.0)
        return max(-self._left_s / READ_SHARE, LEAST_PAUSE_S)


class ClassroomWatch:
    """State of one watcher: the version of each window that it was sent."""

    def __init__(
        self, ingress: Ingress, request: metrics_pb2.WatchClassroomRequest, budget: ReadBudget
    ) -> None:
        self._ingress = ingress
        self._request = request
        self._budget = budget
        self._topic = classroom_metrics(request.timeline_id, request.classroom_id)
        self._interval_s = (request.interval_ms or DEFAULT_INTERVAL_MS) / 1000
        self._sent: dict[_Key, int] | None = None
        self._sent_at_s = 0.0
        self._version = 0
        self._restored_index = 0

    async def next_update(self) -> metrics_pb2.WatchClassroomResponse:
        """Waits for a change, at most for the interval; the first update comes at once."""
        log = self._ingress.log
        loop = asyncio.get_running_loop()
        first = self._sent is None
        if not first:
            await asyncio.sleep(min(self._budget.pause_s(), self._interval_s))
        while True:
            if not first:
                remaining_s = self._sent_at_s + self._interval_s - loop.time()
                await log.wait_topic(self._topic, self._version, timeout_s=max(remaining_s, 0.0))
            self._version = log.topic_version(self._topic)
            status = log.status()
            replaced = not first and status.restored_index != self._restored_index
            self._restored_index = status.restored_index
            changed, resync = await self._changed(replaced)
            if first or resync or changed or loop.time() >= self._sent_at_s + self._interval_s:
                break
        self._sent_at_s = loop.time()
        return metrics_pb2.WatchClassroomResponse(
            aggregates=changed,
            complete=first or resync,
            resync=resync,
            applied_index=status.applied_index,
        )

    async def _changed(self, replaced: bool) -> tuple[list[metrics_pb2.Aggregate], bool]:
        """Windows with another version than the one sent last; all of them, and True, where some
        are gone or the state was replaced."""
        sent = self._sent or {}
        windows = await self._windows()
        now = {(window.student_id, window.app_name): window.version for window in windows}
        self._sent = now
        if replaced or not sent.keys() <= now.keys():
            return windows, True
        return [
            window
            for window in windows
            if sent.get((window.student_id, window.app_name)) != window.version
        ], False

    async def _windows(self) -> list[metrics_pb2.Aggregate]:
        """The whole classroom as this peer has it."""
        windows: list[metrics_pb2.Aggregate] = []
        timeout_s = self._ingress.consensus.default_timeout_ms / 1000
        page_token = ""
        while True:
            request = metrics_pb2.ListAggregatesRequest(
                classroom_id=self._request.classroom_id,
                timeline_id=self._request.timeline_id,
                page_size=WINDOWS_PER_READ,
                page_token=page_token,
            )
            query = query_pb2.Query(list_aggregates=request)
            begin_s = time.perf_counter()
            page = await read(self._ingress.log, query, ReadConsistency.LOCAL, timeout_s)
            self._budget.spend(time.perf_counter() - begin_s)
            windows.extend(page.list_aggregates.aggregates)
            page_token = page.list_aggregates.next_page_token
            if not page_token:
                return windows
            await asyncio.sleep(0)
