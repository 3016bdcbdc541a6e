"""What service tests do to a log by hand, whichever log it is.

`HandledLog` implements `ReplicatedLog` over a few primitives and puts itself between the services
and the log: it notes what was asked, and what real clusters do to callers (no quorum, lost answers,
another leader) is set by hand.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from gaia.command.v1 import command_pb2

from gaia_grpc.errors import GaiaError, OutcomeUnknownError, UnavailableError
from gaia_grpc.node.api import (
    Applied,
    LogEntrySummary,
    MemberStatus,
    NodeStatus,
    ReadConsistency,
)
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.state.machine import StateMachine


class HandledLog(ABC):
    """Implements `ReplicatedLog`; see the module."""

    def __init__(self) -> None:
        self.commands: list[command_pb2.Command] = []
        """Every command that was proposed."""
        self.reads: list[ReadConsistency] = []
        self.error: GaiaError | None = None
        """Raised by every propose and linearizable read."""
        self.broken: Exception | None = None
        """Raised by every propose and read: a bug below."""
        self.answers = asyncio.Event()
        """While clear, proposals are applied and never answered."""
        self.answers.set()
        self.waiting = 0
        """How many callers wait for a topic; who follows the status is not counted."""
        self._told: dict[str, Any] = {}
        self._told_event = asyncio.Event()

    # --- by hand -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def machine(self) -> StateMachine:
        """The state that this peer has applied."""

    @abstractmethod
    async def let_pass(self, milliseconds: int) -> None:
        """Lets log time pass; everything that is due happens."""

    def set_status(
        self,
        *,
        role: RoleName | None = None,
        leader: str | None = None,
        writable: bool | None = None,
        members: tuple[MemberStatus, ...] | None = None,
        feature_level: int | None = None,
    ) -> None:
        """Changes what the peer knows of its cluster, and wakes who waits for that."""
        if role is not None:
            self._told["role"] = role
        if leader is not None:
            self._told["leader_id"] = leader
            self._told["leader_address"] = f"127.0.0.1:500{leader[1:]}" if leader else ""
        if writable is not None:
            self._told["writable"] = writable
        if members is not None:
            self._told["members"] = members
        if feature_level is not None:
            self._told["feature_level"] = feature_level
        self._told_event.set()
        self._told_event = asyncio.Event()

    # --- ReplicatedLog -------------------------------------------------------------------------

    async def propose(self, command: bytes, *, timeout_s: float) -> Applied:
        """See `ReplicatedLog.propose`."""
        self._raise()
        if self.error is not None:
            raise self.error
        self.commands.append(command_pb2.Command.FromString(command))
        applied = await self._propose(command, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self.answers.wait()
        except TimeoutError:
            raise OutcomeUnknownError("no answer in time") from None
        return applied

    async def read(self, query: bytes, *, consistency: ReadConsistency, timeout_s: float) -> bytes:
        """See `ReplicatedLog.read`."""
        self._raise()
        self.reads.append(consistency)
        if consistency is ReadConsistency.LINEARIZABLE and self.error is not None:
            raise UnavailableError("no quorum")
        return await self._read(query, consistency, timeout_s)

    @abstractmethod
    def topic_version(self, topic: str) -> int:
        """See `ReplicatedLog.topic_version`."""

    async def wait_topic(self, topic: str, version: int, *, timeout_s: float) -> int:
        """See `ReplicatedLog.wait_topic`."""
        self.waiting += 1
        try:
            return await self._wait_topic(topic, version, timeout_s)
        finally:
            self.waiting -= 1

    def status(self, at_index: int = 0) -> NodeStatus:
        """See `ReplicatedLog.status`."""
        return replace(self._status(at_index), **self._told)

    async def wait_status(self, seen: NodeStatus, *, timeout_s: float) -> NodeStatus:
        """See `ReplicatedLog.wait_status`."""
        now = self.status()
        if (now.role, now.leader_id, now.writable) == (seen.role, seen.leader_id, seen.writable):
            told = asyncio.ensure_future(self._told_event.wait())
            changed = asyncio.ensure_future(self._wait_status(timeout_s))
            try:
                await asyncio.wait((told, changed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in (told, changed):
                    waiting.cancel()
                await asyncio.wait((told, changed))
        return self.status()

    @abstractmethod
    async def log_entries(self, first: int, count: int) -> tuple[LogEntrySummary, ...]:
        """See `ReplicatedLog.log_entries`."""

    # --- the log itself ------------------------------------------------------------------------

    @abstractmethod
    def _propose(self, command: bytes, timeout_s: float) -> Coroutine[None, None, Applied]: ...

    @abstractmethod
    def _read(
        self, query: bytes, consistency: ReadConsistency, timeout_s: float
    ) -> Coroutine[None, None, bytes]: ...

    @abstractmethod
    def _wait_topic(
        self, topic: str, version: int, timeout_s: float
    ) -> Coroutine[None, None, int]: ...

    @abstractmethod
    def _status(self, at_index: int) -> NodeStatus: ...

    @abstractmethod
    def _wait_status(self, timeout_s: float) -> Coroutine[None, None, object]: ...

    def _raise(self) -> None:
        if self.broken is not None:
            raise self.broken
