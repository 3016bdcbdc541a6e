"""The four roles, each with the data that only it has, and the changes between them.

    FOLLOWER --timeout--> PRE_CANDIDATE --quorum would vote--> CANDIDATE --quorum votes--> LEADER
        ^                      |                                   |                         |
        +----------------------+---- a leader, a higher term, ------+-- or no quorum ---------+

A follower that the leader told to take over (`TimeoutNow`) becomes a candidate at once; a candidate
whose election timed out asks for pre-votes again (it must not raise its term alone, faults B13).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.progress import Progress
from gaia_grpc.raft.reads import ReadQueue
from gaia_grpc.raft.types import NO_NODE, Index, NodeId


@dataclass(slots=True)
class Follower:
    """Answers others. `leader_id` is the leader of the current term, as far as it was heard."""

    leader_id: NodeId = NO_NODE
    lost_leader_id: NodeId = NO_NODE
    """The leader of this term whose process is known to be gone; kept for repeated campaigns."""
    round_seen: int = 0


@dataclass(slots=True)
class PreCandidate:
    """Asks whether an election could be won (thesis 9.6). Its term has not changed."""

    votes: dict[NodeId, bool]
    lost_leader_id: NodeId = NO_NODE


@dataclass(slots=True)
class Candidate:
    """Has raised its term. Its own vote is in `votes` only once it is on disk."""

    votes: dict[NodeId, bool] = field(default_factory=dict)


@dataclass(slots=True)
class Leader:
    """Owns the log of its term."""

    term_start: Index
    """The no-op of this term; until it is committed nothing is read or known to be committed."""
    progress: tuple[Progress, ...] = ()
    """Of all other members, sorted by node id."""
    progress_of: dict[NodeId, Progress] = field(default_factory=dict)
    round: int = 1
    reads: ReadQueue = field(default_factory=ReadQueue)
    ticks: int = 0
    heartbeat_elapsed_ticks: int = 0
    must_send: bool = True
    """Something changed that may let an append go out in this turn."""
    transfer_to: NodeId = NO_NODE
    transfer_elapsed_ticks: int = 0
    timeout_now_sent: bool = False


Role = Follower | PreCandidate | Candidate | Leader

# A follower without a vote is called a learner; it is no role of its own.
ROLE_NAMES: dict[type[Role], RoleName] = {
    Follower: RoleName.FOLLOWER,
    PreCandidate: RoleName.PRE_CANDIDATE,
    Candidate: RoleName.CANDIDATE,
    Leader: RoleName.LEADER,
}

ALLOWED_TRANSITIONS: dict[RoleName, tuple[RoleName, ...]] = {
    RoleName.FOLLOWER: (RoleName.FOLLOWER, RoleName.PRE_CANDIDATE, RoleName.CANDIDATE),
    RoleName.PRE_CANDIDATE: (RoleName.FOLLOWER, RoleName.PRE_CANDIDATE, RoleName.CANDIDATE),
    RoleName.CANDIDATE: (RoleName.FOLLOWER, RoleName.PRE_CANDIDATE, RoleName.LEADER),
    RoleName.LEADER: (RoleName.FOLLOWER,),
}
