"""Finished tasks: kept for a stated time, dropped then, and never more than there may be."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.state.task_store import DROPS_PER_FINISH
from tests.state.harness import Log
from tests.state.snapshot_checks import check_equal, restored, whole


def keep(log: Log, task_type: str, seconds: int) -> None:
    log.do(put_task_policy={"task_type": task_type, "retention": Duration(seconds=seconds)})


def retained(log: Log) -> list[str]:
    return [task.task_id for task in log.ask(list_tasks={"page_size": 1_000}).list_tasks.tasks]


def finish(log: Log, task_type: str = "grade", **spec: Any) -> str:
    task_id = log.enqueue(task_type, **spec)
    log.do(cancel_task={"task_id": task_id})
    return task_id


def test_each_type_is_kept_for_its_own_time() -> None:
    log = Log(("task.retention", "60s"))
    keep(log, "short", 5)
    keep(log, "long", 600)
    ids = {name: finish(log, name) for name in ("long", "plain", "short")}
    log.advance(7_000)
    assert retained(log) == [ids["long"], ids["plain"]]
    check_equal(log.machine, restored(whole(log.machine)))
    log.advance(60_000)
    assert retained(log) == [ids["long"]]
    log.advance(600_000)
    assert retained(log) == []
    assert log.stats().purged_total == 3
    assert log.machine.next_due_ms() is None


def test_a_shorter_time_does_not_wait_behind_a_longer_one() -> None:
    log = Log()
    keep(log, "long", 600)
    keep(log, "short", 5)
    finish(log, "long")
    short = finish(log, "short")
    # And one that is to go even earlier moves the time forward.
    log.advance(1_000)
    keep(log, "shorter", 1)
    finish(log, "shorter")
    log.advance(2_000)
    assert len(retained(log)) == 2
    log.advance(4_000)
    assert short not in retained(log)


def test_many_that_are_due_at_once_go_in_slices() -> None:
    log = Log()
    keep(log, "grade", 1)
    log.do(enqueue_tasks={"tasks": [{"task_type": "grade", "affinity": "general"}] * 2_500})
    for task_id in [*retained(log), *(f"t-{number:012d}" for number in range(1_001, 2_501))]:
        log.do(cancel_task={"task_id": task_id})
    log.now_ms += 2_000
    log.do(advance_time={})
    assert log.stats().cancelled == 1_500
    log.machine = restored(whole(log.machine))
    log.advance(3_000)
    assert log.stats().cancelled == 0


@pytest.mark.parametrize("policy", [False, True])
def test_ten_times_the_bound_leaves_as_many_as_the_bound(policy: bool) -> None:
    most = 200
    log = Log(("task.max_finished", str(most)))
    if policy:
        keep(log, "grade", 3_600)
    ids = []
    for number in range(10 * most):
        key = {"idempotency_key": f"k{number}", "deadline_ms": 86_400_000}
        ids.append(finish(log, "grade" if number % 2 else "tutor", **key))
    assert log.stats().cancelled == most
    store = log.tasks()._store
    assert len(store._tasks) == most
    assert len(store._by_key) == most
    assert len(store.finished) == most
    assert len(store.extras) == most
    timers = log.machine._context.timers
    assert len(timers._heap) + len(timers._moved) < 4 * most
    if not policy:
        assert retained(log) == ids[-most:]


def test_a_task_that_finishes_again_and_again_leaves_no_trail() -> None:
    log = Log(("task.max_finished", "10"))
    task_id = log.enqueue()
    for _ in range(5_000):
        log.do(cancel_task={"task_id": task_id})
        log.do(requeue_task={"task_id": task_id})
    store = log.tasks()._store
    assert len(store.finished) < 1_100
    check_equal(log.machine, restored(whole(log.machine)))


def test_a_requeued_task_is_not_dropped_by_its_former_end() -> None:
    log = Log()
    keep(log, "grade", 5)
    task_id = finish(log)
    log.advance(3_000)
    log.do(requeue_task={"task_id": task_id})
    log.do(cancel_task={"task_id": task_id})
    log.advance(4_000)
    assert retained(log) == [task_id]
    log.advance(3_000)
    assert retained(log) == []


def test_a_lowered_limit_is_reached_in_steps() -> None:
    log = Log()
    for _ in range(100):
        finish(log)
    log.do(update_settings={"changes": [{"name": "task.max_finished", "value": "3"}]})
    left: list[int] = []
    while not left or left[-1] > 3:
        finish(log)
        left.append(log.stats().cancelled)
    assert left[0] == 101 - DROPS_PER_FINISH
    assert left == sorted(left, reverse=True)
    finish(log)
    assert log.stats().cancelled == 3


def test_below_level_three_a_lowered_limit_is_reached_at_once() -> None:
    log = Log(level=2)
    for _ in range(100):
        finish(log)
    log.do(update_settings={"changes": [{"name": "task.max_finished", "value": "3"}]})
    finish(log)
    assert log.stats().cancelled == 3
