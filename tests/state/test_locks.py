"""Locks: one holder at a time, tokens that only grow, fair waits, leases in log time."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.command.v1 import command_pb2

from gaia_grpc.state import topics
from tests.state.harness import START_MS
from tests.state.lock_log import Locks, held
from tests.state.snapshot_checks import check_equal, restored, whole
from tests.state.test_snapshot import records

LEASE_MS = 30_000


@pytest.fixture
def log() -> Locks:
    return Locks()


def reason_of(refusal: command_pb2.Refusal) -> tuple[int, str]:
    return refusal.kind, refusal.reason


def details(refusal: command_pb2.Refusal) -> dict[str, str]:
    return {detail.key: detail.value for detail in refusal.details}


# --- holding


def test_a_free_lock_is_acquired_at_once_with_a_token_and_a_lease(log: Locks) -> None:
    lock = log.take("a", "ann")
    assert (lock.name, lock.holder, lock.fencing_token, lock.waiting) == ("a", "ann", 1, 0)
    assert lock.lease_expire_time.ToMilliseconds() == START_MS + LEASE_MS
    assert lock.lease.ToMilliseconds() == LEASE_MS
    assert log.get("a") == lock


def test_a_lock_that_nobody_holds_has_neither_holder_nor_token(log: Locks) -> None:
    for lock in (log.get("never"), log.release(log.take("a"))):
        assert (lock.holder, lock.fencing_token) == ("", 0)
        assert not lock.HasField("lease_expire_time")


def test_who_does_not_wait_is_told_who_holds_the_lock(log: Locks) -> None:
    lock = log.take("a", "ann")
    result = log.acquire("a", "ben")
    assert (result.acquired, result.waiter_id, result.lock) == (False, 0, lock)


def test_a_lock_is_not_reentrant(log: Locks) -> None:
    # Two threads of one owner exclude each other, too.
    log.take("a", "ann")
    assert not log.acquire("a", "ann").acquired


def test_tokens_grow_over_all_locks_and_over_locks_that_were_free(log: Locks) -> None:
    tokens = []
    for _ in range(3):
        for name in ("a", "b"):
            lock = log.take(name)
            tokens.append(lock.fencing_token)
            log.release(lock)
    assert tokens == sorted(set(tokens))
    log.machine = restored(whole(log.machine))
    assert log.take("c").fencing_token > max(tokens)


def test_a_released_lock_leaves_nothing_behind(log: Locks) -> None:
    before = len(whole(log.machine))
    for number in range(100):
        log.release(log.take(f"lock-{number}"))
    assert len(whole(log.machine)) - before < 200  # the counters
    assert log.machine.next_due_ms() is None


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("name", {"holder": "ann"}),
        ("holder", {"name": "a"}),
        ("lease", {"name": "a", "holder": "ann", "lease_ms": 49}),
        ("lease", {"name": "a", "holder": "ann", "lease_ms": 3_600_001}),
        ("lease", {"name": "a", "holder": "ann", "lease_ms": -1}),
    ],
)
def test_an_acquisition_that_makes_no_sense_names_its_field(
    log: Locks, field: str, body: dict[str, object]
) -> None:
    refusal = log.refuse(acquire_lock=body)
    assert (refusal.kind, refusal.field) == (command_pb2.REFUSAL_KIND_INVALID_ARGUMENT, field)
    assert log.get("a").holder == ""


def test_the_default_lease_keeps_to_the_longest() -> None:
    log = Locks(("lock.max_lease", "5s"))
    assert log.take("a").lease.ToMilliseconds() == 5_000


# --- leases


def test_a_lease_that_is_not_renewed_ends_and_not_before(log: Locks) -> None:
    log.take("a", "ann")
    log.advance(LEASE_MS - 1)
    assert log.get("a").holder == "ann"
    log.advance(1)
    assert log.get("a").holder == ""


def test_a_renewal_begins_the_lease_anew(log: Locks) -> None:
    lock = log.take("a", "ann")
    for _ in range(5):
        log.advance(LEASE_MS - 1)
        renewed = log.renew(lock)
        assert renewed.fencing_token == lock.fencing_token
        assert renewed.lease_expire_time.ToMilliseconds() == log.now_ms + LEASE_MS
    assert log.renew(lock, 2_000).lease.ToMilliseconds() == 2_000
    log.advance(2_000)
    assert log.get("a").holder == ""


def test_a_paused_holder_that_wakes_up_is_told_who_holds_the_lock_and_with_which_token(
    log: Locks,
) -> None:
    paused = log.take("a", "ann")
    log.advance(LEASE_MS)
    taken = log.take("a", "ben")
    for name in ("renew_lock", "release_lock"):
        refusal = log.refuse(**{name: held(paused)})
        assert reason_of(refusal) == (command_pb2.REFUSAL_KIND_FAILED_PRECONDITION, "STALE_LOCK")
        assert details(refusal) == {
            "name": "a",
            "holder": "ben",
            "fencing_token": str(taken.fencing_token),
        }
        assert "held by ben under the token 2" in refusal.message
    assert log.get("a") == taken


def test_a_token_is_good_for_its_lock_and_its_holder_alone(log: Locks) -> None:
    lock = log.take("a", "ann")
    log.take("b", "ann")
    for wrong in ({"name": "b"}, {"holder": "ben"}, {"fencing_token": 7}, {"name": "free"}):
        refusal = log.refuse(release_lock={**held(lock), **wrong})
        assert refusal.reason == "STALE_LOCK"
    assert log.get("a") == lock


def test_the_same_owner_with_an_older_token_is_refused(log: Locks) -> None:
    first = log.take("a", "ann")
    log.advance(LEASE_MS)
    second = log.take("a", "ann")
    assert log.refuse(renew_lock=held(first)).reason == "STALE_LOCK"
    assert log.renew(second).holder == "ann"


# --- waiting


def test_a_release_hands_the_lock_to_who_waited_longest_and_wakes_only_it(log: Locks) -> None:
    lock = log.take("a", "ann")
    waits = [log.queue("a", holder) for holder in ("ben", "cem", "dua")]
    assert log.get("a").waiting == 3
    log.machine.take_touched()
    after = log.release(lock)
    assert log.machine.take_touched() == [topics.lock_wait(waits[0])]
    assert (after.holder, after.fencing_token, after.waiting) == ("ben", 2, 2)
    found = log.lock_waited(waits[0])
    assert (found.waiting, found.acquired, found.lock) == (False, True, after)
    assert [log.lock_waited(wait).waiting for wait in waits[1:]] == [True, True]


def test_the_end_of_a_lease_hands_the_lock_on_with_a_lease_of_the_waiters_choice(
    log: Locks,
) -> None:
    log.take("a", "ann")
    wait = log.queue("a", "ben", wait_ms=60_000, lease_ms=5_000)
    log.advance(LEASE_MS)
    lock = log.lock_waited(wait).lock
    assert (lock.holder, lock.lease.ToMilliseconds()) == ("ben", 5_000)
    assert lock.lease_expire_time.ToMilliseconds() == log.now_ms + 5_000


def test_locks_are_handed_on_in_the_order_of_arrival_whoever_leaves(log: Locks) -> None:
    log.take("a", "ann")
    waits = [log.queue("a", f"w{number}", wait_ms=60_000) for number in range(6)]
    log.do(cancel_lock_wait={"waiter_id": waits[0]})
    log.do(cancel_lock_wait={"waiter_id": waits[3]})
    order = []
    for _ in range(5):
        lock = log.get("a")
        order.append(lock.holder)
        log.release(lock)
    assert order == ["ann", "w1", "w2", "w4", "w5"]


def test_nobody_passes_those_who_wait(log: Locks) -> None:
    log.take("a", "ann")
    log.queue("a", "ben", wait_ms=60_000)
    log.advance(LEASE_MS)
    assert not log.acquire("a", "cem").acquired
    assert log.get("a").holder == "ben"


def test_a_wait_runs_out_with_nothing(log: Locks) -> None:
    log.take("a", "ann")
    wait = log.queue("a", "ben", wait_ms=2_000)
    log.advance(2_000)
    found = log.lock_waited(wait)
    assert (found.waiting, found.acquired, found.lock.holder) == (False, False, "ann")
    assert log.get("a").waiting == 0


def test_a_wait_is_cut_to_the_longest() -> None:
    log = Locks(("lock.max_wait", "3s"))
    log.take("a", "ann")
    wait = log.queue("a", "ben", wait_ms=50_000)
    log.advance(3_000)
    assert not log.lock_waited(wait).waiting


def test_a_wait_that_this_state_has_not_reached_yet_counts_as_waiting(log: Locks) -> None:
    assert log.lock_waited(1).waiting
    log.take("a", "ann")
    log.queue("a", "ben")
    assert log.lock_waited(2).waiting


def test_who_gave_up_waiting_gets_nothing(log: Locks) -> None:
    lock = log.take("a", "ann")
    wait = log.queue("a", "ben")
    log.do(cancel_lock_wait={"waiter_id": wait})
    assert log.release(lock).holder == ""
    log.do(cancel_lock_wait={"waiter_id": wait})
    assert not log.lock_waited(wait).waiting


def test_a_grant_that_could_not_be_delivered_is_released_to_the_next(log: Locks) -> None:
    lock = log.take("a", "ann")
    gone, next_one = log.queue("a", "ben"), log.queue("a", "cem")
    assert log.release(lock).holder == "ben"
    log.do(cancel_lock_wait={"waiter_id": gone})
    assert log.lock_waited(next_one).acquired
    assert log.get("a").holder == "cem"
    # Once more, as forwarding may: it takes nothing from who has the lock now.
    log.do(cancel_lock_wait={"waiter_id": gone})
    assert log.get("a").holder == "cem"


def test_a_grant_is_over_with_its_holding(log: Locks) -> None:
    lock = log.take("a", "ann")
    wait = log.queue("a", "ben")
    log.release(lock)
    log.advance(LEASE_MS)
    log.take("a", "cem")
    found = log.lock_waited(wait)
    assert (found.waiting, found.acquired) == (False, False)
    log.do(cancel_lock_wait={"waiter_id": wait})
    assert log.get("a").holder == "cem"


def test_many_that_wait_are_served_in_linear_time(log: Locks) -> None:
    log.take("a", "ann")
    for number in range(2_000):
        log.queue("a", f"w{number}", wait_ms=60_000)
    for number in range(2_000):
        log.release(log.get("a"))
        assert log.get("a").holder == f"w{number}"


# --- limits


def test_a_full_table_of_locks_or_waits_is_refused_and_evicts_nothing() -> None:
    log = Locks(("lock.max_locks", "2"), ("lock.max_waiters", "1"))
    first = log.take("a")
    log.take("b")
    wait = log.queue("a", "ben")
    for body, reason in (
        ({"name": "c", "holder": "x"}, "TOO_MANY_LOCKS"),
        ({"name": "b", "holder": "x", "wait_ms": 1_000}, "TOO_MANY_WAITERS"),
    ):
        refusal = log.refuse(request_id="r" + reason, acquire_lock=body)
        assert reason_of(refusal) == (command_pb2.REFUSAL_KIND_RESOURCE_EXHAUSTED, reason)
        assert refusal.retry_after_ms > 0
    assert log.lock_waited(wait).waiting
    log.release(first)
    # Not kept as the outcome of the request: the same passes once there is room.
    body = {"name": "b", "holder": "x", "wait_ms": 1_000}
    assert log.do(request_id="rTOO_MANY_WAITERS", acquire_lock=body).lock.waiter_id


# --- repeated requests


def test_the_same_request_returns_the_same_grant_while_it_lives(log: Locks) -> None:
    first = log.acquire("a", "ann", request_id="r1")
    log.advance(1_000)
    renewed = log.renew(first.lock)
    again = log.acquire("a", "ann", request_id="r1")
    assert (again.acquired, again.lock) == (True, renewed)
    log.release(renewed)
    other = log.take("a", "ben")
    over = log.acquire("a", "ann", request_id="r1")
    assert (over.acquired, over.lock) == (False, other)
    log.release(other)
    # Neither does it take the lock a second time.
    assert not log.acquire("a", "ann", request_id="r1").acquired


def test_a_repeated_wait_keeps_its_place_and_passes_to_the_new_caller(log: Locks) -> None:
    lock = log.take("a", "ann")
    first = log.acquire("a", "ben", wait_ms=50_000, request_id="r1").waiter_id
    behind = log.queue("a", "cem")
    log.machine.take_touched()
    again = log.acquire("a", "ben", wait_ms=50_000, request_id="r1").waiter_id
    assert again > behind > first
    assert log.machine.take_touched() == [topics.lock_wait(first)]
    # The first caller's peer has noticed that its caller is gone.
    log.do(cancel_lock_wait={"waiter_id": first})
    assert log.release(lock).holder == "ben"
    assert log.lock_waited(again).acquired


def test_a_grant_that_was_fetched_by_a_repetition_is_not_taken_back(log: Locks) -> None:
    lock = log.take("a", "ann")
    wait = log.acquire("a", "ben", wait_ms=50_000, request_id="r1").waiter_id
    log.release(lock)
    again = log.acquire("a", "ben", wait_ms=50_000, request_id="r1")
    assert (again.acquired, again.lock.fencing_token) == (True, 2)
    log.do(cancel_lock_wait={"waiter_id": wait})
    assert log.get("a").holder == "ben"
    assert log.acquire("a", "ben", wait_ms=50_000, request_id="r1").lock.fencing_token == 2


def test_a_repeated_release_is_the_first_and_no_stale_token(log: Locks) -> None:
    lock = log.take("a", "ann")
    first = log.do(request_id="r1", release_lock=held(lock))
    log.take("a", "ben")
    again = log.do(request_id="r1", release_lock=held(lock))
    assert again.lock == first.lock
    assert again.repeated_from_index
    assert log.get("a").holder == "ben"


# --- lists


def test_locks_are_listed_by_name_a_page_at_a_time(log: Locks) -> None:
    for name in ("d", "a", "c", "b"):
        log.take(name, "ann" if name in "ab" else "ben")
    log.release(log.get("c"))
    request: dict[str, Any] = {"page_size": 2}
    names = []
    while True:
        page = log.ask(list_locks=request).list_locks
        names += [lock.name for lock in page.locks]
        if not page.next_page_token:
            break
        request["page_token"] = page.next_page_token
    assert names == ["a", "b", "d"]
    mine = log.ask(list_locks={"holder": "ann"}).list_locks
    assert [lock.name for lock in mine.locks] == ["a", "b"]
    refusal = log.query(list_locks={"page_token": "nonsense"}).refusal
    assert refusal.field == "page_token"


# --- restored


def test_a_restored_machine_has_the_same_leases_waits_and_grants(log: Locks) -> None:
    log.take("a", "ann")
    waits = [log.queue("a", holder, wait_ms=60_000) for holder in ("ben", "cem")]
    log.take("b", "ann")
    log.queue("b", "dua", wait_ms=5_000)
    log.advance(1_000)
    log.release(log.get("a"))
    log.machine = twin = restored(whole(log.machine))
    check_equal(log.machine, twin)
    assert log.lock_waited(waits[0]).acquired
    log.do(cancel_lock_wait={"waiter_id": waits[0]})
    assert log.get("a").holder == "cem"
    log.advance(4_000)
    assert log.get("b").waiting == 0
    log.advance(LEASE_MS)
    assert log.get("a").holder == log.get("b").holder == ""


def test_a_snapshot_of_a_state_that_never_had_a_lock_knows_nothing_of_locks(log: Locks) -> None:
    # So that peers of versions without locks can read it.
    assert not any("lock" in str(each.WhichOneof("body")) for each in records(whole(log.machine)))
    log.release(log.take("a"))
    assert any(each.HasField("lock_counters") for each in records(whole(log.machine)))
