"""Collects heartbeats for a moment and logs them together.

Ten thousand sessions would otherwise cost a log entry each every ten seconds. A caller is answered
after the commit, so failover loses no heartbeat that was acknowledged.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gaia.command.v1 import command_pb2
from gaia.session.v1 import session_pb2

from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import DrainingError, GaiaError, OutcomeUnknownError, OverloadedError
from gaia_grpc.node.api import ReplicatedLog
from gaia_grpc.services.error_table import refusal_error
from gaia_grpc.services.ingress import propose

OVERLOAD_RETRY_MS = 200
MAX_BATCHES_UNDER_WAY = 4


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """What one heartbeat came to."""

    session: session_pb2.Session
    term: int
    index: int


_Key = tuple[str, int]
_Waiting = dict[_Key, "asyncio.Future[HeartbeatAnswer]"]


class HeartbeatCollector:
    """Callers wait in `beat`; a batch is proposed when its time is over or it is full.

    While the cluster has no leader, a few batches wait for one and what comes meanwhile is kept for
    the next: heartbeats of a whole failover cost a handful of entries.
    """

    def __init__(self, log: ReplicatedLog, config: PeerConfig) -> None:
        self._log = log
        self._collect_s = config.limits.heartbeat_collect_ms / 1000
        self._most = config.limits.max_batch_items
        self._most_waiting = config.limits.max_concurrent_calls
        self._timeout_s = config.consensus.default_timeout_ms / 1000
        self._waiting: _Waiting = {}
        self._due = False
        """What waits may be sent as soon as there is room for another batch."""
        self._timer: asyncio.TimerHandle | None = None
        self._batches: set[asyncio.Task[None]] = set()
        self._closed = False

    async def beat(self, session_id: str, incarnation: int, timeout_s: float) -> HeartbeatAnswer:
        """Returns once the heartbeat is committed; raises what it was refused with."""
        if self._closed:
            raise DrainingError("the peer is stopping; another one will answer")
        key = (session_id, incarnation)
        future = self._waiting.get(key)
        if future is None:
            if len(self._waiting) >= self._most_waiting:
                raise OverloadedError(
                    "too many heartbeats wait at this peer", retry_after_ms=OVERLOAD_RETRY_MS
                )
            loop = asyncio.get_running_loop()
            future = self._waiting[key] = loop.create_future()
            if len(self._waiting) >= self._most:
                self._flush()
            elif self._timer is None and not self._due:
                self._timer = loop.call_later(self._collect_s, self._flush)
        try:
            async with asyncio.timeout(timeout_s):
                # Shielded: two callers with the same heartbeat share it, and one may go away.
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise OutcomeUnknownError("no answer in time; send the heartbeat again") from error

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = True
        self._send_due()

    def _send_due(self) -> None:
        """Starts as many batches as may be under way at once."""
        while self._due and len(self._batches) < MAX_BATCHES_UNDER_WAY:
            keys = list(self._waiting)[: self._most]
            batch = {key: self._waiting.pop(key) for key in keys}
            self._due = bool(self._waiting)
            if batch:
                task = asyncio.get_running_loop().create_task(self._send(batch))
                self._batches.add(task)
                task.add_done_callback(self._on_sent)

    def _on_sent(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._send_due()

    async def _send(self, waiting: _Waiting) -> None:
        """Proposes one batch and gives every caller its outcome."""
        heartbeats = [
            command_pb2.SessionHeartbeat(session_id=session_id, incarnation=incarnation)
            for session_id, incarnation in waiting
        ]
        command = command_pb2.Command(
            record_heartbeats=command_pb2.RecordHeartbeats(heartbeats=heartbeats)
        )
        try:
            outcome = await propose(self._log, command.SerializeToString(), self._timeout_s)
        except Exception as error:  # every caller gets it, and the interceptor maps it
            for future in waiting.values():
                _fail(future, error)
            return
        outcomes = outcome.result.heartbeats.outcomes
        for future, one in zip(waiting.values(), outcomes, strict=True):
            if one.HasField("refusal"):
                _fail(future, refusal_error(one.refusal))
            elif not future.done():
                future.set_result(HeartbeatAnswer(one.session, outcome.term, outcome.index))

    async def close(self) -> None:
        """Sends what was collected and waits for the answers."""
        self._closed = True
        self._flush()
        while self._batches:
            await asyncio.wait(set(self._batches))


def _fail(future: asyncio.Future[HeartbeatAnswer], error: Exception) -> None:
    if future.done():
        return
    # A copy each: one exception raised in many tasks would grow one common traceback.
    if isinstance(error, GaiaError):
        copy = refusal_copy(error)
        future.set_exception(copy)
    else:
        future.set_exception(error)
    future.exception()  # the caller may be gone already


def refusal_copy(error: GaiaError) -> GaiaError:
    """An equal error of the same class."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = error.args
    return copy
