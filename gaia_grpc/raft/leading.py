"""A leader's side: office, commit, reads, check-quorum (sections 5.3, 5.4.2; thesis 6.2, 6.4).

Nothing is sent while inputs are taken in: they mark `must_send`, and `sending.send_appends` runs
once a turn.
"""

from __future__ import annotations

from gaia_grpc.errors import invariant
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.messages import AppendResponse, SnapshotRequest
from gaia_grpc.raft.progress import Heartbeat, Progress, ProgressState
from gaia_grpc.raft.quorum import reached_by_majority
from gaia_grpc.raft.roles import Leader
from gaia_grpc.raft.types import NO_NODE, Entry, EntryKind, Index, NodeId


def take_office(core: Core) -> None:
    """Becomes leader and appends a no-op: entries of older terms commit only below one of its own
    (section 5.4.2), and only then is the commit index known to be current (section 8)."""
    next_index = Index(core.log.last_index + 1)
    leader = Leader(term_start=next_index)
    core.become_leader(leader)
    follow_configuration(core, leader)
    core.log.append((Entry(core.term, next_index, EntryKind.NOOP, b""),))


def follow_configuration(core: Core, leader: Leader) -> None:
    """Whom this leader replicates to, and who of them counts: those of the configuration in force.

    A peer that is new gets a fresh view, also where its name was used before (faults B26).
    """
    known, next_index = leader.progress_of, Index(core.log.last_index + 1)
    leader.progress_of = {
        peer: known.get(peer) or Progress(peer, False, next_index, last_heard_ticks=leader.ticks)
        for peer in core.peers
    }
    leader.progress = tuple(leader.progress_of.values())
    for each in leader.progress:
        each.is_voter = each.node_id in core.members.voters
    leader.must_send = True


def tick(core: Core, leader: Leader) -> None:
    """Heartbeats, check-quorum, and the end of a transfer that did not come about."""
    leader.ticks += 1
    if not has_quorum(core, leader):
        core.become_follower(core.term, NO_NODE)
        return
    if leader.transfer_to != NO_NODE:
        leader.transfer_elapsed_ticks += 1
        if leader.transfer_elapsed_ticks >= core.config.election_ticks_max:
            leader.transfer_to = NO_NODE
            if core.is_removed:
                core.become_follower(core.term, NO_NODE)
                return
    leader.heartbeat_elapsed_ticks += 1
    if leader.heartbeat_elapsed_ticks >= core.config.heartbeat_ticks:
        leader.heartbeat_elapsed_ticks = 0
        leader.round += 1
        leader.must_send = True
        for progress in leader.progress:
            progress.heartbeat = Heartbeat.TICK
            delivered_ticks = progress.delivered_ticks
            if delivered_ticks is not None and (
                leader.ticks - delivered_ticks >= core.config.election_ticks_max
            ):
                progress.probe(Index(progress.match_index + 1))  # it arrived and was lost there


def has_quorum(core: Core, leader: Leader) -> bool:
    """Whether a quorum has answered within an election timeout (check-quorum)."""
    heard = [each.last_heard_ticks for each in leader.progress if each.is_voter]
    if core.is_voter:
        heard.append(leader.ticks)
    return leader.ticks - reached_by_majority(heard) < core.config.election_ticks_max


def on_append_response(core: Core, from_node: NodeId, response: AppendResponse) -> None:
    """Any answer of this term confirms the leader; success moves the commit index."""
    leader = core.role
    if not isinstance(leader, Leader):
        return
    progress = leader.progress_of.get(from_node)
    if progress is None:
        return  # no member (any more)
    progress.last_heard_ticks = leader.ticks
    if response.round > progress.round_acknowledged:
        invariant(response.round <= leader.round, "an answer to a round that was not sent")
        progress.round_acknowledged = response.round
        grant_reads(core, leader)
    if response.success:
        invariant(response.match_index <= core.log.last_index, "an answer beyond our log")
        if progress.acknowledge(response.match_index):
            advance_commit(core, leader)
    else:
        hint_index, _ = core.log.last_at_or_below(response.hint_index, response.hint_term)
        if progress.refuse(response.rejected_index, hint_index):
            _offer_snapshot(core, progress)
    if progress.state is ProgressState.SNAPSHOT:
        progress.leave_snapshot(core.log.first_index)
    leader.must_send = True


def _offer_snapshot(core: Core, progress: Progress) -> None:
    """Once for a follower that needs entries which are compacted (section 7)."""
    snapshot = core.snapshot
    if snapshot is not None and progress.next_index < core.log.first_index:
        progress.await_snapshot(snapshot.index)
        core.send(progress.node_id, SnapshotRequest(snapshot))


def advance_commit(core: Core, leader: Leader) -> None:
    """Commits what a majority has on disk, if it ends in an entry of this term.

    Counting replicas of an older term is not enough (section 5.4.2, Figure 8): such an entry may
    still be overwritten by a leader that has a newer, shorter log.
    """
    matches = [each.match_index for each in leader.progress if each.is_voter]
    if core.is_voter:
        matches.append(core.durability.durable_index)
    index = Index(reached_by_majority(matches))
    if index >= leader.term_start and core.commit_to(index):
        leader.must_send = True


def grant_reads(core: Core, leader: Leader) -> None:
    """Answers the reads whose round a quorum, this leader included, has confirmed."""
    if leader.reads.rounds:
        rounds = [each.round_acknowledged for each in leader.progress if each.is_voter]
        if core.is_voter:
            rounds.append(leader.round)
        core.read_grants += leader.reads.confirm(reached_by_majority(rounds))


def report_snapshot(core: Core, leader: Leader, peer: NodeId, *, delivered: bool) -> None:
    """How the transfer that a SnapshotRequest asked for ended.

    One that failed is tried again, but not before the next heartbeat: a full disk at the other end
    must not make a loop.
    """
    progress = leader.progress_of.get(peer)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if delivered:
        progress.delivered_ticks = leader.ticks
    else:
        progress.probe(Index(progress.match_index + 1))
        progress.probe_sent = True


def report_unreachable(core: Core, leader: Leader, peer: NodeId) -> None:
    """What was under way to `peer` is lost, and it will not take over now.

    A snapshot has a connection of its own, and a report of its own.
    """
    progress = leader.progress_of.get(peer)
    if progress is not None and progress.state is not ProgressState.SNAPSHOT:
        progress.probe(Index(progress.match_index + 1))
        progress.probe_sent = True
    if peer == leader.transfer_to:
        leader.transfer_to = NO_NODE


def start_read_round(core: Core, leader: Leader) -> None:
    """Not before the own no-op is committed: an older commit index may lie below writes that
    the leader before has acknowledged (faults B10)."""
    if not leader.reads.waiting or core.commit_index < leader.term_start:
        return
    leader.round += 1
    leader.reads.start_round(leader.round, core.commit_index)
    for progress in leader.progress:
        if progress.is_voter and progress.heartbeat is Heartbeat.NONE:
            progress.heartbeat = Heartbeat.READ
    grant_reads(core, leader)
