"""Majorities: pure arithmetic over the voters, compared with a dumb twin in the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from gaia_grpc.raft.types import NodeId


class VoteResult(Enum):
    """Where an election stands."""

    PENDING = 0
    WON = 1
    LOST = 2


def majority(voter_count: int) -> int:
    """The smallest number of voters of which any two groups share a member."""
    return voter_count // 2 + 1


def reached_by_majority(values: Sequence[int]) -> int:
    """The largest value that a majority has reached; `values` has one number a voter.

    With match indexes this is the commit candidate (section 5.3), with heartbeat rounds the last
    confirmed round (thesis 6.4), with the ticks of last answers the time of the last quorum.
    """
    return sorted(values)[len(values) - majority(len(values))]


def tally(voters: Sequence[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    """Counts the votes of `voters` only; a missing vote may still come."""
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        granted += vote is True
        refused += vote is False
    needed = majority(len(voters))
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.LOST if len(voters) - refused < needed else VoteResult.PENDING
