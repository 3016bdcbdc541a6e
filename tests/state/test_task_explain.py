"""ExplainAssignment: every reason that there is, in words that a person can act on."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.state.task_index import PendingIndex
from tests.state.harness import Log
from tests.state.snapshot_checks import busy_log

NOT_PENDING = task_pb2.ASSIGNMENT_OBSTACLE_TASK_NOT_PENDING
UNHEALTHY = task_pb2.ASSIGNMENT_OBSTACLE_UNHEALTHY
NO_CAPACITY = task_pb2.ASSIGNMENT_OBSTACLE_NO_CAPACITY
NO_AFFINITY = task_pb2.ASSIGNMENT_OBSTACLE_NO_AFFINITY
BEHIND = task_pb2.ASSIGNMENT_OBSTACLE_BEHIND_ANOTHER


def explained(log: Log, task_id: str, **fields: Any) -> task_pb2.ExplainAssignmentResponse:
    return log.ask(explain_assignment={"task_id": task_id, **fields}).explain_assignment


def only(log: Log, task_id: str) -> task_pb2.AssignmentExplanation:
    [explanation] = explained(log, task_id).explanations
    return explanation


def test_a_session_that_would_get_the_task_is_told_so() -> None:
    log = Log()
    log.register("ada", "math", capacity=2)
    task_id = log.enqueue(affinity="math")
    answer = explained(log, task_id)
    assert answer.explanation == "pending; 1 of 1 sessions would get it now"
    assert (answer.total_sessions, answer.eligible_sessions) == (1, 1)
    [one] = answer.explanations
    assert one.eligible
    assert list(one.obstacles) == []
    assert (one.session_name, one.affinity_score, one.free_capacity) == ("ada", 1.0, 2)
    assert one.explanation == ("specialty is math; healthy; holds 0 of 2 tasks; would get it now")


def test_a_full_session_needs_to_end_a_task() -> None:
    log = Log()
    session_id = log.register("w")
    log.enqueue()
    log.claim(session_id)
    one = only(log, log.enqueue())
    assert list(one.obstacles) == [NO_CAPACITY]
    assert one.explanation.endswith("holds 1 of 1 tasks; needs to end one of its tasks")


def test_a_degraded_session_needs_a_heartbeat() -> None:
    log = Log()
    log.register("w")
    task_id = log.enqueue()
    log.advance(16_000)
    one = only(log, task_id)
    assert list(one.obstacles) == [UNHEALTHY]
    assert "degraded" in one.explanation
    assert one.explanation.endswith("needs a heartbeat in time")
    log.advance(20_000)
    assert "failed" in only(log, task_id).explanation


def test_a_session_of_another_specialty_is_told_how_to_get_it() -> None:
    log = Log()
    log.register("w", "art")
    one = only(log, log.enqueue(affinity="math"))
    assert (one.affinity_score, list(one.obstacles)) == (0.0, [NO_AFFINITY])
    assert one.explanation == (
        "specialty art does not match math; healthy; holds 0 of 1 tasks; "
        "needs include_unmatched in its claim"
    )


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        ({"priority": 5}, {}, "priority 5 over 0"),
        ({"affinity": "math"}, {"affinity": "general"}, "affinity score 1.0 over 0.5"),
        ({"affinity": "math"}, {"affinity": "math"}, "older"),
    ],
)
def test_what_goes_first_is_named_with_its_reason(
    first: dict[str, Any], then: dict[str, Any], why: str
) -> None:
    log = Log()
    log.register("w", "math")
    ahead = log.enqueue(**first)
    one = only(log, log.enqueue(**then))
    assert (one.ahead_task_id, list(one.obstacles)) == (ahead, [BEHIND])
    assert f"{ahead} goes first: {why}" in one.explanation
    assert not one.eligible


def test_where_a_task_stands_that_does_not_wait() -> None:
    log = Log(("task.retry_base", "4s"))
    session_id = log.register("w", capacity=9)
    delayed = log.enqueue(delay_ms=7_000)
    answer = explained(log, delayed)
    assert answer.explanation == "scheduled; delayed; may be claimed in 7.0 s"
    assert list(answer.explanations[0].obstacles) == [NOT_PENDING]
    assert "the task is scheduled" in answer.explanations[0].explanation
    log.enqueue()
    [task] = log.claim(session_id)
    answer = explained(log, task.task_id)
    assert answer.explanation == (
        f"claimed by {session_id} under the claim {task.claim_token}; "
        "the claim ends in 600.0 s unless it is extended"
    )
    assert "holds the task" in answer.explanations[0].explanation
    log.fail(task)
    assert explained(log, task.task_id).explanation == (
        "scheduled; retry 1 of 3; may be claimed in 4.0 s"
    )
    log.do(cancel_task={"task_id": task.task_id, "reason": "snow day"})
    assert explained(log, task.task_id).explanation == "cancelled (snow day); needs RequeueTask"
    log.enqueue()
    [task] = log.claim(session_id)
    log.complete(task)
    assert explained(log, task.task_id).explanation == "completed; nobody will get it"


def test_an_unknown_task_is_not_found() -> None:
    refusal = Log().query(explain_assignment={"task_id": "t-1"}).refusal
    assert refusal.reason == "NOT_FOUND"


def test_the_nearest_sessions_come_first_and_the_page_is_bounded() -> None:
    log = Log()
    far = log.register("far", "art")
    half = log.register("half", "general")
    near = log.register("near", "math")
    task_id = log.enqueue(affinity="math")
    answer = explained(log, task_id)
    assert [one.session_id for one in answer.explanations] == [near, half, far]
    answer = explained(log, task_id, page_size=1)
    assert [one.session_id for one in answer.explanations] == [near]
    assert (answer.total_sessions, answer.eligible_sessions) == (3, 2)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_is_what_happens(seed: int) -> None:
    """Each session of a busy log then asks: it gets the task exactly if it was eligible."""
    entries = busy_log(seed, steps=120).entries
    checked = 0
    pending = _replayed(entries).ask(list_tasks={"state": 1, "page_size": 4}).list_tasks.tasks
    for task in pending:
        for one in explained(_replayed(entries), task.task_id).explanations:
            claimed = _replayed(entries).apply_fields(
                claim_tasks={"session_id": one.session_id, "max_tasks": 1}
            )
            got = [each.task_id for each in claimed.claim.tasks]
            assert (got == [task.task_id]) == one.eligible, one
            if one.ahead_task_id and list(one.obstacles) == [BEHIND]:
                assert got == [one.ahead_task_id]
            checked += 1
    assert checked or not pending


def _replayed(entries: list[tuple[int, bytes]]) -> Log:
    log = Log(found=False)
    for kind, data in entries:
        log.apply_raw(kind, data)
    log.now_ms = log.machine.elapsed_ms
    return log


def test_the_cost_does_not_grow_with_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: the queue is asked once a specialty, with 3,000 tasks as with one."""
    log = Log()
    for number in range(30):
        log.register(f"w{number}", ("math", "art", "general")[number % 3])
    for _ in range(3):
        log.do(enqueue_tasks={"tasks": [{"task_type": "g", "affinity": "general"}] * 1_000})
    task_id = log.enqueue()
    asked = []
    best = PendingIndex.best

    def counted(self: PendingIndex, specialty: str, *rest: Any, **named: Any) -> Any:
        asked.append(specialty)
        return best(self, specialty, *rest, **named)

    monkeypatch.setattr(PendingIndex, "best", counted)
    explained(log, task_id)
    assert sorted(asked) == ["art", "general", "math"]


def test_a_blocked_task_names_what_it_waits_for() -> None:
    log = Log()
    session = log.register("w")
    first, second = log.enqueue(), log.enqueue()
    log.claim(session)
    task_id = log.enqueue(depends_on=[second, first])
    answer = explained(log, task_id)
    assert answer.explanation == (
        f"blocked; waits for {first} (claimed), {second} (pending) to be completed"
    )
    [one] = answer.explanations
    assert NOT_PENDING in one.obstacles
    assert "the task is blocked" in one.explanation
    many = [log.enqueue() for _ in range(10)]
    answer = explained(log, log.enqueue(depends_on=many))
    assert answer.explanation.endswith(", 2 more to be completed")


def test_the_age_of_a_task_is_shown() -> None:
    log = Log()
    old = log.enqueue(priority=1)
    log.now_ms += 3 * 60_000
    young = log.enqueue(priority=3)
    log.register("w")
    assert explained(log, old).explanation == (
        "pending, priority 4 (1 and 3 for its age); 1 of 1 sessions would get it now"
    )
    one = only(log, young)
    assert f"{old} goes first: priority 4 (1 and 3 for its age) over 3" in one.explanation


def test_the_deadline_of_an_open_task_is_shown() -> None:
    log = Log()
    task_id = log.enqueue(deadline_ms=5_000)
    log.now_ms += 1_500
    assert explained(log, task_id).explanation.endswith("; its deadline passes in 3.5 s")
    log.advance(10_000)
    assert explained(log, task_id).explanation == "failed (the deadline passed); needs RequeueTask"
