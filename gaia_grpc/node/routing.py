"""Where a command or read goes: into this peer's log if it leads, else to the leader.

Every command is idempotent (by request_id, token, key or sequence), so one that may have been lost
with its leader is simply proposed again to the next, within the caller's deadline. What is told to
the caller at the end is exact: `UnavailableError` if no attempt can have reached a log,
`OutcomeUnknownError` if one can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gaia_grpc.errors import (
    ConfigurationRefusedError,
    FailedPreconditionError,
    GaiaError,
    InvalidArgumentError,
    NotFoundError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    ResourceExhaustedError,
    UnavailableError,
)
from gaia_grpc.node.api import Applied
from gaia_grpc.node.applier import ProposalDroppedError
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NO_NODE, Index, NodeId, Term
from gaia_grpc.state.stamp import check_command
from gaia_grpc.transport.api import (
    AppliedCommand,
    ForwardedCall,
    ForwardedOutcome,
    ForwardFailure,
    MemberChange,
    PeerTransport,
    ReadIndexGrant,
)

RETRY_AFTER_MS = 100
_ANSWER_SHARE = 0.9
_PAUSE_S = 0.05
"""Longest pause before the leader is looked up again after a refused attempt."""


class _Deadline:
    """What is left of a caller's time."""

    __slots__ = ("_at_s", "_loop")

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._at_s = self._loop.time() + timeout_s

    def remaining_s(self) -> float:
        return self._at_s - self._loop.time()


class Router:
    """Routes commands and reads of one peer."""

    def __init__(
        self,
        engine: Engine,
        transport: PeerTransport,
        topics: TopicBoard,
        status_topic: str,
        change_members: Callable[[MemberChange, float], Awaitable[AppliedCommand]],
    ) -> None:
        """`change_members` makes a forwarded change of the members, at a leader."""
        self.engine = engine
        self._change_members = change_members
        self._transport = transport
        self._topics = topics
        self._status_topic = status_topic
        self._forwarding: dict[asyncio.Timeout, NodeId] = {}
        """Calls that wait for an answer, with the leader they wait for."""

    def leader_changed(self, leader: NodeId) -> None:
        """Ends the wait for any other peer's answer, so that the call goes to `leader`.

        A leader that is paused or cut off keeps its connections and says nothing: without this each
        of its callers would wait until its own deadline, long after another peer has taken over.
        """
        if leader == NO_NODE:
            return
        now_s = asyncio.get_running_loop().time()
        for scope, waits_for in self._forwarding.items():
            if waits_for != leader:
                scope.reschedule(now_s)

    # --- commands ---

    async def propose(self, command: bytes, timeout_s: float) -> Applied:
        """See `ReplicatedLog.propose`."""
        self.engine.admission.check_size(command)
        deadline = _Deadline(timeout_s)
        unknown = False
        while (remaining_s := deadline.remaining_s()) > 0:
            seen = self._topics.version(self._status_topic)
            try:
                if self.engine.core.role is RoleName.LEADER:
                    return await self._propose_here(command, remaining_s)
                leader = self.engine.core.leader_id
                if leader != NO_NODE:
                    return await self._propose_there(leader, command, remaining_s)
            except OutcomeUnknownError:
                unknown = True
            except (NotLeaderError, ProposalDroppedError):
                pass
            except UnavailableError:
                if self.engine.stopped and not unknown:
                    raise
            except GaiaError:
                # "Definitely not applied" is true of this attempt only.
                if not unknown:
                    raise
                break
            if self.engine.stopped:
                break
            await self._pause(deadline, seen)
        if unknown:
            raise OutcomeUnknownError(
                "no answer in time; repeat with the same request_id",
                retry_after_ms=RETRY_AFTER_MS,
            )
        raise self._no_quorum()

    async def _propose_here(self, command: bytes, timeout_s: float) -> Applied:
        proposal = self.engine.propose(command)
        try:
            async with asyncio.timeout(timeout_s):
                return await proposal.future
        except TimeoutError:
            if proposal.admitted:
                raise OutcomeUnknownError("not committed in time") from None
            raise self._no_quorum() from None

    async def _propose_there(self, leader: NodeId, command: bytes, timeout_s: float) -> Applied:
        try:
            outcome = await self._forward(leader, command, timeout_s)
        except TimeoutError:
            raise OutcomeUnknownError("the leader changed before it answered") from None
        if isinstance(outcome, AppliedCommand):
            return Applied(outcome.term, outcome.index, outcome.result)
        raise _failure(outcome)

    # --- reads ---

    async def confirm_read(self, timeout_s: float) -> int:
        """Returns the leader's log time once this peer has applied all that came before the call.

        Raises `UnavailableError` where that can't be confirmed in time (thesis 6.4).
        """
        deadline = _Deadline(timeout_s)
        while (remaining_s := deadline.remaining_s()) > 0:
            seen = self._topics.version(self._status_topic)
            try:
                async with asyncio.timeout(remaining_s):
                    index, elapsed_ms = await self._read_index(remaining_s)
                    await self.engine.applier.wait_applied(index)
                    return elapsed_ms
            except TimeoutError:
                break
            except (NotLeaderError, OutcomeUnknownError, UnavailableError):
                pass
            if self.engine.stopped:
                break
            await self._pause(deadline, seen)
        raise UnavailableError(
            "no leader with a quorum confirmed the read in time", retry_after_ms=RETRY_AFTER_MS
        )

    async def _read_index(self, timeout_s: float) -> tuple[int, int]:
        if self.engine.core.role is RoleName.LEADER:
            return await self.engine.read_index()
        leader = self.engine.core.leader_id
        if leader == NO_NODE:
            raise NotLeaderError("no leader is known")
        try:
            outcome = await self._forward(leader, None, timeout_s)
        except TimeoutError:
            raise NotLeaderError("the leader changed before it answered") from None
        if isinstance(outcome, ReadIndexGrant):
            return outcome.index, outcome.elapsed_ms
        raise _failure(outcome)

    async def change_there(
        self, leader: NodeId, change: MemberChange, timeout_s: float
    ) -> AppliedCommand:
        """Hands a change of the members to the leader; raises what it failed with there."""
        try:
            outcome = await self._forward(leader, None, timeout_s, change)
        except TimeoutError:
            raise OutcomeUnknownError("the leader changed before it answered") from None
        if isinstance(outcome, AppliedCommand):
            return outcome
        raise _failure(outcome)

    async def _forward(
        self,
        leader: NodeId,
        command: bytes | None,
        timeout_s: float,
        change: MemberChange | None = None,
    ) -> ForwardedOutcome:
        """Raises `TimeoutError` where another peer leads before `leader` answered."""
        call = ForwardedCall(command, max(1, int(timeout_s * 1000)), change)
        async with asyncio.timeout(None) as scope:
            self._forwarding[scope] = leader
            try:
                return await self._transport.forward(leader, call, timeout_s)
            finally:
                del self._forwarding[scope]

    # --- calls of followers ---

    async def answer_forwarded(self, call: ForwardedCall) -> ForwardedOutcome:
        """The leader's side of a forwarded call; it is not forwarded a second time."""
        timeout_s = call.timeout_ms / 1000
        try:
            if self.engine.core.role is not RoleName.LEADER:
                raise NotLeaderError(
                    "this peer does not lead", leader_id=self.engine.core.leader_id
                )
            if call.change is not None:
                # Its answer says how far it got, so it must come before nobody waits any more.
                return await self._change_members(call.change, _ANSWER_SHARE * timeout_s)
            if call.command is None:
                async with asyncio.timeout(timeout_s):
                    index, elapsed_ms = await self.engine.read_index()
                return ReadIndexGrant(Index(index), elapsed_ms)
            check_command(call.command)
            applied = await self._propose_here(call.command, timeout_s)
            return AppliedCommand(Term(applied.term), Index(applied.index), applied.result)
        except ProposalDroppedError:
            return ForwardFailure(NotLeaderError.reason, "another entry took its place")
        except TimeoutError:
            return ForwardFailure(UnavailableError.reason, "no quorum answered in time")
        except GaiaError as error:
            return ForwardFailure(
                error.instance_reason,
                error.message,
                self.engine.core.leader_id,
                error.retry_after_ms or 0,
            )

    # --- inside ---

    async def _pause(self, deadline: _Deadline, seen: int) -> None:
        """Waits for a new leader, or a moment; so that a retry loop never spins.

        `seen` is the version of the status from before the attempt: a leader that changed while it
        was under way is tried at once.
        """
        await self._topics.wait(
            self._status_topic, seen, min(_PAUSE_S, max(deadline.remaining_s(), 0.001))
        )

    def _no_quorum(self) -> UnavailableError:
        return UnavailableError(
            "no leader with a quorum answered in time; nothing was applied",
            retry_after_ms=RETRY_AFTER_MS,
        )


def _failure(outcome: ForwardedOutcome) -> GaiaError:
    """The error that a forwarded call ended in, as if it had happened here."""
    if not isinstance(outcome, ForwardFailure):
        return OutcomeUnknownError("the leader answered with the wrong kind of outcome")
    retry_after_ms = outcome.retry_after_ms or None
    match outcome.reason:
        case NotLeaderError.reason:
            return NotLeaderError(outcome.message, leader_id=outcome.leader_id)
        case OverloadedError.reason:
            return OverloadedError(outcome.message, retry_after_ms=retry_after_ms)
        case "STORAGE_FULL":
            return ResourceExhaustedError(
                outcome.message, reason=outcome.reason, retry_after_ms=retry_after_ms
            )
        case InvalidArgumentError.reason | "COMMAND_TOO_LARGE":
            return InvalidArgumentError(outcome.message, reason=outcome.reason)
        case ConfigurationRefusedError.reason:
            return ConfigurationRefusedError(outcome.message)
        case NotFoundError.reason:
            return NotFoundError(outcome.message)
        case "FEATURE_LEVEL":
            return FailedPreconditionError(outcome.message, reason=outcome.reason)
        case OutcomeUnknownError.reason:
            return OutcomeUnknownError(outcome.message, retry_after_ms=retry_after_ms)
        case _:
            return UnavailableError(
                outcome.message, reason=outcome.reason, retry_after_ms=retry_after_ms
            )
