"""Attempts that fail: by report, by expiry and with their session."""

from __future__ import annotations

from itertools import pairwise

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.state.cluster import TIMERS_PER_ADVANCE
from tests.state.harness import Log

PENDING, SCHEDULED, CLAIMED, FAILED = (
    task_pb2.TASK_STATE_PENDING,
    task_pb2.TASK_STATE_SCHEDULED,
    task_pb2.TASK_STATE_CLAIMED,
    task_pb2.TASK_STATE_FAILED,
)


def kinds(task: task_pb2.Task) -> list[str]:
    return [
        task_pb2.TaskEventKind.Name(event.kind).removeprefix("TASK_EVENT_KIND_")
        for event in task.history
    ]


def test_three_retries_after_1_2_and_4_seconds_and_the_fourth_failure_is_final() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue()
    for retry, wait_ms in enumerate((1_000, 2_000, 4_000), start=1):
        failed = log.fail(log.claim(session)[0], error=f"error {retry}")
        assert (failed.state, failed.retry_count) == (SCHEDULED, retry)
        assert failed.last_error == f"error {retry}"
        assert failed.available_time.ToMilliseconds() == log.now_ms + wait_ms
        log.advance(wait_ms - 1)
        assert log.claim(session) == []
        log.advance(1)
        assert log.task(task_id).state == PENDING
    dead = log.fail(log.claim(session)[0])
    assert (dead.state, dead.retry_count) == (FAILED, 4)
    log.beat(session)
    log.advance(10_000)
    assert log.claim(session) == []
    history = kinds(log.task(task_id))
    assert history == [
        "ENQUEUED",
        *["CLAIMED", "ATTEMPT_FAILED", "AVAILABLE"] * 3,
        "CLAIMED",
        "ATTEMPT_FAILED",
        "DEAD_LETTERED",
    ]
    assert log.stats().failed == 1


def test_a_permanent_failure_is_final_at_once() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    dead = log.fail(log.claim(session)[0], permanent=True)
    assert (dead.state, dead.retry_count) == (FAILED, 1)


def test_no_retries_means_one_attempt() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue(max_retries=0)
    assert log.fail(log.claim(session)[0]).state == FAILED


@pytest.mark.parametrize("verb", ["fail_task", "release_task"])
def test_an_accepted_end_is_repeated_after_another_claim(verb: str) -> None:
    """A peer that proposes again after a change of leader was told STALE_CLAIM: "not applied"."""
    log = Log(("task.retry_base", "0ms"))
    first, second = log.register("first"), log.register("second")
    log.enqueue()
    (task,) = log.claim(first)
    log.do(**{verb: log.held(task)})
    (again,) = log.claim(second)
    before = log.task(task.task_id)
    repeated = log.do(**{verb: log.held(task)}).tasks.tasks[0]
    assert (repeated.claimed_by, repeated.claim_token) == (second, again.claim_token)
    assert log.task(task.task_id) == before
    assert log.refuse(**{verb: {**log.held(task), "session_id": second}}).reason == "STALE_CLAIM"


def test_repeating_a_failure_with_its_token_counts_it_once() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue()
    task = log.claim(session)[0]
    assert log.fail(task) == log.fail(task)
    assert log.task(task_id).retry_count == 1
    assert log.refuse(fail_task=log.held(task, session_id="s-other")).reason == "STALE_CLAIM"
    assert log.refuse(fail_task=log.held(task, task_id="t-9")).reason == "NOT_FOUND"


def test_waits_stop_growing_at_the_longest() -> None:
    log = Log(("task.retry_max_delay", "3s"))
    session = log.register("worker")
    log.enqueue(max_retries=60)
    waits = []
    for _ in range(60):
        failed = log.fail(log.claim(session)[0])
        waits.append(failed.available_time.ToMilliseconds() - log.now_ms)
        log.advance(waits[-1])
        log.beat(session)
    assert waits[:3] == [1_000, 2_000, 3_000]
    assert set(waits[3:]) == {3_000}


def test_a_claim_ends_after_10_minutes_and_counts_as_an_attempt() -> None:
    log = Log()
    first, second = log.register("first"), log.register("second")
    task_id = log.enqueue()
    late = log.claim(first)[0]
    for _ in range(59):
        log.advance(10_000)
        log.beat(first, second)
    log.advance(9_999)
    assert log.task(task_id).state == CLAIMED
    log.advance(1)
    expired = log.task(task_id)
    assert (expired.state, expired.retry_count) == (SCHEDULED, 1)
    assert "ran out" in expired.last_error
    assert kinds(expired)[-1] == "CLAIM_EXPIRED"
    assert log.session(first).claimed_tasks == 0
    log.advance(1_000)
    assert log.complete(late).refusal.reason == "STALE_CLAIM"
    again = log.claim(second)[0]
    assert again.task_id == task_id
    assert log.complete(late).refusal.reason == "STALE_CLAIM"
    assert log.complete(again).task.state == task_pb2.TASK_STATE_COMPLETED


def test_an_expired_claim_is_good_until_time_is_advanced() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    task = log.claim(session)[0]
    log.now_ms += 700_000
    assert log.complete(task).task.state == task_pb2.TASK_STATE_COMPLETED
    log.do(advance_time={})
    assert log.task(task.task_id).state == task_pb2.TASK_STATE_COMPLETED


def test_a_failed_session_loses_its_claims_at_once_as_attempts() -> None:
    log = Log()
    session = log.register("worker", capacity=3)
    ids = [log.enqueue() for _ in range(3)]
    held = log.claim(session, 3)
    log.complete(held[1])
    log.advance(29_999)
    assert log.task(ids[0]).state == CLAIMED
    log.advance(1)
    for task_id in (ids[0], ids[2]):
        lost = log.task(task_id)
        assert (lost.state, lost.retry_count) == (SCHEDULED, 1)
        assert kinds(lost)[-1] == "SESSION_LOST"
    assert log.session(session).claimed_tasks == 0
    log.advance(1_000)
    renewed = log.register("worker", capacity=3)
    assert renewed == session
    assert [task.task_id for task in log.claim(renewed, 3)] == [ids[0], ids[2]]
    assert log.complete(held[0]).refusal.reason == "STALE_CLAIM"


def test_a_degraded_session_keeps_its_claims() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    task = log.claim(session)[0]
    log.advance(20_000)
    assert log.complete(task).task.state == task_pb2.TASK_STATE_COMPLETED


def test_a_removed_session_gives_its_claims_back_uncounted() -> None:
    log = Log()
    session = log.register("worker", capacity=2)
    ids = [log.enqueue(), log.enqueue()]
    log.claim(session, 2)
    removed = log.do(deregister_session={"session_id": session}).session
    assert removed.released_tasks == 2
    assert removed.session.claimed_tasks == 2
    for task_id in ids:
        task = log.task(task_id)
        assert (task.state, task.retry_count) == (PENDING, 0)
        assert kinds(task)[-1] == "RELEASED"


def test_a_task_with_a_delay_comes_at_its_time() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue(delay_ms=5_000)
    assert log.stats().scheduled == 1
    log.advance(4_999)
    assert log.claim(session) == []
    log.advance(1)
    assert [task.task_id for task in log.claim(session)] == [task_id]
    assert kinds(log.task(task_id)) == ["ENQUEUED", "AVAILABLE", "CLAIMED"]


def test_one_advance_does_bounded_work_and_the_rest_stays_due() -> None:
    log = Log()
    count = TIMERS_PER_ADVANCE + 50
    tasks = [{"task_type": "grade", "delay_ms": 1_000} for _ in range(count)]
    log.do(enqueue_tasks={"tasks": tasks})
    log.now_ms += 1_000
    log.do(advance_time={})
    assert log.stats().pending == TIMERS_PER_ADVANCE
    assert log.machine.next_due_ms() == log.now_ms
    log.do(advance_time={})
    assert log.stats().pending == count


@pytest.mark.parametrize("state", ["pending", "finished", "claimed again"])
def test_a_timer_of_another_claim_does_nothing(state: str) -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue()
    endings, flow = log.tasks()._endings, log.tasks()._flow
    if state != "pending":
        task = log.claim(session)[0]
        log.complete(task) if state == "finished" else None
    before = log.task(task_id)
    for number in (1, 99):
        endings._claim_due(number)
        endings._available_due(number)
    endings._deadline_due(99)
    flow._wait_due(99)
    assert log.task(task_id) == before


def test_the_claims_of_many_lost_sessions_end_in_steps() -> None:
    log = Log()
    sessions = [log.register(f"worker-{number}", capacity=200) for number in range(9)]
    tasks = [{"task_type": "grade", "affinity": "general"}] * 900
    log.do(enqueue_tasks={"tasks": tasks * 2})
    for session in sessions:
        assert len(log.claim(session, 200)) == 200
    log.now_ms += 3_600_000
    lost = [log.stats().claimed]
    while lost[-1]:
        log.do(advance_time={})
        lost.append(log.stats().claimed)
    steps = [before - after for before, after in pairwise(lost)]
    # All degrade first: nine timers that take nothing away.
    assert [step for step in steps if step] == [600, 600, 600]
