"""Measures past windows by hand: `python -m tests.state.measure_history`. No test. CPU times.

Bytes of a packed window of 5 types, with and without what the detector saw; what the history and
the rolling windows of a school take (1,000 students in 3 apps with 5 types, each student 20 metrics
a second); what a metric costs with 10, 1,000 and 100,000 students in apps; and the longest command
while windows are closed. The collector is off while commands are applied, as it is in a peer.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Iterator

from gaia.command.v1 import command_pb2

from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state import history_codec
from gaia_grpc.state.history_store import KeyHistory
from gaia_grpc.state.packing import encode_column
from gaia_grpc.state.stamp import stamp
from tests.state.lessons import Lesson

KINDS = ("backspace", "correct", "error", "keypress", "response_time")
FLUSH_MS = 10_000
SCHOOL_KEYS = 3_000
RATE_A_STUDENT = 20
WINDOWS_A_DAY = 96
BATCHES_A_COMMAND = 100
MIB = 1 << 20


class School:
    """Students in apps that publish every 10 s; `per_type` metrics of each type in a batch."""

    def __init__(self, keys: int, per_type: int) -> None:
        self.lesson = Lesson(("alert.repeated_errors", "900"), ("alert.excessive_errors", "1000"))
        self.keys = [(f"student-{number // 3:05d}", f"app-{number % 3}") for number in range(keys)]
        self.per_type = per_type
        self.draw = random.Random(1)
        self.sequence = 0
        self.longest_s = 0.0
        self.spent_s = 0.0
        self.metrics = 0

    def round(self) -> None:
        """A batch of each, applied."""
        self.sequence += 1
        now_ms = self.lesson.now_ms
        machine = self.lesson.machine
        for data in self._commands(now_ms):
            gc.disable()
            began = time.process_time()
            machine.apply(machine.applied_index + 1, EntryKind.COMMAND, data)
            spent_s = time.process_time() - began
            gc.enable()
            machine.take_touched()
            self.longest_s = max(self.longest_s, spent_s)
            self.spent_s += spent_s
        self.metrics += len(self.keys) * self.per_type * len(KINDS)

    def _commands(self, now_ms: int) -> Iterator[bytes]:
        for start in range(0, len(self.keys), BATCHES_A_COMMAND):
            packed = [self._batch(*key) for key in self.keys[start : start + BATCHES_A_COMMAND]]
            body = command_pb2.PublishMetrics(batches=packed)
            command = command_pb2.Command(publish_metrics=body).SerializeToString()
            yield stamp(command, now_ms, now_ms)

    def _batch(self, student: str, app: str) -> command_pb2.PackedBatch:
        batch = command_pb2.PackedBatch(
            source_id=student + app, source_epoch=1, sequence=self.sequence, student_id=student,
            app_name=app, classroom_id=f"room-{student[8:11]}", sent_at_ms=self.lesson.now_ms,
            content_digest=self.sequence.to_bytes(16, "big"),
        )  # fmt: skip
        for kind in KINDS:
            ages = sorted(self.draw.randrange(FLUSH_MS) for _ in range(self.per_type))
            values = [1_000_000] * self.per_type
            if kind == "response_time":
                values = [self.draw.randrange(300, 30_000) * 1_000 for _ in ages]
            batch.columns.add(
                metric_type=kind,
                time_offsets_ms=encode_column([-age for age in reversed(ages)]),
                values_micro=encode_column(values),
            )
        return batch

    def run(self, seconds: int) -> None:
        """So much log time."""
        for _ in range(seconds * 1_000 // FLUSH_MS):
            self.round()
            self.lesson.advance(FLUSH_MS)

    def histories(self) -> list[KeyHistory]:
        """What is packed."""
        past = self.lesson.metrics_table()._history.get("")
        return list(past.keys.values()) if past is not None else []


def say(text: str) -> None:
    """One line of what was measured."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def held_bytes(history: KeyHistory) -> int:
    """All that the packed windows of one student in one app take, by what Python says."""
    types = {id(each): sys.getsizeof(each) for each in history.types}
    columns = (history, history.ends_ms, history.types, history.packed)
    return (
        sum([sys.getsizeof(each) for each in (*columns, *history.packed)])
        + sum(types.values())
        # The entry of the ordered table.
        + 200
    )


def sizes() -> None:
    """Bytes a window, and of a school."""
    per_type = round(RATE_A_STUDENT / 3 * FLUSH_MS / 1_000 / len(KINDS))
    school = School(12, per_type)
    school.run(3_000)
    histories = school.histories()
    windows = sum([len(each.packed) for each in histories])
    packed = sum([len(data) for each in histories for data in each.packed])
    bare = 0
    for each in histories:
        for at in range(len(each.packed)):
            window = each.read(at)
            window.inputs = {}
            bare += len(history_codec.encode(window))
    held = sum([held_bytes(each) for each in histories])
    fixed = sum([held_bytes(KeyHistory("", ("", ""))) for _ in histories])
    a_window = (held - fixed) / windows
    inputs = (packed - bare) / windows
    say(f"packed window of 5 types, {per_type * 150:,} metrics: {bare / windows:.0f} B of figures,")
    say(f"{inputs:.0f} B of detector inputs")
    per_day = a_window + fixed / len(histories) / WINDOWS_A_DAY
    say(f"held with keys and columns, {WINDOWS_A_DAY} windows a key: {per_day:.0f} B a window,")
    say(f"{per_day - inputs:.0f} B of them not for the detector's inputs")
    school_mib = per_day * SCHOOL_KEYS * WINDOWS_A_DAY / MIB
    live = school.lesson.metrics_table()._timelines.live.windows.values()
    raw = [len(series.times) * 16 for window in live for series in window.series.values()]
    raw_mib = sum(raw) / len(school.keys) * SCHOOL_KEYS / MIB
    say("1,000 students x 3 apps x 5 types at 20/s, 8 h without a break:")
    say(f"history {school_mib:.0f} MiB, rolling windows {raw_mib:.0f} MiB")


def costs() -> None:
    """CPU of apply a metric, and the longest command; every student is packed in the time."""
    for keys, seconds in ((10, 12_000), (1_000, 900), (100_000, 0)):
        school = School(keys, per_type=4)
        if seconds:
            school.run(seconds)
        else:
            for _ in range(4):
                school.round()
                school.lesson.advance(330_000)
        packed = sum([len(each.packed) for each in school.histories()])
        say(f"{keys:,} keys: {school.spent_s / school.metrics * 1e6:.2f} us a metric, longest")
        say(f"command {school.longest_s * 1e3:.1f} ms, {packed:,} windows packed")


if __name__ == "__main__":
    if "--costs" not in sys.argv:
        sizes()
    costs()
