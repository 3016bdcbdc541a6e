"""Ends what would never end by itself when the peer stops: open streams.

A stream is registered while it runs. `begin` cancels the tasks that wait for something to send;
the interceptor turns such a cancellation into UNAVAILABLE (DRAINING) with the stream's cursor, and
tells it from a client's own cancellation by `started`. A task that is writing is left alone and
ends after its message: grpc loses count of what was sent when a write is cancelled, and a stream
whose headers it has sent without noting it can never be closed. New calls are refused from then
on; calls in flight are left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class OpenStream:
    """One stream that is served; `writing` while a message is on its way to grpc."""

    task: asyncio.Task[object] | None
    writing: bool = False


class Drain:
    """State of the shutdown of one peer."""

    def __init__(self) -> None:
        self.started = False
        self._streams: dict[OpenStream, None] = {}

    @contextmanager
    def stream(self) -> Iterator[OpenStream]:
        """Registers the running task as one that serves a stream."""
        stream = OpenStream(asyncio.current_task())
        self._streams[stream] = None
        try:
            yield stream
        finally:
            del self._streams[stream]

    def begin(self) -> int:
        """Refuses new calls and ends all streams; returns how many there were."""
        if self.started:
            return 0
        self.started = True
        for stream in self._streams:
            if not stream.writing and stream.task is not None:
                stream.task.cancel()
        return len(self._streams)
