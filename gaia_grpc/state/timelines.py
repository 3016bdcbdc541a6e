"""Where windows live: one timeline for live metrics and one for each recording or simulation.

A timeline has a clock, the windows of its students, and for every classroom the sorted list of its
windows, so that a classroom's page costs the same however many other students there are. Live, the
clock is log time; elsewhere it is the highest `sent_at_ms` accepted, never extrapolated.

Bounded: windows, timelines, and both by log time without a batch, oldest first. As everywhere here,
the heaps hold lower bounds of the due times that the records give, and what comes to the top with
one that is too low is put back: so what is forgotten is a function of the records alone.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, TypeAlias

from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state.copies import Copies
from gaia_grpc.state.snapshot import Section
from gaia_grpc.state.window_codec import decode_window, encode_window, take_in
from gaia_grpc.state.windows import StudentWindow

LIVE: Final = ""
"""The id of the timeline of live metrics."""
MAX_WINDOWS: Final = 1_000_000
MAX_TIMELINES: Final = 1_000
WINDOW_IDLE_MS: Final = 900_000
"""A live window is forgotten after this long without a batch; it is long empty by then."""
TIMELINE_IDLE_MS: Final = 3_600_000
EVICTED_AT_ONCE: Final = 64
TIMELINES_EVICTED_AT_ONCE: Final = 4
METRICS_EVICTED_AT_ONCE: Final = 8_192
"""Metrics that are packed before their windows go; the window that reaches it is the last one."""

Key: TypeAlias = tuple[str, str]
"""(student_id, app_name)."""
Evicting: TypeAlias = Callable[[StudentWindow], int]
"""Called before a window is forgotten; returns how many metrics were packed for it."""


class Timeline:
    """The windows of one timeline, by student and app."""

    __slots__ = (
        "_copies", "_due", "_idle_ms", "classrooms", "clock_ms", "timeline_id", "touched_ms",
        "windows",
    )  # fmt: skip

    def __init__(self, timeline_id: str, copies: Copies[StudentWindow]) -> None:
        self.timeline_id = timeline_id
        self._copies = copies
        self._idle_ms = WINDOW_IDLE_MS
        self.clock_ms = 0
        self.touched_ms = 0
        """Log time of the last batch."""
        self.windows: dict[Key, StudentWindow] = {}
        self.classrooms: dict[str, list[Key]] = {}
        self._due: list[tuple[int, Key]] = []

    @property
    def live(self) -> bool:
        """Whether its clock is log time."""
        return self.timeline_id == LIVE

    def place(self, key: Key, classroom_id: str, now_ms: int) -> StudentWindow:
        """The window of a student in an app, made where there is none, in the classroom named.

        A batch that names no classroom leaves the window where it is. The window may be changed
        until the command is done: a snapshot has what it needs of it.
        """
        window = self.windows.get(key)
        if window is None:
            window = self.windows[key] = StudentWindow(self.timeline_id, key)
            self._copies.added(window)
            window.classroom_id = classroom_id
            insort(self.classrooms.setdefault(classroom_id, []), key)
            if self.live:
                heapq.heappush(self._due, (now_ms + self._idle_ms, key))
            window.touched_ms = self.touched_ms = now_ms
            return window
        self._copies.changing(window)
        if classroom_id and classroom_id != window.classroom_id:
            self._leave_classroom(key, window)
            window.classroom_id = classroom_id
            insort(self.classrooms.setdefault(classroom_id, []), key)
        window.touched_ms = self.touched_ms = now_ms
        return window

    def keep_for(self, retained_ms: int) -> None:
        """A window may be asked for so long after its last batch: it is idle later then."""
        idle_ms = max(retained_ms, WINDOW_IDLE_MS)
        if self.live and idle_ms != self._idle_ms:
            self._idle_ms = idle_ms
            self._set_due()

    def rebuild(self) -> None:
        """What follows from the windows, once they are loaded."""
        for key in sorted(self.windows):
            self.classrooms.setdefault(self.windows[key].classroom_id, []).append(key)
        if self.live:
            self._set_due()

    def _set_due(self) -> None:
        # Sorted, which is a heap: no entry may be later than its record says.
        self._due = sorted(
            (window.touched_ms + self._idle_ms, key) for key, window in self.windows.items()
        )

    def page(self, classroom_id: str, after: Key | None, size: int) -> tuple[list[Key], bool]:
        """Up to `size` keys of a classroom after a key, and whether there are more."""
        keys = self.classrooms.get(classroom_id, [])
        start = bisect_right(keys, after) if after is not None else 0
        return keys[start : start + size], start + size < len(keys)

    def evict_idle(self, now_ms: int, evicting: Evicting) -> list[Key]:
        """Forgets up to 64 live windows that had no batch for long, the longest idle first."""
        evicted: list[Key] = []
        left = METRICS_EVICTED_AT_ONCE
        while (
            left > 0 and len(evicted) < EVICTED_AT_ONCE and self._due and self._due[0][0] <= now_ms
        ):
            bound_ms, key = self._due[0]
            window = self.windows.get(key)
            if window is None:
                heapq.heappop(self._due)
                continue
            due_ms = window.touched_ms + self._idle_ms
            if due_ms > bound_ms:
                heapq.heapreplace(self._due, (due_ms, key))
                continue
            heapq.heappop(self._due)
            left -= evicting(window)
            self._leave_classroom(key, window)
            del self.windows[key]
            evicted.append(key)
        return evicted

    def forget_student(self, student_id: str) -> list[StudentWindow]:
        """Forgets the windows of a student; their due times go when they come to the front, and
        may be there twice if the student comes back, which forgets nothing sooner."""
        forgotten: list[StudentWindow] = []
        for keys in list(self.classrooms.values()):
            # Before each of the student's keys, and behind all of smaller ids.
            first = last = bisect_left(keys, (student_id, ""))
            while last < len(keys) and keys[last][0] == student_id:
                last += 1
            for key in keys[first:last]:
                window = self.windows.pop(key)
                self._leave_classroom(key, window)
                forgotten.append(window)
        return forgotten

    def _leave_classroom(self, key: Key, window: StudentWindow) -> None:
        keys = self.classrooms[window.classroom_id]
        del keys[bisect_left(keys, key)]
        if not keys:
            del self.classrooms[window.classroom_id]


class Timelines:
    """All timelines; the live one is always there."""

    __slots__ = ("_copies", "_due", "_loading", "_timelines", "live", "window_count")

    def __init__(self) -> None:
        self._copies: Copies[StudentWindow] = Copies(StudentWindow.copy, encode_window)
        self._loading: StudentWindow | None = None
        self.live = Timeline(LIVE, self._copies)
        self._timelines: dict[str, Timeline] = {LIVE: self.live}
        self._due: list[tuple[int, str]] = []
        self.window_count = 0

    def get(self, timeline_id: str) -> Timeline | None:
        """The timeline, where it is known."""
        return self._timelines.get(timeline_id)

    def has_room(self, timeline_id: str, key: Key) -> bool:
        """Whether `place` would stay within the limits."""
        timeline = self._timelines.get(timeline_id)
        if timeline is None:
            return len(self._timelines) <= MAX_TIMELINES and self.window_count < MAX_WINDOWS
        return key in timeline.windows or self.window_count < MAX_WINDOWS

    def open(self, timeline_id: str, now_ms: int) -> Timeline:
        """The timeline, made where there is none."""
        timeline = self._timelines.get(timeline_id)
        if timeline is None:
            timeline = self._timelines[timeline_id] = Timeline(timeline_id, self._copies)
            heapq.heappush(self._due, (now_ms + TIMELINE_IDLE_MS, timeline_id))
        return timeline

    def place(self, timeline: Timeline, key: Key, classroom_id: str, now_ms: int) -> StudentWindow:
        """`Timeline.place`, counted."""
        before = len(timeline.windows)
        window = timeline.place(key, classroom_id, now_ms)
        self.window_count += len(timeline.windows) - before
        return window

    def evict_idle_windows(self, now_ms: int, evicting: Evicting) -> list[Key]:
        """Forgets live windows that are idle; returns their keys."""
        evicted = self.live.evict_idle(now_ms, evicting)
        self.window_count -= len(evicted)
        return evicted

    def evict_idle_timelines(self, now_ms: int) -> list[Timeline]:
        """Forgets up to 4 timelines that had no batch for an hour, the longest idle first."""
        evicted: list[Timeline] = []
        while len(evicted) < TIMELINES_EVICTED_AT_ONCE and self._due and self._due[0][0] <= now_ms:
            bound_ms, timeline_id = self._due[0]
            timeline = self._timelines[timeline_id]
            due_ms = timeline.touched_ms + TIMELINE_IDLE_MS
            if due_ms > bound_ms:
                heapq.heapreplace(self._due, (due_ms, timeline_id))
                continue
            heapq.heappop(self._due)
            del self._timelines[timeline_id]
            self.window_count -= len(timeline.windows)
            evicted.append(timeline)
        return evicted

    def forget_student(self, student_id: str) -> list[StudentWindow]:
        """Forgets the windows of a student on every timeline; returns them in a fixed order.

        A bisection for each classroom of each timeline, however many windows there are.
        """
        forgotten: list[StudentWindow] = []
        for timeline in self._timelines.values():
            forgotten += timeline.forget_student(student_id)
        self.window_count -= len(forgotten)
        # Classrooms stand in another order where a snapshot was loaded.
        return sorted(forgotten, key=lambda window: (window.timeline_id, window.key))

    # --- snapshots

    def sections(self, read_settings: Callable[[], None]) -> tuple[Section, Section]:
        """The timelines, then the windows of each, both in the order in which they were made.

        `read_settings` calls `keep_for`, before it is set when windows are idle.
        """
        return (
            Section("timeline", self._freeze_timelines, self._load_timeline, loaded=read_settings),
            Section(
                "window",
                self._freeze_windows,
                self._load_window,
                thaw=self._copies.thaw,
                loaded=self._loaded,
            ),
        )

    def _freeze_timelines(self) -> Iterator[bytes]:
        # At once: a thousand at most, and each batch moves a clock.
        stored = [
            metrics_record_pb2.TimelineRecord(
                timeline_id=timeline.timeline_id,
                clock_ms=timeline.clock_ms,
                touched_ms=timeline.touched_ms,
            )
            for timeline in self._timelines.values()
        ]
        return (record.SerializeToString(deterministic=True) for record in stored)

    def _freeze_windows(self) -> Iterator[bytes]:
        return self._copies.freeze(
            chain.from_iterable(timeline.windows.values() for timeline in self._timelines.values())
        )

    def _load_timeline(self, data: bytes) -> None:
        stored = metrics_record_pb2.TimelineRecord.FromString(data)
        timeline = self.live
        if stored.timeline_id != LIVE:
            if stored.timeline_id in self._timelines:
                raise ValueError(f"the timeline {stored.timeline_id} is there twice")
            timeline = Timeline(stored.timeline_id, self._copies)
            self._timelines[stored.timeline_id] = timeline
        timeline.clock_ms = stored.clock_ms
        timeline.touched_ms = stored.touched_ms

    def _load_window(self, data: bytes) -> None:
        stored = metrics_record_pb2.WindowRecord.FromString(data)
        if stored.further_piece:
            if self._loading is None:
                raise ValueError("a piece of no window")
            take_in(self._loading, stored)
            return
        window = decode_window(stored)
        timeline = self._timelines.get(window.timeline_id)
        if timeline is None or window.key in timeline.windows:
            raise ValueError(f"the window {window.key} is there twice, or has no timeline")
        self._loading = timeline.windows[window.key] = window
        self.window_count += 1

    def _loaded(self) -> None:
        self._loading = None
        for timeline in self._timelines.values():
            timeline.rebuild()
        self._due = sorted(
            (timeline.touched_ms + TIMELINE_IDLE_MS, timeline.timeline_id)
            for timeline in self._timelines.values()
            if not timeline.live
        )
