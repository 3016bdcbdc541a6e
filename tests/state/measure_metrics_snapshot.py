"""Measures snapshots of metrics by hand: `python -m tests.state.measure_metrics_snapshot`. No test.

1,000 students in 3 apps with 5 types each, their windows full, all sequences remembered, and
100,000 alert events. Times are CPU. `--hot-path` measures only the apply of batches without a
snapshot, to compare two versions side by side.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import sys
import time
from hashlib import sha256

from gaia.command.v1 import command_pb2

from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.packing import encode_column
from gaia_grpc.state.stamp import stamp
from tests.state.lessons import Lesson

APPS = ["math", "reading", "writing"]
KINDS = ["completion", "correct", "keypress", "response_time", "scroll"]
FLUSH_MS = 10_000
BATCHES_PER_COMMAND = 100
SLICE_S = 0.001


class Load:
    """A machine under batches: each student sends one from each app every 10 s."""

    def __init__(self, students: int, metrics_per_type: int) -> None:
        self.lesson = Lesson(("alert.cooldown", "0ms"), ("alert.exit_after", "0ms"))
        self.draw = random.Random(1)
        self.keys = [(f"student-{number}", app) for number in range(students) for app in APPS]
        self.metrics_per_type = metrics_per_type
        self.sequence = 0
        self.epoch = 1

    def commands(self) -> list[bytes]:
        """One round: a batch of every student and app, as entries of the log."""
        self.sequence += 1
        packed = [self._batch(student, app) for student, app in self.keys]
        now_ms = self.lesson.now_ms
        entries = []
        for start in range(0, len(packed), BATCHES_PER_COMMAND):
            body = command_pb2.PublishMetrics(batches=packed[start : start + BATCHES_PER_COMMAND])
            command = command_pb2.Command(publish_metrics=body).SerializeToString()
            entries.append(stamp(command, now_ms, now_ms))
        return entries

    def _batch(self, student: str, app: str, error: bool = False) -> command_pb2.PackedBatch:
        kinds = ["error"] if error else KINDS
        count = 5 if error else self.metrics_per_type
        batch = command_pb2.PackedBatch(
            source_id=f"{student}-{app}",
            source_epoch=self.epoch,
            sequence=self.sequence,
            content_digest=sha256(f"{student}{app}{self.sequence}".encode()).digest()[:16],
            sent_at_ms=self.lesson.now_ms,
            classroom_id=f"room-{len(student) % 30}",
            student_id=student,
            app_name=app,
        )
        for kind in kinds:
            batch.columns.add(
                metric_type=kind,
                time_offsets_ms=encode_column(
                    sorted(self.draw.randrange(-FLUSH_MS + 1, 1) for _ in range(count))
                ),
                values_micro=encode_column(
                    [1_000_000] * count
                    if kind != "response_time"
                    else [self.draw.randrange(200_000_000, 9_000_000_000) for _ in range(count)]
                ),
            )
        return batch

    def round(self) -> None:
        """10 s of log time."""
        self.lesson.advance(FLUSH_MS)
        for entry in self.commands():
            apply(self.lesson.machine, entry)

    def raise_alerts(self, events: int) -> None:
        """Episodes of 1,000 students that come and go, until there are enough events."""
        while self._newest() < events:
            self.sequence += 1
            first = self.sequence % 10 * BATCHES_PER_COMMAND
            packed = [
                self._batch(f"student-{number}", "math", error=True)
                for number in range(first, first + BATCHES_PER_COMMAND)
            ]
            body = command_pb2.PublishMetrics(batches=packed)
            self.lesson.do(publish_metrics=body)
            self.lesson.advance(10_000)

    def remember_all_sequences(self) -> None:
        """As after 1,024 batches of each source, which would take minutes."""
        for record in self.lesson.metrics_table()._sources._records.values():
            for known in record.epochs.values():
                known.slots = bytearray(self.draw.randbytes(known.kept * 16))

    def _newest(self) -> int:
        return self.lesson.events(after=2**40).newest_sequence


def apply(machine: StateMachine, entry: bytes) -> None:
    """Applies one entry and forgets what it touched."""
    machine.apply(machine.applied_index + 1, EntryKind.COMMAND, entry)
    machine.take_touched()


def show(what: str, value: float, unit: str) -> None:
    """One line."""
    sys.stdout.write(f"{what:<56} {value:>12,.3f} {unit}\n")


def peak_mb() -> float:
    """Highest memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hot_path(load: Load, rounds: int) -> None:
    """CPU of a batch while no snapshot is under way: the best of the rounds."""
    best_us = float("inf")
    for _ in range(rounds):
        load.lesson.advance(FLUSH_MS)
        entries = load.commands()
        start_s = time.process_time()
        for entry in entries:
            apply(load.lesson.machine, entry)
        best_us = min(best_us, (time.process_time() - start_s) / len(load.keys) * 1e6)
    show("apply of a batch, no snapshot under way", best_us, "us")


def snapshot(load: Load) -> bytes:
    """Slices of about 1 ms of CPU, and a command of batches after each."""
    machine = load.lesson.machine
    load.lesson.advance(FLUSH_MS)
    entries = load.commands()
    start_s = time.process_time()
    encoder = machine.begin_snapshot()
    show("freeze", (time.process_time() - start_s) * 1e3, "ms")
    taken: list[bytes] = []
    spent_s = worst_s = worst_record_s = worst_apply_s = 0.0
    slices = records = 0
    applied_s: list[float] = []
    done = False
    while not done:
        slice_start_s = time.process_time()
        while True:
            record_start_s = time.process_time()
            data = encoder.take(1)
            now_s = time.process_time()
            worst_record_s = max(worst_record_s, now_s - record_start_s)
            if not data:
                done = True
                break
            taken.append(data)
            records += 1
            if now_s - slice_start_s >= SLICE_S:
                break
        slices += 1
        slice_s = time.process_time() - slice_start_s
        spent_s += slice_s
        worst_s = max(worst_s, slice_s)
        if entries:
            apply_start_s = time.process_time()
            apply(machine, entries.pop())
            applied_s.append(time.process_time() - apply_start_s)
            worst_apply_s = max(worst_apply_s, applied_s[-1])
    encoded = b"".join(taken)
    show("worst slice", worst_s * 1e3, "ms")
    show("worst record", worst_record_s * 1e3, "ms")
    show("slices", slices, "")
    show("records", records, "")
    show("all slices together", spent_s, "s")
    show("commands applied meanwhile (100 batches each)", len(applied_s), "")
    if applied_s:
        show("a batch in them", sum(applied_s) / len(applied_s) * 1e4, "us")
    show("size", len(encoded) / 1e6, "MB")
    return encoded


def decode(encoded: bytes) -> None:
    """Restores it and looks whether it gives the same bytes again."""
    # Here, so that versions without snapshots can run --hot-path.
    from gaia_grpc.state.restore import SnapshotDecoder
    from tests.state.snapshots import whole_snapshot

    decoder = SnapshotDecoder()
    start_s = time.process_time()
    worst_s = 0.0
    for start in range(0, len(encoded), 65_536):
        feed_start_s = time.process_time()
        decoder.feed(encoded[start : start + 65_536])
        worst_s = max(worst_s, time.process_time() - feed_start_s)
    finish_start_s = time.process_time()
    machine = decoder.finish()
    end_s = time.process_time()
    show("decode, total", end_s - start_s, "s")
    show("worst 64 KiB of it", worst_s * 1e3, "ms")
    show("its finish()", (end_s - finish_start_s) * 1e3, "ms")
    assert whole_snapshot(machine) == encoded


def sizes(encoded: bytes) -> None:
    """Bytes by section."""
    from gaia.command.v1 import snapshot_pb2

    from gaia_grpc.state.restore import _varint

    totals: dict[str, list[int]] = {}
    place = 0
    while place < len(encoded):
        found = _varint(encoded, place)
        assert found is not None
        start, size = found
        place = start + size
        record = snapshot_pb2.SnapshotRecord.FromString(encoded[start:place])
        total = totals.setdefault(str(record.WhichOneof("body")), [0, 0])
        total[0] += 1
        total[1] += size
    for name, (count, total_bytes) in totals.items():
        show(f"  {name}: {count} records", total_bytes / 1e6, "MB")


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=1_000)
    parser.add_argument("--per-type", type=int, default=4, help="metrics of a type in a batch")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--hot-path", type=int, default=0, help="only this many rounds of batches")
    options = parser.parse_args()
    load = Load(options.students, options.per_type)
    if options.hot_path:
        for _ in range(3):
            load.round()
        gc.collect()
        gc.freeze()
        hot_path(load, options.hot_path)
        return
    load.raise_alerts(options.events)
    for _ in range(66):
        load.round()
    load.remember_all_sequences()
    gc.collect()
    gc.freeze()
    table = load.lesson.metrics_table()
    windows = table._timelines.live.windows.values()
    held = sum(len(series.times) for window in windows for series in window.series.values())
    show("windows", len(windows), "")
    show("metrics in them", held, "")
    hot_path(load, 2)
    show("peak memory before", peak_mb(), "MB")
    encoded = snapshot(load)
    show("peak memory after", peak_mb(), "MB")
    sizes(encoded)
    decode(encoded)


if __name__ == "__main__":
    main()
