"""Defects of the system that the guide was written for, by their numbers: none comes back here.

Those of processes (8-10, and 12, 13 and 24 on real peers) are in tests/e2e/test_defects.py.
"""

from __future__ import annotations

import pytest
from gaia.command.v1 import command_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.machine import StateMachine
from tests.state.harness import Log, command


def test_defect_1_finished_work_is_not_queued_again() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    done = log.complete(log.claim(session)[0]).task
    assert not done.HasField("claim_expire_time")
    for _ in range(70):
        log.advance(10_000)
        log.beat(session)
    assert log.task(done.task_id).state == task_pb2.TASK_STATE_COMPLETED
    assert log.claim(session) == []


def test_defect_2_the_callers_idempotency_key_is_kept() -> None:
    log = Log()
    first = log.enqueue(idempotency_key="essay-7")
    assert log.enqueue(idempotency_key="essay-7") == first
    assert log.enqueue() != log.enqueue()
    assert log.task(first).idempotency_key == "essay-7"


def test_defect_3_a_retry_waits_for_its_backoff() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    log.fail(log.claim(session)[0])
    assert log.claim(session) == []
    log.advance(1_000)
    assert len(log.claim(session)) == 1


def test_defect_4_only_a_pending_task_is_claimed_and_only_its_claimant_ends_it() -> None:
    log = Log()
    holder, other = log.register("holder"), log.register("other")
    log.enqueue()
    task = log.claim(holder)[0]
    assert log.claim(other) == []
    assert log.complete(task, session_id=other).refusal.reason == "STALE_CLAIM"
    assert log.refuse(fail_task=log.held(task, session_id=other)).reason == "STALE_CLAIM"
    assert log.complete(task).task.state == task_pb2.TASK_STATE_COMPLETED


def test_defect_5_a_poison_task_that_kills_its_workers_ends_as_a_dead_letter() -> None:
    log = Log()
    task_id = log.enqueue()
    for attempt in range(4):
        session = log.register(f"victim {attempt}")
        assert len(log.claim(session)) == 1
        log.advance(30_000 + 4_000)
    dead = log.task(task_id)
    assert (dead.state, dead.retry_count) == (task_pb2.TASK_STATE_FAILED, 4)


def test_defect_6_an_expired_claim_is_taken_over_by_one_and_only_once() -> None:
    log = Log(("task.claim_timeout", "5s"))
    first, second, third = (log.register(name) for name in ("first", "second", "third"))
    log.enqueue()
    old = log.claim(first)[0]
    log.advance(6_000)
    assert [len(log.claim(session)) for session in (second, third, first)] == [1, 0, 0]
    assert log.complete(old).refusal.reason == "STALE_CLAIM"


def test_defect_7_a_claims_time_limit_is_replicated_and_kept() -> None:
    log = Log(("task.claim_timeout", "5s"))
    session = log.register("worker")
    log.enqueue()
    task = log.claim(session)[0]
    assert task.claim_expire_time.ToMilliseconds() == log.now_ms + 5_000
    twin = StateMachine()
    for index, (kind, data) in enumerate(log.entries, start=1):
        twin.apply(index, kind, data)
    assert twin.next_due_ms() == log.machine.next_due_ms() == log.now_ms + 5_000


def test_defect_11_a_registration_is_whole_or_refused() -> None:
    log = Log()
    log.refuse(register_session={"max_concurrent_tasks": 1})
    assert not log.ask(list_sessions={}).list_sessions.sessions


def test_defect_12_a_refusal_of_the_state_is_told_and_not_success() -> None:
    log = Log()
    result = log.apply(command(cancel_task={"task_id": "t-1"}))
    assert result.refusal.kind == command_pb2.REFUSAL_KIND_NOT_FOUND


def test_defect_13_every_peer_has_the_same_opinion_of_a_sessions_health() -> None:
    log = Log()
    session = log.register("worker")
    log.advance(16_000)
    twin = StateMachine()
    for index, (kind, data) in enumerate(log.entries, start=1):
        twin.apply(index, kind, data)
    assert twin.state_hash() == log.machine.state_hash()
    assert log.session(session).health == session_pb2.HEALTH_DEGRADED


def test_defect_14_the_number_of_held_tasks_follows_every_change() -> None:
    log = Log(("task.retry_base", "0ms"))
    session = log.register("worker", capacity=9)
    for _ in range(5):
        log.enqueue()
    held = log.claim(session, 5)
    counts = [log.session(session).claimed_tasks]
    log.complete(held[0])
    counts.append(log.session(session).claimed_tasks)
    log.fail(held[1])
    counts.append(log.session(session).claimed_tasks)
    log.do(release_task=log.held(held[2]))
    counts.append(log.session(session).claimed_tasks)
    log.do(cancel_task={"task_id": held[3].task_id})
    counts.append(log.session(session).claimed_tasks)
    for _ in range(61):
        log.advance(10_000)
        log.beat(session)
    counts.append(log.session(session).claimed_tasks)
    assert counts == [5, 4, 3, 2, 1, 0]


def test_defect_15_missed_heartbeats_are_forgotten_when_one_comes() -> None:
    log = Log()
    session = log.register("worker")
    for _ in range(5):
        log.advance(20_000)
        assert log.session(session).health == session_pb2.HEALTH_DEGRADED
        assert log.beat(session)[0].session.health == session_pb2.HEALTH_HEALTHY
    log.advance(29_999)
    assert log.session(session).health == session_pb2.HEALTH_DEGRADED


@pytest.mark.parametrize(
    "odd",
    [
        command(claim_tasks={"session_id": "\u00e9", "max_tasks": -5, "wait_ms": -1}),
        command(complete_tasks={"completions": [{"task_id": "", "claim_token": -1}]}),
        command(enqueue_tasks={"tasks": [{"priority": 2**31 - 1}]}),
        command(enqueue_tasks={"tasks": [{"task_type": "x", "delay_ms": 2**62}]}),
        command(extend_claim={"task_id": "t-" + "9" * 5_000}),
        command(register_session={"name": "x", "max_concurrent_tasks": 2**31 - 1}),
        command(cancel_claim_wait={"waiter_id": -(2**63)}),
        command(update_settings={"changes": [{"name": "\x00", "value": "1" * 5_000}]}),
        command(record_heartbeats={"heartbeats": [{}]}),
    ],
    ids=lambda odd: odd.WhichOneof("body"),
)
def test_defect_24_odd_values_in_a_command_stop_no_peer(odd: command_pb2.Command) -> None:
    log = Log()
    log.apply(odd)
    log.advance(60_000)
    log.ask(list_tasks={})
    assert log.enqueue()


def test_defect_24_a_command_that_can_not_be_decoded_changes_nothing() -> None:
    log = Log()
    before = log.machine.state_hash()
    with pytest.raises(InvariantError):
        log.machine.apply(2, EntryKind.COMMAND, b"{}")
    assert log.machine.state_hash() == before
