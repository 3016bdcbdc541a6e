"""Deliberate bugs of the driver: time, disks, restarts, identity, members, routing."""

from __future__ import annotations

from tests.mutants.catalogue import Mutant

CLOCK = "gaia_grpc/node/clock.py"
LEADER_TIME = "gaia_grpc/node/leader_time.py"
DISK_WATCH = "gaia_grpc/node/disk_watch.py"
MEMBERS = "gaia_grpc/node/members.py"
FOUNDING = "gaia_grpc/node/founding.py"
ROUTING = "gaia_grpc/node/routing.py"
SNAPSHOTS = "gaia_grpc/node/snapshots.py"
APPLIER = "gaia_grpc/node/applier.py"
CORE = "gaia_grpc/raft/core.py"
RECONFIGURER = "gaia_grpc/node/reconfiguration.py"
FULL_DISK = "tests/node/test_full_disk.py::"
LEASES = "tests/node/test_leases.py::"
ENGINE = "tests/node/test_engine.py::"
PEER_SNAPSHOTS = "tests/node/test_snapshots.py::"
RECONFIGURATION = "tests/node/test_reconfiguration.py::"
PROCESSES = "tests/e2e/test_bug_classes.py::"

MUTANTS = (
    Mutant(
        "B15",
        "a hung disk is never noticed",
        DISK_WATCH,
        "        return self.stalled_ticks > 0",
        "        return False",
        (
            "tests/node/test_stalled_disk.py::"
            "test_b15_leader_with_a_hung_disk_is_replaced_and_comes_back",
        ),
    ),
    Mutant(
        "B15",
        "a leader that steps down stays",
        "gaia_grpc/raft/handover.py",
        "        core.send(successor, TimeoutNow())\n"
        "    core.become_follower(core.term, NO_NODE)\n",
        "        core.send(successor, TimeoutNow())\n",
        (
            "tests/raft/test_faults_members.py::"
            "test_b15_a_leader_steps_down_at_once_and_the_furthest_voter_takes_over",
        ),
        fast=True,
    ),
    Mutant(
        "B16",
        "a leader that slept lets all that time pass",
        CLOCK,
        "MAX_ADVANCE_MS = 500",
        "MAX_ADVANCE_MS = 1 << 40",
        (
            LEASES + "test_b16_a_suspended_machine_takes_no_claim_away",
            LEASES + "test_b16_a_leader_that_slept_takes_no_claim_away",
        ),
    ),
    Mutant(
        "B17",
        "a change of leader gives every lease a minute more",
        LEADER_TIME,
        "        self.clock.start(applier.machine.elapsed_ms)",
        "        self.clock.start(applier.machine.elapsed_ms - 60_000)",
        (LEASES + "test_b17_three_changes_of_leader_inside_one_lease",),
    ),
    Mutant(
        "B17",
        "a change of leader cuts every lease by a minute",
        LEADER_TIME,
        "        self.clock.start(applier.machine.elapsed_ms)",
        "        self.clock.start(applier.machine.elapsed_ms + 60_000)",
        (LEASES + "test_b17_three_changes_of_leader_inside_one_lease",),
    ),
    Mutant(
        "B17",
        "time that nothing is due in is not written",
        CLOCK,
        "    return min(due_ms, written_ms + MAX_SILENCE_MS)",
        "    return min(due_ms, written_ms + MAX_IDLE_SILENCE_MS)",
        (ENGINE + "test_b17_log_time_is_in_the_log_while_something_waits_for_it",),
    ),
    Mutant(
        "B18",
        "a snapshot holds what was applied after its index",
        SNAPSHOTS,
        "            Index(applier.machine.applied_index), applier.applied_term, "
        "applier.configuration",
        "            Index(applier.machine.applied_index - 1), applier.applied_term, "
        "applier.configuration",
        (PEER_SNAPSHOTS + "test_b18_crash_between_apply_and_snapshot_skips_and_repeats_nothing",),
    ),
    Mutant(
        "B18",
        "entries that a snapshot holds are applied behind it",
        APPLIER,
        "        while self._committed and self._committed[0].index <= meta.index:\n",
        "        while False:\n",
        (
            "tests/node/test_applier.py::test_b18_entries_that_the_snapshot_holds_are_not_applied_again",
        ),
    ),
    Mutant(
        "B19",
        "a definite refusal hides that an earlier attempt may have worked",
        ROUTING,
        "            except OutcomeUnknownError:\n                unknown = True\n",
        "            except OutcomeUnknownError:\n                pass\n",
        (
            PROCESSES + "test_b29_what_was_refused_is_never_seen",
            PROCESSES + "test_b19_a_change_whose_reply_was_lost_is_made_once_and_told_again",
        ),
    ),
    Mutant(
        "B24",
        "a snapshot that found no space is tried again at once",
        SNAPSHOTS,
        "            self._pause_ticks = _FULL_PAUSE_MS // self._tick_ms\n",
        "            self._pause_ticks = 0\n",
        (FULL_DISK + "test_b24_snapshot_on_a_full_disk_is_given_up_and_made_later",),
    ),
    Mutant(
        "B24",
        "what was made of a snapshot stays on the full disk",
        SNAPSHOTS,
        "                await self._disk.run(writer.abort)\n",
        "                pass\n",
        (FULL_DISK + "test_b24_snapshot_on_a_full_disk_is_given_up_and_made_later",),
    ),
    Mutant(
        "B25",
        "a learner is given a vote before it has caught up",
        RECONFIGURER,
        "            and progress.match_index >= target\n",
        "",
        (RECONFIGURATION + "test_b25_learner_that_answers_but_lags_is_given_no_vote",),
    ),
    Mutant(
        "B26",
        "the name is enough, whatever the data",
        MEMBERS,
        "        is_other = member.node_id == node_id and member.peer_uuid != peer_uuid",
        "        is_other = False",
        (RECONFIGURATION + "test_b26_name_in_an_old_configuration_is_not_the_new_machine",),
    ),
    Mutant(
        "B26",
        "a wiped peer founds beside the old ones",
        FOUNDING,
        "        if not answer.empty:\n",
        "        if False:\n",
        ("tests/node/test_founding.py::test_b26_wiped_peer_neither_founds_nor_votes",),
    ),
    Mutant(
        "B29",
        "an entry is applied before it is committed",
        "gaia_grpc/raft/node.py",
        "        committed = core.log.slice(core.emitted_index + 1, core.commit_index)\n"
        "        core.emitted_index = core.commit_index\n",
        "        committed = core.log.slice(core.emitted_index + 1, core.log.last_index)\n"
        "        core.emitted_index = core.log.last_index\n",
        (PROCESSES + "test_b29_what_was_refused_is_never_seen",),
        limit_s=90,
    ),
    Mutant(
        "B29",
        "what was proposed counts as refused when time is up",
        ROUTING,
        "            if proposal.admitted:\n",
        "            if False:\n",
        (PROCESSES + "test_b29_what_was_refused_is_never_seen",),
        limit_s=90,
    ),
)
