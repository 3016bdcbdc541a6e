"""Push budgets: at most so many pushes in any minute to one teacher, the rest waits, best first.

A budget belongs to a teacher on a timeline, or to a classroom where no roster names a teacher. What
waits is kept in the order (severity, confidence, age); what is pushed first when a place is free is
decided then. The times of the last minute are state; who waits follows from the alerts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Final, TypeAlias

from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state.snapshot import Frozen, Section, records_section

MINUTE_MS: Final = 60_000

Owner: TypeAlias = tuple[str, str]
"""(timeline_id, `teacher/<id>` or `classroom/<id>`)."""
Rank: TypeAlias = tuple[int, float, int]
"""(-severity, -confidence, number of the alert): the lowest comes first."""


class PushBudgets:
    """The pushes of the last minute, and who waits for a place."""

    __slots__ = ("_frozen", "_ranks", "_times", "_waiting", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        """Pushes a minute."""
        self._times: dict[Owner, tuple[int, ...]] = {}
        self._frozen = Frozen(self._times, _encode)
        self._waiting: dict[Owner, list[Rank]] = {}
        self._ranks: dict[int, tuple[Owner, Rank]] = {}

    def section(self, loaded: Callable[[], None]) -> Section:
        """The times, in the order in which owners came in."""
        return records_section("push_budget", self._frozen, self._load, loaded=loaded)

    def owners(self) -> list[Owner]:
        """All that have a push in the last minute or wait, sorted."""
        return sorted({*self._times, *self._waiting})

    def take(self, owner: Owner, now_ms: int) -> bool:
        """Takes a place, where one is free and nobody waits for it."""
        self._expire(owner, now_ms)
        if owner in self._waiting or len(self._times.get(owner, ())) >= self.most:
            return False
        self._use(owner, now_ms)
        return True

    def take_next(self, owner: Owner, now_ms: int) -> int | None:
        """Gives a free place to who waits for it first; None where there is neither."""
        self._expire(owner, now_ms)
        waiting = self._waiting.get(owner)
        if not waiting or len(self._times.get(owner, ())) >= self.most:
            return None
        number = waiting[0][2]
        self.leave(number)
        self._use(owner, now_ms)
        return number

    def _use(self, owner: Owner, now_ms: int) -> None:
        self._frozen.changing(owner)
        self._times[owner] = (*self._times.get(owner, ()), now_ms)

    def wait(self, number: int, owner: Owner, rank: Rank) -> None:
        """The alert waits for a place, now with this rank."""
        if self._ranks.get(number) == (owner, rank):
            return
        self.leave(number)
        self._ranks[number] = (owner, rank)
        insort(self._waiting.setdefault(owner, []), rank)

    def leave(self, number: int) -> Owner | None:
        """The alert waits no more; returns for whose place it did."""
        found = self._ranks.pop(number, None)
        if found is None:
            return None
        owner, rank = found
        waiting = self._waiting[owner]
        del waiting[bisect_left(waiting, rank)]
        if not waiting:
            del self._waiting[owner]
        return owner

    def due_ms(self, owner: Owner) -> int | None:
        """When its next place is free; None where there is nothing to do or to forget."""
        times = self._times.get(owner, ())
        if owner in self._waiting and len(times) < self.most:
            return 0
        return times[0] + MINUTE_MS if times else None

    def forget_timeline(self, timeline_id: str) -> None:
        """Its pushes; nobody waits there any more."""
        for owner in [owner for owner in self._times if owner[0] == timeline_id]:
            self._frozen.changing(owner)
            del self._times[owner]

    def _expire(self, owner: Owner, now_ms: int) -> None:
        times = self._times.get(owner)
        if not times or times[0] + MINUTE_MS > now_ms:
            return
        self._frozen.changing(owner)
        kept = tuple([each for each in times if each + MINUTE_MS > now_ms])
        if kept:
            self._times[owner] = kept
        else:
            del self._times[owner]

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.PushBudgetRecord.FromString(data)
        self._times[stored.timeline_id, stored.owner] = tuple(stored.push_ms)


def _encode(owner: Owner, times: tuple[int, ...]) -> bytes:
    return metrics_record_pb2.PushBudgetRecord(
        timeline_id=owner[0], owner=owner[1], push_ms=times
    ).SerializeToString(deterministic=True)
