"""A leader's view of one follower: where its log ends, and how much may be under way to it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from gaia_grpc.raft.types import Index, NodeId


class ProgressState(Enum):
    """How appends are sent."""

    PROBE = 0
    """It is not known where the logs meet: one append, then wait for its answer."""
    REPLICATE = 1
    """They meet at `match_index`: `next_index` runs ahead, up to the window's size."""


class Heartbeat(Enum):
    """What the next append to this follower is owed for, beside entries."""

    NONE = 0
    READ = 1
    """A read round: sent at `match_index`, which is on the follower's disk, so that the answer
    waits for no write there."""
    TICK = 2
    """The timer: sent at `next_index - 1`, so that a lost append shows as a refusal."""


@dataclass(slots=True)
class Progress:
    """Invariant: 0 <= match_index < next_index; match_index never falls within a term."""

    node_id: NodeId
    is_voter: bool
    next_index: Index
    last_heard_ticks: int
    """The leader's tick count at the last answer (check-quorum, thesis 6.2)."""
    match_index: Index = Index(0)
    state: ProgressState = ProgressState.PROBE
    probe_sent: bool = False
    window: deque[Index] = field(default_factory=deque)
    """The last index of each append under way, oldest first."""
    commit_sent: Index = Index(0)
    """The commit index that the follower can know once all that was sent has arrived."""
    round_acknowledged: int = 0
    heartbeat: Heartbeat = Heartbeat.NONE

    def acknowledge(self, match_index: Index) -> bool:
        """The follower holds our log up to `match_index`; True if that is news."""
        is_news = match_index > self.match_index
        if is_news:
            self.match_index = match_index
        if self.state is ProgressState.PROBE:
            if is_news or match_index + 1 == self.next_index:
                self.state = ProgressState.REPLICATE
                self.next_index = Index(self.match_index + 1)
            return is_news
        window = self.window
        while window and window[0] <= match_index:
            window.popleft()
        if self.next_index <= match_index:
            self.next_index = Index(match_index + 1)
        return is_news

    def refuse(self, rejected_index: Index, hint_index: Index) -> bool:
        """An append at `rejected_index` did not fit; the logs may meet at `hint_index` or before.

        False for an answer that was overtaken: one at or below what has matched since, or one
        that does not belong to the probe under way.
        """
        if rejected_index <= self.match_index:
            return False
        if self.state is ProgressState.PROBE and rejected_index != self.next_index - 1:
            return False
        self.probe(Index(min(rejected_index, hint_index + 1)))
        return True

    def probe(self, next_index: Index) -> None:
        """Goes back to sending one append at a time, from `next_index` on."""
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.window.clear()
        self.next_index = Index(max(next_index, self.match_index + 1))
        self.commit_sent = self.match_index
