"""A lock and a wait for one as the state holds them, and as records of a snapshot."""

from __future__ import annotations

from collections import OrderedDict

from gaia.command.v1 import snapshot_pb2
from gaia.lock.v1 import lock_pb2
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.timers import Timer


class LockWaiter:
    """A caller that waits for a lock, or was granted it and has not fetched it yet."""

    __slots__ = (
        "arrival",
        "deadline_ms",
        "granted_token",
        "holder",
        "lease_ms",
        "name",
        "timer",
        "waiter_id",
    )

    def __init__(self, waiter_id: int, name: str, holder: str, lease_ms: int) -> None:
        self.waiter_id = waiter_id
        self.arrival = waiter_id  # keeps its place when the wait gets another id
        self.name = name
        self.holder = holder
        self.lease_ms = lease_ms
        self.deadline_ms = 0
        self.granted_token = 0
        """0 while it waits."""
        self.timer: Timer | None = None


class Lock:
    """A lock that is held, with those that wait for it."""

    __slots__ = (
        "acquire_ms",
        "expire_ms",
        "grant",
        "holder",
        "lease_ms",
        "name",
        "timer",
        "token",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder = ""
        self.token = 0
        self.lease_ms = 0
        self.expire_ms = 0
        self.acquire_ms = 0
        self.grant: LockWaiter | None = None
        """The wait that this holding was granted to, while nobody has fetched it."""
        self.waiting: OrderedDict[int, LockWaiter] = OrderedDict()
        """By arrival, in that order. (A dict's first key costs a walk over all that left.)"""
        self.timer: Timer | None = None

    def message(self) -> lock_pb2.Lock:
        """The lock as callers see it."""
        return lock_pb2.Lock(
            name=self.name,
            holder=self.holder,
            fencing_token=self.token,
            lease_expire_time=timestamp(self.expire_ms),
            waiting=len(self.waiting),
            lease=duration(self.lease_ms),
            acquire_time=timestamp(self.acquire_ms),
        )


def duration(milliseconds: int) -> Duration:
    """A length of time as a Duration."""
    seconds, rest = divmod(milliseconds, 1_000)
    return Duration(seconds=seconds, nanos=rest * 1_000_000)


def encode_lock(name: str, lock: Lock) -> bytes:
    """The lock's record in a snapshot."""
    return snapshot_pb2.LockRecord(
        name=name,
        holder=lock.holder,
        fencing_token=lock.token,
        lease_ms=lock.lease_ms,
        expire_ms=lock.expire_ms,
        acquire_ms=lock.acquire_ms,
    ).SerializeToString(deterministic=True)


def decode_lock(data: bytes) -> Lock:
    """The lock of a record, without its timer and those that wait for it."""
    record = snapshot_pb2.LockRecord.FromString(data)
    lock = Lock(record.name)
    lock.holder = record.holder
    lock.token = record.fencing_token
    lock.lease_ms = record.lease_ms
    lock.expire_ms = record.expire_ms
    lock.acquire_ms = record.acquire_ms
    return lock


def encode_waiter(waiter_id: int, waiter: LockWaiter) -> bytes:
    """The wait's record in a snapshot."""
    return snapshot_pb2.LockWaitRecord(
        waiter_id=waiter_id,
        arrival=waiter.arrival,
        name=waiter.name,
        holder=waiter.holder,
        lease_ms=waiter.lease_ms,
        deadline_ms=waiter.deadline_ms,
        granted_token=waiter.granted_token,
    ).SerializeToString(deterministic=True)


def decode_waiter(data: bytes) -> LockWaiter:
    """The wait of a record, without its timer."""
    record = snapshot_pb2.LockWaitRecord.FromString(data)
    waiter = LockWaiter(record.waiter_id, record.name, record.holder, record.lease_ms)
    waiter.arrival = record.arrival
    waiter.deadline_ms = record.deadline_ms
    waiter.granted_token = record.granted_token
    return waiter
