"""What a leader sends to each follower, once a turn (sections 5.3 and 7).

However many proposals and answers a turn brings, each follower gets few and full appends, and one
append may stand for entries, a commit index and a heartbeat round at once.
"""

from __future__ import annotations

from gaia_grpc.raft import handover, leading
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.messages import AppendRequest
from gaia_grpc.raft.progress import Heartbeat, Progress, ProgressState
from gaia_grpc.raft.roles import Leader
from gaia_grpc.raft.types import Entry, Index


def send_appends(core: Core, leader: Leader) -> None:
    """Sends each follower what it may get now; runs once a turn."""
    leader.must_send = False
    leading.start_read_round(core, leader)
    batches: dict[Index, tuple[Entry, ...]] = {}
    for progress in leader.progress:
        if progress.state is ProgressState.SNAPSHOT:
            _send_beside_snapshot(core, leader, progress)
            continue
        if progress.next_index < core.log.first_index:
            progress.skip_compacted(core.log.first_index)
        if progress.state is ProgressState.PROBE:
            _send_probe(core, leader, progress)
        else:
            _send_entries(core, leader, progress, batches)
        progress.heartbeat = Heartbeat.NONE
    handover.go_on(core, leader)


def _send_beside_snapshot(core: Core, leader: Leader, progress: Progress) -> None:
    """Heartbeats at the base of the log: they keep the follower from campaigning, and one that is
    accepted shows that it has got what it lacked."""
    if progress.heartbeat is not Heartbeat.NONE:
        progress.heartbeat = Heartbeat.NONE
        _send_append(core, leader, progress, core.log.base.index, ())


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
    if progress.heartbeat is Heartbeat.READ and progress.match_index >= core.log.base.index:
        _send_append(core, leader, progress, progress.match_index, ())
    elif progress.heartbeat is not Heartbeat.NONE or owes_commit:
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
