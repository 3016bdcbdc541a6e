"""Claims that wait in the log: who is next for a task, first come first served.

Only waiters of sessions that may get a task now are in the heaps, each by what it takes: a class of
affinity and a type. So finding the first waiter for a task looks at no more than four tops, however
many wait for other things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TypeAlias

from gaia.command.v1 import snapshot_pb2

from gaia_grpc.state.affinity import GENERAL
from gaia_grpc.state.lazy_heap import LazyHeap
from gaia_grpc.state.session_record import Session
from gaia_grpc.state.snapshot import FrozenInOrder
from gaia_grpc.state.task_record import Task
from gaia_grpc.state.timers import Timer

Place: TypeAlias = tuple["Takes", str, str]
"""(class, specialty where the class is ONE, type or empty for any)"""


class Takes(IntEnum):
    """What a place in the order is for."""

    ONE = 1
    """Waiters that take their specialty and general tasks."""
    ANY = 2
    """Waiters that take every affinity."""
    GENERAL = 3
    """All waiters: each of them takes general tasks."""


class Waiter:
    """A claim that waits for its first task, or was granted some that nobody has fetched yet."""

    __slots__ = (
        "active",
        "arrival",
        "deadline_ms",
        "grants",
        "include_unmatched",
        "max_tasks",
        "session",
        "task_types",
        "timer",
        "waiter_id",
    )

    def __init__(
        self,
        waiter_id: int,
        session: Session,
        max_tasks: int,
        task_types: Sequence[str],
        *,
        include_unmatched: bool,
    ) -> None:
        self.waiter_id = waiter_id
        self.arrival = waiter_id  # keeps its place when the wait gets another id
        self.session = session
        self.max_tasks = max_tasks
        self.task_types = tuple(dict.fromkeys(task_types))
        self.include_unmatched = include_unmatched
        self.grants: tuple[tuple[int, int], ...] = ()
        """(task number, claim token); empty while it waits."""
        self.deadline_ms = 0
        self.active = False
        self.timer: Timer | None = None


class WaitList:
    """All waiters by id, and the waiting ones in their order."""

    __slots__ = ("_active", "_by_session", "_heaps", "_waiters", "count", "frozen", "last_id")

    def __init__(self) -> None:
        self.last_id = 0
        self.count = 0
        """How many wait."""
        self._waiters: dict[int, Waiter] = {}
        self._by_session: dict[int, list[Waiter]] = {}
        """Waiting ones, in the order of their arrival."""
        self._active: dict[int, Waiter] = {}
        """By arrival: those that are in the heaps."""
        self._heaps: dict[Place, LazyHeap] = {}
        self.frozen = FrozenInOrder(self._waiters, encode_waiter)

    def find(self, waiter_id: int) -> Waiter | None:
        """The waiter, or None where the wait has ended."""
        return self._waiters.get(waiter_id)

    def of_session(self, session: Session) -> tuple[Waiter, ...]:
        """The session's waiting claims in the order of their arrival."""
        return tuple(self._by_session.get(session.number, ()))

    def add(self, waiter: Waiter) -> None:
        """The waiter begins to wait."""
        self.last_id = waiter.waiter_id
        self._waiters[waiter.waiter_id] = waiter
        self._begin(waiter)

    def restore(self, waiter: Waiter) -> None:
        """A waiter of a snapshot; they come in the order of their ids."""
        self._waiters[waiter.waiter_id] = waiter

    def restored(self) -> list[Waiter]:
        """All waiters and claims are in: those that wait take their places; returns them."""
        waiting = [waiter for waiter in self._waiters.values() if not waiter.grants]
        # A wait that got another id keeps the place of its arrival.
        waiting.sort(key=lambda waiter: waiter.arrival)
        for waiter in waiting:
            self._begin(waiter)
        return waiting

    def _begin(self, waiter: Waiter) -> None:
        self.count += 1
        self._by_session.setdefault(waiter.session.number, []).append(waiter)
        self._set_active(waiter, active=waiter.session.ready)

    def rename(self, waiter: Waiter) -> None:
        """Gives the wait another id: its former caller has no say in it any more."""
        self.frozen.changing(waiter.waiter_id)
        del self._waiters[waiter.waiter_id]
        self.last_id += 1
        waiter.waiter_id = self.last_id
        self._waiters[waiter.waiter_id] = waiter

    def stop_waiting(self, waiter: Waiter) -> None:
        """The waiter leaves the order; it can still be found."""
        self.count -= 1
        self._set_active(waiter, active=False)
        waiters = self._by_session[waiter.session.number]
        waiters.remove(waiter)
        if not waiters:
            del self._by_session[waiter.session.number]

    def grant(self, waiter: Waiter, grants: Sequence[tuple[int, int]]) -> None:
        """The waiter leaves the order with (number, token) pairs."""
        self.frozen.changing(waiter.waiter_id)
        self.stop_waiting(waiter)
        waiter.grants = tuple(grants)

    def forget(self, waiter: Waiter) -> None:
        """Removes a waiter that does not wait any more."""
        self.frozen.changing(waiter.waiter_id)
        self._waiters.pop(waiter.waiter_id, None)

    def session_changed(self, session: Session) -> None:
        """Brings the session's waiters in or out by whether it may get a task now."""
        for waiter in self._by_session.get(session.number, ()):
            self._set_active(waiter, active=session.ready)

    def first_for(self, task: Task) -> Waiter | None:
        """Who has waited longest for a task like this one."""
        classes = [(Takes.ONE, task.affinity), (Takes.ANY, "")]
        if task.affinity == GENERAL:
            classes = [(Takes.GENERAL, "")]
        first: int | None = None
        for takes, specialty in classes:
            for task_type in (task.task_type, ""):
                heap = self._heaps.get((takes, specialty, task_type))
                arrival = heap.first(self._is_active) if heap is not None else None
                if arrival is not None and (first is None or arrival < first):
                    first = arrival
        return None if first is None else self._active[first]

    def _set_active(self, waiter: Waiter, *, active: bool) -> None:
        if waiter.active == active:
            return
        waiter.active = active
        if active:
            self._active[waiter.arrival] = waiter
        else:
            del self._active[waiter.arrival]
        for place in _places(waiter):
            heap = self._heaps.get(place)
            if heap is None:
                heap = self._heaps[place] = LazyHeap()
            if active:
                heap.add(waiter.arrival)
                continue
            heap.leave(self._is_active)
            if heap.live == 0:
                del self._heaps[place]

    def _is_active(self, arrival: int) -> bool:
        return arrival in self._active


def encode_waiter(waiter_id: int, waiter: Waiter) -> bytes:
    """The waiter's record in a snapshot."""
    return snapshot_pb2.WaitRecord(
        waiter_id=waiter_id,
        arrival=waiter.arrival,
        session_number=waiter.session.number,
        max_tasks=waiter.max_tasks,
        task_types=waiter.task_types,
        include_unmatched=waiter.include_unmatched,
        deadline_ms=waiter.deadline_ms,
        granted_numbers=[number for number, _ in waiter.grants],
        granted_tokens=[token for _, token in waiter.grants],
    ).SerializeToString(deterministic=True)


def decode_waiter(record: bytes, session_of: Callable[[int], Session | None]) -> Waiter:
    """The waiter of a record, without its timer. Raises ValueError where it waits for nobody."""
    message = snapshot_pb2.WaitRecord.FromString(record)
    grants = tuple(zip(message.granted_numbers, message.granted_tokens, strict=True))
    session = session_of(message.session_number)
    if session is None:
        if not grants:
            raise ValueError(f"the wait {message.waiter_id} is of no session")
        # Its session is gone since the grant; nothing looks at it any more but the next snapshot.
        session = Session(message.session_number, incarnation=0)
    waiter = Waiter(
        message.waiter_id,
        session,
        message.max_tasks,
        message.task_types,
        include_unmatched=message.include_unmatched,
    )
    waiter.arrival = message.arrival
    waiter.grants = grants
    waiter.deadline_ms = message.deadline_ms
    return waiter


def _places(waiter: Waiter) -> list[Place]:
    specialty = waiter.session.specialty
    own = (Takes.ONE, specialty)
    if specialty == GENERAL or waiter.include_unmatched:
        own = (Takes.ANY, "")
    return [
        (takes, name, task_type)
        for takes, name in (own, (Takes.GENERAL, ""))
        for task_type in waiter.task_types or ("",)
    ]
