"""Gap marks: how many measurements were made and will never come, by type, time and reason.

They stand in the window beside the metrics that did come, and enter and leave it at the same times:
`window_end - window < t <= window_end`. Marks of one time and reason are one, so what is kept does
not depend on the order of arrival, nor on how a sender cut its marks into batches.

One window keeps at most `MAX_WINDOW_MARKS`, ten times what an app of ours makes in an outage. What
comes beyond them is counted all the same, with a mark of its type that is near: counts stay exact,
and only its place becomes coarser.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, TypeAlias

from gaia.command.v1 import command_pb2, metrics_record_pb2

from gaia_grpc.state import columns
from gaia_grpc.state.packing import MAX_OMITTED, MAX_TIME_MS

OMISSIONS_LEVEL: Final = 3
"""Feature level from which on gap marks count; below it apply takes no notice of them."""
MAX_MARKS: Final = 1_000
"""Of one batch in the log: 100 of its sender, and one for each type that a peer has sampled."""
MAX_WINDOW_MARKS: Final = 20_000
MAX_TOTAL: Final = 1 << 53
"""Counts end here instead of growing beyond what an answer can hold."""
MAX_REASON: Final = 127
"""A reason is kept as one byte."""
CUT_AT_LEAST: Final = 64
AT_ALL_TIMES: Final = 1 << 62

Mark: TypeAlias = tuple[str, int, int, int]
"""(type, offset in milliseconds, count, reason)."""


class Gaps:
    """The marks of one type, ascending by (time, reason), each pair once."""

    __slots__ = ("omitted", "reasons", "times")

    def __init__(self) -> None:
        self.times = array("q")
        self.reasons = array("b")
        self.omitted = array("q")
        """How many measurements each mark stands for."""

    def copy(self) -> Gaps:
        """For a snapshot."""
        copied = Gaps()
        copied.times = self.times[:]
        copied.reasons = self.reasons[:]
        copied.omitted = self.omitted[:]
        return copied

    def add(self, time_ms: int, count: int, reason: int) -> None:
        """Adds one mark."""
        first = bisect_left(self.times, time_ms)
        last = bisect_right(self.times, time_ms, first)
        at = bisect_left(self.reasons, reason, first, last)
        if at < last and self.reasons[at] == reason:
            self.omitted[at] = min(self.omitted[at] + count, MAX_TOTAL)
            return
        self.times.insert(at, time_ms)
        self.reasons.insert(at, reason)
        self.omitted.insert(at, count)

    def join(self, time_ms: int, count: int, after_ms: int, through_ms: int) -> bool:
        """Counts with the next mark in `after_ms < t <= through_ms`; False without one."""
        at = bisect_left(self.times, time_ms)
        if at == len(self.times) or self.times[at] > through_ms:
            at -= 1
        if at < 0 or self.times[at] <= after_ms:
            return False
        self.omitted[at] = min(self.omitted[at] + count, MAX_TOTAL)
        return True

    def cut(self, through_ms: int) -> None:
        """May forget what is at or before a time; does it when that is worth the move."""
        count = bisect_right(self.times, through_ms)
        if count and (count == len(self.times) or count >= CUT_AT_LEAST):
            del self.times[:count]
            del self.reasons[:count]
            del self.omitted[:count]

    def count(self, start_ms: int, end_ms: int) -> int:
        """Measurements omitted in `start_ms < t <= end_ms`."""
        first = bisect_right(self.times, start_ms)
        return min(sum(self.omitted[first : bisect_right(self.times, end_ms)]), MAX_TOTAL)

    def next_after(self, time_ms: int) -> int | None:
        """Time of the first mark after a time."""
        at = bisect_right(self.times, time_ms)
        return self.times[at] if at < len(self.times) else None


class Omissions:
    """The marks of one window by type; the empty type is what a sender does not know."""

    __slots__ = ("by_type", "marks", "total")

    def __init__(self) -> None:
        self.by_type: dict[str, Gaps] = {}
        self.marks = 0
        """How many there are of all types."""
        self.total = 0
        """All that were ever told of, late ones too."""

    def copy(self) -> Omissions:
        """For a snapshot."""
        copied = Omissions()
        copied.by_type = {name: gaps.copy() for name, gaps in self.by_type.items()}
        copied.marks = self.marks
        copied.total = self.total
        return copied

    def note(self, count: int) -> None:
        """Counts omitted measurements, wherever they stand."""
        self.total = min(self.total + count, MAX_TOTAL)

    def add(
        self,
        metric_type: str,
        time_ms: int,
        count: int,
        reason: int,
        after_ms: int = -AT_ALL_TIMES,
        through_ms: int = AT_ALL_TIMES,
    ) -> None:
        """Adds one mark; where the window is full, to one of its type in `after_ms < t <=
        through_ms`, in which all have the same fate."""
        gaps = self.by_type.get(metric_type)
        if gaps is None:
            gaps = self.by_type[metric_type] = Gaps()
        elif self.marks >= MAX_WINDOW_MARKS and gaps.join(time_ms, count, after_ms, through_ms):
            return
        before = len(gaps.times)
        gaps.add(time_ms, count, reason)
        self.marks += len(gaps.times) - before

    def cut(self, through_ms: int) -> None:
        """May forget what is at or before a time, and types that nothing is left of."""
        for metric_type in list(self.by_type):
            gaps = self.by_type[metric_type]
            before = len(gaps.times)
            gaps.cut(through_ms)
            self.marks += len(gaps.times) - before
            if not gaps.times:
                del self.by_type[metric_type]

    def counts(self, start_ms: int, end_ms: int) -> list[tuple[str, int]]:
        """(type, omitted) of `start_ms < t <= end_ms`, sorted by type, where there are any."""
        found = [
            (metric_type, self.by_type[metric_type].count(start_ms, end_ms))
            for metric_type in sorted(self.by_type)
        ]
        return [pair for pair in found if pair[1]]

    def next_after(self, time_ms: int) -> int | None:
        """Time of the first mark of any type after a time."""
        times = [gaps.next_after(time_ms) for gaps in self.by_type.values()]
        return min((each for each in times if each is not None), default=None)

    def newest_ms(self) -> int | None:
        """Time of the last mark of any type."""
        return max((gaps.times[-1] for gaps in self.by_type.values()), default=None)

    # --- snapshots

    def encode(self) -> Iterator[metrics_record_pb2.OmissionRecord]:
        """The marks by type, sorted."""
        for metric_type in sorted(self.by_type):
            gaps = self.by_type[metric_type]
            yield metrics_record_pb2.OmissionRecord(
                metric_type=metric_type,
                count=len(gaps.times),
                times_ms=columns.pack(gaps.times),
                omitted=columns.pack(gaps.omitted),
                reasons=gaps.reasons.tobytes(),
            )

    def load(self, stored: metrics_record_pb2.OmissionRecord) -> None:
        """Takes in one type. Raises `ValueError` where it can't be."""
        if stored.metric_type in self.by_type or not 0 < stored.count == len(stored.reasons):
            raise ValueError(f"gap marks of {stored.metric_type!r} twice, or none")
        gaps = self.by_type[stored.metric_type] = Gaps()
        gaps.times = columns.unpack(stored.times_ms, stored.count)
        gaps.omitted = columns.unpack(stored.omitted, stored.count)
        gaps.reasons.frombytes(stored.reasons)
        self.marks += stored.count


def marks(batch: command_pb2.PackedBatch) -> list[Mark] | None:
    """The marks of a batch; None where one is malformed, which a peer's ingress never makes: apply
    must not stumble over it."""
    found: list[Mark] = []
    for mark in batch.omissions:
        offset_ms = mark.time_offset_ms
        if not 1 <= mark.count <= MAX_OMITTED or not -MAX_TIME_MS <= offset_ms <= MAX_TIME_MS:
            return None
        reason = mark.reason if 0 <= mark.reason <= MAX_REASON else 0
        found.append((mark.metric_type, offset_ms, mark.count, reason))
    return found if len(found) <= MAX_MARKS else None
