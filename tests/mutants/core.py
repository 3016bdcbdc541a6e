"""Deliberate bugs of the core."""

from __future__ import annotations

from tests.mutants.catalogue import Mutant

CORE = "gaia_grpc/raft/core.py"
DURABILITY = "gaia_grpc/raft/durability.py"
ELECTION = "gaia_grpc/raft/election.py"
FOLLOWING = "gaia_grpc/raft/following.py"
HANDOVER = "gaia_grpc/raft/handover.py"
INBOX = "gaia_grpc/raft/inbox.py"
LEADING = "gaia_grpc/raft/leading.py"
LOG = "gaia_grpc/raft/log.py"
MEMBERSHIP = "gaia_grpc/raft/membership.py"
NODE = "gaia_grpc/raft/node.py"
PROGRESS = "gaia_grpc/raft/progress.py"
QUORUM = "gaia_grpc/raft/quorum.py"
SENDING = "gaia_grpc/raft/sending.py"
T_CAMPAIGN = "tests/raft/test_campaign.py::"
T_DURABILITY = "tests/raft/test_durability.py::"
T_FAULTS = "tests/raft/test_faults.py::"
T_FAULTS_MEMBERS = "tests/raft/test_faults_members.py::"
T_FAULTS_SNAPSHOTS = "tests/raft/test_faults_snapshots.py::"
T_LOG = "tests/raft/test_log.py::"
T_MEMBERSHIP = "tests/raft/test_membership.py::"
T_NODE = "tests/raft/test_node.py::"
T_PAPER = "tests/raft/test_paper.py::"
T_PAPER_MEMBERS = "tests/raft/test_paper_members.py::"
T_PAPER_SNAPSHOTS = "tests/raft/test_paper_snapshots.py::"
T_PROGRESS = "tests/raft/test_progress.py::"
T_TRACES = "tests/raft/test_traces.py::"

MUTANTS = (
    Mutant(
        "B1",
        "a vote leaves before its write",
        ELECTION,
        "core.send_when_durable(from_node, VoteResponse(granted))\n\n\ndef on_vote_response",
        "core.send(from_node, VoteResponse(granted))\n\n\ndef on_vote_response",
        (
            T_FAULTS + "test_b01_a_vote_leaves_only_after_its_write",
            T_FAULTS + "test_b01_a_repeated_request_is_not_answered_before_the_first_write_either",
        ),
        fast=True,
    ),
    Mutant(
        "B1",
        "a candidacy leaves before its write",
        ELECTION,
        "core.send_when_durable(voter, request)",
        "core.send(voter, request)",
        (T_FAULTS + "test_b01_a_candidate_counts_itself_only_when_its_vote_is_on_disk",),
        fast=True,
    ),
    Mutant(
        "B1",
        "a candidate counts its vote at once",
        CORE,
        "self._become(Candidate())",
        "self._become(Candidate({self.node_id: True}))",
        (T_FAULTS + "test_b01_a_candidate_counts_itself_only_when_its_vote_is_on_disk",),
    ),
    Mutant(
        "B1",
        "a vote is no reason to write",
        CORE,
        "            self.voted_for = candidate_id\n"
        "            self.durability.hard_state_changed()",
        "            self.voted_for = candidate_id",
        (T_FAULTS + "test_b01_a_vote_in_a_term_that_is_on_disk_is_written_too",),
    ),
    Mutant(
        "B2",
        "an acknowledgement leaves before the write",
        FOLLOWING,
        "        core.send_when_durable(to_node, response)\n\n\ndef _refuse",
        "        core.send(to_node, response)\n\n\ndef _refuse",
        (
            T_FAULTS + "test_b02_an_acknowledgement_waits_for_the_disk",
            T_FAULTS + "test_b02_an_acknowledgement_waits_for_the_term_too",
        ),
        fast=True,
    ),
    Mutant(
        "B2",
        "an acknowledgement does not wait for the term",
        FOLLOWING,
        " and durability.hard_state_is_durable():",
        ":",
        (T_FAULTS + "test_b02_an_acknowledgement_waits_for_the_term_too",),
        fast=True,
    ),
    Mutant(
        "B2",
        "a leader counts itself before its write",
        LEADING,
        "matches.append(core.durability.durable_index)",
        "matches.append(core.log.last_index)",
        (T_FAULTS + "test_b02_a_leader_is_no_part_of_the_majority_before_its_own_write",),
    ),
    Mutant(
        "B3",
        "an old term commits by counting",
        LEADING,
        "if index >= leader.term_start and core.commit_to(index)",
        "if core.commit_to(index)",
        (T_FAULTS + "test_b03_an_old_entry_on_a_majority_is_not_committed_by_counting",),
        fast=True,
    ),
    Mutant(
        "B4",
        "a late append truncates",
        FOLLOWING,
        "        position = core.log.first_conflict(entries)\n"
        "        if position is None:\n"
        "            return\n",
        "        position = 0\n",
        (T_FAULTS + "test_b04_a_late_append_does_not_truncate",),
        fast=True,
    ),
    Mutant(
        "B5",
        "the tail behind a conflict stays",
        LOG,
        "        del self._entries[first_removed - self._base_index - 1 :]",
        "        del self._entries[first_removed - self._base_index - 1 : "
        "first_removed - self._base_index]",
        (T_FAULTS + "test_b05_everything_after_a_conflict_is_removed",),
        fast=True,
    ),
    Mutant(
        "B5",
        "a committed entry may be removed",
        LOG,
        "            commit_index < first_removed <= self.last_index,",
        "            first_removed <= self.last_index,",
        (T_FAULTS + "test_b05_a_committed_entry_is_never_removed",),
        fast=True,
    ),
    Mutant(
        "B6",
        "the own last index is acknowledged",
        FOLLOWING,
        "    match_index = Index(request.previous_index + len(request.entries))",
        "    match_index = core.log.last_index",
        (T_FAULTS + "test_b06_ack_index_is_previous_plus_entries",),
        fast=True,
    ),
    Mutant(
        "B6",
        "the match index falls",
        PROGRESS,
        "        is_news = match_index > self.match_index",
        "        is_news = match_index != self.match_index",
        (T_FAULTS + "test_b06_match_index_does_not_fall_in_a_term",),
        fast=True,
    ),
    Mutant(
        "B7",
        "commit beyond what was verified",
        FOLLOWING,
        "core.commit_to(min(request.commit_index, match_index))",
        "core.commit_to(min(request.commit_index, core.log.last_index))",
        (T_FAULTS + "test_b07_the_commit_index_stops_at_what_was_verified",),
        fast=True,
    ),
    Mutant(
        "B7",
        "the commit index goes back",
        CORE,
        "        if index <= self.commit_index:\n"
        "            return False\n"
        "        invariant(index <= self.log.last_index",
        "        if index == self.commit_index:\n"
        "            return False\n"
        "        invariant(index <= self.log.last_index",
        (T_FAULTS + "test_b07_the_commit_index_does_not_go_back",),
        fast=True,
    ),
    Mutant(
        "B8",
        "a stored commit index is believed",
        CORE,
        "min(restored.hard_state.commit_index, self.log.last_index)",
        "restored.hard_state.commit_index",
        (T_FAULTS + "test_b08_a_stored_commit_index_beyond_the_log_is_clamped",),
        fast=True,
    ),
    Mutant(
        "B9",
        "a read is granted without a round",
        LEADING,
        "core.read_grants += leader.reads.confirm(reached_by_majority(rounds))",
        "core.read_grants += leader.reads.confirm(leader.round)",
        (T_FAULTS + "test_b09_a_leader_that_was_paused_grants_no_stale_read",),
        fast=True,
    ),
    Mutant(
        "B9",
        "a read uses a round from before it came",
        LEADING,
        "    leader.round += 1\n    leader.reads.start_round",
        "    leader.reads.start_round",
        (T_FAULTS + "test_b09_a_leader_that_was_paused_grants_no_stale_read",),
        fast=True,
    ),
    Mutant(
        "B10",
        "a read before the own no-op",
        LEADING,
        "    if not leader.reads.waiting or core.commit_index < leader.term_start:",
        "    if not leader.reads.waiting:",
        (T_FAULTS + "test_b10_no_read_before_the_leaders_own_noop_is_committed",),
        fast=True,
    ),
    Mutant(
        "B11",
        "a vote changes its mind",
        ELECTION,
        "        core.role.votes.setdefault(from_node, response.granted)\n        _count_votes",
        "        core.role.votes[from_node] = response.granted\n        _count_votes",
        (T_FAULTS + "test_b11_a_vote_does_not_change_its_mind",),
        fast=True,
    ),
    Mutant(
        "B11",
        "votes of strangers count",
        QUORUM,
        "    for voter in voters:\n"
        "        vote = votes.get(voter)\n"
        "        granted += vote is True\n"
        "        refused += vote is False\n",
        "    granted = sum(vote for vote in votes.values())\n    refused = len(votes) - granted\n",
        (T_FAULTS + "test_b11_votes_of_an_older_term_and_of_strangers_do_not_count",),
        fast=True,
    ),
    Mutant(
        "B12",
        "a log beyond the stored term is taken",
        CORE,
        '        invariant(self.log.last_term <= self.term, "the log holds a '
        'term beyond the stored one")\n',
        "",
        (T_FAULTS + "test_b12_a_log_of_a_later_term_than_the_stored_one_is_refused",),
        fast=True,
    ),
    Mutant(
        "B13",
        "a learner campaigns",
        ELECTION,
        "        if core.may_campaign:\n            start_pre_vote(core)\n        else:",
        "        if True:\n            start_pre_vote(core)\n        else:",
        (
            T_FAULTS_SNAPSHOTS
            + "test_b13_a_learner_that_was_cut_off_neither_campaigns_nor_stays_behind",
        ),
        fast=True,
    ),
    Mutant(
        "B13",
        "no pre-vote is asked",
        ELECTION,
        "        if core.may_campaign:\n            start_pre_vote(core)\n        else:",
        "        if core.may_campaign:\n"
        "            start_election(core, leadership_transfer=False)\n"
        "        else:",
        (T_FAULTS + "test_b13_a_peer_that_was_cut_off_comes_back_without_a_new_term",),
        fast=True,
    ),
    Mutant(
        "B14",
        "a pre-vote raises the term",
        INBOX,
        "    if isinstance(payload, PreVoteRequest):\n        return True\n",
        "    if isinstance(payload, PreVoteRequest) and envelope.term <= core.term:\n"
        "        return True\n",
        (T_FAULTS + "test_b14_one_cut_link_ends_in_a_stable_leader",),
        fast=True,
    ),
    Mutant(
        "B14",
        "a pre-vote is given within the lease",
        ELECTION,
        "        and not has_lease(core)\n",
        "",
        (T_FAULTS + "test_b14_one_cut_link_ends_in_a_stable_leader",),
        fast=True,
    ),
    Mutant(
        "B14",
        "an election timeout is drawn once and kept",
        CORE,
        "        self.election_timeout_ticks = self.draw_timeout(low, high)\n",
        "        self.election_timeout_ticks = (\n"
        "            self.election_timeout_ticks or self.draw_timeout(low, high)\n"
        "        )\n",
        (
            "tests/raft/test_split_votes.py::test_b14_two_candidates_do_not_split_the_votes_for_ever",
        ),
        fast=True,
    ),
    Mutant(
        "B18",
        "a restart hands out what the snapshot holds",
        CORE,
        "        self.emitted_index = Index(0) if restored.snapshot is None else "
        "restored.snapshot.index\n",
        "        self.emitted_index = self.log.base.index\n",
        (T_FAULTS_SNAPSHOTS + "test_b18_a_restart_hands_out_only_what_the_snapshot_does_not_hold",),
        fast=True,
    ),
    Mutant(
        "B20",
        "an older snapshot is installed after a newer one",
        FOLLOWING,
        "    if meta.index <= core.commit_index:\n"
        "        match_index = core.commit_index\n"
        "    else:",
        "    if False:\n        match_index = core.commit_index\n    else:",
        (
            T_FAULTS_SNAPSHOTS + "test_b20_an_older_snapshot_after_a_newer_one_changes_nothing",
            T_FAULTS_SNAPSHOTS
            + "test_b20_an_older_one_in_the_turn_of_the_newer_one_changes_nothing_either",
        ),
        fast=True,
    ),
    Mutant(
        "B20",
        "an own snapshot replaces a newer one",
        CORE,
        "        if self.snapshot is not None and meta.index <= self.snapshot.index:\n"
        "            return self.log.base  # one from the leader came in between (faults B20)\n",
        "",
        (T_FAULTS_SNAPSHOTS + "test_b20_an_own_snapshot_that_an_install_overtook_is_of_no_use",),
        fast=True,
    ),
    Mutant(
        "B20",
        "an installed snapshot is acknowledged before its write",
        DURABILITY,
        "self._hard_state_changed or self._next_index <= last_index or self._snapshot is not None",
        "self._hard_state_changed or self._next_index <= last_index",
        (
            T_FAULTS_SNAPSHOTS + "test_b20_a_second_snapshot_while_one_is_installed_comes_after_it",
            T_FAULTS_SNAPSHOTS
            + "test_b20_what_was_committed_but_not_handed_out_is_not_applied_behind_an_install",
        ),
    ),
    Mutant(
        "B25",
        "a change before the leader has committed in its term",
        HANDOVER,
        "    if core.commit_index < leader.term_start:\n        raise",
        "    if False:\n        raise",
        (T_FAULTS_MEMBERS + "test_b25_the_bug_of_2015",),
        fast=True,
    ),
    Mutant(
        "B25",
        "a change is in force only when committed",
        CORE,
        "        if self.configurations.appended(entries):\n"
        "            self._follow_configuration()",
        "        self.configurations.appended(entries)",
        (
            T_FAULTS_MEMBERS + "test_b25_a_removed_follower_is_sent_nothing_more",
            T_FAULTS_MEMBERS + "test_b25_no_leadership_for_one_without_a_vote",
        ),
        fast=True,
    ),
    Mutant(
        "B25",
        "a change that is taken back stays in force",
        CORE,
        "        if self.configurations.truncated(first_removed):\n"
        "            self._follow_configuration()",
        "        self.configurations.truncated(first_removed)",
        (T_FAULTS_MEMBERS + "test_b25_partition_kill_and_remove_in_quick_succession",),
    ),
    Mutant(
        "B25",
        "a peer that is new is known to have the log",
        LEADING,
        "peer: known.get(peer) or Progress(peer, False, next_index, last_heard_ticks=leader.ticks)",
        "peer: known.get(peer) or Progress(peer, False, next_index, "
        "leader.ticks, core.log.last_index)",
        (
            T_FAULTS_MEMBERS
            + "test_b25_a_leader_that_comes_back_to_a_log_with_a_change_ends_it_first",
        ),
    ),
    Mutant(
        "B30",
        "a lost append is not noticed",
        SENDING,
        "    elif progress.heartbeat is not Heartbeat.NONE or owes_commit:",
        "    elif owes_commit:",
        (
            T_FAULTS + "test_b30_a_lost_append_is_noticed_by_the_next_heartbeat",
            T_FAULTS + "test_b30_a_full_window_whose_answers_are_lost_opens_again",
        ),
        fast=True,
    ),
    Mutant(
        "B30",
        "a probe is not repeated",
        SENDING,
        "    elif progress.heartbeat is not Heartbeat.NONE:\n        entries = ()\n    else:",
        "    else:",
        (T_FAULTS_SNAPSHOTS + "test_b30_compaction_again_and_again_does_not_keep_a_follower_out",),
        fast=True,
    ),
    Mutant(
        "B31",
        "a late completion counts for what was overwritten",
        DURABILITY,
        "            write.last_index = min(write.last_index, last_kept)\n\n    def installed",
        "            pass\n\n    def installed",
        (
            T_FAULTS + "test_b31_an_overwritten_write_acknowledges_nothing",
            T_FAULTS + "test_b31_a_deposed_leaders_write_is_not_counted_in_its_next_term",
        ),
        fast=True,
    ),
    Mutant(
        "paper",
        "the commit index is written ahead of its entries",
        DURABILITY,
        "        entries = log.slice(self._next_index, log.last_index)",
        "        entries = log.slice(self._next_index, log.last_index) if not "
        "self._under_way else ()",
        (
            T_FAULTS_SNAPSHOTS + "test_b20_install_racing_append_leaves_one_whole_log",
            T_DURABILITY + "test_writes_hold_each_entry_once_and_count_when_complete",
        ),
    ),
    Mutant(
        "paper",
        "a vote is given away although one is given",
        ELECTION,
        "        and core.voted_for in (NO_NODE, from_node)\n"
        "        and core.log.is_up_to_date(request.last_index, request.last_term)\n"
        "    )\n"
        "    if granted:",
        "        and core.log.is_up_to_date(request.last_index, request.last_term)\n"
        "    )\n"
        "    if granted:",
        (
            T_PAPER + "test_a_vote_goes_to_one_candidate_a_term_first_come_first_served",
            T_PAPER + "test_term_vote_and_log_survive_a_restart",
        ),
    ),
    Mutant(
        "paper",
        "half of an even cluster is a majority",
        QUORUM,
        "    return voter_count // 2 + 1",
        "    return (voter_count + 1) // 2",
        (
            T_FAULTS_MEMBERS + "test_b25_the_bug_of_2015",
            T_FAULTS_MEMBERS + "test_b25_partition_kill_and_remove_in_quick_succession",
        ),
    ),
    Mutant(
        "paper",
        "the term is not stored",
        CORE,
        "        self.voted_for = voted_for\n        self.durability.hard_state_changed()",
        "        self.voted_for = voted_for",
        (
            T_FAULTS + "test_b01_a_candidate_counts_itself_only_when_its_vote_is_on_disk",
            T_FAULTS + "test_b02_an_acknowledgement_waits_for_the_term_too",
        ),
    ),
    Mutant(
        "paper",
        "a vote is given within the lease",
        INBOX,
        " and not by_transfer and election.has_lease(core):",
        " and not by_transfer and False:",
        (
            T_NODE + "test_a_vote_request_during_the_lease_changes_nothing",
            T_PAPER_MEMBERS + "test_a_removed_server_cannot_disrupt_the_cluster",
        ),
    ),
    Mutant(
        "paper",
        "a leader without a quorum stays",
        LEADING,
        "    if not has_quorum(core, leader):",
        "    if False:",
        (
            T_FAULTS_MEMBERS + "test_b25_partition_kill_and_remove_in_quick_succession",
            T_NODE + "test_quorum_is_ok_as_long_as_a_majority_answers",
        ),
    ),
    Mutant(
        "paper",
        "a stale leader hears of no newer term",
        INBOX,
        "            following.refuse_stale_leader(core, envelope.from_node, "
        "payload.previous_index)",
        "            pass",
        (
            T_PAPER + "test_a_request_with_a_stale_term_is_rejected",
            T_PAPER + "test_a_candidate_ignores_a_leader_of_an_older_term",
        ),
    ),
    Mutant(
        "paper",
        "a snapshot of a prefix drops the entries behind it",
        FOLLOWING,
        "        if core.log.matches(meta.index, meta.term):\n"
        "            core.commit_to(meta.index)\n"
        "        else:\n"
        "            core.install(meta)",
        "        core.install(meta)",
        (T_PAPER_SNAPSHOTS + "test_a_snapshot_of_a_prefix_retains_what_follows",),
    ),
    Mutant(
        "paper",
        "the log is compacted ahead of the disk",
        CORE,
        "        durable = min(self.emitted_index, self.durability.durable_index)",
        "        durable = self.log.last_index",
        (
            T_PAPER_SNAPSHOTS + "test_a_snapshot_covers_only_committed_entries",
            T_PAPER_SNAPSHOTS + "test_a_committed_entry_that_is_not_on_disk_is_in_no_snapshot",
        ),
    ),
    Mutant(
        "paper",
        "a second change before the first is committed",
        HANDOVER,
        "    if not core.configuration_is_committed:\n        raise",
        "    if False:\n        raise",
        (T_PAPER_MEMBERS + "test_another_change_begins_only_when_the_one_before_is_committed",),
    ),
    Mutant(
        "paper",
        "two voters change at once",
        MEMBERSHIP,
        "    if flaw is None and len(changed) > 1:",
        "    if flaw is None and len(changed) > 2:",
        (
            T_PAPER_MEMBERS + "test_only_one_server_is_added_or_removed_at_a_time",
            T_MEMBERSHIP + "test_a_change_is_safe_if_it_touches_one_voter_at_most",
        ),
    ),
    Mutant(
        "paper",
        "a leader that is removed counts itself",
        LEADING,
        "    if core.is_voter:\n        matches.append(",
        "    if True:\n        matches.append(",
        (T_PAPER_MEMBERS + "test_a_leader_that_is_removed_manages_a_cluster_without_itself",),
    ),
    Mutant(
        "paper",
        "a learner counts for commit",
        LEADING,
        "    matches = [each.match_index for each in leader.progress if each.is_voter]",
        "    matches = [each.match_index for each in leader.progress]",
        (T_TRACES + "test_trace",),
    ),
    Mutant(
        "paper",
        "a removed peer disturbs by its answers",
        INBOX,
        "    if isinstance(payload, _ANSWERS) and envelope.from_node not in core.peers:\n"
        "        return False",
        "    if False:\n        return False",
        (T_PAPER_MEMBERS + "test_answers_of_servers_that_are_no_members_count_for_nothing",),
    ),
    Mutant(
        "paper",
        "a full window never opens again",
        PROGRESS,
        "        self.delivered_ticks = None\n"
        "        self.window.clear()\n"
        "        self.next_index = Index(max",
        "        self.delivered_ticks = None\n        self.next_index = Index(max",
        (T_PROGRESS + "test_a_refusal_goes_back_to_probing_near_the_hint",),
    ),
    Mutant(
        "paper",
        "a delivered snapshot that is lost there is waited for",
        LEADING,
        "leader.ticks - delivered_ticks >= core.config.election_ticks_max",
        "leader.ticks - delivered_ticks >= 1 << 30",
        (T_TRACES + "test_trace",),
    ),
    Mutant(
        "paper",
        "what is durable is not lowered by a truncation",
        DURABILITY,
        "        self.durable_index = min(self.durable_index, last_kept)\n"
        "        self._next_index = min(self._next_index, first_removed)",
        "        self._next_index = min(self._next_index, first_removed)",
        (
            T_FAULTS_SNAPSHOTS
            + "test_b20_b31_a_write_from_before_the_install_stands_for_nothing_behind_it",
            T_FAULTS_SNAPSHOTS + "test_b20_a_second_snapshot_while_one_is_installed_comes_after_it",
        ),
    ),
    Mutant(
        "paper",
        "a vote for an older log",
        ELECTION,
        "        and core.log.is_up_to_date(request.last_index, request.last_term)\n"
        "    )\n"
        "    if granted:",
        "    )\n    if granted:",
        (
            T_FAULTS_SNAPSHOTS
            + "test_b20_a_vote_during_an_install_is_given_by_the_new_log_and_after_it",
            T_NODE + "test_a_higher_term_does_not_restart_the_timer",
        ),
    ),
    Mutant(
        "paper",
        "the longer log wins, not the newer",
        LOG,
        "return (last_term, last_index) >= (self.last_term, self.last_index)",
        "return last_index >= self.last_index",
        (
            T_PAPER + "test_a_voter_denies_its_vote_to_an_older_log",
            T_LOG + "test_up_to_date",
        ),
    ),
    Mutant(
        "paper",
        "an append is taken without the entry before it",
        FOLLOWING,
        "    if not core.log.matches(request.previous_index, request.previous_term) and (",
        "    if request.previous_index > core.log.last_index and (",
        (
            T_FAULTS + "test_b07_a_refusal_moves_no_commit_index",
            T_PAPER + "test_a_follower_refuses_entries_whose_predecessor_it_lacks",
        ),
    ),
    Mutant(
        "paper",
        "a leader keeps its seat on a higher term",
        INBOX,
        "    core.become_follower(envelope.term, envelope.from_node if "
        "from_leader else NO_NODE)\n"
        "    return True",
        "    return True",
        (
            T_FAULTS + "test_b01_a_vote_leaves_only_after_its_write",
            T_FAULTS + "test_b02_an_acknowledgement_waits_for_the_term_too",
        ),
    ),
    Mutant(
        "paper",
        "a follower's timer restarts on any higher term",
        CORE,
        "        if not isinstance(self.role, Follower) or leader_id != NO_NODE:",
        "        if True:",
        (T_NODE + "test_a_higher_term_does_not_restart_the_timer",),
    ),
    Mutant(
        "paper",
        "a vote does not restart the timer",
        ELECTION,
        "        core.vote_for(from_node)\n        core.restart_election_timer()",
        "        core.vote_for(from_node)",
        (T_CAMPAIGN + "test_a_vote_that_is_given_restarts_the_timer",),
    ),
    Mutant(
        "paper",
        "no no-op at the beginning of a term",
        LEADING,
        '    core.log.append((Entry(core.term, next_index, EntryKind.NOOP, b""),))\n',
        "",
        (
            T_FAULTS + "test_b02_a_leader_is_no_part_of_the_majority_before_its_own_write",
            T_FAULTS + "test_b02_two_followers_commit_without_the_leaders_disk",
        ),
    ),
    Mutant(
        "paper",
        "a heartbeat is no proof of a round",
        FOLLOWING,
        "    if request.entries or is_new_round:",
        "    if request.entries:",
        (
            T_FAULTS + "test_b02_an_acknowledgement_waits_for_the_term_too",
            T_FAULTS + "test_b06_ack_index_is_previous_plus_entries",
        ),
    ),
    Mutant(
        "flow",
        "the window has no bound",
        SENDING,
        " and len(progress.window) < config.max_inflight_appends:",
        ":",
        (T_TRACES + "test_trace",),
    ),
    Mutant(
        "flow",
        "small appends do not gather",
        SENDING,
        "        if is_partial and len(progress.window) >= config.max_inflight_partial_appends:",
        "        if False:",
        (T_TRACES + "test_trace",),
    ),
    Mutant(
        "flow",
        "the bytes of an append have no bound",
        LOG,
        "            if size > max_bytes and position:",
        "            if False:",
        (
            T_NODE + "test_large_entries_go_out_one_by_one",
            T_LOG + "test_batches_keep_both_limits_and_move_on",
        ),
    ),
    Mutant(
        "flow",
        "a hint skips too far",
        LOG,
        "self.term_at(position) > term:",
        "self.term_at(position) >= term:",
        (T_LOG + "test_the_last_entry_at_or_below_a_term",),
    ),
    Mutant(
        "flow",
        "a refusal that was overtaken counts",
        PROGRESS,
        "        if rejected_index <= self.match_index or self.state is "
        "ProgressState.SNAPSHOT:\n"
        "            return False\n",
        "",
        (
            T_PAPER_SNAPSHOTS + "test_one_snapshot_is_asked_for_however_much_is_refused",
            T_PROGRESS + "test_an_overtaken_refusal_is_ignored",
        ),
    ),
    Mutant(
        "flow",
        "followers hear of a commit only by entries",
        SENDING,
        "    owes_commit = not progress.window and progress.commit_sent < min(",
        "    owes_commit = False and progress.commit_sent < min(",
        (
            T_FAULTS_MEMBERS + "test_b25_the_bug_of_2015",
            T_FAULTS_MEMBERS + "test_b25_no_leadership_for_one_without_a_vote",
        ),
    ),
    Mutant(
        "flow",
        "two leaders of a term are not noticed",
        FOLLOWING,
        '    invariant(role.leader_id == from_node, f"two leaders in term {core.term}")\n',
        "",
        (
            T_NODE + "test_two_leaders_of_one_term_stop_the_peer",
            T_PAPER_SNAPSHOTS + "test_two_senders_of_snapshots_in_one_term_stop_the_peer",
        ),
    ),
    Mutant(
        "flow",
        "reads are forgotten when the seat is lost",
        CORE,
        "            self.reads_dropped += self.role.reads.drop_all()",
        "            self.role.reads.drop_all()",
        (
            T_FAULTS + "test_b09_a_leader_that_was_paused_grants_no_stale_read",
            T_NODE + "test_a_leader_that_steps_down_drops_reads_of_all_kinds",
        ),
    ),
    Mutant(
        "flow",
        "entries are sent beside a snapshot",
        SENDING,
        "            _send_beside_snapshot(core, leader, progress)\n            continue",
        "            _send_beside_snapshot(core, leader, progress)",
        (
            T_NODE + "test_a_follower_that_needs_compacted_entries_gets_a_snapshot_and_heartbeats",
            T_PAPER_SNAPSHOTS + "test_one_snapshot_is_asked_for_however_much_is_refused",
        ),
    ),
    Mutant(
        "transfer",
        "proposals during a transfer",
        NODE,
        "        if leader.transfer_to != NO_NODE:\n            raise",
        "        if False:\n            raise",
        (T_FAULTS_MEMBERS + "test_b25_a_change_is_refused_while_leadership_is_handed_over",),
    ),
    Mutant(
        "transfer",
        "a transfer is never given up",
        LEADING,
        "        if leader.transfer_elapsed_ticks >= core.config.election_ticks_max:",
        "        if False:",
        (
            T_PAPER_MEMBERS
            + "test_a_removed_leader_that_nobody_relieves_steps_down_after_an_election_timeout",
        ),
    ),
    Mutant(
        "transfer",
        "the successor is told before it has the log",
        HANDOVER,
        "    if leader.progress_of[leader.transfer_to].match_index == core.log.last_index:",
        "    if True:",
        (
            T_FAULTS_MEMBERS + "test_a_follower_that_needs_a_snapshot_can_take_over_after_it",
            T_PAPER_MEMBERS
            + "test_a_removed_leader_that_nobody_relieves_steps_down_after_an_election_timeout",
        ),
    ),
    Mutant(
        "transfer",
        "the loss of any peer starts an election",
        ELECTION,
        "core.role.leader_id == peer:",
        "core.role.leader_id != NO_NODE:",
        (T_NODE + "test_peer_lost_needs_the_leader_of_this_term",),
    ),
    Mutant(
        "transfer",
        "a forged term is followed",
        INBOX,
        "    if envelope.term > core.term + MAX_TERM_LEAD:",
        "    if False:",
        (T_NODE + "test_a_term_that_nobody_can_have_reached_is_not_followed",),
    ),
)
