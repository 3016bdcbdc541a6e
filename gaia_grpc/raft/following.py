"""A follower's side of replication (section 5.3): check, append, learn the commit index, answer."""

from __future__ import annotations

from gaia_grpc.errors import invariant
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.messages import AppendRequest, AppendResponse, SnapshotRequest
from gaia_grpc.raft.roles import Follower, Leader
from gaia_grpc.raft.types import NO_NODE, Entry, Index, NodeId, Term


def _hear_leader(core: Core, from_node: NodeId) -> Follower:
    """Whoever sends appends or a snapshot in this term won its election."""
    invariant(not isinstance(core.role, Leader), f"two leaders in term {core.term}")
    role = core.role
    if not isinstance(role, Follower) or role.leader_id == NO_NODE:
        role = core.become_follower(core.term, from_node)
    else:
        core.election_elapsed_ticks = 0
    invariant(role.leader_id == from_node, f"two leaders in term {core.term}")
    return role


def on_append_request(core: Core, from_node: NodeId, request: AppendRequest) -> None:
    """An append or heartbeat of this term."""
    role = _hear_leader(core, from_node)
    is_new_round = request.round > role.round_seen
    if is_new_round:
        role.round_seen = request.round
    if not core.log.matches(request.previous_index, request.previous_term) and (
        request.previous_index >= core.log.first_index - 1
    ):
        _refuse(core, from_node, request, role.round_seen)
        return
    _append(core, request)
    # What this request verified ends here. Our own log may be longer and differ there, so neither
    # the acknowledgement (faults B6) nor the commit index (faults B7) may look at its end.
    match_index = Index(request.previous_index + len(request.entries))
    core.commit_to(min(request.commit_index, match_index))
    if request.entries or is_new_round:
        _acknowledge(core, from_node, match_index, role.round_seen)


def on_snapshot_request(core: Core, from_node: NodeId, request: SnapshotRequest) -> None:
    """A snapshot of the leader has arrived (section 7); the answer is that of an append.

    It is of no use where all that it stands for is committed here (an older one that comes late,
    faults B20), and nothing is removed where the log already holds its last entry: "if instead the
    follower receives a snapshot that describes a prefix of its log, ... entries following the
    snapshot are still valid and must be retained".
    """
    role = _hear_leader(core, from_node)
    meta = request.meta
    if meta.index <= core.commit_index:
        match_index = core.commit_index
    else:
        match_index = meta.index
        if core.log.matches(meta.index, meta.term):
            core.commit_to(meta.index)
        else:
            core.install(meta)
    _acknowledge(core, from_node, match_index, role.round_seen)


def _append(core: Core, request: AppendRequest) -> None:
    """Steps 3 and 4 of AppendEntries in Figure 2."""
    entries: tuple[Entry, ...] = request.entries
    skipped = core.log.first_index - 1 - request.previous_index
    if skipped > 0:
        # Compacted entries are committed, hence the same in the leader's log.
        entries = entries[skipped:]
    if not entries:
        return
    if entries[0].index <= core.log.last_index:
        position = core.log.first_conflict(entries)
        if position is None:
            return
        entries = entries[position:]
        if entries[0].index <= core.log.last_index:
            core.truncate(entries[0].index)
    core.append(entries)


def _acknowledge(core: Core, to_node: NodeId, match_index: Index, round_seen: int) -> None:
    """Leaves once the entries and the term are on disk: at once, if they already are."""
    response = AppendResponse(True, match_index, Index(0), Index(0), Term(0), round_seen)
    durability = core.durability
    if match_index <= durability.durable_index and durability.hard_state_is_durable():
        core.send(to_node, response)
    else:
        core.send_when_durable(to_node, response)


def _refuse(core: Core, to_node: NodeId, request: AppendRequest, round_seen: int) -> None:
    hint_index, hint_term = core.log.last_at_or_below(request.previous_index, request.previous_term)
    core.send_when_durable(
        to_node,
        AppendResponse(False, Index(0), request.previous_index, hint_index, hint_term, round_seen),
    )


def refuse_stale_leader(core: Core, to_node: NodeId, rejected_index: Index) -> None:
    """Tells a leader of an older term about ours (section 5.1).

    Without the answer a peer whose term is ahead would be stuck: the others' lease makes them
    ignore its vote requests, and it refuses the leader's appends.
    """
    core.send_when_durable(
        to_node,
        AppendResponse(False, Index(0), rejected_index, Index(0), Term(0), 0),
    )
