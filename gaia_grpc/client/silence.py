"""Noticing that a peer will not answer although its connection stands.

A killed process closes its connections; one that is stopped, or cut off, keeps them, and a call to
it would wait for its whole deadline. So would a call to a peer that has no leader: cut off from the
others, or removed from the cluster while its process runs on. So a call without an answer asks
around: where another peer takes writes and this one does not, or does not even answer GetStatus,
which never waits, the attempt is given up and repeated there. That is safe like every repetition
(see `retry`), also where the peer was merely slow.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.client.channels import Peer, PeerSet

FIRST_LOOK_S = 0.4
"""Longer than nearly every answer takes, and about as long as an election."""
LOOK_TIMEOUT_S = 0.25
LONGEST_PAUSE_S = 4.0
"""Calls that wait on purpose (claims, pages of a stream) are looked after ever more seldom."""


class SilenceWatch:
    """Watches one attempt, from `async with` to its end; costs a timer as long as answers come.

    An attempt that is given up goes on, and is cancelled when the whole call ends. Cancelled at
    once, it could cost a caller that waits (for a lock, for a task) its place: its peer, should it
    wake up, would end the wait in the log before the repeated call has come to stand in it.
    """

    __slots__ = ("_done", "_handle", "_peer", "_peers", "_task")

    def __init__(self, peers: PeerSet, peer: Peer, attempt: grpc.aio.Call) -> None:
        loop = asyncio.get_running_loop()
        self._peers = peers
        self._peer = peer
        self._done: asyncio.Future[bool] = loop.create_future()
        attempt.add_done_callback(lambda _: self._end(answered=True))
        self._task: asyncio.Task[None] | None = None
        self._handle: asyncio.TimerHandle | None = None

    async def answered(self) -> bool:
        """True once the attempt has ended, False where it is given up."""
        return await self._done

    def _end(self, *, answered: bool) -> None:
        if not self._done.done():
            self._done.set_result(answered)

    async def __aenter__(self) -> Self:
        if len(self._peers.addresses) > 1:
            self._handle = asyncio.get_running_loop().call_later(FIRST_LOOK_S, self._begin)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._look_after())

    async def _look_after(self) -> None:
        pause_s = FIRST_LOOK_S
        while not await self._is_silent():
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)
        self._end(answered=False)

    async def _is_silent(self) -> bool:
        """Whether another peer takes writes, and this one does not or says nothing."""
        others = self._peers.after(self._peer.address)
        own, *answers = await asyncio.gather(_status(self._peer), *map(_status, others))
        if own is not None and own.writable:
            return False
        return any(answer is not None and answer.writable for answer in answers)


async def _status(peer: Peer) -> cluster_pb2.GetStatusResponse | None:
    """What the peer says of itself, or None where it says nothing in time."""
    request: Any = cluster_pb2.GetStatusRequest()
    try:
        return await peer.cluster.GetStatus(request, timeout=LOOK_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        # A refusal is an answer too: whoever refuses is there.
        silent = error.code() in (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )
        return None if silent else cluster_pb2.GetStatusResponse()
