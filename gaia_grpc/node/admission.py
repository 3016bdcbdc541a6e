"""What a leader takes into its log, and what it refuses before anything of it is there."""

from __future__ import annotations

from gaia.command.v1 import command_pb2

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    OverloadedError,
    ResourceExhaustedError,
)
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.pending import RETRY_AFTER_MS, Proposal, ProposalQueue
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.state.feature_levels import FEATURE_LEVEL, required_level


class Admission:
    """Stands before the proposals of one peer; every limit is that of `ConsensusConfig`."""

    def __init__(
        self,
        core: RaftNode,
        applier: Applier,
        config: ConsensusConfig,
        *,
        max_command_size_bytes: int,
    ) -> None:
        self.proposals = ProposalQueue()
        self.disk_full = False
        self._core = core
        self._applier = applier
        self._config = config
        self._max_command_size_bytes = max_command_size_bytes

    def put(self, command: bytes) -> Proposal:
        """Queues a client's command; raises like `Engine.propose`."""
        self.check_size(command)
        self._check_level(command)
        if self.disk_full:
            raise ResourceExhaustedError(
                "the disk of the leader is full", reason="STORAGE_FULL", retry_after_ms=1_000
            )
        # Followers commit what the disk of a slow leader does not hold yet: that is bounded too.
        not_durable = self._core.last_index - self._core.durable_index
        waiting = len(self.proposals) + max(self._applier.waiting_proposals, not_durable)
        size_bytes = self.proposals.size_bytes + self._applier.waiting_size_bytes
        # A command that is larger than the whole budget passes alone.
        if waiting and (
            waiting >= self._config.max_pending_proposals
            or size_bytes + len(command) > self._config.max_pending_size_bytes
        ):
            raise OverloadedError(f"{waiting} proposals are waiting", retry_after_ms=RETRY_AFTER_MS)
        return self.proposals.put(command)

    def check_size(self, command: bytes) -> None:
        """Raises `InvalidArgumentError` for a command that no frame between peers can hold: in the
        log it would break the append stream of each follower, again and again."""
        if len(command) > self._max_command_size_bytes:
            raise InvalidArgumentError(
                f"a command of {len(command)} bytes exceeds {self._max_command_size_bytes}",
                reason="COMMAND_TOO_LARGE",
            )

    def _check_level(self, command: bytes) -> None:
        """A kind that some member does not know would stop that member for good.

        Ingress has looked already. Only while a cluster is being upgraded is there anything to
        find, so that is the only time in which a command is decoded once more.
        """
        level = self._applier.machine.feature_level
        if level >= FEATURE_LEVEL:
            return
        kind = command_pb2.Command.FromString(command).WhichOneof("body")
        if kind is not None and required_level(kind) > level:
            raise FailedPreconditionError(
                f"not every member knows this yet: the cluster has feature level {level}",
                reason="FEATURE_LEVEL",
            )
