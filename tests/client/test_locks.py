"""A lock as a block: it renews itself, tells when it was lost, and gives itself back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
from gaia.lock.v1 import lock_pb2

from gaia_grpc.errors import (
    FailedPreconditionError,
    LockHeldError,
    LockLostError,
    StaleLockError,
)
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse

Peers = tuple[FakePeer, FakePeer]


class Lock:
    """One lock as one peer would serve it; the test turns its answers."""

    def __init__(self, peers: Peers, *, lease_s: float = 0.3) -> None:
        self.lease_s = lease_s
        self.token = 0
        self.holder = ""
        self.silent = False
        """Renewals and releases get no answer but UNAVAILABLE."""
        self.change = asyncio.Event()
        self.events: list[str] = []
        self.wanted: list[lock_pb2.AcquireLockRequest] = []
        self.cancelled = asyncio.Event()
        self.on_grant: Callable[[], None] | None = None
        """Happens while a grant is on its way."""
        for peer in peers:
            peer.answers["AcquireLock"] = self.AcquireLock
            peer.answers["RenewLock"] = self.RenewLock
            peer.answers["ReleaseLock"] = self.ReleaseLock
            peer.answers["GetLock"] = self.GetLock
            peer.answers["ListLocks"] = self.ListLocks

    def note(self, line: str) -> None:
        self.events.append(line)
        self.change.set()
        self.change = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await self.change.wait()

    def count(self, line: str) -> int:
        return self.events.count(line)

    def pass_to(self, holder: str) -> None:
        self.token += 1
        self.holder = holder
        self.note(f"passed to {holder}")

    def message(self) -> lock_pb2.Lock:
        lock = lock_pb2.Lock(name="a", holder=self.holder, fencing_token=self.token)
        lock.lease.FromMilliseconds(round(self.lease_s * 1000))
        return lock

    async def AcquireLock(
        self, request: lock_pb2.AcquireLockRequest, context: Context
    ) -> lock_pb2.AcquireLockResponse:
        self.wanted.append(request)
        self.note("asked to acquire")
        try:
            if self.holder and request.HasField("wait"):
                async with asyncio.timeout(request.wait.ToMilliseconds() / 1000):
                    while self.holder:
                        await self.change.wait()
        except TimeoutError:
            return lock_pb2.AcquireLockResponse(lock=self.message())
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.holder:
            return lock_pb2.AcquireLockResponse(lock=self.message())
        self.pass_to(request.holder)
        granted = lock_pb2.AcquireLockResponse(lock=self.message(), acquired=True)
        if self.on_grant is not None:
            self.on_grant()
        return granted

    async def current(self, token: int, context: Context) -> None:
        if self.silent:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "NO_QUORUM")
        if token != self.token or not self.holder:
            await refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "STALE_LOCK",
                message=f"held by {self.holder}",
                metadata={"holder": self.holder, "fencing_token": str(self.token)},
            )

    async def RenewLock(
        self, request: lock_pb2.RenewLockRequest, context: Context
    ) -> lock_pb2.RenewLockResponse:
        self.note("asked to renew")
        await self.current(request.fencing_token, context)
        self.note("renewed")
        return lock_pb2.RenewLockResponse(lock=self.message())

    async def ReleaseLock(
        self, request: lock_pb2.ReleaseLockRequest, context: Context
    ) -> lock_pb2.ReleaseLockResponse:
        self.note("asked to release")
        await self.current(request.fencing_token, context)
        self.holder = ""
        self.note("released")
        return lock_pb2.ReleaseLockResponse(lock=lock_pb2.Lock(name="a"))

    async def GetLock(
        self, request: lock_pb2.GetLockRequest, context: Context
    ) -> lock_pb2.GetLockResponse:
        return lock_pb2.GetLockResponse(lock=self.message())

    async def ListLocks(
        self, request: lock_pb2.ListLocksRequest, context: Context
    ) -> lock_pb2.ListLocksResponse:
        if request.page_token:
            return lock_pb2.ListLocksResponse(locks=[lock_pb2.Lock(name="b")])
        return lock_pb2.ListLocksResponse(locks=[self.message()], next_page_token="more")


async def test_a_block_holds_renews_and_releases(peers: Peers, connect: Connect) -> None:
    lock = Lock(peers)
    client = await connect(*peers)
    async with client.locks.hold("a", owner="ann", lease=0.3) as held:
        assert held.token == 1
        assert 0 < held.lease_left <= 0.3
        await lock.until(lambda: lock.count("renewed") >= 3)
        held.check()
        assert not held.lost.is_set()
    assert lock.events[-1] == "released"
    [request] = lock.wanted
    assert (request.name, request.holder, request.lease.ToMilliseconds()) == ("a", "ann", 300)
    assert not request.HasField("wait")


async def test_nothing_renews_a_lock_whose_block_has_ended(peers: Peers, connect: Connect) -> None:
    lock = Lock(peers, lease_s=0.06)
    client = await connect(*peers)
    async with client.locks.hold("a", owner="ann"):
        await lock.until(lambda: lock.count("renewed") >= 1)
    seen = lock.count("asked to renew")
    lock.pass_to("ben")
    with pytest.raises(LockHeldError):
        await client.locks.hold("a", owner="ann", wait=0.3).__aenter__()
    assert lock.count("asked to renew") == seen


async def test_a_lock_that_another_has_is_told_lost_in_the_block_and_at_its_end(
    peers: Peers, connect: Connect
) -> None:
    lock = Lock(peers)
    client = await connect(*peers)

    async def block() -> None:
        async with client.locks.hold("a", owner="ann") as held:
            lock.pass_to("ben")
            async with asyncio.timeout(5):
                await held.lost.wait()
            assert held.lease_left == 0
            with pytest.raises(LockLostError):
                held.check()

    with pytest.raises(LockLostError, match="token 1") as lost:
        await block()
    assert lost.value.metadata == {"holder": "ben", "fencing_token": "2"}
    assert isinstance(lost.value, StaleLockError)
    assert lock.holder == "ben"


async def test_a_loss_that_no_renewal_has_seen_is_told_by_the_release(
    peers: Peers, connect: Connect
) -> None:
    lock = Lock(peers, lease_s=60)
    client = await connect(*peers)
    with pytest.raises(LockLostError):
        async with client.locks.hold("a", owner="ann"):
            lock.pass_to("ben")


async def test_a_lock_that_nobody_renews_in_time_is_lost(peers: Peers, connect: Connect) -> None:
    lock = Lock(peers, lease_s=0.3)
    client = await connect(*peers)
    loop = asyncio.get_running_loop()

    async def block() -> None:
        async with client.locks.hold("a", owner="ann") as held:
            began_s = loop.time()
            lock.silent = True
            async with asyncio.timeout(5):
                await held.lost.wait()
            assert 0.1 < loop.time() - began_s < 1.5
            lock.silent = False

    with pytest.raises(LockLostError):
        await block()
    # Who waits for it need not wait for the end of the lease.
    assert lock.holder == ""


async def test_a_renewal_that_is_late_but_in_time_loses_nothing(
    peers: Peers, connect: Connect
) -> None:
    lock = Lock(peers, lease_s=2)
    client = await connect(*peers)
    async with client.locks.hold("a", owner="ann") as held:
        lock.silent = True
        await lock.until(lambda: lock.count("asked to renew") >= 2)
        lock.silent = False
        await lock.until(lambda: lock.count("renewed") >= 1)
        assert not held.lost.is_set()
        assert held.lease_left > 1


async def test_the_error_of_the_block_passes_and_says_that_the_lock_was_lost(
    peers: Peers, connect: Connect
) -> None:
    lock = Lock(peers, lease_s=60)
    client = await connect(*peers)

    async def block(*, lose: bool) -> None:
        async with client.locks.hold("a", owner="ann"):
            if lose:
                lock.pass_to("ben")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as failed:
        await block(lose=True)
    assert failed.value.__notes__ == ["the lock a was lost before its block ended"]
    lock.holder = ""
    with pytest.raises(ZeroDivisionError) as failed:
        await block(lose=False)
    assert not hasattr(failed.value, "__notes__")
    assert lock.holder == ""


async def test_a_release_without_an_answer_is_left_to_the_lease(
    peers: Peers, connect: Connect
) -> None:
    lock = Lock(peers, lease_s=1.5)
    client = await connect(*peers)
    async with client.locks.hold("a", owner="ann") as held:
        lock.silent = True
    assert held.last_error is not None
    assert lock.count("asked to release") >= 1


async def test_who_waits_in_vain_is_told_who_holds_the_lock(peers: Peers, connect: Connect) -> None:
    lock = Lock(peers)
    lock.pass_to("ben")
    client = await connect(*peers)
    for wait in (0.0, 0.2):
        with pytest.raises(LockHeldError, match="held by ben under the token 1") as held:
            async with client.locks.hold("a", owner="ann", wait=wait):
                pytest.fail("not held")
        assert held.value.metadata == {"name": "a", "holder": "ben", "fencing_token": "1"}
    assert lock.wanted[1].wait.ToMilliseconds() == 200


async def test_a_lock_is_waited_for(peers: Peers, connect: Connect) -> None:
    lock = Lock(peers)
    lock.pass_to("ben")
    client = await connect(*peers)
    waiting = client.locks.hold("a", owner="ann", wait=None)
    with pytest.raises(FailedPreconditionError, match="not held"):
        waiting.token  # noqa: B018  # reading it is what is tested
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        entering = group.create_task(waiting.__aenter__())
        await lock.until(lambda: bool(lock.wanted))
        lock.holder = ""
        lock.note("free")
        assert await entering is waiting
        assert (waiting.token, lock.wanted[0].wait.ToMilliseconds()) == (2, 60_000)
        await waiting.__aexit__(None, None, None)
    assert lock.holder == ""


async def test_a_grant_whose_lease_may_be_over_is_not_taken_for_held(
    peers: Peers, connect: Connect
) -> None:
    lock = Lock(peers, lease_s=0.001)  # over before any answer can be here
    client = await connect(*peers)

    def meanwhile() -> None:
        lock.on_grant = None
        lock.pass_to("ben")
        lock.holder = ""
        lock.lease_s = 60

    lock.on_grant = meanwhile
    async with client.locks.hold("a", owner="ann", wait=5) as held:
        assert held.token == lock.token == 3
    first, second = lock.wanted
    assert first.request_id != second.request_id


async def test_who_stops_waiting_leaves_the_order(peers: Peers, connect: Connect) -> None:
    lock = Lock(peers)
    lock.pass_to("ben")
    client = await connect(*peers)
    entering = asyncio.create_task(client.locks.hold("a", owner="ann", wait=30).__aenter__())
    await lock.until(lambda: bool(lock.wanted))
    entering.cancel()
    await asyncio.wait({entering})
    async with asyncio.timeout(5):
        await lock.cancelled.wait()


async def test_single_calls(peers: Peers, connect: Connect) -> None:
    lock = Lock(peers)
    client = await connect(*peers)
    acquired = await client.locks.acquire("a", owner="ann", lease=0.3, wait=1)
    assert acquired.acquired
    assert (await client.locks.renew(acquired.lock, lease=0.5)).lock.fencing_token == 1
    assert (await client.locks.get("a")).lock.holder == "ann"
    assert [each.name async for each in client.locks.list(owner="ann")] == ["a", "b"]
    await client.locks.release(acquired.lock)
    with pytest.raises(StaleLockError):
        await client.locks.renew(acquired.lock)
    [release] = peers[0].of("ReleaseLock")
    assert release.request_id
    assert lock.wanted[0].wait.ToMilliseconds() == 1_000
