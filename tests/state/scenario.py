"""A seeded mixed log of metrics and alerts; as a program it prints what came of it.

Run in several processes with different hash seeds, the printout must be the same.
"""

from __future__ import annotations

import random
import sys
from hashlib import sha256
from typing import Any

from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from tests.state.lessons import Lesson

STUDENTS = [f"s{number}" for number in range(4)]
APPS = ["math", "reading"]
KINDS = ["error", "error", "mistake", "correct", "completion", "accuracy", "keypress"]


def run(seed: int, steps: int = 150) -> Lesson:
    """Batches of all kinds, repeats, two timelines, and teachers."""
    draw = random.Random(seed)
    lesson = Lesson()
    sent: list[metrics_pb2.MetricBatch] = []
    for _ in range(steps):
        choice = draw.random()
        if choice < 0.75 or not sent:
            sent.append(_batch(lesson, draw))
            lesson.send(sent[-1])
        elif choice < 0.85:
            lesson.send(draw.choice(sent))
        elif choice < 0.9:
            name = draw.choice(["acknowledge_alert", "resolve_alert"])
            body = {"alert_id": f"alert-{draw.randint(1, 20)}", "teacher_id": "tea"}
            command: dict[str, Any] = {name: body}
            lesson.apply(command_pb2.Command(**command))
        else:
            lesson.advance(draw.choice([100, 5_000, 70_000, 400_000]))
    return lesson


def _batch(lesson: Lesson, draw: random.Random) -> metrics_pb2.MetricBatch:
    timeline = draw.choice(["", "", "t", "u"])
    now = lesson.now_ms if not timeline else 1_000_000 + draw.randint(0, 900_000)
    samples = [
        (
            draw.choice(KINDS),
            draw.choice([0, 0.5, 1, 1, 2, 95]),
            now - draw.randint(-5_000, 320_000),
        )
        for _ in range(draw.randint(1, 12))
    ]
    return lesson.batch(
        samples,
        student=draw.choice(STUDENTS),
        app=draw.choice(APPS),
        classroom_id=draw.choice(["room-1", "room-2", ""]),
        timeline_id=timeline,
        sent_at_ms=now,
    )


def answers(lesson: Lesson) -> bytes:
    """A digest of everything that can be asked."""
    digest = sha256()
    for timeline in ("", "t", "u"):
        for room in ("room-1", "room-2"):
            for window in lesson.windows(room, timeline_id=timeline):
                digest.update(window.SerializeToString(deterministic=True))
        events = lesson.events(limit=1_000, timeline_id=timeline)
        digest.update(events.SerializeToString(deterministic=True))
        for alert in lesson.alerts(timeline_id=timeline):
            digest.update(alert.SerializeToString(deterministic=True))
    return digest.digest()


def main() -> None:
    """Prints the chain hash and the digest of all answers of three seeds."""
    for seed in range(3):
        lesson = run(seed)
        kept = lesson.machine.state_hash()
        assert kept is not None
        sys.stdout.write(f"{kept[0]} {kept[1].hex()} {answers(lesson).hex()}\n")


if __name__ == "__main__":
    main()
