"""Snapshots for tests: whole ones, machines out of them, and a log to take them of.

As a program it prints digests of snapshots; with different hash seeds the printout must be the
same.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.state import alert_log, sources, window_codec
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.restore import SnapshotDecoder
from tests.state.lessons import Lesson

STUDENTS = [f"s{number}" for number in range(4)]
APPS = ["math", "reading"]
KINDS = ["error", "error", "mistake", "correct", "completion", "accuracy", "keypress"]
TIMELINES = ["", "", "", "t", "u", "v"]
SETTINGS = (
    ("metrics.window", "20s"),
    ("metrics.dedup_sequences", "8"),
    ("alert.errors_window", "10s"),
    ("alert.cooldown", "15s"),
    ("alert.exit_after", "5s"),
    ("alert.acknowledged_mute", "5s"),
    ("alert.retained_events", "12"),
)
CHANGES = (
    ("metrics.window", ["10s", "20s", "40s", "1h"]),
    ("metrics.dedup_sequences", ["4", "8", "16"]),
    ("alert.cooldown", ["0ms", "5s", "1m"]),
    ("alert.retained_events", ["3", "12", "40"]),
    ("alert.repeated_errors", ["2", "3"]),
)

Entry = tuple[int, bytes]


def whole_snapshot(machine: StateMachine) -> bytes:
    """All of it at once."""
    encoder = machine.begin_snapshot()
    taken = []
    while data := encoder.take(1_000):
        taken.append(data)
    return b"".join(taken)


def restored(snapshot: bytes, cut: int = 0) -> StateMachine:
    """A machine of a snapshot, fed in pieces of `cut` bytes; 0 is all at once."""
    decoder = SnapshotDecoder()
    cut = cut or len(snapshot)
    for start in range(0, len(snapshot), cut):
        decoder.feed(snapshot[start : start + cut])
    return decoder.finish()


@dataclass(frozen=True, slots=True)
class Step:
    """All that can be seen of a machine after an entry."""

    result: bytes
    state_hash: tuple[int, bytes] | None
    next_due_ms: int | None
    touched: tuple[str, ...]


def step(machine: StateMachine, entry: Entry) -> Step:
    """Applies an entry."""
    result = machine.apply(machine.applied_index + 1, *entry)
    return Step(result, machine.state_hash(), machine.next_due_ms(), tuple(machine.take_touched()))


def make_tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window and source comes in many pieces."""
    monkeypatch.setattr(window_codec, "PIECE_METRICS", 3)
    monkeypatch.setattr(window_codec, "SERIES_COST", 1)
    monkeypatch.setattr(sources, "PIECE_BYTES", 32)
    monkeypatch.setattr(alert_log, "EVENTS_PER_RECORD", 2)


def mixed_log(seed: int, steps: int = 300) -> Lesson:
    """Metrics of several sources, epochs and timelines in windows of seconds; repeats with the same
    and with other content; teachers; settings; pauses that evict. All limits are small."""
    draw = random.Random(seed)
    lesson = Lesson(*SETTINGS)
    sent: list[metrics_pb2.MetricBatch] = []
    epochs = dict.fromkeys(STUDENTS, 1)
    for _ in range(steps):
        choice = draw.random()
        if choice < 0.72 or not sent:
            batches = [_batch(lesson, draw, epochs) for _ in range(draw.choice([1, 1, 1, 3]))]
            sent += batches
            lesson.send(*batches)
        elif choice < 0.80:
            again = metrics_pb2.MetricBatch()
            again.CopyFrom(draw.choice(sent[-12:]))
            if draw.random() < 0.3:
                again.metrics[0].value += 1
            lesson.send(again)
        elif choice < 0.86:
            name = draw.choice(["acknowledge_alert", "resolve_alert"])
            body = {"alert_id": f"alert-{draw.randint(1, 40)}", "teacher_id": "tea"}
            lesson.apply_fields(**{name: body})
        elif choice < 0.89:
            name, values = draw.choice(CHANGES)
            change = {"name": name, "value": draw.choice(values)}
            lesson.do(update_settings={"changes": [change]})
        else:
            lesson.advance(
                draw.choice([100, 1_000, 5_000, 5_000, 20_000, 60_000, 1_000_000, 4_000_000])
            )
    return lesson


def _batch(lesson: Lesson, draw: random.Random, epochs: dict[str, int]) -> metrics_pb2.MetricBatch:
    student = draw.choice(STUDENTS)
    timeline = draw.choice(TIMELINES)
    now_ms = lesson.now_ms if not timeline else 1_000_000 + draw.randint(0, 60_000)
    if draw.random() < 0.05:
        epochs[student] += 1
    extra: dict[str, Any] = {}
    if draw.random() < 0.1:
        extra["sequence"] = draw.randint(1, 60)
    samples = [
        (
            draw.choice(KINDS),
            draw.choice([-1, 0, 0.5, 1, 1, 1, 2, 95, 8e9]),
            now_ms - draw.choice([draw.randint(-2_000, 25_000), draw.randint(0, 3)]),
        )
        for _ in range(draw.randint(1, 9))
    ]
    return lesson.batch(
        samples,
        student=student,
        app=draw.choice(APPS),
        source_id=student,
        source_epoch=epochs[student],
        classroom_id=draw.choice(["room-1", "room-2", ""]),
        timeline_id=timeline,
        sent_at_ms=now_ms,
        **extra,
    )


def main() -> None:
    """Prints the digest of a snapshot after every tenth entry of two logs, and of one that comes
    out of a restored machine."""
    for seed in range(2):
        machine = StateMachine()
        for place, entry in enumerate(mixed_log(seed, 120).entries):
            step(machine, entry)
            if place % 10 == 0:
                snapshot = whole_snapshot(machine)
                machine = restored(snapshot)
                sys.stdout.write(f"{place} {sha256(snapshot).hexdigest()}\n")


if __name__ == "__main__":
    main()
