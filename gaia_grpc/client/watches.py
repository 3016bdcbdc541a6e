"""Watches of tasks and sessions that go on at any peer after any failure.

Every message carries `through_index`: everything up to that entry of the log was sent. The watch
keeps it as its cursor and goes on with it, so after a reconnect only what changed since comes. A
peer that has lost those changes sends the full picture again behind a RESYNC.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client.connection import Connection
from gaia_grpc.client.streams import ResumableStream, StreamMethod
from gaia_grpc.errors import UnavailableError

DEFAULT_INTERVAL_S = 5.0
# The kinds of both contracts have the same numbers.
CHANGES = (int(task_pb2.WATCH_KIND_CHANGED), int(task_pb2.WATCH_KIND_REMOVED))
RESYNC = int(task_pb2.WATCH_KIND_RESYNC)
PROGRESS = int(task_pb2.WATCH_KIND_PROGRESS)

Request = TypeVar("Request", bound="task_pb2.WatchTasksRequest | session_pb2.WatchSessionsRequest")
Response = TypeVar(
    "Response", bound="task_pb2.WatchTasksResponse | session_pb2.WatchSessionsResponse"
)


class StateWatch(Generic[Request, Response]):
    """The messages of a watch: an async iterator and context manager.

    async with client.tasks.watch(task_type="grade") as watch:
        async for message in watch:
            ...

    EXISTING messages bring what is there (several records each), COMPLETE ends them; then each
    change comes once, as CHANGED or REMOVED. RESYNC says to forget everything: the full picture
    follows again.
    """

    def __init__(
        self,
        connection: Connection,
        method: StreamMethod[Request, Response],
        request: Request,
        identify: Callable[[Response], str],
        resync: Callable[[], Response],
        *,
        interval: float,
        address: str | None,
        timeout: float | None,
    ) -> None:
        """Made by `client.tasks.watch(...)` and `client.sessions.watch(...)`.

        Args:
            connection: the peers.
            method: the stub's method.
            request: what to watch; its cursor is filled in here.
            identify: the id of the record that a message tells of.
            resync: makes a RESYNC message.
            interval: longest silence of a healthy peer, in seconds.
            address: the peer to begin with.
            timeout: seconds without any peer that answers before an error; None tries on for ever.
        """
        self._bare = request
        self._bare.interval_ms = round(interval * 1000)
        self._identify = identify
        self._resync = resync
        self._through_index = 0
        self._cluster_id = ""
        self._told: set[tuple[str, int]] = set()
        """(id, index) of the changes after the cursor that were handed out: a few, of one entry."""
        self._begun = False
        self._restarts = False
        self._held_back: Response | None = None
        self._closed = False
        self._stream = ResumableStream[Request, Response](
            connection,
            method,
            self._request,
            silence=3 * interval + 1,
            timeout=timeout,
            address=address,
        )

    @property
    def through_index(self) -> int:
        """Everything up to this entry of the log was handed out; 0 before COMPLETE."""
        return self._through_index

    @property
    def reconnects(self) -> int:
        """How often the stream had to be opened again."""
        return self._stream.reconnects

    @property
    def interrupted(self) -> bool:
        """Whether the connection is lost at this moment; it is sought again by itself."""
        return self._stream.interrupted

    @property
    def address(self) -> str | None:
        """The peer that serves the stream."""
        return self._stream.address

    async def next(self, timeout: float | None = None) -> Response | None:
        """The next message; None where none came within `timeout` seconds.

        Raises:
            DomainError: the watch was refused.
            UnavailableError: it is closed, or no peer answered within its own timeout.
        """
        deadline = None if timeout is None else self._stream.time() + timeout
        while True:
            if self._held_back is not None:
                held, self._held_back = self._held_back, None
                return self._take(held)
            left = None if deadline is None else max(deadline - self._stream.time(), 0.0)
            message = await self._stream.next(left)
            if message is None:
                return None
            if self._restarts and int(message.kind) != RESYNC:
                # The picture was cut off, and the next peer does not know what came of it.
                self._restarts = False
                self._held_back = message
                return self._resync()
            taken = self._take(message)
            if taken is not None:
                return taken

    def _request(self) -> Request:
        """The request of the next (re)connect."""
        self._restarts = self._begun and not self._through_index
        request = copy.deepcopy(self._bare)
        request.after_index = self._through_index
        request.cluster_id = self._cluster_id
        return request

    def _take(self, message: Response) -> Response | None:
        """Moves the cursor; None for what the caller has or need not know."""
        self._cluster_id = message.cluster_id or self._cluster_id
        self._begun = True
        kind = int(message.kind)
        fresh = kind != PROGRESS
        if kind == RESYNC:
            self._restarts = False
            self._through_index = 0
            self._told.clear()
        elif kind in CHANGES:
            change = (self._identify(message), message.applied_index)
            fresh = change[1] > self._through_index and change not in self._told
            self._told.add(change)
        if message.through_index > self._through_index:
            self._through_index = message.through_index
            self._told = {told for told in self._told if told[1] > self._through_index}
        return message if fresh else None

    def __aiter__(self) -> AsyncIterator[Response]:
        return self

    async def __anext__(self) -> Response:
        while not self._closed:
            try:
                message = await self.next()
            except UnavailableError:
                if self._closed:
                    break
                raise
            if message is not None:
                return message
        raise StopAsyncIteration

    async def close(self) -> None:
        """Ends the watch and the iteration; idempotent."""
        self._closed = True
        await self._stream.close()

    async def aclose(self) -> None:
        """The same, for `contextlib.aclosing`."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


TaskWatch = StateWatch[task_pb2.WatchTasksRequest, task_pb2.WatchTasksResponse]
SessionWatch = StateWatch[session_pb2.WatchSessionsRequest, session_pb2.WatchSessionsResponse]


def watch_tasks(
    connection: Connection,
    request: task_pb2.WatchTasksRequest,
    *,
    interval: float,
    address: str | None,
    timeout: float | None,
) -> TaskWatch:
    """See `TasksApi.watch`."""
    return TaskWatch(
        connection,
        lambda peer: peer.tasks.WatchTasks,
        request,
        lambda message: message.task.task_id,
        lambda: task_pb2.WatchTasksResponse(kind=task_pb2.WATCH_KIND_RESYNC, resync=True),
        interval=interval,
        address=address,
        timeout=timeout,
    )


def watch_sessions(
    connection: Connection,
    request: session_pb2.WatchSessionsRequest,
    *,
    interval: float,
    address: str | None,
    timeout: float | None,
) -> SessionWatch:
    """See `SessionsApi.watch`."""
    return SessionWatch(
        connection,
        lambda peer: peer.sessions.WatchSessions,
        request,
        lambda message: message.session.session_id,
        lambda: session_pb2.WatchSessionsResponse(kind=session_pb2.WATCH_KIND_RESYNC),
        interval=interval,
        address=address,
        timeout=timeout,
    )
