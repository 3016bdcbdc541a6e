"""LockService: locks with a lease and a fencing token."""

from __future__ import annotations

from typing import TypeAlias

from gaia.command.v1 import command_pb2, query_pb2
from gaia.lock.v1 import lock_pb2, lock_pb2_grpc

from gaia_grpc.services.deadlines import Context, wait_timeout_s
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.listing import read_page
from gaia_grpc.services.task_specs import milliseconds
from gaia_grpc.services.waits import WaitKind, Waits
from gaia_grpc.state.topics import lock_wait

LockWaits: TypeAlias = Waits[query_pb2.LockWaitResult]


def _outcome(result: query_pb2.QueryResult) -> query_pb2.LockWaitResult | None:
    return None if result.lock_wait.waiting else result.lock_wait


def _cancellation(waiter_id: int) -> command_pb2.Command:
    return command_pb2.Command(cancel_lock_wait=command_pb2.CancelLockWait(waiter_id=waiter_id))


LOCK_WAIT: WaitKind[query_pb2.LockWaitResult] = WaitKind(
    name="lock",
    waiter_id=lambda result: result.lock.waiter_id,
    topic=lock_wait,
    outcome=_outcome,
    cancellation=_cancellation,
)


class LockService(lock_pb2_grpc.LockServiceServicer):
    """See `protos/gaia/lock/v1/lock.proto`."""

    def __init__(self, ingress: Ingress, waits: LockWaits) -> None:
        self._ingress = ingress
        self._waits = waits

    async def AcquireLock(
        self, request: lock_pb2.AcquireLockRequest, context: Context
    ) -> lock_pb2.AcquireLockResponse:
        """Takes a lock, or waits for it."""
        self._ingress.check(request)
        body = command_pb2.AcquireLock(
            name=request.name, holder=request.holder, lease_ms=milliseconds(request.lease)
        )
        # A retry has less time to wait and is the same request all the same.
        digest_body = command_pb2.Command(acquire_lock=body)
        body.wait_ms = milliseconds(request.wait)
        command = command_pb2.Command(acquire_lock=body)
        outcome = await self._waits.submit(
            self._ingress.submit(context, command, request.request_id, digest_body=digest_body)
        )
        result = outcome.result.lock
        lock, acquired = result.lock, result.acquired
        if result.waiter_id:
            timeout_s = wait_timeout_s(context, self._ingress.consensus, body.wait_ms)
            asked = query_pb2.LockWaitQuery(waiter_id=result.waiter_id, name=request.name)
            query = query_pb2.Query(lock_wait=asked)
            waited = await self._waits.wait(result.waiter_id, query, timeout_s)
            if waited is not None:
                lock, acquired = waited.lock, waited.acquired
        return lock_pb2.AcquireLockResponse(
            lock=lock, acquired=acquired, term=outcome.term, applied_index=outcome.index
        )

    async def RenewLock(
        self, request: lock_pb2.RenewLockRequest, context: Context
    ) -> lock_pb2.RenewLockResponse:
        """Extends a lease."""
        self._ingress.check(request)
        body = command_pb2.RenewLock(
            name=request.name,
            holder=request.holder,
            fencing_token=request.fencing_token,
            lease_ms=milliseconds(request.lease),
        )
        # Repeated it begins the lease anew, which does no harm: the token is current then.
        command = command_pb2.Command(renew_lock=body)
        outcome = await self._ingress.submit(context, command, idempotent=True)
        return lock_pb2.RenewLockResponse(
            lock=outcome.result.lock.lock, term=outcome.term, applied_index=outcome.index
        )

    async def ReleaseLock(
        self, request: lock_pb2.ReleaseLockRequest, context: Context
    ) -> lock_pb2.ReleaseLockResponse:
        """Gives a lock back."""
        self._ingress.check(request)
        body = command_pb2.ReleaseLock(
            name=request.name, holder=request.holder, fencing_token=request.fencing_token
        )
        # Repeated without an id it would find its token stale.
        command = command_pb2.Command(release_lock=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return lock_pb2.ReleaseLockResponse(
            lock=outcome.result.lock.lock, term=outcome.term, applied_index=outcome.index
        )

    async def GetLock(
        self, request: lock_pb2.GetLockRequest, context: Context
    ) -> lock_pb2.GetLockResponse:
        """Reads one lock."""
        self._ingress.check(request)
        query = query_pb2.Query(get_lock=request)
        return (await self._ingress.query(context, query, request.consistency)).get_lock

    async def ListLocks(
        self, request: lock_pb2.ListLocksRequest, context: Context
    ) -> lock_pb2.ListLocksResponse:
        """Reads a page of locks."""
        self._ingress.check(request)
        query = query_pb2.Query(list_locks=request)
        page: lock_pb2.ListLocksResponse = await read_page(self._ingress, context, query)
        return page
