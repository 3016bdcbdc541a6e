"""Majority arithmetic against a twin that tries every number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.raft.quorum import VoteResult, majority, reached_by_majority, tally
from gaia_grpc.raft.types import NodeId
from tests.support.cluster import names


def reached_by_counting(values: list[int]) -> int:
    """The largest value that more than half of the voters have reached."""
    return max(each for each in values if 2 * sum(v >= each for v in values) > len(values))


@given(st.lists(st.integers(0, 10), min_size=1, max_size=9))
def test_a_majority_has_reached_the_value_and_no_higher_one(values: list[int]) -> None:
    assert reached_by_majority(values) == reached_by_counting(values)


def test_any_two_majorities_share_a_member() -> None:
    for count in range(1, 12):
        assert 2 * majority(count) > count
        assert 2 * (majority(count) - 1) <= count


@given(
    st.sampled_from([1, 3, 5, 7]),
    st.dictionaries(st.sampled_from([*names(7), NodeId("stranger")]), st.booleans()),
)
def test_a_vote_is_won_lost_or_open(size: int, votes: dict[NodeId, bool]) -> None:
    voters = names(size)
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    missing = sum(1 for voter in voters if voter not in votes)
    expected = VoteResult.PENDING
    if 2 * granted > size:
        expected = VoteResult.WON
    elif 2 * (granted + missing) <= size:
        expected = VoteResult.LOST
    assert tally(voters, votes) is expected
