"""Changes of the members: asked for at any peer, made by the leader, one at a time (thesis 4).

A new peer comes as a learner, which counts in no quorum. Each leader promotes, on its own, every
learner that has got as far as the commit index was when the leader first saw it: by then it is as
far as anybody who merely lags, and its vote costs no availability. What is promised while this goes
on survives a change of the leader, since the learner is in the log and the next leader goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from gaia_grpc.config import split_address
from gaia_grpc.errors import (
    ConfigError,
    ConfigurationRefusedError,
    GaiaError,
    InvalidArgumentError,
    NotFoundError,
    NotLeaderError,
    OutcomeUnknownError,
    UnavailableError,
)
from gaia_grpc.node.api import Applied
from gaia_grpc.node.applier import ProposalDroppedError
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.members import Membership, decode_configuration, encode_configuration
from gaia_grpc.node.routing import Router
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NO_NODE, Index, NodeId, Term
from gaia_grpc.transport.api import (
    AppliedCommand,
    IdentifyRequest,
    IdentifyResponse,
    Member,
    MemberChange,
    PeerTransport,
)

NOT_CAUGHT_UP = "NOT_CAUGHT_UP"
_ASK_TIMEOUT_S = 1.0
_ASK_PATIENCE_S = 2.0
_ASK_AGAIN_S = 0.1
_LOOK_S = 0.05
_LOOK_EVERY_MS = 50

log = structlog.get_logger("gaia.node")


class Promoter:
    """A leader's care for its learners; all methods are called on the loop."""

    def __init__(self, engine: Engine, tick_ms: int, patience_ticks: int) -> None:
        """`patience_ticks`: who was not heard for longer is not given a vote now."""
        self._engine = engine
        self._every_ticks = max(1, _LOOK_EVERY_MS // tick_ms)
        self._patience_ticks = patience_ticks
        self._ticks = 0
        self._term = Term(0)
        self._targets: dict[str, Index] = {}

    def on_tick(self) -> None:
        """Promotes a learner that is far enough; one at a time."""
        self._ticks += 1
        engine, core = self._engine, self._engine.core
        if self._ticks % self._every_ticks or not engine.time.running:
            return
        if core.term != self._term:
            self._term = core.term
            self._targets.clear()
        if not core.members.learners or core.commit_index < core.configuration_index:
            return
        cluster_id, members = decode_configuration(core.configuration)
        for learner in members:
            if not learner.learner or not self._is_ready(learner):
                continue
            promoted = [
                Member(each.node_id, each.peer_uuid, each.peer_address, each.client_address)
                if each.node_id == learner.node_id
                else each
                for each in members
            ]
            try:
                future = engine.propose_configuration(encode_configuration(cluster_id, promoted))
            except GaiaError:
                return  # not now: the next look tries it again
            future.add_done_callback(_forget)
            log.info("promoting", peer=learner.node_id)
            return

    def _is_ready(self, learner: Member) -> bool:
        core = self._engine.core
        target = self._targets.setdefault(learner.peer_uuid, core.commit_index)
        progress = core.progress(learner.node_id)
        return (
            progress is not None
            and progress.match_index >= target
            and progress.heard_ticks_ago <= self._patience_ticks
        )


@dataclass(slots=True)
class _Attempt:
    """How far one call got: what was not proposed was definitely not done."""

    proposed: bool = False


class Reconfiguration:
    """Adds and removes members."""

    def __init__(
        self,
        engine: Engine,
        membership: Membership,
        router: Router,
        transport: PeerTransport,
        topics: TopicBoard,
        status_topic: str,
    ) -> None:
        self._engine = engine
        self._membership = membership
        self._router = router
        self._transport = transport
        self._topics = topics
        self._status_topic = status_topic

    # --- at any peer ---

    async def change(self, change: MemberChange, timeout_s: float) -> AppliedCommand:
        """The configuration once the change is committed, as the result of the entry.

        It is the same however often it is asked for, so it goes on with the next leader. Raises
        like `ClusterControl.add_peer`.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        unknown = False
        last: GaiaError | None = None
        while (remaining_s := deadline_s - loop.time()) > 0 and not self._engine.stopped:
            seen = self._topics.version(self._status_topic)
            try:
                if self._engine.core.role is RoleName.LEADER:
                    return await self.change_here(change, remaining_s)
                leader = self._engine.core.leader_id
                if leader != NO_NODE:
                    return await self._router.change_there(leader, change, remaining_s)
            except OutcomeUnknownError:
                unknown = True
            except NotFoundError:
                if not unknown:
                    raise
                return self._now()  # the attempt without an answer has removed it
            except (NotLeaderError, ProposalDroppedError):
                pass
            except UnavailableError as error:
                if error.instance_reason == NOT_CAUGHT_UP:
                    raise
                last = error
            pause_s = min(_LOOK_S, max(0.001, deadline_s - loop.time()))
            await self._topics.wait(self._status_topic, seen, pause_s)
        if unknown:
            raise OutcomeUnknownError("no answer in time; ask again, it is safe to repeat")
        raise last or UnavailableError("no leader with a quorum answered in time")

    # --- at the leader ---

    async def change_here(self, change: MemberChange, timeout_s: float) -> AppliedCommand:
        """The leader's side; raises `NotLeaderError` where this peer does not lead (any more)."""
        attempt = _Attempt()
        try:
            async with asyncio.timeout(timeout_s):
                if change.remove:
                    return await self._remove(change.node_id, attempt)
                return await self._add(change, attempt)
        except TimeoutError:
            name = change.node_id
            member = self._membership.member(name)
            if not change.remove and member is not None and member.learner:
                raise UnavailableError(
                    f"{name} has not caught up yet: it stays a learner, and gets its vote as soon "
                    "as it has",
                    reason=NOT_CAUGHT_UP,
                ) from None
            if not attempt.proposed:
                raise UnavailableError(f"{name} did not answer in time") from None
            raise OutcomeUnknownError("not committed in time; ask again") from None

    async def _add(self, change: MemberChange, attempt: _Attempt) -> AppliedCommand:
        core, name = self._engine.core, change.node_id
        existing = self._membership.member(name)
        if existing is None or existing.peer_uuid != change.peer_uuid:
            answer = await self._ask(change)
            existing = self._membership.member(name)
            if existing is None:
                cluster_id, members = self._configuration()
                added = Member(
                    name, answer.peer_uuid, change.peer_address, answer.client_address, learner=True
                )
                _check_new(added, members)
                log.info("adding", peer=name, address=change.peer_address)
                await self._commit(cluster_id, (*members, added), attempt)
            elif existing.peer_uuid != answer.peer_uuid:
                raise ConfigurationRefusedError(
                    f"{name} is a member with other data; remove it first, then add it again"
                )
            uuid = answer.peer_uuid
        else:
            uuid = existing.peer_uuid
        while True:
            seen = self._topics.version(self._status_topic)
            member = self._membership.member(name)
            if member is None or member.peer_uuid != uuid:
                raise ConfigurationRefusedError(f"{name} was removed again meanwhile")
            if core.role is not RoleName.LEADER:
                raise NotLeaderError("leadership was lost", leader_id=core.leader_id)
            if not member.learner and core.commit_index >= core.configuration_index:
                return self._now()
            await self._topics.wait(self._status_topic, seen, _LOOK_S)

    async def _remove(self, name: NodeId, attempt: _Attempt) -> AppliedCommand:
        cluster_id, members = self._configuration()
        kept = tuple(member for member in members if member.node_id != name)
        if len(kept) == len(members):
            raise NotFoundError(f"{name} is no member of cluster {cluster_id}")
        if all(member.learner for member in kept):
            raise ConfigurationRefusedError(f"{name} is the last member with a vote")
        log.info("removing", peer=name)
        return await self._commit(cluster_id, kept, attempt)

    async def _commit(
        self, cluster_id: str, members: Iterable[Member], attempt: _Attempt
    ) -> AppliedCommand:
        data = encode_configuration(cluster_id, members)
        future = self._engine.propose_configuration(data)
        attempt.proposed = True
        applied = await future
        return AppliedCommand(Term(applied.term), Index(applied.index), data)

    async def _ask(self, change: MemberChange) -> IdentifyResponse:
        """Who waits at the address; raises what speaks against adding it."""
        try:
            split_address(change.peer_address)
        except ConfigError as error:
            raise InvalidArgumentError(error.message) from error
        answer = await self._identify(change)
        if answer.node_id != change.node_id:
            raise ConfigurationRefusedError(
                f"{change.peer_address} answers as {answer.node_id}, not as {change.node_id}"
            )
        if change.peer_uuid and answer.peer_uuid != change.peer_uuid:
            raise ConfigurationRefusedError(
                f"{change.node_id} has the data of {answer.peer_uuid}, not of {change.peer_uuid}"
            )
        if answer.bootstrapping and answer.empty:
            raise ConfigurationRefusedError(
                f"{change.node_id} was started with --bootstrap; start it with --join"
            )
        known = self._membership.member(change.node_id)
        # Of this cluster it has its own memory: it was removed, or its addition was taken back.
        founding = answer.founding
        is_ours = founding is not None and founding.cluster_id == self._membership.cluster_id
        if not answer.empty and not is_ours and not change.peer_uuid and known is None:
            raise ConfigurationRefusedError(
                f"{change.node_id} holds data already; start it on an empty directory"
            )
        level = self._engine.applier.machine.feature_level
        if max(1, answer.feature_level) < level:
            raise ConfigurationRefusedError(
                f"{change.node_id} understands feature level {max(1, answer.feature_level)}, the "
                f"cluster has {level}: start a newer version there"
            )
        return answer

    async def _identify(self, change: MemberChange) -> IdentifyResponse:
        """A process that has just been started gets a moment to open its port."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _ASK_PATIENCE_S
        request = IdentifyRequest(self._membership.node_id, self._membership.peer_uuid)
        while True:
            try:
                return await self._transport.identify_at(
                    change.peer_address, request, _ASK_TIMEOUT_S
                )
            except UnavailableError:
                if loop.time() >= until_s:
                    raise ConfigurationRefusedError(
                        f"no peer answers at {change.peer_address}; start {change.node_id} there "
                        "with --join first"
                    ) from None
            await asyncio.sleep(_ASK_AGAIN_S)

    def _configuration(self) -> tuple[str, tuple[Member, ...]]:
        core = self._engine.core
        if not core.is_ready_leader:  # in a moment, or never: asked again either way
            raise NotLeaderError("this peer does not lead (yet)", leader_id=core.leader_id)
        return decode_configuration(core.configuration)

    def _now(self) -> AppliedCommand:
        core = self._engine.core
        index = core.configuration_index
        return AppliedCommand(core.entry_term(index), index, core.configuration)


def _check_new(added: Member, members: Iterable[Member]) -> None:
    for member in members:
        if member.peer_uuid == added.peer_uuid:
            raise ConfigurationRefusedError(f"{member.node_id} has the same data directory")
        if member.peer_address == added.peer_address:
            raise ConfigurationRefusedError(f"{member.node_id} has the same address")


def _forget(future: asyncio.Future[Applied]) -> None:
    if not future.cancelled():
        future.exception()  # a lost leader's promotion is the next leader's business
