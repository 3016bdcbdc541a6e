"""Founding: how peers with empty data directories become one cluster (design section 4).

Each peer asks every other who it is. Only where all listed peers answer "empty, same list, same
settings" does the one with the lowest node id mint the cluster: it writes the first entries (the
configuration, then the founding command) to its own disk, and from then on answers with them. The
others, which keep asking, find themselves in that record *by their peer_uuid* and take it over.

Why the uuid decides: a peer whose directory was wiped after the founding finds its node id in the
record, but with the uuid of the lost directory. It must not come back as a voter that remembers
nothing (faults B26), so it refuses to start. A peer that was merely late finds its own uuid.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

import structlog
from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2

from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import StartupError, UnavailableError
from gaia_grpc.node.clock import Clock
from gaia_grpc.node.feature_levels import announced_level
from gaia_grpc.node.members import encode_configuration
from gaia_grpc.raft.types import Entry, EntryKind, HardState, Index, NodeId, Term
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.stamp import stamp
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.api import (
    Founding,
    IdentifyRequest,
    IdentifyResponse,
    Member,
    PeerTransport,
)

_ASK_TIMEOUT_S = 1.0
_ASK_AGAIN_S = 0.05
_REPORT_EVERY_S = 5.0

log = structlog.get_logger("gaia.node")


@dataclass(slots=True)
class _Answers:
    by_node: dict[NodeId, IdentifyResponse]
    missing: list[NodeId]


class Founder:
    """Founds a cluster on this peer's directory, or takes over the founding of another peer."""

    def __init__(
        self, config: PeerConfig, directory: DataDirectory, transport: PeerTransport, clock: Clock
    ) -> None:
        self._config = config
        self._directory = directory
        self._transport = transport
        self._clock = clock
        identity = directory.identity()
        self._own = identity.node_id
        self._others = [NodeId(name) for name in config.peer_ids if name != self._own]
        self._request = IdentifyRequest(
            node_id=identity.node_id,
            peer_uuid=identity.peer_uuid,
            listed_peers=tuple((NodeId(name), address) for name, address in config.peers),
            settings=config.settings,
        )
        self.conflict: StartupError | None = None

    def note_asker(self, request: IdentifyRequest) -> None:
        """A peer that founds with another list must not only fail itself: this one fails too."""
        if request.node_id == self._own:
            return
        if request.listed_peers != self._request.listed_peers:
            self.conflict = StartupError(
                f"founding refused: {request.node_id} was started with another --peer list"
            )
        elif request.settings != self._request.settings:
            self.conflict = StartupError(
                f"founding refused: {request.node_id} was started with other --set values"
            )

    async def run(self) -> None:
        """Returns once the directory holds a founding record; raises `StartupError`."""
        loop = asyncio.get_running_loop()
        report_at = loop.time() + _REPORT_EVERY_S
        while True:
            answers = await self._ask_all()
            if self.conflict is not None:
                raise self.conflict
            for node_id in sorted(answers.by_node):
                founding = self._check(node_id, answers.by_node[node_id])
                if founding is not None:
                    self._write(founding)
                    return
            if not answers.missing and self._own == min([self._own, *self._others]):
                self._write(self._mint(answers.by_node))
                return
            if loop.time() >= report_at:
                report_at += _REPORT_EVERY_S
                log.info("founding_waits", missing=", ".join(answers.missing) or "the founder")
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _ask_all(self) -> _Answers:
        results = await asyncio.gather(
            *(
                self._transport.identify(node_id, self._request, _ASK_TIMEOUT_S)
                for node_id in self._others
            ),
            return_exceptions=True,
        )
        answers = _Answers({}, [])
        for node_id, result in zip(self._others, results, strict=True):
            if isinstance(result, UnavailableError):
                answers.missing.append(node_id)
            elif isinstance(result, BaseException):
                raise result
            else:
                answers.by_node[node_id] = result
        return answers

    def _check(self, node_id: NodeId, answer: IdentifyResponse) -> Founding | None:
        """The founding to take over, None where the answer is "empty, same list", else raises."""
        if answer.node_id != node_id:
            raise StartupError(
                f"founding refused: the address of {node_id} answers as {answer.node_id}"
            )
        if answer.founding is not None:
            mine = [member for member in answer.founding.members if member.node_id == self._own]
            if mine and mine[0].peer_uuid == self._request.peer_uuid:
                return answer.founding
        if not answer.empty:
            raise StartupError(
                f"founding refused: {node_id} already holds data of a cluster that this directory "
                "is not part of; restore the lost directory, or remove this peer from that "
                "cluster and add it again"
            )
        if answer.listed_peers != self._request.listed_peers:
            raise StartupError(f"founding refused: {node_id} was started with another --peer list")
        if answer.settings != self._request.settings:
            raise StartupError(f"founding refused: {node_id} was started with other --set values")
        if not answer.bootstrapping:
            raise StartupError(f"founding refused: {node_id} was started without --bootstrap")
        return None

    def _mint(self, answers: dict[NodeId, IdentifyResponse]) -> Founding:
        cluster_id = uuid.uuid4().hex
        addresses = dict(self._config.peers)
        members = [
            Member(self._own, self._request.peer_uuid, addresses[self._own], self._config.listen)
        ]
        members += [
            Member(node_id, answer.peer_uuid, addresses[node_id], answer.client_address)
            for node_id, answer in sorted(answers.items())
        ]
        members.sort(key=lambda member: member.node_id)
        command = command_pb2.Command(
            found_cluster=command_pb2.FoundCluster(
                cluster_id=cluster_id,
                feature_level=min(
                    announced_level(self._config.consensus),
                    *(max(1, answer.feature_level) for answer in answers.values()),
                    FEATURE_LEVEL,
                ),
                settings=[
                    cluster_pb2.SettingChange(name=name, value=value)
                    for name, value in self._config.settings
                ],
            )
        )
        wall_ms = self._clock.wall_ms()
        term = Term(1)
        entries = (
            Entry(
                term,
                Index(1),
                EntryKind.CONFIGURATION,
                encode_configuration(cluster_id, members),
            ),
            Entry(
                term,
                Index(2),
                EntryKind.COMMAND,
                stamp(command.SerializeToString(deterministic=True), wall_ms, wall_ms),
            ),
        )
        return Founding(cluster_id, tuple(members), entries)

    def _write(self, founding: Founding) -> None:
        if not founding.entries:
            # Long compacted: this late founder, which never promised anything, joins instead.
            self._directory.adopt(founding.cluster_id)
            return
        last = founding.entries[-1]
        self._directory.found(
            founding.cluster_id,
            founding.entries,
            HardState(term=last.term, commit_index=last.index),
        )
        log.info(
            "founded",
            cluster=founding.cluster_id,
            members=", ".join(member.node_id for member in founding.members),
        )
