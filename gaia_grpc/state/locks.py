"""Locks with a lease in log time and a fencing token (Gray & Cheriton 1989; Chubby's sequencers).

A lock keeps two callers apart at each index of the log, and not on the wall: a holder that was
paused learns that its lease is over only when it asks. Hence the token, which is refused here once
it is not current, and which what the lock protects can compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gaia.command.v1 import command_pb2, query_pb2
from gaia.lock.v1 import lock_pb2

from gaia_grpc.state import page_tokens, refusal
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.lock_record import Lock
from gaia_grpc.state.lock_store import LockStore
from gaia_grpc.state.refusal import Refused, refused
from gaia_grpc.state.settings import format_duration
from gaia_grpc.state.snapshot import Part

FULL_RETRY_MS = 1_000
MIN_LEASE_MS = 50
EXAMINED_PER_PAGE = 5_000
"""A page of one holder's locks ends here, short and with a token."""


class LockTable:
    """Commands and queries of the locks; also tells a kept acquisition again (`Replay`)."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = LockStore(context)
        self.parts: Sequence[Part] = self._store.parts
        self.commands: Mapping[str, CommandHandler] = {
            "acquire_lock": self.acquire,
            "renew_lock": self.renew,
            "release_lock": self.release,
            "cancel_lock_wait": self.cancel_wait,
        }
        self.queries: Mapping[str, QueryHandler] = {
            "get_lock": self.get,
            "list_locks": self.list_page,
            "lock_wait": self.wait_state,
        }

    def settings_changed(self) -> None:
        """Leases and waits keep the times that they began with."""

    # --- commands

    def acquire(self, body: command_pb2.AcquireLock) -> command_pb2.CommandResult:
        """Takes the lock where it is free; otherwise waits for `wait_ms`, behind all others."""
        if not body.name:
            raise refusal.invalid("name", "name is empty")
        if not body.holder:
            raise refusal.invalid("holder", "holder is empty")
        lease_ms = self._lease_ms(body.lease_ms)
        settings = self._context.settings
        lock = self._store.find(body.name)
        if lock is None:
            if len(self._store) >= settings.integer("lock.max_locks"):
                raise _full("TOO_MANY_LOCKS", "too many locks are held (lock.max_locks)")
            lock = self._store.acquire(body.name, body.holder, lease_ms)
            return _result(lock.message(), acquired=True)
        wait_ms = min(body.wait_ms, settings.milliseconds("lock.max_wait"))
        if wait_ms <= 0:
            return _result(lock.message())
        if self._store.waiting_count >= settings.integer("lock.max_waiters"):
            raise _full("TOO_MANY_WAITERS", "too many callers wait for locks (lock.max_waiters)")
        waiter = self._store.wait(lock, body.holder, lease_ms, wait_ms)
        return _result(lock.message(), waiter_id=waiter.waiter_id)

    def renew(self, body: command_pb2.RenewLock) -> command_pb2.CommandResult:
        """The lease begins anew, with the length that is named now."""
        lock = self._held(body.name, body.holder, body.fencing_token)
        self._store.renew(lock, self._lease_ms(body.lease_ms))
        return _result(lock.message(), acquired=True)

    def release(self, body: command_pb2.ReleaseLock) -> command_pb2.CommandResult:
        """Gives the lock back; the result is the lock as it is then."""
        lock = self._held(body.name, body.holder, body.fencing_token)
        self._store.end_holding(lock)
        return _result(self._message(body.name))

    def cancel_wait(self, body: command_pb2.CancelLockWait) -> command_pb2.CommandResult:
        """Ends a wait; a grant that nobody fetched is given back."""
        waiter = self._store.waiter(body.waiter_id)
        if waiter is not None and not waiter.granted_token:
            self._store.end_wait(waiter)
        elif waiter is not None:
            lock = self._store.find(waiter.name)
            if lock is not None:
                self._store.end_holding(lock)
        return command_pb2.CommandResult(done=command_pb2.Done())

    # --- queries

    def get(self, body: lock_pb2.GetLockRequest, now_ms: int) -> query_pb2.QueryResult:
        """One lock; without a holder where nobody holds it."""
        del now_ms
        if not body.name:
            raise refusal.invalid("name", "name is empty")
        answer = lock_pb2.GetLockResponse(lock=self._message(body.name))
        return query_pb2.QueryResult(get_lock=answer)

    def list_page(self, body: lock_pb2.ListLocksRequest, now_ms: int) -> query_pb2.QueryResult:
        """One page of the locks that are held, in the order of their names."""
        del now_ms
        size = page_tokens.page_size(body.page_size)
        answer = lock_pb2.ListLocksResponse()
        last = ""
        after = page_tokens.decode(body, body.page_token)
        for examined, lock in enumerate(self._store.after(after)):
            if len(answer.locks) == size or examined == EXAMINED_PER_PAGE:
                answer.next_page_token = page_tokens.encode(body, last)
                break
            last = lock.name
            if body.holder in ("", lock.holder):
                answer.locks.append(lock.message())
        return query_pb2.QueryResult(list_locks=answer)

    def wait_state(self, body: query_pb2.LockWaitQuery, now_ms: int) -> query_pb2.QueryResult:
        """What became of a wait. An id that this state has not reached yet counts as waiting."""
        del now_ms
        store = self._store
        waiter = store.waiter(body.waiter_id)
        granted = waiter is not None and waiter.granted_token > 0
        answer = query_pb2.LockWaitResult(
            waiting=body.waiter_id > store.last_waiter_id or (waiter is not None and not granted),
            acquired=granted,
            lock=self._message(body.name),
        )
        return query_pb2.QueryResult(lock_wait=answer)

    # --- Replay

    def kept(self, result: command_pb2.CommandResult) -> bytes:
        """The name, and the token or the wait: all else is with the lock."""
        slim = result
        if result.HasField("lock"):
            slim = _result(
                lock_pb2.Lock(name=result.lock.lock.name),
                acquired=result.lock.acquired,
                waiter_id=result.lock.waiter_id,
            )
            if result.lock.acquired:
                slim.lock.lock.fencing_token = result.lock.lock.fencing_token
        return slim.SerializeToString(deterministic=True)

    def again(self, outcome: bytes) -> command_pb2.CommandResult:
        """The same grant while it lives, or the same wait; not acquired where both are over.

        A wait passes to the caller that repeats the request: when the first caller's peer notices
        that its caller has gone and cancels, it must not take the lock from the second.
        """
        result = command_pb2.CommandResult.FromString(outcome)
        if not result.HasField("lock"):
            return result
        kept = result.lock
        name = kept.lock.name
        waiter = self._store.waiter(kept.waiter_id) if kept.waiter_id else None
        lock = self._store.find(name)
        if waiter is None:
            token = kept.lock.fencing_token if kept.acquired else 0
            acquired = lock is not None and lock.token == token
            return _result(self._message(name), acquired=acquired)
        if waiter.granted_token and lock is not None:
            self._store.forget_grant(lock)
            return _result(lock.message(), acquired=True)
        self._store.rename_wait(waiter)
        return _result(self._message(name), waiter_id=waiter.waiter_id)

    # --- parts

    def _message(self, name: str) -> lock_pb2.Lock:
        lock = self._store.find(name)
        return lock_pb2.Lock(name=name) if lock is None else lock.message()

    def _lease_ms(self, asked_ms: int) -> int:
        settings = self._context.settings
        most_ms = settings.milliseconds("lock.max_lease")
        if not asked_ms:
            return min(settings.milliseconds("lock.lease"), most_ms)
        if not MIN_LEASE_MS <= asked_ms <= most_ms:
            bounds = f"{MIN_LEASE_MS}ms to {format_duration(most_ms)} (lock.max_lease)"
            raise refusal.invalid("lease", f"{format_duration(asked_ms)} is not within {bounds}")
        return asked_ms

    def _held(self, name: str, holder: str, token: int) -> Lock:
        """The lock, where this is its current holding. Raises `Refused` (STALE_LOCK)."""
        lock = self._store.find(name)
        if lock is None or lock.token != token or lock.holder != holder:
            raise _stale(name, holder, token, lock)
        return lock


def _result(
    lock: lock_pb2.Lock, *, acquired: bool = False, waiter_id: int = 0
) -> command_pb2.CommandResult:
    result = command_pb2.LockResult(lock=lock, acquired=acquired, waiter_id=waiter_id)
    return command_pb2.CommandResult(lock=result)


def _full(reason: str, message: str) -> Refused:
    return refused(refusal.RESOURCE_EXHAUSTED, reason, message, retry_after_ms=FULL_RETRY_MS)


def _stale(name: str, holder: str, token: int, lock: Lock | None) -> Refused:
    standing = "held by nobody"
    if lock is not None:
        standing = f"held by {lock.holder} under the token {lock.token}"
    return refused(
        refusal.FAILED_PRECONDITION,
        "STALE_LOCK",
        f"the token {token} of {holder} on the lock {name} is not current: it is {standing}",
        details={
            "name": name,
            "holder": "" if lock is None else lock.holder,
            "fencing_token": "0" if lock is None else str(lock.token),
        },
    )
