"""Claims: order, capacity, health, tokens, and what ends a claim."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from gaia.command.v1 import command_pb2
from gaia.task.v1 import task_pb2

from tests.state.harness import Log

EVENT = task_pb2.TaskEventKind
CLAIMED, PENDING, COMPLETED, FAILED, CANCELLED = (
    task_pb2.TASK_STATE_CLAIMED,
    task_pb2.TASK_STATE_PENDING,
    task_pb2.TASK_STATE_COMPLETED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELLED,
)


def ids(tasks: list[task_pb2.Task]) -> list[str]:
    return [task.task_id for task in tasks]


def test_priority_then_affinity_then_age() -> None:
    log = Log()
    session = log.register("worker", specialty="math", capacity=9)
    wanted = {}
    for name, priority, affinity in (
        ("old general", 1, "general"),
        ("old math", 1, "math"),
        ("urgent general", 5, "general"),
        ("urgent art", 9, "art"),
        ("new math", 1, "math"),
        ("urgent math", 5, "math"),
    ):
        wanted[log.enqueue(priority=priority, affinity=affinity)] = name
    claimed = [wanted[task_id] for task_id in ids(log.claim(session, 9))]
    assert claimed == ["urgent math", "urgent general", "old math", "new math", "old general"]
    assert [wanted[i] for i in ids(log.claim(session, 9, include_unmatched=True))] == ["urgent art"]


def test_a_general_session_prefers_general_tasks_and_takes_all() -> None:
    log = Log()
    session = log.register("worker", capacity=9)
    first = log.enqueue(affinity="art")
    second = log.enqueue(affinity="general")
    third = log.enqueue(affinity="math", priority=1)
    assert ids(log.claim(session, 9)) == [third, second, first]


@pytest.mark.parametrize("include", [False, True])
def test_unmatched_tasks_come_last_within_a_priority(include: bool) -> None:
    log = Log()
    session = log.register("worker", specialty="math", capacity=9)
    art, general, math = (log.enqueue(affinity=a) for a in ("art", "general", "math"))
    claimed = ids(log.claim(session, 9, include_unmatched=include))
    assert claimed == [math, general, *([art] if include else [])]


def test_only_the_types_asked_for() -> None:
    log = Log()
    session = log.register("worker", specialty="math", capacity=9)
    made = {
        (kind, affinity): log.enqueue(kind, affinity=affinity)
        for kind, affinity in product(("a", "b", "c"), ("math", "general", "art"))
    }
    claimed = ids(log.claim(session, 9, task_types=["b", "c"]))
    assert claimed == [
        made[k] for k in (("b", "math"), ("c", "math"), ("b", "general"), ("c", "general"))
    ]
    assert ids(log.claim(session, 9, task_types=["x"])) == []


def test_the_guides_hundred_tasks_come_in_order_of_priority() -> None:
    log = Log()
    session = log.register("worker", capacity=100)
    for number in range(100):
        log.enqueue(priority=(1, 1, 1, 5, 5, 10)[number % 6])
    order = [(-task.priority, task.task_id) for task in log.claim(session, 100)]
    assert len(order) == 100
    assert order == sorted(order)


def test_a_session_never_holds_more_than_it_may() -> None:
    log = Log()
    session = log.register("worker", capacity=2)
    for _ in range(5):
        log.enqueue()
    held = log.claim(session, 5)
    assert len(held) == 2
    assert log.claim(session, 5) == []
    assert log.session(session).claimed_tasks == 2
    log.complete(held[0])
    assert len(log.claim(session, 5)) == 1


def test_a_claim_has_payload_token_and_time_limit() -> None:
    log = Log()
    session = log.register("worker", capacity=2)
    log.enqueue(payload=b"one")
    log.enqueue(payload=b"two")
    first, second = log.claim(session, 2)
    assert (first.payload, first.state, first.claimed_by) == (b"one", CLAIMED, session)
    assert first.claim_token < second.claim_token
    assert first.claim_expire_time.ToMilliseconds() == log.now_ms + 600_000
    stats = log.stats()
    assert (stats.claimed, stats.claims_total, stats.pending) == (2, 2, 0)


def test_who_may_not_claim() -> None:
    log = Log()
    session = log.register("worker")
    body: dict[str, Any] = {"session_id": session, "max_tasks": 1}
    assert log.refuse(claim_tasks={**body, "max_tasks": 0}).field == "max_tasks"
    assert log.refuse(claim_tasks={**body, "session_id": "s-x"}).reason == "NOT_FOUND"
    log.advance(15_000)
    assert log.refuse(claim_tasks=body).reason == "SESSION_DEGRADED"
    log.beat(session)
    assert log.claim(session) == []
    log.advance(30_000)
    assert log.refuse(claim_tasks=body).reason == "SESSION_FAILED"


def test_a_degraded_claimant_may_ask_again_with_the_same_request() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    log.advance(15_000)
    body = {"claim_tasks": {"session_id": session, "max_tasks": 1}, "request_id": "r"}
    log.refuse(**body)
    log.beat(session)
    assert len(log.do(**body).claim.tasks) == 1


def test_completion_ends_the_claim_and_keeps_the_result() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue(payload=b"in")
    outcome = log.complete(log.claim(session)[0], result=b"out")
    assert outcome.task.state == COMPLETED
    task = log.task(task_id)
    assert (task.result, task.claimed_by, task.HasField("claim_expire_time")) == (b"out", "", False)
    assert [event.kind for event in task.history] == [
        EVENT.Value(f"TASK_EVENT_KIND_{name}") for name in ("ENQUEUED", "CLAIMED", "COMPLETED")
    ]
    assert {event.session_id for event in task.history[1:]} == {session}
    assert log.session(session).claimed_tasks == 0


def test_repeating_an_accepted_completion_returns_it_again() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    task = log.claim(session)[0]
    first = log.complete(task, result=b"first")
    again = log.complete(task, result=b"second")
    assert again == first
    assert log.task(task.task_id).result == b"first"
    assert log.stats().completed_total == 1


def test_each_completion_of_a_batch_has_its_own_outcome() -> None:
    log = Log()
    session = log.register("worker", capacity=2)
    for _ in range(2):
        log.enqueue()
    one, two = log.claim(session, 2)
    completions = [
        task_pb2.Completion(task_id=one.task_id, claim_token=one.claim_token),
        task_pb2.Completion(task_id=two.task_id, claim_token=one.claim_token),
        task_pb2.Completion(task_id="t-000000000099", claim_token=1),
    ]
    body = command_pb2.CompleteTasks(session_id=session, completions=completions)
    outcomes = log.do(complete_tasks=body).completions.outcomes
    assert [outcome.refusal.reason for outcome in outcomes] == ["", "STALE_CLAIM", "NOT_FOUND"]


@pytest.mark.parametrize("level", [2, 3])
def test_the_outcome_of_one_among_several_completions_names_its_task_alone(level: int) -> None:
    log = Log(level=level)
    session = log.register("worker", capacity=3)
    for _ in range(3):
        log.enqueue()
    claimed = log.claim(session, 3)

    def states(*tasks: task_pb2.Task) -> list[tuple[str, str]]:
        completions = [
            task_pb2.Completion(task_id=task.task_id, claim_token=task.claim_token)
            for task in tasks
        ]
        body = command_pb2.CompleteTasks(session_id=session, completions=completions)
        outcomes = log.do(complete_tasks=body).completions.outcomes
        return [(one.task.task_id, task_pb2.TaskState.Name(one.task.state)) for one in outcomes]

    ids = [task.task_id for task in claimed]
    state = "TASK_STATE_COMPLETED" if level < 3 else "TASK_STATE_UNSPECIFIED"
    assert states(*claimed[:2]) == [(ids[0], state), (ids[1], state)]
    assert states(claimed[2]) == [(ids[2], "TASK_STATE_COMPLETED")]


@pytest.mark.parametrize("verb", ["complete_tasks", "fail_task", "release_task", "extend_claim"])
def test_a_stale_token_names_who_holds_the_task(verb: str) -> None:
    log = Log(("task.retry_base", "0ms"))
    late, holder = log.register("late"), log.register("holder")
    task_id = log.enqueue()
    old = log.claim(late)[0]
    for _ in range(60):
        log.advance(10_000)
        log.beat(late, holder)
    new = log.claim(holder)[0]
    assert (new.task_id, new.claim_token > old.claim_token) == (task_id, True)
    if verb == "complete_tasks":
        refusal = log.complete(old).refusal
    else:
        refusal = log.refuse(**{verb: log.held(old)})
    assert refusal.reason == "STALE_CLAIM"
    assert refusal.kind == command_pb2.REFUSAL_KIND_FAILED_PRECONDITION
    assert {detail.key: detail.value for detail in refusal.details} == {
        "task_id": task_id,
        "claimed_by": holder,
        "claim_token": str(new.claim_token),
        "state": "CLAIMED",
    }
    assert log.complete(new).task.state == COMPLETED


def test_the_right_token_from_another_session_is_stale() -> None:
    log = Log()
    session, other = log.register("worker"), log.register("other")
    log.enqueue()
    task = log.claim(session)[0]
    assert log.complete(task, session_id=other).refusal.reason == "STALE_CLAIM"
    log.complete(task)
    assert log.complete(task, session_id=other).refusal.reason == "STALE_CLAIM"


def test_a_task_that_nobody_holds_is_named_as_such() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue()
    body = {"task_id": task_id, "claim_token": 0, "session_id": session}
    refusal = log.refuse(release_task=body)
    assert "PENDING and held by nobody" in refusal.message


def test_extending_renews_the_claim_and_stores_progress_and_checkpoint() -> None:
    log = Log(("task.claim_timeout", "10s"), ("task.retry_base", "0ms"))
    session = log.register("worker")
    task_id = log.enqueue()
    task = log.claim(session)[0]
    for step in range(1, 4):
        log.advance(9_000)
        log.beat(session)
        fields = {"progress_micro": step * 250_000, "checkpoint": b"page 3" if step == 1 else b""}
        extended = log.do(extend_claim=log.held(task, **fields)).tasks.tasks[0]
        assert extended.claim_expire_time.ToMilliseconds() == log.now_ms + 10_000
    kept = log.task(task_id)
    assert (kept.progress, kept.checkpoint, kept.state) == (0.75, b"page 3", CLAIMED)
    assert [event.kind for event in kept.history].count(
        EVENT.Value("TASK_EVENT_KIND_EXTENDED")
    ) == 3
    for bad in (-1, 1_000_001):
        refusal = log.refuse(extend_claim=log.held(task, progress_micro=bad))
        assert refusal.field == "progress"
    log.do(release_task=log.held(task))
    again = log.claim(session)[0]
    assert (again.checkpoint, again.progress) == (b"page 3", 0.0)


def test_a_claim_takes_no_more_bytes_than_one_answer_can_bring() -> None:
    """70 tasks of 1 MiB were claimed, could not be sent, and unseated the leader on the way."""
    log = Log()
    session = log.register("worker", capacity=100)
    for _ in range(5):
        log.enqueue(payload=bytes(1 << 20))
    assert len(log.claim(session, 100)) == 3
    assert len(log.claim(session, 100)) == 2
    log.enqueue(payload=bytes(4 << 20))
    assert len(log.claim(session, 100)) == 1  # one at least


def test_a_release_counts_no_attempt_and_keeps_the_place() -> None:
    log = Log()
    session = log.register("worker")
    first = log.enqueue()
    log.enqueue()
    task = log.claim(session)[0]
    released = log.do(release_task=log.held(task)).tasks.tasks[0]
    assert (released.state, released.retry_count) == (PENDING, 0)
    assert log.do(release_task=log.held(task)).tasks.tasks[0] == released
    again = log.claim(session)[0]
    assert again.task_id == first
    log.do(release_task=log.held(task))  # repeated: what was accepted once more
    assert log.task(first).claim_token == again.claim_token


@pytest.mark.parametrize("claimed", [False, True])
def test_cancelling_ends_a_pending_or_claimed_task(claimed: bool) -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue()
    held = log.claim(session) if claimed else []
    body = {"task_id": task_id, "reason": "not needed"}
    cancelled = log.do(cancel_task=body).tasks.tasks[0]
    assert (cancelled.state, cancelled.last_error) == (CANCELLED, "not needed")
    assert log.do(cancel_task={"task_id": task_id, "reason": "x"}).tasks.tasks[0] == cancelled
    assert log.session(session).claimed_tasks == 0
    assert log.claim(session) == []
    for task in held:
        assert log.complete(task).refusal.reason == "STALE_CLAIM"
    assert log.refuse(cancel_task={"task_id": "t-9"}).reason == "NOT_FOUND"


def test_a_scheduled_task_can_be_cancelled() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue(delay_ms=5_000)
    log.do(cancel_task={"task_id": task_id})
    log.advance(6_000)
    assert log.task(task_id).state == CANCELLED
    assert log.claim(session) == []


def test_illegal_transitions_are_refused() -> None:
    log = Log()
    session = log.register("worker")
    done = log.enqueue()
    assert log.refuse(requeue_task={"task_id": done}).reason == "ILLEGAL_TRANSITION"
    log.complete(log.claim(session)[0])
    for verb in ("cancel_task", "requeue_task"):
        refusal = log.refuse(**{verb: {"task_id": done}})
        assert refusal.reason == "ILLEGAL_TRANSITION"
        assert "COMPLETED" in refusal.message
    dead = log.enqueue()
    log.fail(log.claim(session)[0], permanent=True)
    assert log.refuse(cancel_task={"task_id": dead}).reason == "ILLEGAL_TRANSITION"
    assert log.task(dead).state == FAILED


def test_a_requeued_task_begins_again() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue()
    log.fail(log.claim(session)[0], permanent=True)
    requeued = log.do(requeue_task={"task_id": task_id}).tasks.tasks[0]
    assert (requeued.state, requeued.retry_count, requeued.last_error) == (PENDING, 0, "boom")
    assert log.complete(log.claim(session)[0]).task.state == COMPLETED
    full = Log(("task.max_pending", "1"))
    dead = full.enqueue()
    full.do(cancel_task={"task_id": dead})
    full.enqueue()
    assert full.refuse(requeue_task={"task_id": dead}).reason == "QUEUE_FULL"


def test_the_history_keeps_the_last_events() -> None:
    log = Log()
    session = log.register("worker")
    task_id = log.enqueue()
    for _ in range(40):
        log.do(release_task=log.held(log.claim(session)[0]))
    history = log.task(task_id).history
    assert len(history) == 64
    assert history[-1].kind == EVENT.Value("TASK_EVENT_KIND_RELEASED")
    assert history[-1].claim_token == 40
    assert history[0].kind == EVENT.Value("TASK_EVENT_KIND_CLAIMED")


def test_a_repeated_claim_request_returns_the_same_claim_while_it_lives() -> None:
    log = Log()
    session = log.register("worker", capacity=5)
    for number in range(3):
        log.enqueue(payload=b"%d" % number)
    request = {"claim_tasks": {"session_id": session, "max_tasks": 2}, "request_id": "r"}
    first = log.do(**request).claim
    again = log.do(**request)
    assert again.repeated_from_index > 0
    assert again.claim == first
    assert log.stats().claims_total == 2
    log.complete(first.tasks[0])
    assert list(log.do(**request).claim.tasks) == [first.tasks[1]]
    log.do(release_task=log.held(first.tasks[1]))
    assert not log.do(**request).claim.tasks
    unknown = {"claim_tasks": {"session_id": "s-x", "max_tasks": 2}, "request_id": "r2"}
    assert log.refuse(**unknown) == log.refuse(**unknown)
