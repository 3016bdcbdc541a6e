"""Claims that wait: the waiter is in the log, its caller is here.

The wait is cancelled in the log when the caller goes away or its time is over; what was granted in
between and could not be delivered is released by that, uncounted. A caller may also go while its
claim is still on the way into the log: then the wait is cancelled as soon as its id is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
from gaia.command.v1 import command_pb2, query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.errors import GaiaError
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.services.ingress import Ingress, Outcome, propose, read
from gaia_grpc.state.topics import claim_wait


class ClaimWaits:
    """All claims that wait at this peer."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress
        self._cancellations: set[asyncio.Task[None]] = set()
        self._submissions: set[asyncio.Task[Outcome]] = set()
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger("services")

    async def submit(self, submission: Coroutine[Any, Any, Outcome]) -> Outcome:
        """The outcome of a claim; where its caller goes first, its wait is cancelled later."""
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
        waiter_id = task.result().result.claim.waiter_id
        if waiter_id:
            self._cancel_later(waiter_id)

    async def wait(self, waiter_id: int, timeout_s: float) -> Sequence[task_pb2.Task]:
        """What the waiter was granted within the timeout; empty where it was nothing."""
        try:
            granted = await self._granted(waiter_id, timeout_s)
        except BaseException:
            # The caller is gone or the peer lags: nobody will take the grant.
            self._cancel_later(waiter_id)
            raise
        if granted is None:
            self._cancel_later(waiter_id)
            return ()
        return granted

    async def _granted(self, waiter_id: int, timeout_s: float) -> Sequence[task_pb2.Task] | None:
        """None where the time was over first."""
        log = self._ingress.log
        topic = claim_wait(waiter_id)
        query = query_pb2.Query(claim_wait=query_pb2.ClaimWaitQuery(waiter_id=waiter_id))
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        log_timeout_s = self._ingress.consensus.default_timeout_ms / 1000
        while True:
            version = log.topic_version(topic)
            # A wait that this peer has not applied yet counts as waiting, so its own state will do.
            found = (await read(log, query, ReadConsistency.LOCAL, log_timeout_s)).claim_wait
            if not found.waiting:
                return found.tasks
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
        body = command_pb2.CancelClaimWait(waiter_id=waiter_id)
        command = command_pb2.Command(cancel_claim_wait=body).SerializeToString()
        timeout_s = self._ingress.consensus.default_timeout_ms / 1000
        try:
            await propose(self._ingress.log, command, timeout_s)
        except GaiaError as error:
            # The wait runs out by itself in log time, and a claim made of it expires.
            self._log.warning(
                "claim wait not cancelled", waiter_id=waiter_id, reason=error.instance_reason
            )

    async def close(self) -> None:
        """Waits for claims and cancellations under way."""
        if self._submissions:
            await asyncio.wait(set(self._submissions))
            await asyncio.sleep(0)  # callbacks of the last begin their cancellations
        if self._cancellations:
            await asyncio.wait(set(self._cancellations))
