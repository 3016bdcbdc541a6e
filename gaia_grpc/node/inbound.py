"""What the other peers reach of this one: `InboundHandler` for the transport."""

from __future__ import annotations

import asyncio

import structlog

from gaia_grpc import __version__
from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import UnavailableError
from gaia_grpc.node.clock import Clock
from gaia_grpc.node.feature_levels import announced_level
from gaia_grpc.node.founding import Founder
from gaia_grpc.node.joining import Joiner
from gaia_grpc.node.members import decode_configuration, standing_of
from gaia_grpc.node.peer import STATUS_TOPIC, Peer
from gaia_grpc.node.snapshot_transfer import IncomingFile, OutgoingFile
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.types import NO_NODE, EntryKind, Index, NodeId, SnapshotMeta, Term
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.api import (
    ForwardedCall,
    ForwardedOutcome,
    Founding,
    Hello,
    IdentifyRequest,
    IdentifyResponse,
)

_LOST_ATTEMPTS = 4

log = structlog.get_logger("gaia.node")


class Inbound:
    """Answers for one peer, from before its founding or joining on."""

    def __init__(
        self, config: PeerConfig, directory: DataDirectory, clock: Clock, topics: TopicBoard
    ) -> None:
        self.peer: Peer | None = None
        """Set once the directory belongs to a cluster."""
        self.founder: Founder | None = None
        self.joiner: Joiner | None = None
        self._config = config
        self._directory = directory
        self._node_id = directory.identity().node_id
        self._clock = clock
        self._topics = topics

    def running(self) -> Peer:
        """The peer, or `UnavailableError`."""
        if self.peer is None:
            raise UnavailableError("the peer is not part of a cluster yet", retry_after_ms=100)
        return self.peer

    # --- introductions ---

    def hello(self, peer: NodeId) -> Hello:
        """See `InboundHandler.hello`."""
        running = self.running()
        return running.membership.hello(peer, standing_of(running.engine.core))

    def accepts(self, hello: Hello) -> str | None:
        """See `InboundHandler.accepts`."""
        if self.peer is not None:
            engine = self.peer.engine
            return self.peer.membership.accepts(
                hello,
                engine.applier.machine.feature_level,
                standing_of(engine.core),
                is_settled_leader=engine.is_settled_leader,
            )
        if self.joiner is not None:
            return self.joiner.accepts(hello)
        return f"{self._node_id} is not part of a cluster yet"

    def on_hello(self, hello: Hello) -> None:
        """See `InboundHandler.on_hello`."""
        if self.peer is not None and self.peer.membership.note(hello):
            self._topics.touch((STATUS_TOPIC,))

    def on_identify(self, request: IdentifyRequest) -> IdentifyResponse:
        """See `InboundHandler.on_identify`."""
        if self.founder is not None:
            self.founder.note_asker(request)
        empty = self._directory.is_empty
        identity = self._directory.identity()
        return IdentifyResponse(
            node_id=identity.node_id,
            peer_uuid=identity.peer_uuid,
            client_address=self._config.listen,
            empty=empty,
            bootstrapping=self._config.bootstrap,
            listed_peers=tuple((NodeId(name), address) for name, address in self._config.peers),
            settings=self._config.settings,
            founding=None if empty else self._founding(),
            feature_level=announced_level(self._config.consensus),
            software_version=__version__,
        )

    def _founding(self) -> Founding | None:
        """The first entries of the log, for founding peers that were late.

        Without entries where they are compacted, or not here yet: who finds itself among the
        members gets the log from a leader then, and the others know of which cluster this is.
        """
        peer = self.peer
        entries = (
            self._directory.log.read_entries(Index(1), 2)
            if peer is None
            else peer.engine.core.entries(Index(1), 2)
        )
        if len(entries) == 2 and entries[0].index == 1:
            if entries[0].kind is not EntryKind.CONFIGURATION:
                return None
            return Founding(*decode_configuration(entries[0].data), entries)
        if peer is None:
            return None
        return Founding(peer.membership.cluster_id, peer.membership.members, ())

    # --- messages ---

    def on_message(self, envelope: Envelope) -> None:
        """See `InboundHandler.on_message`."""
        if self.peer is not None:
            self.peer.heard_ns[envelope.from_node] = self._clock.monotonic_ns()
            self.peer.engine.on_message(envelope)

    async def on_forward(self, call: ForwardedCall) -> ForwardedOutcome:
        """See `InboundHandler.on_forward`."""
        return await self.running().router.answer_forwarded(call)

    def on_stream_broken(self, peer: NodeId) -> None:
        """See `InboundHandler.on_stream_broken`."""
        if self.peer is not None:
            self.peer.engine.report_unreachable(peer)
            self.peer.heard_ns.pop(peer, None)
            self.peer.breaks[peer] += 1
            self._topics.touch((STATUS_TOPIC,))

    def on_leader_gone(self, peer: NodeId, term: Term) -> None:
        """A killed leader is replaced at once.

        The followers take turns by rank, a step apart: rank r campaigns at steps r, r + n, r + 2n.
        Had each repeated a refused pre-vote at the next step, rank 0 (refused because rank 1 had
        not noticed yet) and rank 1 would campaign at the same moment and split the votes.
        """
        if self.peer is None or self.peer.engine.stopped:
            return
        engine = self.peer.engine
        candidates = [name for name in self.peer.membership.voters if name != peer]
        if engine.core.node_id not in candidates:
            return
        step_s = self._config.consensus.peer_lost_rank_delay_ms / 1000
        rank = candidates.index(engine.core.node_id)
        log.info("leader_gone", leader=peer, term=term)
        loop, now_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        for attempt in range(_LOST_ATTEMPTS):
            loop.call_at(
                now_s + (rank + attempt * len(candidates)) * step_s, self._campaign, peer, term
            )

    def _campaign(self, lost: NodeId, term: Term) -> None:
        engine = self.running().engine
        core = engine.core
        if not engine.stopped and core.term == term and core.leader_id in (NO_NODE, lost):
            engine.peer_lost(lost, term)

    # --- snapshots ---

    async def open_snapshot(self, meta: SnapshotMeta) -> OutgoingFile | None:
        """See `InboundHandler.open_snapshot`."""
        return await self.running().transfers.open(meta.index)

    async def receive_snapshot(
        self, from_node: NodeId, term: Term, meta: SnapshotMeta, size_bytes: int, sha256: bytes
    ) -> IncomingFile:
        """See `InboundHandler.receive_snapshot`."""
        return await self.running().transfers.receive(from_node, term, meta, size_bytes, sha256)

    def on_snapshot_sent(self, peer: NodeId, meta: SnapshotMeta, delivered: bool) -> None:
        """See `InboundHandler.on_snapshot_sent`."""
        if self.peer is not None:
            log.info("snapshot_sent", peer=peer, index=meta.index, delivered=delivered)
            self.peer.engine.report_snapshot(peer, delivered)
