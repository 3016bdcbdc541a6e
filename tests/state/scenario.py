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

from gaia_grpc.state.alert_store import LIFE_LEVEL
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from tests.state.lessons import Lesson

STUDENTS = [f"s{number}" for number in range(4)]
APPS = ["math", "reading"]
KINDS = ["error", "error", "mistake", "correct", "completion", "accuracy", "keypress"]


MORE_KINDS = [*KINDS, "backspace", "pause", "hint"]


def run(seed: int, steps: int = 150, level: int = FEATURE_LEVEL) -> Lesson:
    """Batches of all kinds, repeats, two timelines, and teachers; from level 3 on with rosters,
    pushes, interventions and operational alerts.

    Below, it draws what it drew at the first version: test_alert_levels.py knows the hashes.
    """
    draw = random.Random(seed)
    lesson = Lesson(level=level)
    sent: list[metrics_pb2.MetricBatch] = []
    for _ in range(steps):
        if level >= LIFE_LEVEL and draw.random() < 0.25:
            _live(lesson, draw)
        choice = draw.random()
        if choice < 0.75 or not sent:
            sent.append(_batch(lesson, draw, KINDS if level < LIFE_LEVEL else MORE_KINDS))
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


def _live(lesson: Lesson, draw: random.Random) -> None:
    """What happens to alerts from level 3 on."""
    alert_id = f"alert-{draw.randint(1, 40)}"
    known = [(alert.alert_id, alert.student_id) for alert in lesson.alerts()]
    about, student = draw.choice([("", ""), *known, (alert_id, "")])
    command: dict[str, Any] = draw.choice(
        [
            {"put_classroom": {
                "classroom_id": draw.choice(["room-1", "room-2"]),
                "teacher_ids": draw.sample(["t1", "t2", "t3"], draw.randint(0, 3)),
            }},
            {"snooze_alert": {
                "alert_id": alert_id, "teacher_id": "t1",
                "duration_ms": draw.choice([7_000, 90_000]),
            }},
            {"record_intervention": {
                "alert_id": about, "student_id": student or draw.choice(STUDENTS),
                "teacher_id": "t2", "kind": "help", "app_name": "math",
                "timeline_id": draw.choice(["", "t"]),
            }},
            {"acknowledge_alert": {"alert_id": alert_id, "teacher_id": "t1"}},
            {"report_peer": {"node_id": "n2", "lost": draw.random() < 0.5}},
            {"register_session": {"name": draw.choice("ab"), "max_concurrent_tasks": 1}},
            {"update_settings": {"changes": [draw.choice([
                {"name": "alert.push_budget", "value": "1"},
                {"name": "alert.push_budget", "value": "3"},
                {"name": "alert.acknowledge_timeout", "value": "20s"},
                {"name": "alert.max_interventions", "value": "3"},
            ])]}},
            {"delete_student_data": {"student_id": draw.choice(STUDENTS)}},
        ]
    )  # fmt: skip
    if "delete_student_data" not in command or draw.random() < 0.2:
        lesson.apply(command_pb2.Command(**command))


def _batch(
    lesson: Lesson, draw: random.Random, kinds: list[str] = KINDS
) -> metrics_pb2.MetricBatch:
    timeline = draw.choice(["", "", "t", "u"])
    now = lesson.now_ms if not timeline else 1_000_000 + draw.randint(0, 900_000)
    samples = [
        (
            draw.choice(kinds),
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
    for query in (
        {"list_interventions": {"page_size": 1_000}},
        {"alert_events": {"limit": 1_000, "filter": {"kind": 2}}},
        {"list_alerts": {"filter": {"teacher_id": "t1"}}},
    ):
        digest.update(lesson.query(**query).SerializeToString(deterministic=True))
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
