"""Claims that wait in the log: first come first served, no stampede, nothing lost."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.errors import InvariantError
from gaia_grpc.state import topics
from gaia_grpc.state.task_index import PendingIndex
from gaia_grpc.state.task_waits import WaitList
from tests.state.harness import Log


def granted(log: Log, waiter_id: int) -> list[str]:
    result = log.waited(waiter_id)
    assert not result.waiting
    return [task.task_id for task in result.tasks]


def test_an_enqueue_grants_the_oldest_waiter_and_wakes_only_it() -> None:
    log = Log()
    waiters = [log.wait(log.register(f"w{number}")) for number in range(3)]
    assert log.stats().waiting_claims == 3
    log.machine.take_touched()
    task_id = log.enqueue(payload=b"x")
    touched = [topics.TASKS, topics.SESSIONS, topics.claim_wait(waiters[0])]
    assert log.machine.take_touched() == touched
    assert granted(log, waiters[0]) == [task_id]
    assert log.waited(waiters[0]).tasks[0].payload == b"x"
    assert [log.waited(waiter).waiting for waiter in waiters[1:]] == [True, True]
    assert log.stats().waiting_claims == 2


def test_a_batch_of_completions_looks_at_each_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """900 completions beside 3,000 waits of their session held every peer up for a minute."""
    log = Log()
    session = log.register("worker", capacity=50)
    for _ in range(40):
        log.enqueue("grade")
    tasks = log.claim(session, 40)
    waiters = [log.wait(session, task_types=["other"]) for _ in range(30)]
    looked = 0
    best = PendingIndex.best

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal looked
        looked += 1
        return best(*arguments, **named)

    monkeypatch.setattr(PendingIndex, "best", counted)
    done = [{"task_id": task.task_id, "claim_token": task.claim_token} for task in tasks]
    log.do(complete_tasks={"session_id": session, "completions": done})
    assert looked <= len(waiters)


def test_a_wait_of_0_answers_at_once() -> None:
    log = Log()
    result = log.claim_result(log.register("worker"))
    assert (list(result.tasks), result.waiter_id) == ([], 0)


def test_a_wait_that_finds_a_task_does_not_wait() -> None:
    log = Log()
    log.enqueue()
    result = log.claim_result(log.register("worker"), wait_ms=1_000)
    assert (len(result.tasks), result.waiter_id) == (1, 0)


def test_a_wait_runs_out() -> None:
    log = Log()
    session = log.register("worker")
    waiter = log.wait(session, 5_000)
    log.advance(4_999)
    assert log.waited(waiter).waiting
    log.machine.take_touched()
    log.advance(1)
    assert granted(log, waiter) == []
    assert log.machine.take_touched() == [topics.claim_wait(waiter)]
    task_id = log.enqueue()
    assert log.task(task_id).state == task_pb2.TASK_STATE_PENDING


def test_a_wait_is_cut_to_the_longest() -> None:
    log = Log(("task.max_wait", "2s"), ("task.max_waiters", "1"))
    session = log.register("worker")
    waiter = log.wait(session, 60_000)
    body = {"session_id": session, "max_tasks": 1, "wait_ms": 1}
    assert log.refuse(claim_tasks=body).reason == "TOO_MANY_WAITERS"
    assert log.claim(session) == []
    log.advance(2_000)
    assert not log.waited(waiter).waiting


def test_a_waiter_gets_what_it_asked_for_and_no_other_task() -> None:
    log = Log()
    math = log.wait(log.register("m", specialty="math"))
    tutor = log.wait(log.register("t"), task_types=["tutor", "tutor"])
    everything = log.wait(log.register("a", specialty="art"), include_unmatched=True)
    tutor_task = log.enqueue("tutor", affinity="history")
    music_task = log.enqueue("grade", affinity="music")
    assert granted(log, tutor) == [tutor_task]
    assert granted(log, everything) == [music_task]
    assert log.waited(math).waiting
    general_task = log.enqueue("grade", affinity="general")
    assert granted(log, math) == [general_task]


def test_a_waiter_gets_the_best_of_a_batch_up_to_its_capacity() -> None:
    log = Log()
    waiter = log.wait(log.register("w", capacity=2), most=5)
    late = log.wait(log.register("late"))
    tasks = [{"task_type": "grade", "priority": priority} for priority in (1, 9, 5, 7)]
    ids = [t.task_id for t in log.do(enqueue_tasks={"tasks": tasks}).tasks.tasks]
    assert granted(log, waiter) == [ids[1], ids[3]]
    assert granted(log, late) == [ids[2]]
    assert log.task(ids[0]).state == task_pb2.TASK_STATE_PENDING


@pytest.mark.parametrize("how", ["available", "release", "expiry", "requeue", "lost", "cancelled"])
def test_whatever_becomes_pending_is_offered_to_who_waits(how: str) -> None:
    log = Log(("task.retry_base", "0ms"), ("task.claim_timeout", "20s"))
    holder, idle = log.register("holder"), log.register("idle")
    task_id = log.enqueue(delay_ms=2_000 if how == "available" else 0)
    held = log.claim(holder)
    if how == "requeue":
        log.do(cancel_task={"task_id": task_id})
    waiter = log.wait(idle, 60_000)
    if how == "available":
        log.advance(2_000)
    elif how == "release":
        log.do(release_task=log.held(held[0]))
    elif how == "requeue":
        log.do(requeue_task={"task_id": task_id})
    elif how == "cancelled":
        log.do(deregister_session={"session_id": holder})
    else:
        beats = [holder, idle] if how == "expiry" else [idle]
        for _ in range(7):
            log.advance(5_000)
            log.beat(*beats)
    assert granted(log, waiter) == [task_id]


def test_a_session_that_is_full_waits_until_it_has_room() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    held = log.claim(session)[0]
    waiter = log.wait(session)
    task_id = log.enqueue()
    assert log.waited(waiter).waiting
    log.complete(held)
    assert granted(log, waiter) == [task_id]


def test_a_degraded_session_is_passed_over_and_keeps_its_place() -> None:
    log = Log()
    sleepy, awake = log.register("sleepy"), log.register("awake")
    first = log.wait(sleepy, 60_000)
    log.advance(14_000)
    log.beat(awake)
    log.advance(1_000)
    second = log.wait(awake, 60_000)
    one = log.enqueue()
    assert granted(log, second) == [one]
    two = log.enqueue()
    assert log.waited(first).waiting
    log.beat(sleepy)
    assert granted(log, first) == [two]


@pytest.mark.parametrize("how", ["failed", "removed"])
def test_the_waits_of_a_lost_session_end(how: str) -> None:
    log = Log()
    session = log.register("worker", capacity=3)
    waiters = [log.wait(session, 60_000) for _ in range(2)]
    if how == "failed":
        log.advance(30_000)
    else:
        log.do(deregister_session={"session_id": session})
    assert [granted(log, waiter) for waiter in waiters] == [[], []]
    assert log.stats().waiting_claims == 0
    task_id = log.enqueue()
    assert log.task(task_id).state == task_pb2.TASK_STATE_PENDING


def test_several_waits_of_one_session_are_served_in_order_up_to_its_capacity() -> None:
    log = Log()
    session = log.register("worker", capacity=2)
    waiters = [log.wait(session) for _ in range(3)]
    ids = [log.enqueue() for _ in range(3)]
    assert [granted(log, waiter) for waiter in waiters[:2]] == [[ids[0]], [ids[1]]]
    assert log.waited(waiters[2]).waiting
    log.do(cancel_task={"task_id": ids[0]})
    assert granted(log, waiters[2]) == [ids[2]]


def test_cancelling_a_wait_ends_it() -> None:
    log = Log()
    waiter = log.wait(log.register("worker"))
    for _ in range(2):
        log.do(cancel_claim_wait={"waiter_id": waiter})
        assert granted(log, waiter) == []
    task_id = log.enqueue()
    assert log.task(task_id).state == task_pb2.TASK_STATE_PENDING


def test_a_grant_that_nobody_fetched_is_released_uncounted() -> None:
    log = Log()
    session = log.register("worker", capacity=3)
    waiter = log.wait(session, most=2)
    tasks = [{"task_type": "grade"}, {"task_type": "grade"}]
    log.do(enqueue_tasks={"tasks": tasks})
    done = log.waited(waiter).tasks[0]
    log.complete(done)
    log.do(cancel_claim_wait={"waiter_id": waiter})
    released = log.task("t-000000000002")
    assert (released.state, released.retry_count) == (task_pb2.TASK_STATE_PENDING, 0)
    assert log.task(done.task_id).state == task_pb2.TASK_STATE_COMPLETED


def request(session: str, **fields: Any) -> dict[str, Any]:
    body = {"session_id": session, "max_tasks": 1, "wait_ms": 60_000}
    return {"claim_tasks": body, "request_id": "r", **fields}


def test_a_repeated_request_goes_on_waiting_in_its_place() -> None:
    log = Log()
    first, second = log.register("first"), log.register("second")
    old = log.do(**request(first)).claim.waiter_id
    other = log.wait(second)
    log.machine.take_touched()
    new = log.do(**request(first)).claim.waiter_id
    assert new not in (0, old)
    assert log.machine.take_touched() == [topics.claim_wait(old)]
    assert not log.waited(old).waiting
    log.do(cancel_claim_wait={"waiter_id": old})  # the first caller's peer notices late
    task_id = log.enqueue()
    assert granted(log, new) == [task_id]
    assert log.waited(other).waiting


def test_a_renamed_wait_runs_out_at_its_first_time() -> None:
    log = Log()
    session = log.register("worker")
    log.do(**request(session))
    log.advance(10_000)
    log.beat(session)
    new = log.do(**request(session)).claim.waiter_id
    for _ in range(5):
        log.advance(9_990)
        log.beat(session)
    assert log.waited(new).waiting
    log.advance(50)
    assert not log.waited(new).waiting
    assert not log.do(**request(session)).claim.tasks


def test_a_repeated_request_fetches_what_was_granted_meanwhile() -> None:
    log = Log()
    session = log.register("worker")
    waiter = log.do(**request(session)).claim.waiter_id
    task_id = log.enqueue(payload=b"x")
    for _ in range(2):
        again = log.do(**request(session)).claim
        assert [(task.task_id, task.payload) for task in again.tasks] == [(task_id, b"x")]
        log.do(cancel_claim_wait={"waiter_id": waiter})  # too late: it was fetched
    assert log.task(task_id).state == task_pb2.TASK_STATE_CLAIMED
    assert log.stats().claims_total == 1


def test_a_wait_that_this_peer_has_not_reached_counts_as_waiting() -> None:
    log = Log()
    assert log.waited(1).waiting
    waiter = log.wait(log.register("worker"))
    assert log.waited(waiter + 1).waiting


def test_grants_are_forgotten_with_their_requests() -> None:
    log = Log(("request.retention", "10s"))
    session = log.register("worker")
    fetched = log.do(**request(session)).claim.waiter_id
    task_id = log.enqueue()
    log.do(**request(session))
    log.complete(log.task(task_id), session)
    waiter = log.wait(session)
    log.enqueue()
    assert len(granted(log, waiter)) == 1
    log.advance(12_000)
    assert granted(log, waiter) == []
    assert granted(log, fetched) == []


def test_a_waiter_that_can_not_take_what_it_waits_for_stops_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log()
    log.wait(log.register("worker", specialty="math"))
    first = WaitList.first_for

    def careless(self: WaitList, task: Any) -> Any:
        task.affinity = "math"
        found = first(self, task)
        task.affinity = "art"
        return found

    monkeypatch.setattr(WaitList, "first_for", careless)
    with pytest.raises(InvariantError):
        log.enqueue(affinity="art")
