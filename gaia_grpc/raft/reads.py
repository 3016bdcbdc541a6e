"""ReadIndex (thesis 6.4): linearizable reads without a log entry and without clocks.

A read that arrives waits for a heartbeat round that starts after it; the commit index at that
start, once a quorum has answered the round, is what the read must see applied. All reads of one
turn share a round. A read that arrived during a round can't use it: the answers may have been given
before it, and a newer leader may have committed in between.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gaia_grpc.raft.effects import ReadGrant, ReadId
from gaia_grpc.raft.types import Index


@dataclass(frozen=True, slots=True)
class _Round:
    number: int
    index: Index
    reads: tuple[ReadId, ...]


@dataclass(slots=True)
class ReadQueue:
    """The reads of one leader in one term."""

    waiting: list[ReadId] = field(default_factory=list)
    """Not in a round yet."""
    rounds: deque[_Round] = field(default_factory=deque)
    """Started, oldest first; numbers and indexes never fall."""

    def start_round(self, number: int, commit_index: Index) -> None:
        """Puts all waiting reads into the round that is about to be sent."""
        self.rounds.append(_Round(number, commit_index, tuple(self.waiting)))
        self.waiting.clear()

    def confirm(self, number: int) -> list[ReadGrant]:
        """A quorum has answered round `number`: it answers for all rounds before it too."""
        grants: list[ReadGrant] = []
        while self.rounds and self.rounds[0].number <= number:
            done = self.rounds.popleft()
            grants += [ReadGrant(read_id, done.index) for read_id in done.reads]
        return grants

    def drop_all(self) -> list[ReadId]:
        """Leadership is lost: every read must be asked again."""
        dropped = [read_id for started in self.rounds for read_id in started.reads]
        dropped += self.waiting
        self.rounds.clear()
        self.waiting.clear()
        return dropped
