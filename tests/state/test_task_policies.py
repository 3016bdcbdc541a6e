"""Policies of task types, jitter, the waits that workers ask for, and kinds of errors."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.command.v1 import command_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.state.task_policies import MOST_POLICIES
from tests.state.harness import Log
from tests.state.snapshot_checks import check_equal, restored, whole

SCHEDULED, FAILED, PENDING = (
    task_pb2.TASK_STATE_SCHEDULED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_PENDING,
)


def put(log: Log, task_type: str = "grade", **fields: Any) -> task_pb2.TaskPolicy:
    return log.do(put_task_policy={"task_type": task_type, **fields}).task_policy


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(value * 1_000))
    return duration


def wait_ms(log: Log, task: task_pb2.Task) -> int:
    return int(task.available_time.ToMilliseconds()) - log.now_ms


def listed(log: Log, **fields: Any) -> task_pb2.ListTaskPoliciesResponse:
    return log.ask(list_task_policies=fields).list_task_policies


def test_a_policy_holds_for_its_type_alone() -> None:
    log = Log()
    put(
        log,
        max_retries=1,
        retry_base=seconds(5),
        retry_max_delay=seconds(6),
        claim_timeout=seconds(20),
    )
    session = log.register("worker", capacity=2)
    log.enqueue("grade")
    log.enqueue("tutor")
    grade, tutor = log.claim(session, 2)
    assert (grade.max_retries, tutor.max_retries) == (1, 3)
    assert grade.claim_expire_time.ToMilliseconds() == log.now_ms + 20_000
    assert tutor.claim_expire_time.ToMilliseconds() == log.now_ms + 600_000
    assert wait_ms(log, log.fail(grade)) == 5_000
    assert wait_ms(log, log.fail(tutor)) == 1_000
    log.advance(5_000)
    again = log.claim(session, task_types=["grade"])[0]
    assert log.fail(again).state == FAILED


def test_what_a_task_names_itself_goes_before_its_policy() -> None:
    log = Log()
    put(log, max_retries=9)
    assert log.task(log.enqueue(max_retries=0)).max_retries == 0
    assert log.task(log.enqueue()).max_retries == 9


def test_the_longest_wait_of_a_policy_holds() -> None:
    log = Log()
    put(log, retry_max_delay=seconds(1.5))
    session = log.register("worker")
    log.enqueue()
    log.fail(log.claim(session)[0])
    log.advance(1_000)
    assert wait_ms(log, log.fail(log.claim(session)[0])) == 1_500


def test_a_policy_is_replaced_as_a_whole_listed_and_deleted() -> None:
    log = Log()
    first = put(log, "b", max_retries=1, retry_jitter=0.5)
    assert first.update_time.ToMilliseconds() == log.now_ms
    log.now_ms += 1_000
    second = put(log, "b", final_error_types=["ValueError"])
    assert not second.HasField("max_retries")
    assert not second.HasField("retry_jitter")
    for name in ("c", "a"):
        put(log, name)
    page = listed(log, page_size=2)
    assert [policy.task_type for policy in page.policies] == ["a", "b"]
    page = listed(log, page_size=2, page_token=page.next_page_token)
    assert ([policy.task_type for policy in page.policies], page.next_page_token) == (["c"], "")
    check_equal(log.machine, restored(whole(log.machine)))
    assert log.do(delete_task_policy={"task_type": "b"}).task_policy == second
    refusal = log.refuse(delete_task_policy={"task_type": "b"})
    assert refusal.kind == command_pb2.REFUSAL_KIND_NOT_FOUND
    assert [policy.task_type for policy in listed(log).policies] == ["a", "c"]


def test_a_policy_of_before_a_snapshot_stays_in_it() -> None:
    log = Log()
    put(log, "a", max_retries=1)
    put(log, "b", max_retries=2)
    expected = whole(log.machine)
    encoder = log.machine.begin_snapshot()
    put(log, "a", max_retries=7)
    put(log, "c")
    log.do(delete_task_policy={"task_type": "b"})
    taken = b"".join(iter(lambda: encoder.take(1), b""))
    assert taken == expected


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("task_type", {"task_type": ""}),
        ("task_type", {"task_type": "x" * 129}),
        ("max_retries", {"max_retries": -1}),
        ("max_retries", {"max_retries": 1_001}),
        ("retry_jitter", {"retry_jitter": 1.1}),
        ("retry_jitter", {"retry_jitter": -0.1}),
        ("retry_jitter", {"retry_jitter": float("nan")}),
        ("retry_base", {"retry_base": Duration(seconds=-1)}),
        ("retry_base", {"retry_base": Duration(seconds=3_601)}),
        ("retry_max_delay", {"retry_max_delay": Duration()}),
        ("claim_timeout", {"claim_timeout": Duration(nanos=49_000_000)}),
        ("retention", {"retention": Duration(seconds=400 * 86_400)}),
        ("final_error_types", {"final_error_types": [str(number) for number in range(65)]}),
        ("final_error_types[1]", {"final_error_types": ["ok", ""]}),
    ],
)
def test_a_policy_out_of_bounds_is_refused_and_changes_nothing(
    field: str, bad: dict[str, Any]
) -> None:
    log = Log()
    kept = put(log)
    refusal = log.refuse(put_task_policy={"task_type": "grade", **bad})
    assert (refusal.reason, refusal.field) == ("INVALID_ARGUMENT", f"policy.{field}")
    assert list(listed(log).policies) == [kept]


def test_there_are_so_many_policies_and_no_more() -> None:
    log = Log()
    for number in range(MOST_POLICIES):
        put(log, f"type {number}")
    refusal = log.refuse(put_task_policy={"task_type": "one more"})
    assert (refusal.reason, refusal.retry_after_ms) == ("TOO_MANY_POLICIES", 1_000)
    put(log, "type 7", max_retries=1)


# --- jitter


def test_jitter_shortens_waits_by_its_share_at_most_and_spreads_them() -> None:
    log = Log(("task.retry_jitter", "0.4"), ("task.retry_base", "10s"))
    session = log.register("worker", capacity=200)
    log.do(enqueue_tasks={"tasks": [{"task_type": "grade", "affinity": "general"}] * 200})
    waits = [wait_ms(log, log.fail(task)) for task in log.claim(session, 200)]
    assert 6_000 <= min(waits) < 6_200
    assert 9_800 < max(waits) <= 10_000
    assert len(set(waits)) > 150
    # Spread evenly, not in a heap: each quarter of the range has its share.
    quarters = [
        sum(low <= wait < low + 1_000 for wait in waits) for low in range(6_000, 10_000, 1_000)
    ]
    assert min(quarters) > 30


def test_the_jitter_of_a_policy_goes_before_the_setting_and_is_the_same_everywhere() -> None:
    log = Log(("task.retry_jitter", "1"))
    put(log, retry_jitter=0)
    session = log.register("worker")
    log.enqueue()
    assert wait_ms(log, log.fail(log.claim(session)[0])) == 1_000
    tutor = log.enqueue("tutor")
    failed = log.fail(log.claim(session)[0])
    # Pinned: another value on another peer would be another state.
    assert (failed.task_id, wait_ms(log, failed)) == (tutor, 504)


# --- retry_delay and error types


def test_a_worker_says_when_to_try_again_and_it_still_counts() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue(max_retries=2)
    failed = log.fail(log.claim(session)[0], retry_delay_ms=45_000)
    assert (failed.state, failed.retry_count, wait_ms(log, failed)) == (SCHEDULED, 1, 45_000)
    log.beat(session)
    log.advance(20_000)
    log.beat(session)
    log.advance(20_000)
    log.beat(session)
    log.advance(5_000)
    at_once = log.fail(log.claim(session)[0], retry_delay_ms=0)
    assert (at_once.state, at_once.retry_count) == (PENDING, 2)
    assert log.fail(log.claim(session)[0], retry_delay_ms=1).state == FAILED


@pytest.mark.parametrize("delay_ms", [-1, 366 * 86_400_000])
def test_a_wait_out_of_bounds_is_refused_and_the_claim_lives_on(delay_ms: int) -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    task = log.claim(session)[0]
    refusal = log.refuse(fail_task=log.held(task, retry_delay_ms=delay_ms))
    assert (refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "retry_delay")
    assert log.complete(task).task.state == task_pb2.TASK_STATE_COMPLETED


def test_a_final_kind_of_error_ends_the_retries() -> None:
    log = Log()
    put(log, final_error_types=["ValueError", "BadPayload"])
    session = log.register("worker")
    log.enqueue()
    log.fail(log.claim(session)[0], error_type="TimeoutError")
    log.advance(1_000)
    dead = log.fail(log.claim(session)[0], error="no such essay", error_type="BadPayload")
    assert (dead.state, dead.retry_count) == (FAILED, 2)
    assert (dead.last_error, dead.last_error_type) == ("no such essay", "BadPayload")
    history = [event for event in log.task(dead.task_id).history if event.error]
    assert [event.error_type for event in history] == ["TimeoutError", "BadPayload", ""]


def test_no_kind_of_error_is_final_where_no_policy_says_so() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    assert log.fail(log.claim(session)[0], error_type="").state == SCHEDULED


def test_an_expired_claim_leaves_no_kind_of_an_earlier_error() -> None:
    log = Log(("task.claim_timeout", "1s"))
    session = log.register("worker")
    task_id = log.enqueue()
    log.fail(log.claim(session)[0], error_type="TimeoutError", retry_delay_ms=0)
    log.claim(session)
    log.advance(1_000)
    task = log.task(task_id)
    assert (task.retry_count, task.last_error_type) == (2, "")
    check_equal(log.machine, restored(whole(log.machine)))


def test_totals_count_and_come_back() -> None:
    log = Log(("task.max_finished", "1"))
    session = log.register("worker")
    for _ in range(3):
        log.enqueue(max_retries=0)
        log.fail(log.claim(session)[0])
    log.enqueue()
    log.do(release_task=log.held(log.claim(session)[0]))
    stats = log.stats()
    assert (stats.failed_attempts_total, stats.dead_letters_total, stats.purged_total) == (3, 3, 2)
    check_equal(log.machine, restored(whole(log.machine)))
