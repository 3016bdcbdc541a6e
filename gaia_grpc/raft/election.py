"""Elections: timers, pre-votes, votes and leadership transfer (sections 5.2 and 5.4.1).

Beyond the paper, always on: pre-votes (thesis 9.6), so that a peer that can't win does not raise
its term; and the lease (thesis 4.2.3): who heard a leader within the minimum election timeout
neither votes nor learns a term from a vote request. Together with check-quorum in `leading.py` a
cluster with one broken link keeps its leader (faults B14).
"""

from __future__ import annotations

from gaia_grpc.raft import leading
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.messages import (
    PreVoteRequest,
    PreVoteResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.quorum import VoteResult, tally
from gaia_grpc.raft.roles import Candidate, Follower, Leader, PreCandidate
from gaia_grpc.raft.types import NO_NODE, NodeId, Term


def tick(core: Core) -> None:
    """One tick of a peer that does not lead."""
    core.election_elapsed_ticks += 1
    if core.election_elapsed_ticks >= core.election_timeout_ticks:
        if core.may_campaign:
            start_pre_vote(core)
        else:
            core.become_follower(core.term, NO_NODE)
            core.restart_election_timer()


def has_lease(core: Core) -> bool:
    """Whether a leader was heard so lately that nobody else may be helped to lead."""
    if isinstance(core.role, Leader):
        return True  # check-quorum ends a leader's claim, not a rival's request
    return (
        core.leader_id != NO_NODE and core.election_elapsed_ticks < core.config.election_ticks_min
    )


def start_pre_vote(core: Core) -> None:
    """Asks whether an election in the next term could be won. Term and vote stay as they are."""
    role = core.become_pre_candidate()
    request = PreVoteRequest(core.log.last_index, core.log.last_term)
    for voter in core.members.voters:
        if voter != core.node_id:
            core.send(voter, request, Term(core.term + 1))
    _count_pre_votes(core, role)


def start_election(core: Core, *, leadership_transfer: bool) -> None:
    """Raises the term and asks for votes once the own vote is on disk (section 5.2)."""
    core.become_candidate()
    request = VoteRequest(core.log.last_index, core.log.last_term, leadership_transfer)
    for voter in core.members.voters:
        if voter != core.node_id:
            core.send_when_durable(voter, request)


def on_pre_vote_request(
    core: Core, from_node: NodeId, asked_term: Term, request: PreVoteRequest
) -> None:
    """Grants what would be granted as a vote now; promises nothing, so it waits for no disk."""
    could_vote = asked_term > core.term or (
        asked_term == core.term
        and core.leader_id == NO_NODE
        and core.voted_for in (NO_NODE, from_node)
    )
    granted = (
        could_vote
        and not has_lease(core)
        and core.log.is_up_to_date(request.last_index, request.last_term)
    )
    core.send(from_node, PreVoteResponse(granted), asked_term if granted else core.term)


def on_pre_vote_response(
    core: Core, from_node: NodeId, term: Term, response: PreVoteResponse
) -> None:
    """Counts it if it answers the pre-vote under way; the first answer of a peer stands."""
    expected_term = core.term + 1 if response.granted else core.term
    if isinstance(core.role, PreCandidate) and term == expected_term:
        core.role.votes.setdefault(from_node, response.granted)
        _count_pre_votes(core, core.role)


def _count_pre_votes(core: Core, role: PreCandidate) -> None:
    result = tally(core.members.voters, role.votes)
    if result is VoteResult.WON:
        start_election(core, leadership_transfer=False)
    elif result is VoteResult.LOST:
        core.become_follower(core.term, NO_NODE, role.lost_leader_id)


def on_vote_request(core: Core, from_node: NodeId, request: VoteRequest) -> None:
    """One vote a term, first come first served, and only for a log as new as ours (5.4.1)."""
    granted = (
        core.leader_id in (NO_NODE, from_node)
        and core.voted_for in (NO_NODE, from_node)
        and core.log.is_up_to_date(request.last_index, request.last_term)
    )
    if granted:
        if isinstance(core.role, PreCandidate):
            core.become_follower(core.term, NO_NODE)
        core.vote_for(from_node)
        core.restart_election_timer()
    core.send_when_durable(from_node, VoteResponse(granted))


def on_vote_response(core: Core, from_node: NodeId, response: VoteResponse) -> None:
    """Counts a vote of this term; a repeated or changed answer counts once (faults B11)."""
    if isinstance(core.role, Candidate):
        core.role.votes.setdefault(from_node, response.granted)
        _count_votes(core, core.role)


def _count_votes(core: Core, role: Candidate) -> None:
    result = tally(core.members.voters, role.votes)
    if result is VoteResult.WON:
        leading.take_office(core)
    elif result is VoteResult.LOST:
        core.become_follower(core.term, NO_NODE)


def on_durable(core: Core) -> None:
    """A candidate counts its own vote once the vote is on disk, like every other peer's."""
    if isinstance(core.role, Candidate) and core.durability.hard_state_is_durable():
        core.role.votes[core.node_id] = True
        _count_votes(core, core.role)


def on_timeout_now(core: Core, from_node: NodeId, message: TimeoutNow) -> None:
    """The leader hands over (thesis 3.10): no pre-vote, and the lease does not count."""
    if isinstance(core.role, Follower) and core.may_campaign:
        start_election(core, leadership_transfer=True)


def on_peer_lost(core: Core, peer: NodeId, term: Term) -> None:
    """The process of `peer` is gone; if it led this term, campaign without waiting (design 4).

    May be called again for the same leader, to repeat a pre-vote that was refused because the
    others had not noticed yet. A leader that was heard since makes the call void.
    """
    if term != core.term or not core.may_campaign:
        return
    if isinstance(core.role, Follower) and core.role.leader_id == peer:
        core.become_follower(core.term, NO_NODE, lost_leader_id=peer)
        start_pre_vote(core)
    elif isinstance(core.role, Follower | PreCandidate) and core.role.lost_leader_id == peer:
        start_pre_vote(core)


def on_campaign(core: Core) -> None:
    """As if the election timeout had run out, where nobody leads and no election is under way."""
    is_idle = isinstance(core.role, Follower | PreCandidate) and core.leader_id == NO_NODE
    if is_idle and core.may_campaign:
        start_pre_vote(core)
