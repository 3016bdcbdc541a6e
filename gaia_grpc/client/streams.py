"""A server stream that outlives the peer that serves it.

The owner says how to ask (again); this file opens the stream, notices silence, and goes to another
peer after any failure that is not a refusal. Reading never loses a message: the pending read is
kept when the caller is cancelled or its time is up, because cancelling a read would end the whole
RPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from gaia_grpc.client.channels import Peer
from gaia_grpc.client.connection import Connection
from gaia_grpc.client.retry import Attempts, Next
from gaia_grpc.client.rpc_errors import to_gaia_error
from gaia_grpc.errors import GaiaError, OutcomeUnknownError, UnavailableError

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
StreamMethod = Callable[[Peer], grpc.aio.UnaryStreamMultiCallable[Request, Response]]

FIRST_MESSAGE_S = 5.0


class ResumableStream(Generic[Request, Response]):
    """Messages of a stream, across reconnects. Only one caller may read at a time."""

    def __init__(
        self,
        connection: Connection,
        method: StreamMethod[Request, Response],
        make_request: Callable[[], Request],
        *,
        silence: float,
        timeout: float | None = None,
        address: str | None = None,
    ) -> None:
        """Makes no I/O.

        Args:
            connection: the peers.
            method: picks the stub's method.
            make_request: the request of the next (re)connect, from where the owner stands.
            silence: seconds without a message after which the peer is given up.
            timeout: seconds without any peer that answers before an error; None tries on for ever.
            address: the peer to begin with; by default the one that calls go to.
        """
        self._connection = connection
        self._method = method
        self._make_request = make_request
        self._silence = silence
        self._timeout = timeout
        self._address = address
        self._rpc: grpc.aio.UnaryStreamCall[Request, Response] | None = None
        self._read: asyncio.Task[Response | None] | None = None
        self._read_by = 0.0
        self._attempts = Attempts(connection.draw)
        self._failing_since: float | None = None
        self._not_before = 0.0
        self._closed = False
        self.reconnects = 0

    @property
    def address(self) -> str | None:
        """The peer that serves the stream, or will be asked next."""
        return self._address

    @property
    def interrupted(self) -> bool:
        """Whether the last attempt failed and no message has come since."""
        return self._failing_since is not None

    @staticmethod
    def time() -> float:
        """The loop's clock in seconds, by which all timeouts here go."""
        return asyncio.get_running_loop().time()

    async def next(self, timeout: float | None = None) -> Response | None:
        """The next message; None where none came within `timeout` seconds.

        Raises:
            DomainError: the peer refused the request.
            UnavailableError: no peer answered within the stream's own timeout.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            if self._closed:
                raise UnavailableError("the stream is closed")
            pause = self._not_before - loop.time()
            if self._read is None and pause <= 0:
                self._open()
            now = loop.time()
            wake = self._not_before if self._read is None else self._read_by
            wait_s = max((wake if deadline is None else min(wake, deadline)) - now, 0)
            read = self._read
            if read is None:
                await asyncio.sleep(wait_s)
            else:
                await asyncio.wait({read}, timeout=wait_s)
                if self._read is not read:
                    continue  # closed meanwhile
                if read.done():
                    message = await self._finish_read()
                    if message is not None:
                        return message
                    continue
                if loop.time() >= self._read_by:
                    await self._fail(OutcomeUnknownError("the stream fell silent"), None)
                    continue
            if deadline is not None and loop.time() >= deadline:
                return None

    def _open(self) -> None:
        peers = self._connection.peers
        peer = peers.preferred if self._address is None else peers.get(self._address)
        self._address = peer.address
        # No deadline of the RPC's own: a watch may live for days. Silence bounds it instead.
        self._rpc = self._method(peer)(self._make_request(), metadata=self._connection.metadata)
        self._begin_read(self._rpc, max(FIRST_MESSAGE_S, self._silence))

    def _begin_read(
        self, rpc: grpc.aio.UnaryStreamCall[Request, Response], within_s: float
    ) -> None:
        self._read = asyncio.create_task(_read_one(rpc))
        self._read_by = asyncio.get_running_loop().time() + within_s

    async def _finish_read(self) -> Response | None:
        read, rpc = self._read, self._rpc
        if read is None or rpc is None:
            return None
        self._read = None
        if read.cancelled():
            await self._fail(OutcomeUnknownError("the channel was closed"), None)
            return None
        try:
            message = read.result()
        except grpc.aio.AioRpcError as error:
            await self._fail(to_gaia_error(error), error)
            return None
        if message is None:
            await self._fail(OutcomeUnknownError("the peer ended the stream"), None)
            return None
        self._attempts = Attempts(self._connection.draw)
        self._failing_since = None
        self._begin_read(rpc, self._silence)
        return message

    async def _fail(self, failure: GaiaError, cause: grpc.aio.AioRpcError | None) -> None:
        """Goes on at another peer, or raises."""
        await self._drop()
        step = self._attempts.after(failure)
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        if step is Next.RAISE and isinstance(failure, OutcomeUnknownError):
            # A call gives up on a peer that fails inside again and again; a stream has its cursor
            # and may well outlive that.
            step = Next.OTHER_PEER
        if step is Next.RAISE:
            raise failure from cause
        if self._timeout is not None and now - self._failing_since >= self._timeout:
            raise self._attempts.final_error(
                read=True, timeout_s=self._timeout, request_id=""
            ) from cause
        self.reconnects += 1
        fresh = False
        if step is not Next.SAME_PEER and self._address is not None:
            peers = self._connection.peers
            if step is Next.SILENT_PEER:
                peers.get(self._address).failed_at = now
            others = peers.after(self._address)
            ready = [other for other in others if now - other.failed_at >= peers.SUSPECT_S]
            fresh = bool(ready)
            if others:
                self._address = (ready or others)[0].address
        self._not_before = now + self._attempts.pause_s(step, fresh_peer=fresh)

    async def _drop(self) -> None:
        rpc, read = self._rpc, self._read
        self._rpc = self._read = None
        if rpc is not None:
            rpc.cancel()
        if read is not None:
            read.cancel()
            await asyncio.wait({read})
            if not read.cancelled():
                read.exception()

    async def close(self) -> None:
        """Ends the stream; idempotent."""
        self._closed = True
        await self._drop()


async def _read_one(rpc: grpc.aio.UnaryStreamCall[Request, Response]) -> Response | None:
    """One message, or None at the end of the stream."""
    message: Any = await rpc.read()
    if not isinstance(message, Message):  # the end is marked by a sentinel of a private class
        return None
    return cast(Response, message)


async def watch(
    connection: Connection,
    method: StreamMethod[Request, Response],
    request: Request,
    *,
    silence: float,
    address: str | None = None,
) -> AsyncGenerator[Response, None]:
    """Messages of a watch, across reconnects; `aclose` it, or the RPC lives until collected."""
    stream = ResumableStream(connection, method, lambda: request, silence=silence, address=address)
    try:
        while True:
            message = await stream.next()
            if message is not None:
                yield message
    finally:
        await stream.close()
