"""Who holds which lock, who waits for it, and what they come back as from a snapshot.

At any log index a lock has at most one holder, and each holding has a token that is greater than
that of every holding of any lock before it. A lock that nobody holds is no record: the tokens are
counted over all locks, so nothing is forgotten with it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence

from gaia.command.v1 import snapshot_pb2

from gaia_grpc.state import topics
from gaia_grpc.state.context import Context
from gaia_grpc.state.lock_record import (
    Lock,
    LockWaiter,
    decode_lock,
    decode_waiter,
    encode_lock,
    encode_waiter,
)
from gaia_grpc.state.snapshot import Frozen, FrozenInOrder, Part, Section, records_section

LEASE_TIMER = "lock.lease"
WAIT_TIMER = "lock.wait"


class LockStore:
    """All locks that are held, and all waits for them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._locks: dict[str, Lock] = {}
        self._names: list[str] = []
        """Sorted, for lists."""
        self._waiters: dict[int, LockWaiter] = {}
        self._last_token = 0
        self.last_waiter_id = 0
        self.waiting_count = 0
        context.timers.register(LEASE_TIMER, self._lease_due)
        context.timers.register(WAIT_TIMER, self._wait_due)
        self._frozen_locks = Frozen(self._locks, encode_lock)
        self._frozen_waiters = FrozenInOrder(self._waiters, encode_waiter)
        self.parts: Sequence[Part] = (
            Section("lock_counters", self._freeze_counters, self._load_counters),
            records_section("lock", self._frozen_locks, self._load_lock, loaded=self._locks_loaded),
            records_section(
                "lock_wait", self._frozen_waiters, self._load_waiter, loaded=self._waits_loaded
            ),
        )

    def __len__(self) -> int:
        return len(self._locks)

    def find(self, name: str) -> Lock | None:
        """The lock, or None where nobody holds it."""
        return self._locks.get(name)

    def waiter(self, waiter_id: int) -> LockWaiter | None:
        """The wait, or None where it has ended."""
        return self._waiters.get(waiter_id)

    def after(self, name: str) -> Iterator[Lock]:
        """Locks in the order of their names, from the first behind `name`."""
        for place in range(bisect_right(self._names, name), len(self._names)):
            yield self._locks[self._names[place]]

    # --- holding

    def acquire(self, name: str, holder: str, lease_ms: int) -> Lock:
        """A lock that was free gets a holder."""
        self._frozen_locks.changing(name)
        lock = self._locks[name] = Lock(name)
        insort(self._names, name)
        self._hold(lock, holder, lease_ms)
        return lock

    def renew(self, lock: Lock, lease_ms: int) -> None:
        """The lease begins anew."""
        self._frozen_locks.changing(lock.name)
        self._set_lease(lock, lease_ms)

    def end_holding(self, lock: Lock) -> None:
        """The holder has it no more: who waited longest has it at once, or it is free."""
        self.forget_grant(lock)
        self._frozen_locks.changing(lock.name)
        if lock.timer is not None:
            self._context.timers.cancel(lock.timer)
            lock.timer = None
        if not lock.waiting:
            del self._locks[lock.name]
            del self._names[bisect_right(self._names, lock.name) - 1]
            return
        waiter = next(iter(lock.waiting.values()))
        self._frozen_waiters.changing(waiter.waiter_id)
        self._leave(lock, waiter)
        self._hold(lock, waiter.holder, waiter.lease_ms)
        waiter.granted_token = lock.token
        lock.grant = waiter
        self._context.touch(topics.lock_wait(waiter.waiter_id))

    def forget_grant(self, lock: Lock) -> None:
        """Nobody asks for this grant any more: it was fetched, or is over."""
        if lock.grant is not None:
            self._forget(lock.grant)
            lock.grant = None

    def _hold(self, lock: Lock, holder: str, lease_ms: int) -> None:
        self._last_token += 1
        lock.token = self._last_token
        lock.holder = holder
        lock.acquire_ms = self._context.now_ms
        self._set_lease(lock, lease_ms)

    def _set_lease(self, lock: Lock, lease_ms: int) -> None:
        lock.lease_ms = lease_ms
        lock.expire_ms = self._context.now_ms + lease_ms
        if lock.timer is not None:
            self._context.timers.cancel(lock.timer)
        self._set_lease_timer(lock)

    def _set_lease_timer(self, lock: Lock) -> None:
        lock.timer = self._context.timers.schedule(lock.expire_ms, LEASE_TIMER, lock.name)

    # --- waiting

    def wait(self, lock: Lock, holder: str, lease_ms: int, wait_ms: int) -> LockWaiter:
        """A caller takes the last place among those that wait."""
        self.last_waiter_id += 1
        waiter = LockWaiter(self.last_waiter_id, lock.name, holder, lease_ms)
        waiter.deadline_ms = self._context.now_ms + wait_ms
        self._waiters[waiter.waiter_id] = waiter
        lock.waiting[waiter.arrival] = waiter
        self.waiting_count += 1
        self._set_wait_timer(waiter)
        return waiter

    def rename_wait(self, waiter: LockWaiter) -> None:
        """The wait goes on for a new caller; the former one is told that it has ended, and has no
        say in it any more."""
        self._context.touch(topics.lock_wait(waiter.waiter_id))
        self._drop_timer(waiter)
        self._forget(waiter)
        self.last_waiter_id += 1
        waiter.waiter_id = self.last_waiter_id
        self._waiters[waiter.waiter_id] = waiter
        self._set_wait_timer(waiter)

    def end_wait(self, waiter: LockWaiter) -> None:
        """The waiter waits no more and was granted nothing."""
        self._leave(self._locks[waiter.name], waiter)
        self._forget(waiter)
        self._context.touch(topics.lock_wait(waiter.waiter_id))

    def _leave(self, lock: Lock, waiter: LockWaiter) -> None:
        del lock.waiting[waiter.arrival]
        self.waiting_count -= 1
        self._drop_timer(waiter)

    def _forget(self, waiter: LockWaiter) -> None:
        self._frozen_waiters.changing(waiter.waiter_id)
        del self._waiters[waiter.waiter_id]

    def _set_wait_timer(self, waiter: LockWaiter) -> None:
        waiter.timer = self._context.timers.schedule(
            waiter.deadline_ms, WAIT_TIMER, waiter.waiter_id
        )

    def _drop_timer(self, waiter: LockWaiter) -> None:
        if waiter.timer is not None:
            self._context.timers.cancel(waiter.timer)
            waiter.timer = None

    # --- timers: each looks at its record again

    def _lease_due(self, key: int | str) -> None:
        lock = self._locks[str(key)]
        lock.timer = None
        self.end_holding(lock)

    def _wait_due(self, key: int | str) -> None:
        waiter = self._waiters[int(key)]
        waiter.timer = None
        self.end_wait(waiter)

    # --- snapshots

    def _freeze_counters(self) -> Iterator[bytes]:
        # No record where no lock was ever acquired: that is what older versions can read.
        if not self._last_token:
            return iter(())
        counters = snapshot_pb2.LockCounters(
            last_token=self._last_token, last_waiter_id=self.last_waiter_id
        )
        return iter((counters.SerializeToString(deterministic=True),))

    def _load_counters(self, record: bytes) -> None:
        counters = snapshot_pb2.LockCounters.FromString(record)
        self._last_token = counters.last_token
        self.last_waiter_id = counters.last_waiter_id

    def _load_lock(self, record: bytes) -> None:
        lock = decode_lock(record)
        if lock.name in self._locks or not 0 < lock.token <= self._last_token:
            raise ValueError(f"the lock {lock.name} is there twice, or its token never was")
        self._locks[lock.name] = lock

    def _locks_loaded(self) -> None:
        self._names.extend(sorted(self._locks))
        for lock in self._locks.values():
            self._set_lease_timer(lock)

    def _load_waiter(self, record: bytes) -> None:
        waiter = decode_waiter(record)
        lock = self._locks.get(waiter.name)
        if lock is None or waiter.waiter_id > self.last_waiter_id:
            raise ValueError(f"the wait {waiter.waiter_id} is for a lock that nobody holds")
        if waiter.granted_token not in (0, lock.token):
            raise ValueError(f"the wait {waiter.waiter_id} was granted what is over")
        self._waiters[waiter.waiter_id] = waiter

    def _waits_loaded(self) -> None:
        # A wait that got another id keeps the place of its arrival.
        for waiter in sorted(self._waiters.values(), key=lambda each: each.arrival):
            lock = self._locks[waiter.name]
            if waiter.granted_token:
                lock.grant = waiter
                continue
            lock.waiting[waiter.arrival] = waiter
            self.waiting_count += 1
            self._set_wait_timer(waiter)
