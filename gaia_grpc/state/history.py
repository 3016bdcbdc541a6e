"""Past windows: packed a while after they are closed, corrected by what comes late, kept for hours.

A window is closed one window length after its end, when nothing that is on time can come into it
any more. Its metrics are packed out of the rolling window's series, a student at a time, with the
first batch after that, and each at a time of its own within a quarter of a window, so that 100,000
windows that are closed at one instant stall nobody; one command packs little more than it brings.
Nobody can tell when that was: an answer computes what is not packed yet from the same metrics.

Every metric is counted in exactly one place. Up to `packed_through_ms` of its student's window the
series is in the records and what comes goes into them; after it the series holds what is on time,
and the record what came late. What is older than what is kept is counted by the caller, no more.

Only from feature level 3 on: below it nothing here is called.
"""

from __future__ import annotations

from binascii import crc32
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from gaia_grpc.state import history_snapshot
from gaia_grpc.state.context import Context
from gaia_grpc.state.copies import Copies
from gaia_grpc.state.history_codec import PastWindow
from gaia_grpc.state.history_raw import raw_windows
from gaia_grpc.state.history_store import KeyHistory, Retention, TimelineHistory
from gaia_grpc.state.late_work import LateWork
from gaia_grpc.state.series import Series
from gaia_grpc.state.snapshot import Section
from gaia_grpc.state.timelines import LIVE, Timeline, Timelines
from gaia_grpc.state.windows import StudentWindow

HISTORY_LEVEL: Final = 3
"""Feature level from which on there are past windows."""
PACKED_A_COMMAND: Final = 8_192
"""Metrics that one command may pack, and beside that what it would cost to pack what it brings,
with its metrics counted twice: so all that comes is packed at last."""
OVERDRAWN: Final = 32_768
"""So much more for who is far behind: after an outage all are, and come back in one command."""
TYPE_COST: Final = 200
"""Packing a type of a window costs as much as so many metrics, however few it has."""
MAX_LATE_TYPES: Final = 1_000
"""A past window that has so many types takes late data of no other."""
MOST_WINDOWS_BEHIND: Final = 4
SPREAD: Final = 4
"""Students are packed over this part of a window, each at its own time."""
VISIT_EVERY_MS: Final = 600_000
VISITS_A_SWEEP: Final = 32
TYPES_A_SWEEP: Final = 20_000
"""Of all windows that it looks at; the student with whom it gets there is the last one."""
SWEEP_STEP_MS: Final = 10_000
SWEEP_AGAIN_MS: Final = 50
SWEEP: Final = "history_sweep"
MIB: Final = 1 << 20


class Histories:
    """The past windows of all timelines."""

    def __init__(self, context: Context, timelines: Timelines) -> None:
        self._context = context
        self._clocks = timelines
        self._copies = Copies[KeyHistory](KeyHistory.copy, history_snapshot.encode_history)
        self._timelines: dict[str, TimelineHistory] = {}
        self._replayed_bytes = 0
        self._budget = 0
        self.late_work = LateWork()
        self._changes: dict[int, PastWindow] = {}
        self._loading: KeyHistory | None = None
        self.retention = Retention(0, {})
        self.window_ms = 0
        self.read_settings()
        context.timers.register(SWEEP, self._sweep)

    def read_settings(self) -> None:
        """How long and how much is kept, and how long a window is."""
        settings = self._context.settings
        self.window_ms = settings.milliseconds("metrics.window")
        self.retention = Retention(
            settings.milliseconds("metrics.history_retention"),
            settings.retentions("metrics.type_retention"),
        )
        self._max_bytes = settings.integer("metrics.max_history_mib") * MIB

    def get(self, timeline_id: str) -> TimelineHistory | None:
        """The past of a timeline, where it has one."""
        return self._timelines.get(timeline_id)

    # --- batches

    def begin_command(self) -> None:
        """A command begins that may bring metrics."""
        self._budget = PACKED_A_COMMAND
        self.late_work.begin_command()

    def begin_batch(
        self, timeline: Timeline, window: StudentWindow, metric_count: int, type_count: int
    ) -> TimelineHistory:
        """A batch came for this window: packs what is closed, where it is this student's turn."""
        past = self._timelines.get(timeline.timeline_id)
        if past is None:
            past = self._timelines[timeline.timeline_id] = TimelineHistory(timeline.timeline_id)
        clock_ms = timeline.clock_ms
        past.advance(clock_ms, self.window_ms)
        self._budget += 2 * metric_count + TYPE_COST * type_count
        packed_ms = window.packed_through_ms
        if packed_ms is None:
            # Nothing of before is in the series, or it came when there was no history.
            window.packed_through_ms = past.closed_ms
        elif packed_ms < past.closed_ms and self._has_turn(past, window, packed_ms, clock_ms):
            self._pack_closed(past, window)
        return past

    def _has_turn(
        self, past: TimelineHistory, window: StudentWindow, packed_ms: int, clock_ms: int
    ) -> bool:
        """Whether a student's own time has come, or has passed a whole window ago."""
        if packed_ms < past.closed_ms - self.window_ms:
            return True
        spread_ms = max(1, self.window_ms // SPREAD)
        own_ms = crc32("\n".join(window.key).encode()) % spread_ms
        return clock_ms - self.window_ms - past.closed_ms >= own_ms

    def _pack_closed(self, past: TimelineHistory, window: StudentWindow) -> None:
        packed_ms = window.packed_through_ms
        if packed_ms is None:
            return
        count = 0
        for series in window.series.values():
            first, last = series.range(packed_ms, past.closed_ms)
            if first < last:
                count += last - first + TYPE_COST
        # What is not packed can't be cut off, so who is far behind comes before the others.
        overdue = past.closed_ms - packed_ms > MOST_WINDOWS_BEHIND * self.window_ms
        left = self._budget + (OVERDRAWN if overdue else 0)
        if count > left and self._budget < PACKED_A_COMMAND:
            return
        self._budget -= count
        self._pack(past, window, past.closed_ms)
        window.packed_through_ms = past.closed_ms
        history = past.keys.get(window.key)
        if history is not None:
            self._visit(past, history)
        self._keep_within_bounds(past)

    def _pack(self, past: TimelineHistory, window: StudentWindow, through_ms: int) -> int:
        """Puts the metrics up to a time into records; returns how many there were."""
        count = 0
        for found in raw_windows(past, window, through_ms):
            count += sum([figures.count for figures in found.figures.values()])
            past.trim(found, self._clock_ms(past), self.retention)
            if found.figures:
                self._store(past, window, found)
        return count

    def note(
        self,
        past: TimelineHistory,
        window: StudentWindow,
        metric_type: str,
        metrics: Sequence[tuple[int, int]],
        late_ms: int,
    ) -> int:
        """Adds (time, value) of the batch in hand to past windows, in `end_batch`; returns how many
        of those up to `late_ms` are kept in none."""
        series = Series()
        for time_ms, value in sorted(metrics):
            series.times.append(time_ms)
            series.values.append(value)
        at = expired = 0
        while at < len(series.times):
            time_ms = series.times[at]
            start_ms, end_ms = past.grid.bounds(time_ms)
            last = bisect_right(series.times, end_ms, at)
            if self._keeps(past, window, metric_type, time_ms, end_ms):
                change = self._change(start_ms, end_ms)
                change.add_series(metric_type, series, at, last, ranked=False)
            else:
                expired += bisect_right(series.times, late_ms, at, last) - at
            at = last
        return expired

    def omit(
        self,
        past: TimelineHistory,
        window: StudentWindow,
        metric_type: str,
        time_ms: int,
        count: int,
        late: bool,
    ) -> None:
        """Adds an omission of the batch in hand, where the rolling window's are not what is packed
        later: it came late, or its time is packed."""
        packed_ms = window.packed_through_ms
        if not late and packed_ms is not None and time_ms > packed_ms:
            return
        start_ms, end_ms = past.grid.bounds(time_ms)
        if self._keeps(past, window, metric_type, time_ms, end_ms):
            self._change(start_ms, end_ms).of(metric_type).omitted += count

    def _keeps(
        self,
        past: TimelineHistory,
        window: StudentWindow,
        metric_type: str,
        time_ms: int,
        end_ms: int,
    ) -> bool:
        """Whether a past window takes what is late: it is kept, and has room for the type."""
        clock_ms = self._clock_ms(past)
        if time_ms <= past.floor_ms or past.expired(metric_type, end_ms, clock_ms, self.retention):
            return False
        change = self._changes.get(end_ms)
        noted = change.figures if change is not None else {}
        history = past.keys.get(window.key)
        at = history.find(end_ms) if history is not None else None
        known = history.types[at] if history is not None and at is not None else ()
        return len(known) + len(noted) < MAX_LATE_TYPES or metric_type in (*known, *noted)

    def _change(self, start_ms: int, end_ms: int) -> PastWindow:
        change = self._changes.get(end_ms)
        if change is None:
            change = self._changes[end_ms] = PastWindow(start_ms, end_ms)
        return change

    def end_batch(self, past: TimelineHistory, window: StudentWindow) -> None:
        """Stores what was noted: one revision more of each window that it changes."""
        if not self._changes:
            return
        for end_ms in sorted(self._changes):
            change = self._changes[end_ms]
            change.revision = 1
            self._store(past, window, change)
        self._changes.clear()
        self._keep_within_bounds(past)

    def _store(self, past: TimelineHistory, window: StudentWindow, found: PastWindow) -> None:
        """Adds a window to the record of its end."""
        history = past.keys.get(window.key)
        if history is None:
            history = past.keys[window.key] = KeyHistory(past.timeline_id, window.key)
            self._copies.added(history)
            history.visited_ms = self._context.now_ms
            if past.timeline_id == LIVE and not past.sweep_due_ms:
                self._set_sweep(past, self._context.now_ms + VISIT_EVERY_MS)
        else:
            self._copies.changing(history)
        history.classroom_id = window.classroom_id
        at = history.find(found.end_ms)
        if at is not None:
            known = history.read(at)
            known.add(found)
            known.revision += found.revision
            found = known
        before = past.bytes
        past.put(history, found)
        self._count(past, before)

    # --- what goes

    def evicting(self, window: StudentWindow) -> int:
        """A live window is forgotten: packs all that it has; returns how many metrics."""
        past = self._timelines.get(window.timeline_id)
        if past is None or window.packed_through_ms is None:
            return 0
        newest = [each.times[-1] for each in window.series.values()]
        gap_ms = window.omissions.newest_ms()
        if gap_ms is not None:
            newest.append(gap_ms)
        return self._pack(past, window, max(newest)) if newest else 0

    def drop_timeline(self, timeline_id: str) -> None:
        """A timeline is forgotten."""
        past = self._timelines.pop(timeline_id, None)
        if past is not None:
            self._replayed_bytes -= past.bytes

    def forget_student(self, student_id: str) -> int:
        """Forgets a student on every timeline; returns how many records there were."""
        count = 0
        for past in self._timelines.values():
            for key in [key for key in past.keys if key[0] == student_id]:
                before = past.bytes
                count += past.forget(past.keys[key])
                self._count(past, before)
        return count

    def _count(self, past: TimelineHistory, before: int) -> None:
        if past.timeline_id != LIVE:
            self._replayed_bytes += past.bytes - before

    def _keep_within_bounds(self, past: TimelineHistory) -> None:
        """Gives up the oldest windows of the timeline that grew."""
        live = past.timeline_id == LIVE
        while (past.bytes if live else self._replayed_bytes) > self._max_bytes:
            before = past.bytes
            if not past.drop_oldest():
                break
            self._count(past, before)

    def _visit(self, past: TimelineHistory, history: KeyHistory) -> int:
        """Forgets what has expired, and puts the student behind all others; returns how many types
        it looked at."""
        self._copies.changing(history)
        before = past.bytes
        looked_at = past.expire(history, self._clock_ms(past), self.retention)
        history.visited_ms = self._context.now_ms
        if history.ends_ms:
            past.keys.move_to_end(history.key)
        else:
            del past.keys[history.key]
        self._count(past, before)
        return looked_at

    def _clock_ms(self, past: TimelineHistory) -> int:
        """Live, log time; elsewhere as far as the timeline has come."""
        timeline = self._clocks.get(past.timeline_id)
        return self._context.now_ms if timeline is None or timeline.live else timeline.clock_ms

    def _sweep(self, key: int | str) -> None:
        """Looks at live students that nothing came of for a while, some at a time."""
        del key
        past = self._timelines[LIVE]
        now_ms = self._context.now_ms
        past.sweep_due_ms = 0
        left = TYPES_A_SWEEP
        for _ in range(VISITS_A_SWEEP):
            if not past.keys:
                return
            if left <= 0:
                break
            history = next(iter(past.keys.values()))
            if history.visited_ms + VISIT_EVERY_MS > now_ms:
                due_ms = history.visited_ms + VISIT_EVERY_MS
                self._set_sweep(past, -(-due_ms // SWEEP_STEP_MS) * SWEEP_STEP_MS)
                return
            left -= self._visit(past, history)
        if past.keys:
            self._set_sweep(past, now_ms + SWEEP_AGAIN_MS)

    def _set_sweep(self, past: TimelineHistory, due_ms: int) -> None:
        past.sweep_due_ms = due_ms
        self._context.timers.schedule(due_ms, SWEEP, 0)

    # --- snapshots

    def sections(self) -> tuple[Section, Section]:
        """The timelines, then their students, each in the order in which they are kept."""
        return (
            Section("history_timeline", self._freeze_timelines, self._load_timeline),
            Section(
                "history",
                self._freeze_histories,
                self._load_history,
                thaw=self._copies.thaw,
                loaded=self._loaded,
            ),
        )

    def _freeze_timelines(self) -> Iterator[bytes]:
        return iter([history_snapshot.encode_timeline(past) for past in self._timelines.values()])

    def _freeze_histories(self) -> Iterator[bytes]:
        return self._copies.freeze(
            history for past in self._timelines.values() for history in past.keys.values()
        )

    def _load_timeline(self, data: bytes) -> None:
        past = history_snapshot.decode_timeline(data)
        if past.timeline_id in self._timelines:
            raise ValueError(f"the past of the timeline {past.timeline_id} is there twice")
        self._timelines[past.timeline_id] = past

    def _load_history(self, data: bytes) -> None:
        history = history_snapshot.decode_history(data, self._loading)
        if history is self._loading:
            return
        past = self._timelines.get(history.timeline_id)
        if past is None or history.key in past.keys:
            raise ValueError(f"the past of {history.key} is there twice, or has no timeline")
        self._loading = past.keys[history.key] = history

    def _loaded(self) -> None:
        self._loading = None
        self.read_settings()
        for past in self._timelines.values():
            for history in past.keys.values():
                past.load(history)
            if past.timeline_id != LIVE:
                self._replayed_bytes += past.bytes
            elif past.sweep_due_ms:
                self._set_sweep(past, past.sweep_due_ms)
