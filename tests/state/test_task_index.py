"""The cost of the queue's moves does not grow with what is in it (counted, not timed)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gaia_grpc.state.lazy_heap import LazyHeap
from gaia_grpc.state.task_index import PendingIndex
from tests.state.harness import Log


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts how often the index looks at a task."""
    looks = [0]
    original = PendingIndex._is_live

    def counting(self: PendingIndex, key: int) -> bool:
        looks[0] += 1
        return original(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(PendingIndex, "_is_live", counting)
        yield looks


def filled(pending: int) -> Log:
    log = Log()
    specs = [
        {
            "task_type": f"type {number % 7}",
            "affinity": ("math", "general", "art")[number % 3],
            "priority": number % 11,
        }
        for number in range(pending)
    ]
    log.do(enqueue_tasks={"tasks": specs})
    return log


@pytest.mark.parametrize("types", [[], ["type 1"], ["nobody has it"]])
def test_a_claim_looks_at_as_many_tasks_whatever_is_pending(
    monkeypatch: pytest.MonkeyPatch, types: list[str]
) -> None:
    looked = []
    for pending in (600, 12_000):
        log = filled(pending)
        session = log.register("worker", specialty="math", capacity=100)
        with counted(monkeypatch) as looks:
            for _ in range(10):
                log.claim(session, task_types=types)
        looked.append(looks[0])
    assert looked[1] <= looked[0] + 10
    assert looked[1] <= 10 * 10


def test_tasks_that_went_leave_nothing_in_the_index() -> None:
    log = filled(500)
    session = log.register("worker", capacity=1_000)
    index = log.tasks()._store.index
    assert len(index) == 4 * 500
    for task in log.claim(session, 500):
        log.do(release_task=log.held(task))
    assert len(index) <= 3 * 4 * 500
    for task in log.claim(session, 500):
        log.complete(task)
    assert len(index) == 0


def test_claiming_from_one_end_keeps_the_other_heaps_small() -> None:
    log = Log()
    session = log.register("worker", specialty="math")
    old = log.enqueue(affinity="art")  # stays on top of the heap of all, which nobody asks
    for _ in range(2_000):
        log.enqueue(affinity="math")
        log.complete(log.claim(session)[0])
    assert len(log.tasks()._store.index) < 400
    assert log.task(old).state == 1


def test_a_heap_of_waiters_shrinks_as_they_leave() -> None:
    log = Log()
    session = log.register("worker")
    keeper = log.wait(session)
    for _ in range(500):
        log.do(cancel_claim_wait={"waiter_id": log.wait(session)})
    heaps: list[LazyHeap] = list(log.tasks()._flow.waits._heaps.values())
    assert sum(len(heap) for heap in heaps) < 200
    task_id = log.enqueue()
    assert [task.task_id for task in log.waited(keeper).tasks] == [task_id]


def test_odd_specialties_wait_for_their_own_tasks_only() -> None:
    log = Log()
    for odd in ("*any", "*every", "ONE", "\x00"):
        waiter = log.wait(log.register(odd, specialty=odd))
        log.enqueue(affinity="math")
        assert log.waited(waiter).waiting
        log.enqueue(affinity=odd)
        assert not log.waited(waiter).waiting
