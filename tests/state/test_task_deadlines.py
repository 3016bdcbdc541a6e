"""Deadlines: strict, in every open state."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.task.v1 import task_pb2

from tests.state.harness import Log
from tests.state.snapshot_checks import check_equal, restored, whole

PENDING, SCHEDULED, CLAIMED, COMPLETED, FAILED, BLOCKED, CANCELLED = (
    task_pb2.TASK_STATE_PENDING,
    task_pb2.TASK_STATE_SCHEDULED,
    task_pb2.TASK_STATE_CLAIMED,
    task_pb2.TASK_STATE_COMPLETED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_BLOCKED,
    task_pb2.TASK_STATE_CANCELLED,
)


def kinds(task: task_pb2.Task) -> list[str]:
    return [
        task_pb2.TaskEventKind.Name(event.kind).removeprefix("TASK_EVENT_KIND_")
        for event in task.history
    ]


def test_a_pending_task_is_given_up_at_its_deadline() -> None:
    log = Log()
    task_id = log.enqueue(deadline_ms=5_000)
    assert log.task(task_id).deadline_time.ToMilliseconds() == log.now_ms + 5_000
    log.advance(4_999)
    assert log.task(task_id).state == PENDING
    log.advance(1)
    task = log.task(task_id)
    assert (task.state, task.last_error, task.retry_count) == (FAILED, "the deadline passed", 0)
    assert kinds(task) == ["ENQUEUED", "DEADLINE_PASSED", "DEAD_LETTERED"]
    assert log.claim(log.register("worker")) == []
    assert log.stats().dead_letters_total == 1


def test_a_held_task_is_taken_from_its_holder_and_later_calls_are_refused() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue(deadline_ms=5_000)
    task = log.claim(session)[0]
    log.advance(5_000)
    assert log.task(task_id).state == FAILED
    assert log.session(session).claimed_tasks == 0
    for name in ("fail_task", "extend_claim", "release_task"):
        refusal = log.refuse(**{name: log.held(task)})
        assert refusal.reason == "STALE_CLAIM"
        assert "FAILED and held by nobody" in refusal.message
        details = {detail.key: detail.value for detail in refusal.details}
        assert (details["ended_by"], details["state"]) == ("DEADLINE_PASSED", "FAILED")
    assert log.complete(task).refusal.reason == "STALE_CLAIM"
    assert kinds(log.task(task_id))[-2:] == ["DEADLINE_PASSED", "DEAD_LETTERED"]


def test_who_waited_gets_the_room_that_a_deadline_makes() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue(deadline_ms=5_000)
    log.claim(session)
    waiter = log.wait(session)
    other = log.enqueue()
    log.advance(5_000)
    assert [task.task_id for task in log.waited(waiter).tasks] == [other]


@pytest.mark.parametrize("spec", [{"delay_ms": 3_000}, {"depends_on": ["t-000000000001"]}])
def test_a_task_that_waits_for_its_time_or_for_others_is_given_up_too(spec: dict[str, Any]) -> None:
    log = Log()
    log.enqueue()
    task_id = log.enqueue(deadline_ms=3_001, **spec)
    log.advance(2_999)
    assert log.task(task_id).state in (SCHEDULED, BLOCKED)
    log.advance(2)
    assert log.task(task_id).state == FAILED
    due_ms = log.machine.next_due_ms()
    assert due_ms is None or due_ms > log.now_ms


def test_a_completed_task_has_no_deadline_to_miss() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue(deadline_ms=5_000)
    log.complete(log.claim(session)[0])
    log.beat(session)
    log.advance(6_000)
    task = log.task(task_id)
    assert task.state == COMPLETED
    assert task.HasField("deadline_time")


def test_no_retry_is_scheduled_beyond_the_deadline() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue(deadline_ms=4_000)
    log.fail(log.claim(session)[0])
    log.advance(1_000)
    log.fail(log.claim(session)[0], retry_delay_ms=2_999)
    log.advance(2_999)
    dead = log.fail(log.claim(session)[0], error="boom")
    assert (dead.state, dead.last_error) == (FAILED, "boom")
    last = log.task(task_id).history[-1]
    assert last.error == "no retry would begin before the deadline: boom"


@pytest.mark.parametrize(("wait_ms", "state"), [(3_999, SCHEDULED), (4_000, FAILED)])
def test_a_retry_at_the_deadline_is_too_late(wait_ms: int, state: int) -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue(deadline_ms=4_000)
    assert log.fail(log.claim(session)[0], retry_delay_ms=wait_ms).state == state


@pytest.mark.parametrize("delay_ms", [1_000, 1_001])
def test_a_delay_beyond_the_deadline_is_refused(delay_ms: int) -> None:
    log = Log()
    spec = {"task_type": "grade", "delay_ms": delay_ms, "deadline_ms": 1_000}
    refusal = log.refuse(enqueue_tasks={"tasks": [{"task_type": "grade"}, spec]})
    assert (refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "tasks[1].delay")
    assert log.stats().enqueued_total == 0


def test_a_negative_deadline_is_refused() -> None:
    refusal = Log().refuse(enqueue_tasks={"tasks": [{"task_type": "g", "deadline_ms": -1}]})
    assert (refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "tasks[0].deadline")


def test_a_requeued_task_has_no_deadline() -> None:
    log = Log()
    task_id = log.enqueue(deadline_ms=1_000)
    log.advance(1_000)
    log.do(requeue_task={"task_id": task_id})
    check_equal(log.machine, restored(whole(log.machine)))
    log.advance(100_000)
    task = log.task(task_id)
    assert task.state == PENDING
    assert not task.HasField("deadline_time")


def test_at_one_instant_the_deadline_comes_first() -> None:
    """Before the expiry of the claim, the end of a wait and the failure of the session."""
    log = Log(("task.claim_timeout", "10s"))
    session = log.register("worker", capacity=2)
    expired = log.enqueue(deadline_ms=10_000)
    log.claim(session)
    scheduled = log.enqueue(delay_ms=9_999, deadline_ms=10_000)
    log.advance(9_000)
    log.enqueue("other", deadline_ms=1_000)
    # Nobody may get a task that ends at the instant of its grant.
    log.advance(1_000)
    assert [kinds(log.task(each))[-2:] for each in (expired, scheduled)] == [
        ["DEADLINE_PASSED", "DEAD_LETTERED"]
    ] * 2
    assert log.task(expired).retry_count == 0


def test_a_deadline_holds_over_a_snapshot() -> None:
    log = Log()
    ids = [log.enqueue(deadline_ms=5_000), log.enqueue(deadline_ms=7_000)]
    log.do(cancel_task={"task_id": ids[1]})
    log.machine = restored(whole(log.machine))
    log.advance(5_000)
    assert log.task(ids[0]).state == FAILED
    log.advance(5_000)
    assert log.task(ids[1]).state == CANCELLED


def test_a_purged_task_takes_its_deadline_along() -> None:
    log = Log(("task.max_finished", "1"))
    for _ in range(50):
        task_id = log.enqueue(deadline_ms=100_000)
        log.do(cancel_task={"task_id": task_id})
    assert len(log.tasks()._store.extras) == 1
    assert log.machine.next_due_ms() is not None
    assert "deadline.task" not in {kind for _, kind, _ in log.machine._context.timers.live()}
