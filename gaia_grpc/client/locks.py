"""LockService, typed, and a lock as a block that renews itself.

No lock keeps a paused process out: it learns that its lease is over when it wakes up. So pass
`lock.token` to what the lock protects, and let that refuse a lower one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from gaia.lock.v1 import lock_pb2

from gaia_grpc.client.connection import Connection
from gaia_grpc.client.resources import LINEARIZABLE, Consistency, duration
from gaia_grpc.errors import (
    FailedPreconditionError,
    GaiaError,
    LockHeldError,
    LockLostError,
    StaleLockError,
)

MAX_WAIT_S = 60.0
"""Longest wait of one call (lock.max_wait)."""
RENEWALS_PER_LEASE = 3
MIN_RENEWAL_S = 0.01
RETRY_PAUSE_S = 0.1
MIN_RELEASE_S = 1.0


class LocksApi:
    """LockService: leases with a fencing token. `hold` does all; the rest are single calls."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def hold(
        self,
        name: str,
        *,
        owner: str,
        lease: float | None = None,
        wait: float | None = 0.0,
    ) -> HeldLock:
        """A lock for the length of a block.

            async with client.locks.hold("grades:5b", owner="worker-1", wait=10) as lock:
                await store.write(grades, fencing_token=lock.token)

        Args:
            name: the lock.
            owner: who holds it, for people and for refusals. Not an identity: the same owner twice
                excludes itself.
            lease: seconds after which the lock is free if this process dies; lock.lease (30 s) by
                default. It is renewed three times in that.
            wait: seconds to wait for others; None waits for ever. Up to 60 s keep one place in
                the order of arrival; a longer wait begins again at the end of it.

        Raises:
            LockHeldError: when it is entered, if others held it for all of `wait`.
            LockLostError: when it is left, if the lock was lost before.
        """
        return HeldLock(self._connection, self, name, owner=owner, lease=lease, wait=wait)

    async def acquire(
        self,
        name: str,
        *,
        owner: str,
        lease: float | None = None,
        wait: float = 0.0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> lock_pb2.AcquireLockResponse:
        """Takes a lock, waiting up to `wait` seconds (60 at most); see `acquired` in the answer."""
        request = lock_pb2.AcquireLockRequest(
            name=name,
            holder=owner,
            lease=None if lease is None else duration(lease),
            wait=duration(wait) if wait else None,
            request_id=request_id,
        )
        return await self._connection.call(
            lambda peer: peer.locks.AcquireLock,
            request,
            timeout=(self._connection.timeout if timeout is None else timeout) + wait,
            attempt_timeout=self._connection.attempt_timeout + wait,
        )

    async def renew(
        self, lock: lock_pb2.Lock, *, lease: float | None = None, timeout: float | None = None
    ) -> lock_pb2.RenewLockResponse:
        """Begins the lease anew; `StaleLockError` where it is no longer held."""
        request = lock_pb2.RenewLockRequest(
            name=lock.name,
            holder=lock.holder,
            fencing_token=lock.fencing_token,
            lease=None if lease is None else duration(lease),
        )
        return await self._connection.call(
            lambda peer: peer.locks.RenewLock, request, timeout=timeout
        )

    async def release(
        self, lock: lock_pb2.Lock, *, request_id: str = "", timeout: float | None = None
    ) -> lock_pb2.ReleaseLockResponse:
        """Gives a lock back; `StaleLockError` where it is no longer held."""
        request = lock_pb2.ReleaseLockRequest(
            name=lock.name,
            holder=lock.holder,
            fencing_token=lock.fencing_token,
            request_id=request_id,
        )
        return await self._connection.call(
            lambda peer: peer.locks.ReleaseLock, request, timeout=timeout
        )

    async def get(
        self, name: str, *, consistency: Consistency = LINEARIZABLE, timeout: float | None = None
    ) -> lock_pb2.GetLockResponse:
        """Reads one lock; it has no holder where nobody holds it."""
        return await self._connection.call(
            lambda peer: peer.locks.GetLock,
            lock_pb2.GetLockRequest(name=name, consistency=consistency),
            timeout=timeout,
        )

    async def list(
        self,
        *,
        owner: str = "",
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[lock_pb2.Lock]:
        """All locks that are held (by `owner`) in the order of their names, page by page."""
        request = lock_pb2.ListLocksRequest(
            holder=owner, page_size=page_size, consistency=consistency
        )
        while True:
            page = await self._connection.call(lambda peer: peer.locks.ListLocks, request)
            for lock in page.locks:
                yield lock
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


class HeldLock:
    """A lock that is held while the block runs. Made by `LocksApi.hold`; enter it once.

    The lease is counted from the moment at which the last accepted call was sent, on this machine's
    monotonic clock. The cluster counts it from later on and in log time, which stands still during
    an outage: so it is lost here before it can be anybody else's, unless this process is paused.
    """

    def __init__(
        self,
        connection: Connection,
        api: LocksApi,
        name: str,
        *,
        owner: str,
        lease: float | None,
        wait: float | None,
    ) -> None:
        """Use `LocksApi.hold`."""
        self.name = name
        self.owner = owner
        self.lost = asyncio.Event()
        """Set as soon as it is known that the lock was lost, or may have been."""
        self.last_error: GaiaError | None = None
        """The latest error of a renewal or of the release."""
        self._connection = connection
        self._api = api
        self._lease = lease
        self._wait = wait
        self._lock: lock_pb2.Lock | None = None
        self._until_s = 0.0
        self._renewal: asyncio.Task[None] | None = None

    @property
    def lock(self) -> lock_pb2.Lock:
        """The lock as acquired or renewed last; an error before it is held."""
        if self._lock is None:
            raise FailedPreconditionError(f"the lock {self.name} is not held: enter it first")
        return self._lock

    @property
    def token(self) -> int:
        """The fencing token: pass it to what the lock protects."""
        return self.lock.fencing_token

    @property
    def lease_left(self) -> float:
        """Seconds for which the lock is held for sure, if this process is not paused meanwhile."""
        if self._lock is None or self.lost.is_set():
            return 0.0
        return max(self._until_s - asyncio.get_running_loop().time(), 0.0)

    def check(self) -> None:
        """Raises `LockLostError` where the lock was lost, before one more step is done."""
        if self.lease_left <= 0.0:
            self.lost.set()
            raise self._lost_error()

    async def __aenter__(self) -> Self:
        try:
            await self._acquire()
        except BaseException:
            if self._lock is not None:
                await self._release()
            raise
        self._renewal = asyncio.create_task(self._renew_on(), name=f"lock {self.name}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait({self._renewal})
        if self.lease_left <= 0.0:
            self.lost.set()
        await self._release()
        if not self.lost.is_set():
            return
        if error is None:
            raise self._lost_error() from self.last_error
        # The block's own error is the one to see; that the lock was lost may be its cause.
        error.add_note(f"the lock {self.name} was lost before its block ended")

    async def _acquire(self) -> None:
        loop = asyncio.get_running_loop()
        give_up_s = None if self._wait is None else loop.time() + self._wait
        while True:
            wait_s = MAX_WAIT_S
            if give_up_s is not None:
                wait_s = min(max(give_up_s - loop.time(), 0.0), MAX_WAIT_S)
            sent_s = loop.time()
            answer = await self._api.acquire(
                self.name, owner=self.owner, lease=self._lease, wait=wait_s
            )
            if answer.acquired:
                self._hold(answer.lock, sent_s)
                # Whoever waited does not know when the lease began: a renewal tells.
                late = loop.time() - sent_s > self._lease_s / RENEWALS_PER_LEASE
                if not late or await self._renew_once():
                    return
                self._lock = None
            if give_up_s is not None and loop.time() >= give_up_s:
                raise self._held_error(answer.lock)
            # The cluster may cut waits shorter than they were asked for.
            await asyncio.sleep(RETRY_PAUSE_S)

    def _hold(self, lock: lock_pb2.Lock, sent_s: float) -> None:
        self._lock = lock
        self._until_s = sent_s + self._lease_s

    @property
    def _lease_s(self) -> float:
        seconds: float = self.lock.lease.ToMilliseconds() / 1000
        return seconds

    async def _renew_on(self) -> None:
        """Renews until the lock is lost; ends then."""
        loop = asyncio.get_running_loop()
        pause_s = max(self._lease_s / RENEWALS_PER_LEASE, MIN_RENEWAL_S)
        while True:
            # Not later than the end: the loss is told in time, whatever hangs.
            await asyncio.sleep(min(pause_s, max(self._until_s - loop.time(), 0.0)))
            if loop.time() >= self._until_s or not await self._renew_once():
                self.lost.set()
                return

    async def _renew_once(self) -> bool:
        """Renews, trying for as long as the lease lasts; False where the lock is lost."""
        loop = asyncio.get_running_loop()
        sent_s = loop.time()

        def note(_: lock_pb2.RenewLockRequest) -> None:
            nonlocal sent_s
            sent_s = loop.time()

        while (left_s := self._until_s - loop.time()) > 0:
            request = lock_pb2.RenewLockRequest(
                name=self.name,
                holder=self.owner,
                fencing_token=self.token,
                lease=self.lock.lease,
            )
            try:
                async with asyncio.timeout(left_s):
                    answer = await self._connection.call(
                        lambda peer: peer.locks.RenewLock,
                        request,
                        timeout=left_s,
                        before_attempt=note,
                    )
            except StaleLockError as stale:
                self.last_error = stale
                return False
            except TimeoutError:
                return False
            except GaiaError as error:
                self.last_error = error
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            self._hold(answer.lock, sent_s)
            return True
        return False

    async def _release(self) -> None:
        """Also where the lock seems lost: who waits for it should not wait for the lease's end."""
        timeout_s = max(self.lease_left, MIN_RELEASE_S)
        try:
            await self._api.release(self.lock, timeout=timeout_s)
        except StaleLockError as stale:
            self.last_error = stale
            self.lost.set()
        except GaiaError as error:
            # It was held until here, and its lease ends by itself.
            self.last_error = error

    def _lost_error(self) -> LockLostError:
        cause = f": {self.last_error.message}" if self.last_error is not None else ""
        metadata = self.last_error.metadata if self.last_error is not None else {}
        return LockLostError(
            f"the lock {self.name} was lost, and others may have held it meanwhile{cause}; undo or "
            f"repeat what its block did, unless it was guarded by the token {self.token}",
            metadata=metadata,
        )

    def _held_error(self, lock: lock_pb2.Lock) -> LockHeldError:
        waited = "" if not self._wait else f" for {self._wait:g} s"
        standing = f"held by {lock.holder} under the token {lock.fencing_token}"
        return LockHeldError(
            f"the lock {self.name} could not be acquired{waited}: it is "
            f"{standing if lock.holder else 'free again'}; try again, or wait longer",
            metadata={
                "name": self.name,
                "holder": lock.holder,
                "fencing_token": str(lock.fencing_token),
            },
        )
