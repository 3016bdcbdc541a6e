"""LockService over the real state machine."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gaia.lock.v1 import lock_pb2
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.errors import UnavailableError
from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, eventually, failure_of

WAIT = Duration(seconds=3)


async def acquire(
    peer: ServedPeer, holder: str = "ann", timeout: float = TIMEOUT_S, **fields: Any
) -> lock_pb2.AcquireLockResponse:
    fields.setdefault("name", "a")
    request = lock_pb2.AcquireLockRequest(holder=holder, **fields)
    return await peer.locks.AcquireLock(request, timeout=timeout)


async def take(peer: ServedPeer, holder: str = "ann", **fields: Any) -> lock_pb2.Lock:
    answer = await acquire(peer, holder, **fields)
    assert answer.acquired
    return answer.lock


async def release(
    peer: ServedPeer, lock: lock_pb2.Lock, **fields: Any
) -> lock_pb2.ReleaseLockResponse:
    request = lock_pb2.ReleaseLockRequest(
        name=lock.name, holder=lock.holder, fencing_token=lock.fencing_token, **fields
    )
    return await peer.locks.ReleaseLock(request, timeout=TIMEOUT_S)


async def renew(peer: ServedPeer, lock: lock_pb2.Lock, **fields: Any) -> lock_pb2.RenewLockResponse:
    request = lock_pb2.RenewLockRequest(
        name=lock.name, holder=lock.holder, fencing_token=lock.fencing_token, **fields
    )
    return await peer.locks.RenewLock(request, timeout=TIMEOUT_S)


async def get(peer: ServedPeer, name: str = "a") -> lock_pb2.Lock:
    request = lock_pb2.GetLockRequest(name=name)
    return (await peer.locks.GetLock(request, timeout=TIMEOUT_S)).lock


async def test_a_lock_from_acquisition_to_release(peer: ServedPeer) -> None:
    acquired = await acquire(peer, lease=Duration(seconds=10))
    assert acquired.acquired
    assert acquired.applied_index == peer.node.machine.applied_index
    lock = acquired.lock
    assert (lock.name, lock.holder, lock.lease.ToMilliseconds()) == ("a", "ann", 10_000)
    assert await get(peer) == lock
    await peer.node.let_pass(9_000)
    renewed = (await renew(peer, lock, lease=Duration(seconds=5))).lock
    assert (renewed.fencing_token, renewed.lease.ToMilliseconds()) == (lock.fencing_token, 5_000)
    await peer.node.let_pass(4_000)
    assert (await get(peer)).holder == "ann"
    assert (await release(peer, lock)).lock.holder == ""
    assert (await get(peer)).fencing_token == 0
    assert (await take(peer, "ben")).fencing_token > lock.fencing_token


async def test_a_holder_that_slept_is_refused_with_who_holds_it(peer: ServedPeer) -> None:
    lock = await take(peer, lease=Duration(seconds=1))
    await peer.node.let_pass(1_000)
    taken = await take(peer, "ben")
    for call in (renew, release):
        failure = await failure_of(call(peer, lock))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "STALE_LOCK",
        )
        assert failure.metadata == {
            "name": "a",
            "holder": "ben",
            "fencing_token": str(taken.fencing_token),
        }


async def test_a_renewal_keeps_no_request_id_and_a_release_keeps_one(peer: ServedPeer) -> None:
    lock = await take(peer)
    await renew(peer, lock)
    assert peer.node.commands[-1].request_id == ""
    await release(peer, lock)
    # Forwarding repeats it after a lost leader: without an id it would find its token stale.
    assert peer.node.commands[-1].ingress_assigned
    again = await peer.node.propose(peer.node.commands[-1].SerializeToString(), timeout_s=TIMEOUT_S)
    assert b"STALE" not in again.result


async def test_a_repeated_request_is_the_same_grant_and_the_same_release(peer: ServedPeer) -> None:
    first = await acquire(peer, request_id="r-1", wait=Duration(seconds=2))
    again = await acquire(peer, request_id="r-1", wait=Duration(seconds=1))
    assert (again.acquired, again.lock) == (True, first.lock)
    await release(peer, first.lock, request_id="r-2")
    await release(peer, first.lock, request_id="r-2")
    other = await failure_of(acquire(peer, "ben", request_id="r-1"))
    assert other.code is grpc.StatusCode.ALREADY_EXISTS


async def test_who_waits_gets_the_lock_with_its_release(peer: ServedPeer) -> None:
    lock = await take(peer)
    waiting = asyncio.ensure_future(acquire(peer, "ben", wait=WAIT))
    await eventually(lambda: peer.node.waiting == 1)
    assert (await get(peer)).waiting == 1
    await release(peer, lock)
    answer = await waiting
    assert (answer.acquired, answer.lock.holder) == (True, "ben")
    assert answer.lock.fencing_token > lock.fencing_token
    assert not any(command.HasField("cancel_lock_wait") for command in peer.node.commands)


async def test_who_waits_gets_the_lock_with_the_end_of_its_lease(peer: ServedPeer) -> None:
    await take(peer, lease=Duration(seconds=1))
    waiting = asyncio.ensure_future(acquire(peer, "ben", wait=WAIT))
    await eventually(lambda: peer.node.waiting == 1)
    await peer.node.let_pass(1_000)
    assert (await waiting).acquired


async def test_a_wait_that_runs_out_says_who_holds_the_lock(peer: ServedPeer) -> None:
    await take(peer)
    waiting = asyncio.ensure_future(acquire(peer, "ben", wait=WAIT))
    await eventually(lambda: peer.node.waiting == 1)
    await peer.node.let_pass(3_000)
    answer = await waiting
    assert (answer.acquired, answer.lock.holder, answer.lock.waiting) == (False, "ann", 0)


async def test_a_wait_ends_before_the_deadline_and_is_cancelled(peer: ServedPeer) -> None:
    lock = await take(peer)
    answer = await acquire(peer, "ben", timeout=0.5, wait=Duration(seconds=60))
    assert not answer.acquired
    await eventually(lambda: peer.node.commands[-1].HasField("cancel_lock_wait"))
    assert (await release(peer, lock)).lock.holder == ""


async def test_a_caller_that_is_gone_cancels_its_wait(peer: ServedPeer) -> None:
    lock = await take(peer)
    request = lock_pb2.AcquireLockRequest(name="a", holder="ben", wait=WAIT)
    call = peer.locks.AcquireLock(request, timeout=TIMEOUT_S)
    await eventually(lambda: peer.node.waiting == 1)
    call.cancel()
    await eventually(lambda: peer.node.commands[-1].HasField("cancel_lock_wait"))
    assert (await release(peer, lock)).lock.holder == ""


async def test_a_caller_that_goes_before_its_wait_is_known_cancels_it_too(peer: ServedPeer) -> None:
    lock = await take(peer)
    peer.node.answers.clear()
    request = lock_pb2.AcquireLockRequest(name="a", holder="ben", wait=WAIT)
    call = peer.locks.AcquireLock(request, timeout=TIMEOUT_S)
    await eventually(lambda: peer.node.commands[-1].acquire_lock.holder == "ben")
    call.cancel()
    await eventually(lambda: peer.port.interceptor.calls == 0)
    peer.node.answers.set()
    await eventually(lambda: peer.node.commands[-1].HasField("cancel_lock_wait"))
    assert (await release(peer, lock)).lock.holder == ""


async def test_a_grant_that_could_not_be_delivered_goes_to_the_next(peer: ServedPeer) -> None:
    """The wait can't be cancelled in time: its grant is taken back when it can."""
    lock = await take(peer)
    request = lock_pb2.AcquireLockRequest(name="a", holder="gone", wait=WAIT)
    call = peer.locks.AcquireLock(request, timeout=TIMEOUT_S)
    await eventually(lambda: peer.node.waiting == 1)
    behind = asyncio.ensure_future(acquire(peer, "ben", wait=WAIT))
    await eventually(lambda: peer.node.waiting == 2)
    call.cancel()
    await release(peer, lock)
    answer = await behind
    assert (answer.acquired, answer.lock.holder) == (True, "ben")


async def test_a_wait_that_can_not_be_cancelled_runs_out_by_itself(peer: ServedPeer) -> None:
    await take(peer)
    request = lock_pb2.AcquireLockRequest(name="a", holder="ben", wait=WAIT)
    call = peer.locks.AcquireLock(request, timeout=TIMEOUT_S)
    await eventually(lambda: peer.node.waiting == 1)
    peer.node.error = UnavailableError("no quorum")
    call.cancel()
    await eventually(lambda: peer.port.interceptor.calls == 0)
    await peer.port._services.close()
    peer.node.error = None
    await peer.node.let_pass(3_000)
    assert (await get(peer)).waiting == 0


async def test_waiters_are_served_in_the_order_of_their_arrival(peer: ServedPeer) -> None:
    lock = await take(peer)
    waits = []
    for number in range(10):
        waits.append(asyncio.ensure_future(acquire(peer, f"w{number}", wait=Duration(seconds=4))))
        await eventually(lambda: peer.node.waiting == len(waits))
    for number, wait in enumerate(waits):
        await release(peer, lock)
        answer = await wait
        assert (answer.acquired, answer.lock.holder) == (True, f"w{number}")
        lock = answer.lock


async def test_locks_are_listed_a_page_at_a_time(peer: ServedPeer) -> None:
    for name in ("b", "a", "c"):
        await take(peer, "ann" if name == "a" else "ben", name=name)
    request = lock_pb2.ListLocksRequest(page_size=2)
    first = await peer.locks.ListLocks(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    second = await peer.locks.ListLocks(request, timeout=TIMEOUT_S)
    names = [[lock.name for lock in page.locks] for page in (first, second)]
    assert (names, second.next_page_token) == ([["a", "b"], ["c"]], "")
    request = lock_pb2.ListLocksRequest(holder="ann")
    mine = await peer.locks.ListLocks(request, timeout=TIMEOUT_S)
    assert [lock.name for lock in mine.locks] == ["a"]


async def test_limits_are_settings(serve: Serve) -> None:
    settings = {"lock.max_lease": "5s", "lock.max_waiters": "1", "lock.max_locks": "1"}
    async with serve(settings) as peer:
        failure = await failure_of(acquire(peer, lease=Duration(seconds=6)))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "5s" in failure.violations["lease"]
        await take(peer)
        failure = await failure_of(acquire(peer, name="b"))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_LOCKS",
        )
        assert failure.retry_after_ms
        waiting = asyncio.ensure_future(acquire(peer, "ben", wait=WAIT))
        await eventually(lambda: peer.node.waiting == 1)
        failure = await failure_of(acquire(peer, "cem", wait=WAIT))
        assert failure.reason == "TOO_MANY_WAITERS"
        waiting.cancel()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"holder": ""}, "holder"),
        ({"holder": "x" * 129}, "holder"),
        ({"holder": "a\nb"}, "holder"),
        ({"lease": Duration(seconds=-1)}, "lease"),
        ({"lease": Duration(seconds=8 * 24 * 3_600)}, "lease"),
        ({"lease": Duration(nanos=1_000_000)}, "lease"),
        ({"wait": Duration(seconds=61)}, "wait"),
        ({"request_id": "a b"}, "request_id"),
    ],
)
async def test_bad_input_names_the_field(
    peer: ServedPeer, fields: dict[str, Any], field: str
) -> None:
    request = lock_pb2.AcquireLockRequest(**{"name": "a", "holder": "ann", **fields})
    failure = await failure_of(peer.locks.AcquireLock(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == [field]
