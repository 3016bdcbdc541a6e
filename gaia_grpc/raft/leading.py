"""A leader's side: appends, commit, reads, check-quorum (sections 5.3, 5.4.2; thesis 6.2, 6.4).

Nothing is sent while inputs are taken in: they mark `must_send`, and `send_appends` runs once a
turn. So however many proposals and answers a turn brings, each follower gets few and full appends,
and one append may stand for entries, a commit index and a heartbeat round at once.
"""

from __future__ import annotations

from gaia_grpc.errors import invariant
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.messages import AppendRequest, AppendResponse, TimeoutNow
from gaia_grpc.raft.progress import Heartbeat, Progress, ProgressState
from gaia_grpc.raft.quorum import reached_by_majority
from gaia_grpc.raft.roles import Leader
from gaia_grpc.raft.types import NO_NODE, Entry, EntryKind, Index, NodeId


def take_office(core: Core) -> None:
    """Becomes leader and appends a no-op: entries of older terms commit only below one of its own
    (section 5.4.2), and only then is the commit index known to be current (section 8)."""
    next_index = Index(core.log.last_index + 1)
    progress = tuple(
        Progress(peer, peer in core.config.voters, next_index, last_heard_ticks=0)
        for peer in core.config.peers
    )
    core.become_leader(
        Leader(
            term_start=next_index,
            progress=progress,
            progress_of={each.node_id: each for each in progress},
        )
    )
    core.log.append((Entry(core.term, next_index, EntryKind.NOOP, b""),))


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
    leader.heartbeat_elapsed_ticks += 1
    if leader.heartbeat_elapsed_ticks >= core.config.heartbeat_ticks:
        leader.heartbeat_elapsed_ticks = 0
        leader.round += 1
        leader.must_send = True
        for progress in leader.progress:
            progress.heartbeat = Heartbeat.TICK


def has_quorum(core: Core, leader: Leader) -> bool:
    """Whether a quorum has answered within an election timeout (check-quorum)."""
    heard = [each.last_heard_ticks for each in leader.progress if each.is_voter]
    last_quorum_ticks = reached_by_majority([leader.ticks, *heard])
    return leader.ticks - last_quorum_ticks < core.config.election_ticks_max


def on_append_response(core: Core, from_node: NodeId, response: AppendResponse) -> None:
    """Any answer of this term confirms the leader; success moves the commit index."""
    leader = core.role
    if not isinstance(leader, Leader):
        return
    progress = leader.progress_of[from_node]
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
        progress.refuse(response.rejected_index, hint_index)
    leader.must_send = True


def advance_commit(core: Core, leader: Leader) -> None:
    """Commits what a majority has on disk, if it ends in an entry of this term.

    Counting replicas of an older term is not enough (section 5.4.2, Figure 8): such an entry may
    still be overwritten by a leader that has a newer, shorter log.
    """
    matches = [each.match_index for each in leader.progress if each.is_voter]
    matches.append(core.durability.durable_index)
    index = Index(reached_by_majority(matches))
    if index >= leader.term_start and core.commit_to(index):
        leader.must_send = True


def grant_reads(core: Core, leader: Leader) -> None:
    """Answers the reads whose round a quorum, this leader included, has confirmed."""
    if leader.reads.rounds:
        rounds = [each.round_acknowledged for each in leader.progress if each.is_voter]
        rounds.append(leader.round)
        core.read_grants += leader.reads.confirm(reached_by_majority(rounds))


def _start_read_round(core: Core, leader: Leader) -> None:
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


def send_appends(core: Core, leader: Leader) -> None:
    """Sends each follower what it may get now; runs once a turn."""
    leader.must_send = False
    _start_read_round(core, leader)
    batches: dict[Index, tuple[Entry, ...]] = {}
    for progress in leader.progress:
        if progress.next_index < core.log.first_index:
            # It needs entries that are compacted: until it has a snapshot it gets heartbeats only.
            if progress.heartbeat is not Heartbeat.NONE:
                _send_append(core, leader, progress, Index(core.log.first_index - 1), ())
        elif progress.state is ProgressState.PROBE:
            _send_probe(core, leader, progress)
        else:
            _send_entries(core, leader, progress, batches)
        progress.heartbeat = Heartbeat.NONE
    _send_timeout_now(core, leader)


def _send_entries(
    core: Core, leader: Leader, progress: Progress, batches: dict[Index, tuple[Entry, ...]]
) -> None:
    """Fills the window of a follower that keeps up.

    `batches` lets followers at the same index share one tuple, so that a transport can encode it
    once.
    """
    config, last_index = core.config, core.log.last_index
    sent = False
    while progress.next_index <= last_index and len(progress.window) < config.max_inflight_appends:
        entries = batches.get(progress.next_index)
        if entries is None:
            entries = core.log.batch(
                progress.next_index, config.max_entries_per_append, config.max_bytes_per_append
            )
            batches[progress.next_index] = entries
        is_partial = entries[-1].index == last_index
        if is_partial and len(progress.window) >= config.max_inflight_partial_appends:
            break  # the next answer sends them, with what has gathered by then
        _send_append(core, leader, progress, Index(progress.next_index - 1), entries)
        progress.next_index = Index(progress.next_index + len(entries))
        progress.window.append(Index(progress.next_index - 1))
        sent = True
    if sent:
        return
    previous_index = Index(progress.next_index - 1)
    # A follower learns at once that entries are committed: it serves reads and watches too. While
    # entries are under way their answer is awaited, and the append that follows it tells.
    owes_commit = not progress.window and progress.commit_sent < min(
        core.commit_index, previous_index
    )
    if progress.heartbeat is Heartbeat.READ:
        _send_append(core, leader, progress, progress.match_index, ())
    elif progress.heartbeat is Heartbeat.TICK or owes_commit:
        _send_append(core, leader, progress, previous_index, ())


def _send_probe(core: Core, leader: Leader, progress: Progress) -> None:
    """One append with entries, then an empty one with each heartbeat until an answer comes."""
    if not progress.probe_sent:
        entries = core.log.batch(
            progress.next_index,
            core.config.max_entries_per_append,
            core.config.max_bytes_per_append,
        )
    elif progress.heartbeat is not Heartbeat.NONE:
        entries = ()
    else:
        return
    progress.probe_sent = True
    _send_append(core, leader, progress, Index(progress.next_index - 1), entries)


def _send_append(
    core: Core,
    leader: Leader,
    progress: Progress,
    previous_index: Index,
    entries: tuple[Entry, ...],
) -> None:
    """In parallel with the leader's own write: a follower may have the entries first (10.2.1)."""
    log = core.log
    core.send(
        progress.node_id,
        AppendRequest(
            previous_index, log.term_at(previous_index), entries, core.commit_index, leader.round
        ),
    )
    reached = min(core.commit_index, Index(previous_index + len(entries)))
    if reached > progress.commit_sent:
        progress.commit_sent = reached


def _send_timeout_now(core: Core, leader: Leader) -> None:
    """Once the follower that shall take over has the whole log (thesis 3.10)."""
    if leader.transfer_to == NO_NODE or leader.timeout_now_sent:
        return
    if leader.progress_of[leader.transfer_to].match_index == core.log.last_index:
        leader.timeout_now_sent = True
        core.send(leader.transfer_to, TimeoutNow())
