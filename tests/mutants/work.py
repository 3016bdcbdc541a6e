"""Deliberate bugs of sessions, tasks and locks, each broken where a scenario has to notice it."""

from __future__ import annotations

from tests.mutants.catalogue import Mutant

TASKS = "gaia_grpc/state/tasks.py"
ENDINGS = "gaia_grpc/state/task_endings.py"
STORE = "gaia_grpc/state/task_store.py"
POLICIES = "gaia_grpc/state/task_policies.py"
AGE = "gaia_grpc/state/task_age.py"
CLAIMS = "gaia_grpc/state/task_claims.py"
SESSION_KEEPER = "gaia_grpc/client/session_keeper.py"
QUEUE = "tests/e2e/test_task_queue.py::"
COORDINATION = "tests/e2e/test_coordination.py::"
COMPLAINTS = "tests/e2e/test_complaints.py::"
TRUE_TIMES = "tests/services/test_true_times.py::"

MUTANTS = (
    Mutant(
        "task",
        "whoever asks ends a claim, with any token",
        TASKS,
        "        if task.state == CLAIMED and task.claim_token == token"
        " and task.session_id == session_id:\n",
        "        if task.state == CLAIMED:\n",
        (
            QUEUE + "test_task_claim_expires_and_the_late_completion_is_refused",
            TRUE_TIMES + "test_task_claim_ends_after_ten_minutes",
        ),
    ),
    Mutant(
        "task",
        "a lost session keeps its claims",
        ENDINGS,
        "        held = sorted(session.claims)\n",
        "        held: list[int] = []\n",
        (
            COMPLAINTS + "test_complaint_2_a_task_of_a_killed_worker_is_not_running_for_ever",
            COMPLAINTS + "test_complaint_9_what_a_crash_left_is_found_though_the_leader_died_too",
        ),
    ),
    Mutant(
        "task",
        "an attempt that a crash ended is not counted",
        ENDINGS,
        "            if counted:\n",
        "            if not counted:\n",
        (COMPLAINTS + "test_complaint_6_a_task_that_kills_its_workers_is_a_dead_letter",),
    ),
    Mutant(
        "task",
        "each retry waits as long as the first",
        POLICIES,
        "min(base_ms << min(task.retry_count - 1, 40), most_ms)",
        "min(base_ms, most_ms)",
        (
            QUEUE + "test_task_retries_come_after_1_2_and_4_seconds_over_a_failover",
            TRUE_TIMES + "test_task_retries_after_1_2_and_4_seconds",
        ),
    ),
    Mutant(
        "task",
        "nothing ages",
        AGE,
        "        if not self._interval_ms:\n            return self._base_epoch\n",
        "        if True:\n            return self._base_epoch\n",
        (
            QUEUE + "test_task_of_low_priority_waits_no_longer_than_the_bound_of_ageing",
            TRUE_TIMES + "test_task_of_low_priority_is_overtaken_for_four_minutes_at_most",
        ),
    ),
    Mutant(
        "task",
        "a key is forgotten when its task is completed",
        STORE,
        "        self._move(task, COMPLETED)\n        task.result = result\n",
        "        self._move(task, COMPLETED)\n        task.result = result\n"
        "        self._by_key.pop(task.key or ('', ''), None)\n",
        (QUEUE + "test_task_idempotency_key_is_one_task",),
    ),
    Mutant(
        "task",
        "a completion in a hundred is told and not made",
        TASKS,
        "                    holder = self._endings.complete(task, completion.result)\n",
        "                    if len(completion.result) != 1:\n"
        "                        holder = self._endings.complete(task, completion.result)\n",
        ("tests/e2e/test_bursts.py::test_burst_of_a_thousand_completions_loses_nothing",),
    ),
    Mutant(
        "session",
        "a degraded session gets tasks",
        CLAIMS,
        "        if session.health == DEGRADED:\n",
        "        if session.health == FAILED:\n",
        (
            COORDINATION + "test_session_health_degrades_fails_and_heals",
            TRUE_TIMES + "test_session_health_at_15_and_30_seconds",
        ),
    ),
    Mutant(
        "session",
        "general fits nothing",
        "gaia_grpc/state/affinity.py",
        "    return PARTIAL if GENERAL in (specialty, affinity) else NONE\n",
        "    return PARTIAL if specialty == GENERAL else NONE\n",
        (COORDINATION + "test_session_affinity_scores_and_assignment",),
    ),
    Mutant(
        "session",
        "heartbeats come in step",
        SESSION_KEEPER,
        "self._interval_s * (0.9 + 0.1 * self._draw())",
        "self._interval_s * 1.0",
        (
            "tests/client/test_heartbeats.py::"
            "test_session_heartbeat_frequency_is_ten_seconds_with_jitter",
        ),
    ),
    Mutant(
        "session",
        "heartbeats come too often",
        SESSION_KEEPER,
        "self._interval_s * (0.9 + 0.1 * self._draw())",
        "self._interval_s * 0.5",
        (COORDINATION + "test_session_heartbeats_are_sent_as_often_as_the_cluster_asks",),
    ),
    Mutant(
        "lock",
        "a stale token renews",
        "gaia_grpc/state/locks.py",
        "        if lock is None or lock.token != token or lock.holder != holder:\n",
        "        if lock is None:\n",
        (
            "tests/e2e/test_locks.py::test_lock_of_five_contenders_is_held_by_exactly_one",
            "tests/e2e/test_locks.py::"
            "test_lock_holder_that_is_a_paused_process_is_told_when_it_wakes_up",
        ),
    ),
)
