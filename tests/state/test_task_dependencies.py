"""Tasks that wait for others."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.command.v1 import command_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state.task_dependencies import DEPENDENTS_PER_ENTRY, MOST_REASON_CHARACTERS
from tests.state.harness import Log
from tests.state.snapshot_checks import check_equal, restored, whole
from tests.state.test_task_deadlines import kinds

NAMES = ("PENDING", "SCHEDULED", "CLAIMED", "COMPLETED", "FAILED", "CANCELLED", "BLOCKED")


def state(log: Log, task_id: str) -> str:
    return task_pb2.TaskState.Name(log.task(task_id).state).removeprefix("TASK_STATE_")


def states(log: Log, *task_ids: str) -> list[str]:
    return [state(log, task_id) for task_id in task_ids]


def batch(log: Log, *specs: dict[str, Any]) -> list[str]:
    tasks = [{"task_type": "grade", "affinity": "general", **spec} for spec in specs]
    return [task.task_id for task in log.do(enqueue_tasks={"tasks": tasks}).tasks.tasks]


def refused(log: Log, *specs: dict[str, Any]) -> command_pb2.Refusal:
    before = log.stats().enqueued_total
    tasks = [{"task_type": "grade", "affinity": "general", **spec} for spec in specs]
    refusal = log.refuse(enqueue_tasks={"tasks": tasks})
    assert log.stats().enqueued_total == before
    return refusal


def complete(log: Log, session: str, task_id: str) -> None:
    """Claims until the task comes, completes it and gives the others back."""
    tasks = log.claim(session, 100)
    for task in tasks:
        if task.task_id == task_id:
            assert not log.complete(task).refusal.reason
    for task in tasks:
        if task.task_id != task_id:
            log.do(release_task=log.held(task))


def test_a_task_waits_until_all_that_it_depends_on_are_completed() -> None:
    log = Log()
    session = log.register("worker", capacity=9)
    first, second = log.enqueue(), log.enqueue()
    third = log.enqueue(depends_on=[second, first, second])
    task = log.task(third)
    assert state(log, third) == "BLOCKED"
    assert (list(task.depends_on), task.pending_dependencies) == ([second, first], 2)
    assert log.stats().blocked == 1
    complete(log, session, first)
    assert (state(log, third), log.task(third).pending_dependencies) == ("BLOCKED", 1)
    check_equal(log.machine, restored(whole(log.machine)))
    complete(log, session, second)
    task = log.task(third)
    assert (state(log, third), task.pending_dependencies) == ("PENDING", 0)
    assert kinds(task) == ["ENQUEUED", "UNBLOCKED"]
    assert list(task.depends_on) == [second, first]
    complete(log, session, third)
    assert log.stats().completed == 3


def test_who_waits_gets_what_is_unblocked() -> None:
    log = Log()
    worker, other = log.register("worker"), log.register("other")
    first = log.enqueue()
    second = log.enqueue(depends_on=[first])
    task = log.claim(worker)[0]
    waiter = log.wait(other)
    log.complete(task)
    assert [task.task_id for task in log.waited(waiter).tasks] == [second]


def test_a_completed_dependency_counts_at_once_and_stays_satisfied_when_it_is_purged() -> None:
    log = Log(("task.max_finished", "1"))
    session = log.register("worker", capacity=9)
    first, second = log.enqueue(), log.enqueue()
    complete(log, session, first)
    assert state(log, log.enqueue(depends_on=[first])) == "PENDING"
    third = log.enqueue(depends_on=[first, second])
    # `first` is purged, and `third` does not hear of it.
    log.do(cancel_task={"task_id": log.enqueue()})
    assert log.query(get_task={"task_id": first}).refusal.reason == "NOT_FOUND"
    assert state(log, third) == "BLOCKED"
    complete(log, session, second)
    assert state(log, third) == "PENDING"


def test_the_delay_counts_from_the_last_dependency() -> None:
    log = Log()
    session = log.register("worker", capacity=9)
    first = log.enqueue()
    second = log.enqueue(depends_on=[first], delay_ms=3_000)
    log.advance(5_000)
    complete(log, session, first)
    assert state(log, second) == "SCHEDULED"
    log.advance(2_999)
    assert state(log, second) == "SCHEDULED"
    log.advance(1)
    assert state(log, second) == "PENDING"


def test_a_batch_names_its_earlier_tasks() -> None:
    log = Log()
    session = log.register("worker", capacity=9)
    ids = batch(log, {}, {"depends_on": ["#0"]}, {"depends_on": ["#1", "#0"]})
    assert states(log, *ids) == ["PENDING", "BLOCKED", "BLOCKED"]
    assert list(log.task(ids[2]).depends_on) == [ids[1], ids[0]]
    for task_id in ids:
        complete(log, session, task_id)
    assert states(log, *ids) == ["COMPLETED"] * 3


def test_a_batch_may_name_a_task_that_exists_by_its_key() -> None:
    log = Log()
    session = log.register("worker", capacity=9)
    known = log.enqueue(idempotency_key="k")
    [same, waits] = batch(log, {"idempotency_key": "k"}, {"depends_on": ["#0"]})
    assert (same, list(log.task(waits).depends_on)) == (known, [known])
    complete(log, session, known)
    assert state(log, waits) == "PENDING"
    # Twice in one batch it is one task, too.
    ids = batch(
        log, {"idempotency_key": "n"}, {"idempotency_key": "n"}, {"depends_on": ["#1", "#0"]}
    )
    assert ids[0] == ids[1]
    assert list(log.task(ids[2]).depends_on) == [ids[0]]


def test_what_it_depends_on_is_part_of_the_content_of_a_key() -> None:
    log = Log()
    session = log.register("worker", capacity=9)
    first, second = log.enqueue(), log.enqueue()
    kept = log.enqueue(idempotency_key="k", depends_on=[first])
    refusal = refused(log, {"idempotency_key": "k", "depends_on": [second]})
    assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"
    # The same again is the same task, whatever became of what it depends on.
    task = log.claim(session)[0]
    log.fail(task, permanent=True)
    assert log.enqueue(idempotency_key="k", depends_on=[first]) == kept


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("t-000000000009", command_pb2.REFUSAL_KIND_NOT_FOUND),
        ("nonsense", command_pb2.REFUSAL_KIND_NOT_FOUND),
        ("", command_pb2.REFUSAL_KIND_NOT_FOUND),
        ("#1", command_pb2.REFUSAL_KIND_INVALID_ARGUMENT),
        ("#2", command_pb2.REFUSAL_KIND_INVALID_ARGUMENT),
        ("#", command_pb2.REFUSAL_KIND_INVALID_ARGUMENT),
        ("#-1", command_pb2.REFUSAL_KIND_INVALID_ARGUMENT),
        ("#\u0660", command_pb2.REFUSAL_KIND_INVALID_ARGUMENT),
        ("#" + "9" * 5_000, command_pb2.REFUSAL_KIND_INVALID_ARGUMENT),
    ],
)
def test_a_name_of_no_task_is_refused_with_its_place(name: str, kind: int) -> None:
    refusal = refused(Log(), {}, {"depends_on": ["#0", name]})
    assert (refusal.kind, refusal.field) == (kind, "tasks[1].depends_on[1]")


def test_too_many_dependencies_are_refused() -> None:
    log = Log()
    refusal = refused(log, {}, {"depends_on": ["#0"] * 65})
    assert (refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "tasks[1].depends_on")


def test_a_batch_names_only_so_many() -> None:
    log = Log()
    ids = batch(log, *[{}] * 64)
    refusal = refused(log, *[{"depends_on": ids}] * 157)
    assert (refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "tasks[156].depends_on")
    batch(log, *[{"depends_on": ids}] * 156)


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_nobody_waits_for_what_has_failed(how: str) -> None:
    log = Log()
    first = log.enqueue()
    if how == "cancel":
        log.do(cancel_task={"task_id": first})
    else:
        log.fail(log.claim(log.register("worker"))[0], permanent=True)
    refusal = refused(log, {"depends_on": [first]})
    assert refusal.kind == command_pb2.REFUSAL_KIND_FAILED_PRECONDITION
    assert (refusal.reason, refusal.field) == ("DEPENDENCY_FAILED", "tasks[0].depends_on[0]")
    assert state(log, first) in refusal.message
    assert first in refusal.message


@pytest.mark.parametrize("how", ["cancel", "fail", "deadline"])
def test_a_failure_goes_down_the_whole_chain_at_once(how: str) -> None:
    log = Log()
    session = log.register("worker")
    ids = batch(
        log,
        {"deadline_ms": 9_000},
        {"depends_on": ["#0"]},
        {"depends_on": ["#1"]},
        {},
        {"depends_on": ["#2", "#3"], "delay_ms": 500},
    )
    if how == "cancel":
        log.do(cancel_task={"task_id": ids[0], "reason": "no need"})
    elif how == "fail":
        log.fail(log.claim(session)[0], error="no need", permanent=True)
    else:
        log.advance(9_000)
    end = "CANCELLED" if how == "cancel" else "FAILED"
    assert states(log, *ids) == [end, "FAILED", "FAILED", "PENDING", "FAILED"]
    why = "the deadline passed" if how == "deadline" else "no need"
    task = log.task(ids[1])
    assert task.last_error == f"the dependency {ids[0]} is {end}: {why}"
    assert kinds(task) == ["ENQUEUED", "DEPENDENCY_FAILED", "DEAD_LETTERED"]
    assert log.task(ids[2]).last_error.startswith(f"the dependency {ids[1]} is FAILED: ")
    check_equal(log.machine, restored(whole(log.machine)))


def test_a_thousand_dependents_share_one_short_reason() -> None:
    log = Log()
    root = log.enqueue()
    ids = batch(log, *[{"depends_on": [root]}] * 1_000)
    log.do(cancel_task={"task_id": root, "reason": "x" * 4_096})
    store = log.tasks()._store
    reasons = {id(store.existing(task_id).last_error) for task_id in ids}
    assert len(reasons) == 1
    assert len(log.task(ids[0]).last_error) == MOST_REASON_CHARACTERS
    assert log.task(root).last_error == "x" * 4_096


def test_a_blocked_task_can_be_called_off() -> None:
    log = Log()
    ids = batch(log, {}, {"depends_on": ["#0"]}, {"depends_on": ["#1"]})
    log.do(cancel_task={"task_id": ids[1]})
    assert states(log, *ids) == ["PENDING", "CANCELLED", "FAILED"]
    assert log.stats().blocked == 0


def test_blocked_tasks_count_towards_a_full_queue() -> None:
    log = Log(("task.max_pending", "2"))
    ids = batch(log, {}, {"depends_on": ["#0"]})
    refusal = refused(log, {})
    assert (refusal.reason, refusal.retry_after_ms) == ("QUEUE_FULL", 1_000)
    log.do(cancel_task={"task_id": ids[0]})
    log.enqueue()


# --- requeue


def failed_chain() -> tuple[Log, list[str]]:
    log = Log()
    ids = batch(
        log,
        {},
        {"depends_on": ["#0"]},
        {"depends_on": ["#1"]},
        {"depends_on": ["#0", "#1"]},
        {"depends_on": ["#0"]},
    )
    log.do(cancel_task={"task_id": ids[4]})
    log.do(cancel_task={"task_id": ids[0]})
    assert states(log, *ids) == ["CANCELLED", "FAILED", "FAILED", "FAILED", "CANCELLED"]
    return log, ids


def test_a_requeued_dependent_waits_again_or_is_refused() -> None:
    log, ids = failed_chain()
    refusal = log.refuse(requeue_task={"task_id": ids[1]})
    assert refusal.reason == "DEPENDENCY_FAILED"
    details = {detail.key: detail.value for detail in refusal.details}
    assert details == {
        "task_id": ids[1], "dependency_id": ids[0], "dependency_state": "CANCELLED",
    }  # fmt: skip
    result = log.do(requeue_task={"task_id": ids[0]}).tasks
    assert result.requeued_dependents == 0
    log.do(requeue_task={"task_id": ids[1]})
    assert states(log, *ids) == ["PENDING", "BLOCKED", "FAILED", "FAILED", "CANCELLED"]
    check_equal(log.machine, restored(whole(log.machine)))
    session = log.register("worker", capacity=9)
    complete(log, session, ids[0])
    assert state(log, ids[1]) == "PENDING"


def test_a_requeue_takes_along_what_failed_with_it() -> None:
    log, ids = failed_chain()
    log.machine = restored(whole(log.machine))
    result = log.do(requeue_task={"task_id": ids[0], "include_dependents": True}).tasks
    assert result.requeued_dependents == 3
    assert [task.task_id for task in result.tasks] == [ids[0]]
    # What somebody called off stays so.
    assert states(log, *ids) == ["PENDING", "BLOCKED", "BLOCKED", "BLOCKED", "CANCELLED"]
    session = log.register("worker", capacity=9)
    for task_id in ids[:4]:
        complete(log, session, task_id)
    assert states(log, *ids[:4]) == ["COMPLETED"] * 4


def test_a_dependent_that_failed_for_another_reason_too_stays_failed() -> None:
    log = Log()
    ids = batch(log, {}, {}, {"depends_on": ["#0", "#1"]}, {"depends_on": ["#2"]})
    log.do(cancel_task={"task_id": ids[0]})
    log.do(cancel_task={"task_id": ids[1]})
    result = log.do(requeue_task={"task_id": ids[0], "include_dependents": True}).tasks
    assert result.requeued_dependents == 0
    assert states(log, *ids) == ["PENDING", "CANCELLED", "FAILED", "FAILED"]


def test_what_was_completed_while_the_dependent_had_failed_is_satisfied() -> None:
    log = Log(("task.max_finished", "4"))
    session = log.register("worker", capacity=9)
    ids = batch(log, {}, {}, {"depends_on": ["#0", "#1"]})
    log.do(cancel_task={"task_id": ids[0]})
    complete(log, session, ids[1])
    assert log.task(ids[2]).pending_dependencies == 1
    log.do(requeue_task={"task_id": ids[0]})
    log.do(requeue_task={"task_id": ids[2]})
    complete(log, session, ids[0])
    assert state(log, ids[2]) == "PENDING"


def test_a_requeue_behind_what_is_no_longer_retained_is_refused() -> None:
    log = Log(("task.max_finished", "1"))
    ids = batch(log, {}, {"depends_on": ["#0"]})
    log.do(cancel_task={"task_id": ids[0]})
    assert log.query(get_task={"task_id": ids[0]}).refusal.reason == "NOT_FOUND"
    refusal = log.refuse(requeue_task={"task_id": ids[1]})
    assert refusal.reason == "DEPENDENCY_FAILED"
    assert "no longer retained" in refusal.message


def test_a_requeue_with_more_than_may_be_is_refused_whole() -> None:
    log = Log(("task.max_dependents", "2"))
    ids = batch(log, {}, {"depends_on": ["#0"]}, {"depends_on": ["#1"]}, {"depends_on": ["#2"]})
    log.do(cancel_task={"task_id": ids[0]})
    refusal = log.refuse(requeue_task={"task_id": ids[0], "include_dependents": True})
    assert refusal.reason == "TOO_MANY_DEPENDENTS"
    assert state(log, ids[0]) == "CANCELLED"


# --- bounds


def test_a_requeue_looks_at_only_so_many_dependents() -> None:
    log = Log()
    root = log.enqueue()
    middle = batch(log, *[{"depends_on": [root]}] * 60)
    for _ in range(6):
        for leaf in batch(log, *[{"depends_on": middle}] * 150):
            log.do(cancel_task={"task_id": leaf})
    log.do(cancel_task={"task_id": root})
    assert (log.stats().failed, log.stats().cancelled) == (60, 901)
    refusal = log.refuse(requeue_task={"task_id": root, "include_dependents": True})
    assert refusal.reason == "TOO_MANY_DEPENDENTS"
    assert state(log, root) == "CANCELLED"
    log.do(requeue_task={"task_id": root})
    result = log.do(requeue_task={"task_id": middle[0], "include_dependents": True})
    assert result.tasks.requeued_dependents == 0


def test_only_so_many_depend_on_one() -> None:
    log = Log(("task.max_dependents", "3"))
    first = log.enqueue()
    batch(log, {"depends_on": [first]}, {"depends_on": [first]})
    refusal = refused(log, {"depends_on": [first]}, {"depends_on": [first]})
    assert (refusal.reason, refusal.field) == ("TOO_MANY_DEPENDENTS", "tasks[1].depends_on[0]")
    assert refusal.kind == command_pb2.REFUSAL_KIND_RESOURCE_EXHAUSTED
    refusal = refused(log, {}, *[{"depends_on": ["#0"]}] * 4)
    assert (refusal.reason, refusal.field) == ("TOO_MANY_DEPENDENTS", "tasks[4].depends_on[0]")
    batch(log, {"depends_on": [first]})


def wide(log: Log) -> list[str]:
    """One task, two that depend on it, and 1,000 and 900 that depend on these."""
    [root] = batch(log, {})
    middle = batch(log, {"depends_on": [root]}, {"depends_on": [root]})
    for task_id in middle:
        batch(log, *[{"depends_on": [task_id]}] * 900)
    batch(log, *[{"depends_on": [middle[0]]}] * 100)
    return [root, *middle]


@pytest.mark.parametrize("cut", [False, True])
def test_a_great_fall_takes_several_entries_and_loses_nobody(cut: bool) -> None:
    log = Log()
    root, *_ = wide(log)
    log.do(cancel_task={"task_id": root})
    assert DEPENDENTS_PER_ENTRY <= 2 + 1_000
    assert log.stats().failed == 2 + 1_000
    assert log.machine.next_due_ms() == log.now_ms + 1
    log = after_more(log, cut=cut)
    assert log.stats().failed == 2 + 1_000 + 900
    assert log.stats().blocked == 0


def after_more(log: Log, *, cut: bool) -> Log:
    if cut:
        check_equal(log.machine, restored(whole(log.machine)))
        log.machine = restored(whole(log.machine))
    log.advance(10)
    return log


@pytest.mark.parametrize("cut", [False, True])
def test_many_completions_at_one_instant_unblock_in_slices(cut: bool) -> None:
    log = Log()
    session = log.register("worker", capacity=10)
    roots = batch(log, *[{}] * 5)
    for root in roots:
        batch(log, *[{"depends_on": [root]}] * 400)
    tasks = log.claim(session, 5)
    completions = [{"task_id": task.task_id, "claim_token": task.claim_token} for task in tasks]
    log.do(complete_tasks={"session_id": session, "completions": completions})
    assert log.stats().pending == 1_200
    assert log.machine.next_due_ms() == log.now_ms + 1
    after_more(log, cut=cut)
    assert (log.stats().pending, log.stats().blocked) == (2_000, 0)


def test_a_requeue_before_its_dependents_heard_of_the_failure_is_none_to_them() -> None:
    log = Log()
    [root] = batch(log, {})
    middle = batch(log, *[{"depends_on": [root]}] * 1_000)
    [leaf] = batch(log, {"depends_on": [middle[5]]})
    log.do(cancel_task={"task_id": root})
    assert states(log, middle[5], leaf) == ["FAILED", "BLOCKED"]
    log.do(requeue_task={"task_id": root})
    log.do(requeue_task={"task_id": middle[5]})
    log.advance(10)
    assert states(log, root, middle[5], leaf) == ["PENDING", "BLOCKED", "BLOCKED"]


def test_a_backlog_worked_off_before_its_time_leaves_the_same_timer_everywhere() -> None:
    log = Log()
    root, *_ = wide(log)
    other = log.enqueue()
    log.do(cancel_task={"task_id": root})
    log.do(cancel_task={"task_id": other})
    assert log.stats().blocked == 0
    twin = restored(whole(log.machine))
    check_equal(log.machine, twin)
    # Another fall before that timer fired: both peers go on with it in the same entry.
    root, *_ = wide(log)
    log.now_ms += 5
    log.do(cancel_task={"task_id": root})
    log.do(advance_time={})
    for index, (kind, data) in enumerate(log.entries[twin.applied_index :], twin.applied_index + 1):
        twin.apply(index, kind, data)
    check_equal(log.machine, twin)


def test_who_was_completed_in_the_end_fails_nobody_though_it_is_dropped() -> None:
    log = Log()
    session = log.register("worker")
    root = log.enqueue()
    for middle in batch(log, *[{"depends_on": [root]}] * 6):
        batch(log, *[{"depends_on": [middle]}] * 1_000)
    late = log.enqueue()
    leaf = log.enqueue(depends_on=[late])
    log.do(cancel_task={"task_id": root})
    log.do(cancel_task={"task_id": late})
    log.do(requeue_task={"task_id": late})
    [task] = log.claim(session)
    change = {"name": "task.max_finished", "value": "1"}
    log.do(update_settings={"changes": [change]})
    assert log.complete(task, session).task.task_id == late
    assert log.refuse(cancel_task={"task_id": late}).reason == "NOT_FOUND"
    assert state(log, leaf) == "BLOCKED"
    log.advance(10)
    assert state(log, leaf) == "PENDING"


def test_extras_go_with_their_tasks() -> None:
    log = Log(("task.max_finished", "5"))
    session = log.register("worker", capacity=9)
    for _ in range(30):
        ids = batch(log, {}, {"depends_on": ["#0"]}, {"depends_on": ["#1"]})
        complete(log, session, ids[0])
        log.do(cancel_task={"task_id": ids[1]})
    extras = log.tasks()._store.extras
    assert len(extras) <= 5
    assert len(extras._dependents) <= 5
