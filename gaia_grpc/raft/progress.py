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
    SNAPSHOT = 2
    """It needs entries that are compacted: a snapshot is on its way, beside it only heartbeats."""


class Heartbeat(Enum):
    """What the next append to this follower is owed for, beside entries."""

    NONE = 0
    READ = 1
    """A read round: sent at `match_index`, which is on the follower's disk, so that the answer
    waits for no write there."""
    TICK = 2
    """The timer: sent at `next_index - 1`, so that a lost append shows as a refusal."""


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """What a leader shows of one follower; `state` is probe, replicate or snapshot."""

    state: str
    match_index: Index
    next_index: Index
    inflight: int
    """Appends with entries that are not answered yet."""
    heard_ticks_ago: int
    snapshot_index: Index = Index(0)
    """Up to here the snapshot on its way reaches; 0 where none is."""


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
    snapshot_index: Index = Index(0)
    """Up to here the snapshot on its way reaches, in SNAPSHOT."""
    delivered_ticks: int | None = None
    """The leader's tick count when that snapshot had arrived; None while it is on its way."""
    round_acknowledged: int = 0
    heartbeat: Heartbeat = Heartbeat.NONE

    def acknowledge(self, match_index: Index) -> bool:
        """The follower holds our log up to `match_index`; True if that is news."""
        is_news = match_index > self.match_index
        if is_news:
            self.match_index = match_index
        if self.state is ProgressState.PROBE:
            if is_news or match_index + 1 == self.next_index:
                self._replicate()
            return is_news
        if self.state is ProgressState.SNAPSHOT:
            return is_news  # `leave_snapshot` looks at what it means
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
        if rejected_index <= self.match_index or self.state is ProgressState.SNAPSHOT:
            return False
        if self.state is ProgressState.PROBE and rejected_index != self.next_index - 1:
            return False
        self.probe(Index(min(rejected_index, hint_index + 1)))
        return True

    def probe(self, next_index: Index) -> None:
        """Goes back to sending one append at a time, from `next_index` on."""
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.delivered_ticks = None
        self.window.clear()
        self.next_index = Index(max(next_index, self.match_index + 1))
        self.commit_sent = self.match_index

    def await_snapshot(self, index: Index) -> None:
        """A snapshot up to `index` was asked for."""
        self.state = ProgressState.SNAPSHOT
        self.window.clear()
        self.commit_sent = self.match_index
        self.snapshot_index = index
        self.delivered_ticks = None

    def skip_compacted(self, first_index: Index) -> None:
        """The entries at `next_index` are compacted: asks whether the follower has got them.

        Only its refusal leads to a snapshot: it may have them, without our knowledge, and to one
        that does not answer nothing large is sent.
        """
        waits = self.state is ProgressState.PROBE and self.probe_sent
        self.probe(first_index)
        self.probe_sent = waits

    def leave_snapshot(self, first_index: Index) -> None:
        """Goes on with entries as soon as the log of the leader, from `first_index` on, allows it.

        How the follower came so far does not matter: it may have been another snapshot than the one
        that is on its way. With that one in place and the entries behind it compacted meanwhile, it
        takes a newer one.
        """
        if self.match_index + 1 >= first_index:
            self._replicate()
        elif self.match_index >= self.snapshot_index:
            self.probe(Index(self.match_index + 1))

    def view(self, now_ticks: int) -> PeerProgress:
        return PeerProgress(
            self.state.name.lower(),
            self.match_index,
            self.next_index,
            len(self.window),
            now_ticks - self.last_heard_ticks,
            self.snapshot_index if self.state is ProgressState.SNAPSHOT else Index(0),
        )

    def _replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.probe_sent = False
        self.delivered_ticks = None
        self.next_index = Index(self.match_index + 1)
