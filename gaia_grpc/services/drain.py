"""Ends what would never end by itself when the peer stops: open streams.

A stream's task is registered while it runs. `begin` cancels them all; the interceptor turns such a
cancellation into UNAVAILABLE (DRAINING) with the stream's cursor, and tells it from a client's own
cancellation by `started`. New calls are refused from then on; calls in flight are left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """State of the shutdown of one peer."""

    def __init__(self) -> None:
        self.started = False
        self._streams: set[asyncio.Task[object]] = set()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Registers the running task as one that serves a stream."""
        task = asyncio.current_task()
        if task is None:
            yield
            return
        self._streams.add(task)
        try:
            yield
        finally:
            self._streams.discard(task)

    def begin(self) -> int:
        """Refuses new calls and ends all streams; returns how many there were."""
        if self.started:
            return 0
        self.started = True
        streams = list(self._streams)
        for task in streams:
            task.cancel()
        return len(streams)
