"""What the past windows of one timeline are kept in: by student and app, in packed records.

Records of one student in one app stand in the order of their ends, in three columns: an end, its
types, its bytes. Types are shared with the record before where they are the same, so a record costs
its bytes and little more.

`keys` is in the order of the last look at each (`visited_ms`): the first was looked at longest ago.
So what has expired is found some at a time, from the front, and the order is part of the state.

Memory is counted by the end of the windows (`bytes_by_end`). Where there is too much, all windows
of the earliest end are given up at once, for every student: `floor_ms` says up to where. They are
no part of any answer from then on; their bytes go when their student is looked at next.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gaia_grpc.state import history_codec
from gaia_grpc.state.history_codec import PastWindow
from gaia_grpc.state.history_grid import AT_ALL_TIMES, Grid
from gaia_grpc.state.timelines import Key

RECORD_BYTES: Final = 96
TYPE_BYTES: Final = 8
"""What a record and each of its types take beside their bytes, roughly."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long past windows keep each metric type, in milliseconds."""

    default_ms: int
    by_type: Mapping[str, int]

    def of(self, metric_type: str) -> int:
        """How long one type is kept after the end of a window."""
        return self.by_type.get(metric_type, self.default_ms)

    @property
    def shortest_ms(self) -> int:
        """Nothing goes earlier."""
        return min([self.default_ms, *self.by_type.values()])

    @property
    def longest_ms(self) -> int:
        """Nothing stays longer."""
        return max([self.default_ms, *self.by_type.values()])


class KeyHistory:
    """The past windows of one student in one app."""

    __slots__ = (
        "classroom_id", "ends_ms", "key", "packed", "snapshot", "timeline_id", "types",
        "visited_ms",
    )  # fmt: skip

    def __init__(self, timeline_id: str, key: Key) -> None:
        self.timeline_id = timeline_id
        self.key = key
        self.snapshot = 0
        self.classroom_id = ""
        self.visited_ms = 0
        """Log time of the last look at what has expired."""
        self.ends_ms = array("q")
        self.types: list[tuple[str, ...]] = []
        self.packed: list[bytes] = []

    def copy(self) -> KeyHistory:
        """For a snapshot."""
        copied = KeyHistory(self.timeline_id, self.key)
        copied.classroom_id = self.classroom_id
        copied.visited_ms = self.visited_ms
        copied.ends_ms = self.ends_ms[:]
        copied.types = self.types[:]
        copied.packed = self.packed[:]
        return copied

    def find(self, end_ms: int) -> int | None:
        """Place of the record with this end."""
        at = bisect_left(self.ends_ms, end_ms)
        return at if at < len(self.ends_ms) and self.ends_ms[at] == end_ms else None

    def read(self, at: int) -> PastWindow:
        """The record at a place."""
        return history_codec.decode(self.packed[at], self.types[at], self.ends_ms[at])

    def cost(self, at: int) -> int:
        """Bytes that a record is counted with."""
        names = sum([len(name) + TYPE_BYTES for name in self.types[at]])
        return RECORD_BYTES + len(self.packed[at]) + names

    def share_types(self, at: int, types: tuple[str, ...]) -> tuple[str, ...]:
        """The same types as one object with the record before or behind, where those are equal."""
        for neighbour in (at - 1, at):
            if 0 <= neighbour < len(self.types) and self.types[neighbour] == types:
                return self.types[neighbour]
        return types


class TimelineHistory:
    """The past windows of one timeline."""

    __slots__ = (
        "_ends", "_open_until_ms", "bytes", "bytes_by_end", "closed_ms", "floor_ms", "grid", "keys",
        "sweep_due_ms", "timeline_id",
    )  # fmt: skip

    def __init__(self, timeline_id: str) -> None:
        self.timeline_id = timeline_id
        self.grid = Grid()
        self.floor_ms = AT_ALL_TIMES
        self.sweep_due_ms = 0
        self.keys: OrderedDict[Key, KeyHistory] = OrderedDict()
        self.bytes = 0
        """Of the windows that end after `floor_ms`."""
        self.bytes_by_end: dict[int, int] = {}
        self._ends: list[int] = []
        self.closed_ms = AT_ALL_TIMES
        """Windows that end here or before are closed, as of the last `advance`."""
        self._open_until_ms = AT_ALL_TIMES

    def advance(self, clock_ms: int, window_ms: int) -> None:
        """The clock stands at `clock_ms`, and windows are so long: says what is closed."""
        if window_ms != self.grid.newest_ms:
            floor_ms = self.grid.use(window_ms, clock_ms)
            if floor_ms is not None:
                self.raise_floor(floor_ms)
            self._open_until_ms = AT_ALL_TIMES
        late_ms = clock_ms - window_ms
        if late_ms >= self._open_until_ms or self._open_until_ms == AT_ALL_TIMES:
            self.closed_ms, self._open_until_ms = self.grid.bounds(late_ms + 1)

    # --- what is kept

    def put(self, history: KeyHistory, window: PastWindow) -> None:
        """Stores a window under its end, in place of the one that is there."""
        types = window.types()
        at = bisect_left(history.ends_ms, window.end_ms)
        before = 0
        if at < len(history.ends_ms) and history.ends_ms[at] == window.end_ms:
            before = history.cost(at)
            history.types[at] = history.share_types(at, types)
            history.packed[at] = history_codec.encode(window)
        else:
            history.types.insert(at, history.share_types(at, types))
            history.ends_ms.insert(at, window.end_ms)
            history.packed.insert(at, history_codec.encode(window))
        self._count(window.end_ms, history.cost(at) - before)

    def remove(self, history: KeyHistory, at: int) -> None:
        """Forgets the record at a place."""
        self._count(history.ends_ms[at], -history.cost(at))
        del history.ends_ms[at], history.types[at], history.packed[at]

    def forget(self, history: KeyHistory) -> int:
        """Forgets a student's windows in one app; returns how many records there were."""
        count = len(history.ends_ms)
        for at in range(count):
            self._count(history.ends_ms[at], -history.cost(at))
        del self.keys[history.key]
        return count

    def load(self, history: KeyHistory) -> None:
        """Counts what a snapshot brought."""
        for at in range(len(history.ends_ms)):
            self._count(history.ends_ms[at], history.cost(at))

    def _count(self, end_ms: int, change: int) -> None:
        if end_ms <= self.floor_ms:
            return
        known = self.bytes_by_end.get(end_ms)
        if known is None:
            heapq.heappush(self._ends, end_ms)
            known = 0
        self.bytes += change
        if known + change:
            self.bytes_by_end[end_ms] = known + change
            return
        self.bytes_by_end.pop(end_ms, None)
        while self._ends and self._ends[0] not in self.bytes_by_end:
            heapq.heappop(self._ends)

    def drop_oldest(self) -> bool:
        """Gives up all windows of the earliest end; False where there are none."""
        if not self._ends:
            return False
        self.raise_floor(self._ends[0])
        return True

    def raise_floor(self, floor_ms: int) -> None:
        """Windows that end at `floor_ms` or before are gone."""
        self.floor_ms = max(self.floor_ms, floor_ms)
        while self._ends and self._ends[0] <= self.floor_ms:
            self.bytes -= self.bytes_by_end.pop(heapq.heappop(self._ends), 0)
        while self._ends and self._ends[0] not in self.bytes_by_end:
            heapq.heappop(self._ends)

    # --- what expires

    def expired(self, metric_type: str, end_ms: int, clock_ms: int, retention: Retention) -> bool:
        """Whether a type is no longer kept in the window with this end."""
        return end_ms <= self.floor_ms or end_ms + retention.of(metric_type) <= clock_ms

    def trim(self, window: PastWindow, clock_ms: int, retention: Retention) -> None:
        """Takes out of a window what has expired."""
        end_ms = window.end_ms
        for metric_type in window.types():
            if self.expired(metric_type, end_ms, clock_ms, retention):
                window.drop(metric_type)

    def expire(self, history: KeyHistory, clock_ms: int, retention: Retention) -> int:
        """Forgets what has expired of one student in one app; the caller has told the snapshot.
        Returns how many types it looked at."""
        through_ms = max(self.floor_ms, clock_ms - retention.shortest_ms)
        at = looked_at = 0
        while at < len(history.ends_ms) and history.ends_ms[at] <= through_ms:
            end_ms = history.ends_ms[at]
            looked_at += len(history.types[at])
            gone = [
                name
                for name in history.types[at]
                if self.expired(name, end_ms, clock_ms, retention)
            ]
            if len(gone) == len(history.types[at]):
                self.remove(history, at)
                continue
            if gone:
                window = history.read(at)
                self.trim(window, clock_ms, retention)
                self.put(history, window)
            at += 1
        return looked_at
