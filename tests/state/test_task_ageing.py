"""Ageing: nobody waits for ever behind those of a higher priority, and a claim costs no more."""

from __future__ import annotations

import random

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.state.task_index import NUMBER_BITS, order_key
from gaia_grpc.state.task_record import Task
from tests.state.harness import Log
from tests.state.snapshot_checks import check_equal, restored, whole

MINUTE_MS = 60_000


def test_tasks_of_one_interval_go_by_priority_exactly() -> None:
    log = Log()
    worker = log.register("worker", capacity=9)
    ids = [log.enqueue(priority=priority) for priority in (-1, 7, 3)]
    log.now_ms += MINUTE_MS - 1
    ids.append(log.enqueue(priority=5))
    assert [task.task_id for task in log.claim(worker, 9)] == [ids[1], ids[3], ids[2], ids[0]]


@pytest.mark.parametrize("phase_ms", [0, 1, MINUTE_MS - 1])
def test_the_bound(phase_ms: int) -> None:
    """Priority 0 against 2: (2 - 0 + 1) intervals later is late enough, wherever an interval is."""
    for late_ms, first in ((MINUTE_MS, "high"), (3 * MINUTE_MS, "low")):
        log = Log()
        log.now_ms += phase_ms
        ids = {"low": log.enqueue(priority=0)}
        log.now_ms += late_ms
        ids["high"] = log.enqueue(priority=2, affinity="math")
        assert log.claim(log.register("worker", "math"))[0].task_id == ids[first]


def test_the_bound_is_no_wider_than_needed() -> None:
    log = Log()
    log.enqueue(priority=0)
    log.now_ms += 3 * MINUTE_MS - 1
    high = log.enqueue(priority=2, affinity="math")
    assert log.claim(log.register("worker", "math"))[0].task_id == high


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_holds_over_random_queues(seed: int) -> None:
    draw = random.Random(seed)
    log = Log(("task.ageing_interval", "10s"), ("session.degraded_after", "1d"),
              ("session.failed_after", "2d"))  # fmt: skip
    worker = log.register("worker", capacity=1_000)
    waiting: dict[str, tuple[int, int]] = {}
    for _ in range(300):
        log.now_ms += draw.choice([0, 0, 1, 2_500, 9_999, 30_000])
        priority = draw.randrange(-3, 4)
        waiting[log.enqueue(priority=priority)] = (priority, log.now_ms)
        if draw.random() < 0.4:
            [task] = log.claim(worker)
            taken_priority, taken_ms = waiting.pop(task.task_id)
            for priority, entered_ms in waiting.values():
                if priority < taken_priority:
                    late_ms = (taken_priority - priority + 1) * 10_000
                    assert taken_ms < entered_ms + late_ms
                elif priority > taken_priority:
                    # And it does not go before a higher one without having waited for it.
                    assert entered_ms > taken_ms


def test_a_stream_of_high_priority_does_not_starve_the_low() -> None:
    log = Log(("session.degraded_after", "1d"), ("session.failed_after", "2d"))
    worker = log.register("worker")
    low = log.enqueue(priority=0)
    for _ in range(11):
        log.enqueue(priority=10)
        log.complete(log.claim(worker)[0])
        log.advance(MINUTE_MS)
    log.enqueue(priority=10)
    log.complete(log.claim(worker)[0])
    assert log.task(low).state == task_pb2.TASK_STATE_COMPLETED


def test_retries_and_releases_keep_the_age_and_a_requeue_begins_a_new_one() -> None:
    log = Log(("session.degraded_after", "1d"), ("session.failed_after", "2d"))
    worker = log.register("worker")
    old = log.enqueue(max_retries=1)
    log.advance(5 * MINUTE_MS)
    log.fail(log.claim(worker)[0], retry_delay_ms=1_000)
    log.advance(1_000)
    log.enqueue(priority=3)
    again = log.claim(worker)[0]
    assert again.task_id == old
    log.do(release_task=log.held(again))
    log.fail(log.claim(worker)[0])
    log.do(requeue_task={"task_id": old})
    assert log.claim(worker)[0].task_id != old


def test_a_delayed_task_ages_from_when_it_may_be_claimed() -> None:
    log = Log(("session.degraded_after", "1d"), ("session.failed_after", "2d"))
    worker = log.register("worker")
    delayed = log.enqueue(delay_ms=10 * MINUTE_MS)
    log.advance(10 * MINUTE_MS)
    high = log.enqueue(priority=1)
    assert [log.claim(worker)[0].task_id] == [high]
    assert log.task(delayed).state == task_pb2.TASK_STATE_PENDING


def test_without_an_interval_nothing_ages() -> None:
    log = Log(("task.ageing_interval", "0ms"), ("session.degraded_after", "1d"),
              ("session.failed_after", "2d"))  # fmt: skip
    worker = log.register("worker")
    log.enqueue(priority=0)
    log.advance(1_000 * MINUTE_MS)
    high = log.enqueue(priority=1)
    assert log.claim(worker)[0].task_id == high


def test_a_change_of_the_interval_goes_on_from_what_was_counted() -> None:
    log = Log(("session.degraded_after", "1d"), ("session.failed_after", "2d"))
    worker = log.register("worker", capacity=9)
    old = log.enqueue(priority=0)
    log.advance(3 * MINUTE_MS)

    def set_interval(value: str) -> None:
        change = {"name": "task.ageing_interval", "value": value}
        log.do(update_settings={"changes": [change]})

    set_interval("0ms")
    log.advance(100 * MINUTE_MS)
    middle = log.enqueue(priority=2)
    set_interval("1h")
    check_equal(log.machine, restored(whole(log.machine)))
    log.advance(60 * MINUTE_MS)
    young = log.enqueue(priority=4)
    # Ranks 0, 2 - 3 and 4 - 4: the youngest of equal ranks goes last.
    assert [task.task_id for task in log.claim(worker, 9)] == [old, young, middle]


def test_a_queue_from_before_the_level_keeps_its_order_and_then_ages() -> None:
    log = Log(("session.degraded_after", "1d"), ("session.failed_after", "2d"), level=2)
    worker = log.register("worker", capacity=9)
    low = log.enqueue(priority=0)
    log.advance(9 * MINUTE_MS)
    high = log.enqueue(priority=1)
    log.do(raise_feature_level={"level": 3})
    check_equal(log.machine, restored(whole(log.machine)))
    first = log.enqueue(priority=1)
    log.advance(2 * MINUTE_MS)
    last = log.enqueue(priority=1)
    assert [task.task_id for task in log.claim(worker, 9)] == [high, first, low, last]
    check_equal(log.machine, restored(whole(log.machine)))


def test_a_key_stays_small_for_months() -> None:
    """60 bits are two digits of a Python integer: 32 bytes, where three take 48 with malloc."""
    task = Task(10**12, "grade", b"", "general", -1_000, 3, 0)
    task.epoch = 180 * 24 * 60  # half a year of minutes
    assert order_key(task).bit_length() <= 60
    assert (1 << NUMBER_BITS) > 10**12
