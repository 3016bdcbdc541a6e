"""Watches over tasks and sessions: a cursor over this peer's state, no queue.

What comes next is a query like any other, so a watcher that reads slowly costs its own stream and
nothing else. A peer that does not hear its cluster sends no progress: its silence sends the client
to another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from gaia.command.v1 import query_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.services.ingress import Ingress, read
from gaia_grpc.state.topics import SESSIONS, TASKS

DEFAULT_INTERVAL_MS = 5_000
LEAST_PAUSE_S = 0.020
"""After each read, so that a busy queue costs a watcher 50 reads a second at most; what changed
meanwhile comes together."""
MOST_PAUSE_S = 0.320
"""Where reads find nothing for the watch again and again: a worker's watch of its one task must not
cost a read for each change of a busy queue."""
TASKS_PER_READ = 100
SESSIONS_PER_READ = 50
"""One message of the full picture holds so many: below 2 MiB, whatever is in them."""

Response = TypeVar("Response", task_pb2.WatchTasksResponse, session_pb2.WatchSessionsResponse)
Next = Callable[[query_pb2.WatchPlace | None], "query_pb2.Query"]


def watch_tasks(
    ingress: Ingress, request: task_pb2.WatchTasksRequest
) -> AsyncGenerator[task_pb2.WatchTasksResponse]:
    """The messages of a watch over the tasks, without end."""

    def query(place: query_pb2.WatchPlace | None) -> query_pb2.Query:
        body = query_pb2.WatchTasksQuery(filter=request, place=place, limit=TASKS_PER_READ)
        return query_pb2.Query(watch_tasks=body)

    kind = task_pb2.WATCH_KIND_PROGRESS
    watch = _Watch(ingress, request, "watch_tasks", TASKS, query)
    return watch.messages(lambda **fields: task_pb2.WatchTasksResponse(kind=kind, **fields))


def watch_sessions(
    ingress: Ingress, request: session_pb2.WatchSessionsRequest
) -> AsyncGenerator[session_pb2.WatchSessionsResponse]:
    """The messages of a watch over the sessions, without end."""

    def query(place: query_pb2.WatchPlace | None) -> query_pb2.Query:
        body = query_pb2.WatchSessionsQuery(filter=request, place=place, limit=SESSIONS_PER_READ)
        return query_pb2.Query(watch_sessions=body)

    kind = session_pb2.WATCH_KIND_PROGRESS
    watch = _Watch(ingress, request, "watch_sessions", SESSIONS, query)
    return watch.messages(lambda **fields: session_pb2.WatchSessionsResponse(kind=kind, **fields))


class _Watch:
    def __init__(
        self,
        ingress: Ingress,
        request: task_pb2.WatchTasksRequest | session_pb2.WatchSessionsRequest,
        name: str,
        topic: str,
        query: Next,
    ) -> None:
        self._log = ingress.log
        self._timeout_s = ingress.consensus.default_timeout_ms / 1000
        self._request = request
        self._name = name
        self._topic = topic
        self._query = query

    async def messages(self, progress: Callable[..., Response]) -> AsyncGenerator[Response]:
        interval_s = (self._request.interval_ms or DEFAULT_INTERVAL_MS) / 1000
        loop = asyncio.get_running_loop()
        place = self._first_place()
        sent_s = loop.time()
        pause_s = LEAST_PAUSE_S
        while True:
            version = self._log.topic_version(self._topic)
            answer = await self._read(place)
            place = answer.place
            for message in answer.messages:
                yield message
            if answer.messages:
                sent_s = loop.time()
            if answer.more:
                await asyncio.sleep(0)
                continue
            pause_s = LEAST_PAUSE_S if answer.messages else min(pause_s * 2, MOST_PAUSE_S)
            await asyncio.sleep(pause_s)
            if loop.time() >= sent_s + interval_s:
                sent_s = loop.time()
                status = self._log.status()
                # It may know of fewer entries than the watch was sent elsewhere.
                if status.writable and place.index <= status.applied_index:
                    yield progress(
                        applied_index=status.applied_index,
                        through_index=place.index,
                        cluster_id=status.cluster_id,
                    )
            remaining_s = max(sent_s + interval_s - loop.time(), 0.0)
            await self._log.wait_topic(self._topic, version, timeout_s=remaining_s)

    def _first_place(self) -> query_pb2.WatchPlace | None:
        """Where the watch goes on; None begins with the full picture."""
        request = self._request
        if not request.after_index:
            return None
        own = self._log.status().cluster_id
        if request.cluster_id and own and request.cluster_id != own:
            # An index of another cluster: a place before all that is kept, so it begins again.
            return query_pb2.WatchPlace(index=-1)
        return query_pb2.WatchPlace(index=request.after_index, complete=True)

    async def _read(self, place: query_pb2.WatchPlace | None) -> Any:
        query = self._query(place)
        found = await read(self._log, query, ReadConsistency.LOCAL, self._timeout_s)
        return getattr(found, self._name)
