"""What waits at a leader: commands on their way into the log, reads on their way to an index."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gaia_grpc.config import LimitsConfig
from gaia_grpc.errors import GaiaError, OverloadedError
from gaia_grpc.node.api import Applied
from gaia_grpc.raft.effects import ReadId

RETRY_AFTER_MS = 50
_FRAME_OVERHEAD_BYTES = 64 << 10

ReadFuture = asyncio.Future[tuple[int, int]]


def max_command_size_bytes(limits: LimitsConfig) -> int:
    """What one frame between peers can hold, and no more than a client's message can become.

    The peers stand still while they take a command in: for one of 60 MB longer than an election
    timeout.
    """
    return min(
        limits.peer_max_message_size_bytes - _FRAME_OVERHEAD_BYTES,
        2 * limits.max_message_size_bytes,
    )


@dataclass(slots=True)
class Proposal:
    """One command on its way into the log. Once `admitted` its fate is decided by the log."""

    command: bytes
    future: asyncio.Future[Applied]
    admitted: bool = False


class ProposalQueue:
    """Commands that gather between two turns."""

    def __init__(self) -> None:
        self._proposals: deque[Proposal] = deque()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._proposals)

    def put(self, command: bytes) -> Proposal:
        """Queues a command."""
        proposal = Proposal(command, asyncio.get_running_loop().create_future())
        self._proposals.append(proposal)
        self.size_bytes += len(command)
        return proposal

    def take(self) -> list[Proposal]:
        """All whose callers still wait, in order; the queue is empty afterwards."""
        taken = [proposal for proposal in self._proposals if not proposal.future.done()]
        self._proposals.clear()
        self.size_bytes = 0
        return taken

    def refuse(self, error: Callable[[], GaiaError]) -> None:
        """Nobody who waits will get into the log.

        Each gets an error of its own: a shared one would collect the traceback of all who raise it.
        """
        for proposal in self.take():
            proposal.future.set_exception(error())


class ReadQueue:
    """Reads that gather between two turns, and those whose round is under way."""

    def __init__(self, peer_uuid: str, boot: int, max_reads: int) -> None:
        self._peer_uuid = peer_uuid
        self._boot = boot
        self._max_reads = max_reads
        self._rounds = 0
        self._gathered: list[ReadFuture] = []
        self._under_way: dict[ReadId, list[ReadFuture]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Gathered and under way, together; bounded by `max_reads`."""
        return self._count

    def put(self) -> ReadFuture:
        """Queues a read; raises `OverloadedError`."""
        if self._count >= self._max_reads:
            raise OverloadedError("too many reads are waiting", retry_after_ms=RETRY_AFTER_MS)
        future: ReadFuture = asyncio.get_running_loop().create_future()
        self._gathered.append(future)
        self._count += 1
        return future

    def start_round(self) -> ReadId | None:
        """Puts all that has gathered under one id; None where nothing has."""
        if not self._gathered:
            return None
        self._rounds += 1
        read_id = ReadId(self._peer_uuid, self._boot, self._rounds)
        self._under_way[read_id], self._gathered = self._gathered, []
        return read_id

    def grant(self, read_id: ReadId, index: int, elapsed_ms: int) -> None:
        """The reads of a round may be served from `index` on."""
        for future in self._end(read_id):
            future.set_result((index, elapsed_ms))

    def drop(self, read_id: ReadId, error: Callable[[], GaiaError]) -> None:
        """The reads of a round must be asked again."""
        for future in self._end(read_id):
            future.set_exception(error())

    def drop_gathered(self, error: Callable[[], GaiaError]) -> None:
        """The reads that are in no round yet must be asked elsewhere."""
        gathered, self._gathered = self._gathered, []
        self._count -= len(gathered)
        for future in gathered:
            if not future.done():
                future.set_exception(error())

    def drop_all(self, error: Callable[[], GaiaError]) -> None:
        """Nobody who waits will get an index here."""
        self.drop_gathered(error)
        for read_id in list(self._under_way):
            self.drop(read_id, error)

    def _end(self, read_id: ReadId) -> list[ReadFuture]:
        futures = self._under_way.pop(read_id, [])
        self._count -= len(futures)
        return [future for future in futures if not future.done()]
