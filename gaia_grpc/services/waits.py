"""Calls that wait in the log: the waiter is in the log, its caller is here.

The wait is cancelled in the log when the caller goes away or its time is over; what was granted in
between and could not be delivered is released by that, uncounted. A caller may also go while its
command is still on the way into the log: then the wait is cancelled as soon as its id is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc.errors import GaiaError
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.services.ingress import Ingress, Outcome, propose, read

Granted = TypeVar("Granted")


@dataclass(frozen=True, slots=True)
class WaitKind(Generic[Granted]):
    """What is waited for, in the words of the log."""

    name: str
    """For people."""
    waiter_id: Callable[[command_pb2.CommandResult], int]
    """The wait that a command began; 0 where it did not."""
    topic: Callable[[int], str]
    """Touched when a wait ends."""
    outcome: Callable[[query_pb2.QueryResult], Granted | None]
    """What the query found; None while it waits."""
    cancellation: Callable[[int], command_pb2.Command]
    """Ends a wait."""


class Waits(Generic[Granted]):
    """All calls of one kind that wait at this peer."""

    def __init__(self, ingress: Ingress, kind: WaitKind[Granted]) -> None:
        self._ingress = ingress
        self._kind = kind
        self._cancellations: set[asyncio.Task[None]] = set()
        self._submissions: set[asyncio.Task[Outcome]] = set()
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger("services")

    async def submit(self, submission: Coroutine[Any, Any, Outcome]) -> Outcome:
        """The outcome of a command; where its caller goes first, its wait is cancelled later."""
        task = asyncio.get_running_loop().create_task(submission)
        self._submissions.add(task)
        task.add_done_callback(self._submissions.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._forsaken)
            raise

    def _forsaken(self, task: asyncio.Task[Outcome]) -> None:
        if task.cancelled() or task.exception() is not None:
            return  # a repeated request learns what became of it, or the wait runs out
        waiter_id = self._kind.waiter_id(task.result().result)
        if waiter_id:
            self._cancel_later(waiter_id)

    async def wait(
        self, waiter_id: int, query: query_pb2.Query, timeout_s: float
    ) -> Granted | None:
        """What became of the wait, as `query` tells it; None where its time was over first."""
        try:
            granted = await self._granted(waiter_id, query, timeout_s)
        except BaseException:
            # The caller is gone or the peer lags: nobody will take the grant.
            self._cancel_later(waiter_id)
            raise
        if granted is None:
            self._cancel_later(waiter_id)
        return granted

    async def _granted(
        self, waiter_id: int, query: query_pb2.Query, timeout_s: float
    ) -> Granted | None:
        log = self._ingress.log
        topic = self._kind.topic(waiter_id)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        log_timeout_s = self._ingress.consensus.default_timeout_ms / 1000
        while True:
            version = log.topic_version(topic)
            # A wait that this peer has not applied yet counts as waiting, so its own state will do.
            found = await read(log, query, ReadConsistency.LOCAL, log_timeout_s)
            granted = self._kind.outcome(found)
            if granted is not None:
                return granted
            remaining_s = until_s - loop.time()
            if remaining_s <= 0:
                return None
            await log.wait_topic(topic, version, timeout_s=remaining_s)

    def _cancel_later(self, waiter_id: int) -> None:
        """Cancels in a task of its own, since the caller's may be cancelled or out of time."""
        task = asyncio.get_running_loop().create_task(self._cancel(waiter_id))
        self._cancellations.add(task)
        task.add_done_callback(self._cancellations.discard)

    async def _cancel(self, waiter_id: int) -> None:
        command = self._kind.cancellation(waiter_id).SerializeToString()
        timeout_s = self._ingress.consensus.default_timeout_ms / 1000
        try:
            await propose(self._ingress.log, command, timeout_s)
        except GaiaError as error:
            # The wait runs out by itself in log time, and what was granted to it too.
            self._log.warning(
                "wait not cancelled",
                kind=self._kind.name,
                waiter_id=waiter_id,
                reason=error.instance_reason,
            )

    async def close(self) -> None:
        """Waits for commands and cancellations under way."""
        if self._submissions:
            await asyncio.wait(set(self._submissions))
            await asyncio.sleep(0)  # callbacks of the last begin their cancellations
        if self._cancellations:
            await asyncio.wait(set(self._cancellations))
