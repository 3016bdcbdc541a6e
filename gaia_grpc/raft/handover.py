"""Leadership transfer and changes of the members (thesis 3.10 and chapter 4).

One voter at a time, one change at a time, each in force once it is appended. A leader that removes
itself leads on until that is committed, without counting itself, and then hands over (4.2.2).
"""

from __future__ import annotations

from gaia_grpc.errors import ConfigurationRefusedError, InvalidArgumentError
from gaia_grpc.raft import leading
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.membership import flaw_of_change
from gaia_grpc.raft.messages import TimeoutNow
from gaia_grpc.raft.roles import Leader
from gaia_grpc.raft.types import NO_NODE, Entry, EntryId, EntryKind, Index, NodeId


def start_transfer(core: Core, leader: Leader, to_node: NodeId) -> None:
    """Takes no more proposals, catches `to_node` up and tells it to run (thesis 3.10)."""
    if to_node not in core.members.voters:
        raise InvalidArgumentError(f"{to_node} is no voter of this cluster")
    if to_node == core.node_id or leader.transfer_to == to_node:
        return
    leader.transfer_to = to_node
    leader.transfer_elapsed_ticks = 0
    leader.timeout_now_sent = False
    leader.must_send = True


def go_on(core: Core, leader: Leader) -> None:
    """Once the follower that shall take over has the whole log, it is told to run (thesis 3.10)."""
    if not core.is_voter and core.is_removed and leader.transfer_to == NO_NODE:
        leader.transfer_to = _furthest_voter(core, leader)
        leader.transfer_elapsed_ticks = 0
        leader.timeout_now_sent = False
    if leader.transfer_to == NO_NODE or leader.timeout_now_sent:
        return
    if leader.progress_of[leader.transfer_to].match_index == core.log.last_index:
        leader.timeout_now_sent = True
        core.send(leader.transfer_to, TimeoutNow())
        if core.is_removed:
            core.become_follower(core.term, NO_NODE)


def step_down(core: Core, leader: Leader) -> None:
    """Gives up leadership now; the furthest voter need not wait for its election timeout."""
    successor = _furthest_voter(core, leader)
    if successor != NO_NODE:
        core.send(successor, TimeoutNow())
    core.become_follower(core.term, NO_NODE)


def _furthest_voter(core: Core, leader: Leader) -> NodeId:
    """Among those that were heard lately, if there are any; `NO_NODE` if nobody else votes."""
    lately = leader.ticks - core.config.election_ticks_min
    voters = [each for each in leader.progress if each.is_voter]
    if not voters:
        return NO_NODE
    best = max(voters, key=lambda each: (each.last_heard_ticks > lately, each.match_index))
    return best.node_id


def propose_configuration(core: Core, leader: Leader, data: bytes) -> EntryId:
    """Appends a configuration, which is in force at once (thesis 4.1).

    Not before an entry of this term is committed: the log may hold a configuration of an older
    leader, whose majority and that of the new one need not overlap before (the bug of 2015).
    """
    if core.commit_index < leader.term_start:
        raise ConfigurationRefusedError("this leader has not committed an entry of its term yet")
    if not core.configuration_is_committed:
        raise ConfigurationRefusedError("the change of the members before is not committed yet")
    flaw = flaw_of_change(core.members, core.configurations.decode(data))
    if flaw is not None:
        raise ConfigurationRefusedError(flaw)
    index = Index(core.log.last_index + 1)
    core.append((Entry(core.term, index, EntryKind.CONFIGURATION, data),))
    leading.follow_configuration(core, leader)
    leading.advance_commit(core, leader)
    leading.grant_reads(core, leader)
    return EntryId(core.term, index)
