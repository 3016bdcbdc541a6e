"""Below feature level 3 the queue is what it was: answers, state, timers and snapshots.

A peer that is upgraded replays a log that older ones applied. The digests were made by the last
version before level 3, from the same histories.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.stamp import stamp
from tests.state.harness import START_MS, Log, command
from tests.state.snapshot_checks import whole

PINNED = {
    0: "553baea1c1a9ed57",
    1: "8f368d3b3b508e3a",
    2: "3bb1edca18eee4cd",
    3: "1ccb26e1ee591144",
    4: "36293e82bd6883f4",
    5: "195a265512ef1e60",
}


def history(seed: int, steps: int = 500) -> Iterator[dict[str, Any]]:
    """Commands that depend on nothing but the seed; some are refused."""
    draw = random.Random(seed)
    for number in range(4):
        specialty = ("math", "art", "general")[number % 3]
        yield {"register_session": {
            "name": f"w{number}", "specialty": specialty, "max_concurrent_tasks": 3,
        }}  # fmt: skip
    for _ in range(steps):
        number = draw.randrange(1, 60)
        claim = {
            "task_id": f"t-{number:012d}",
            "claim_token": draw.randrange(1, 40),
            "session_id": f"s-{draw.randrange(1, 5):012d}",
        }
        choice = draw.randrange(12)
        if choice < 3:
            yield {"enqueue_tasks": {"tasks": [
                {
                    "task_type": draw.choice(["grade", "tutor"]),
                    "affinity": draw.choice(["math", "art", "general"]),
                    "priority": draw.randrange(-2, 3),
                    "delay_ms": draw.choice([0, 0, 4_000]),
                    "max_retries": draw.randrange(3),
                    # Refused as not served yet.
                    "deadline_ms": draw.choice([0] * 9 + [5]),
                    "depends_on": draw.choice([[]] * 9 + [["#0"]]),
                }
                for _ in range(draw.randrange(1, 4))
            ]}}  # fmt: skip
        elif choice < 6:
            yield {"claim_tasks": {
                "session_id": claim["session_id"],
                "max_tasks": draw.randrange(1, 4),
                "wait_ms": draw.choice([0, 9_000]),
                "include_unmatched": draw.random() < 0.5,
            }}  # fmt: skip
        elif choice == 6:
            yield {"fail_task": {
                **claim, "error": "boom", "error_type": "ValueError", "retry_delay_ms": 5,
            }}  # fmt: skip
        elif choice == 7:
            session_id = claim.pop("session_id")
            yield {"complete_tasks": {"session_id": session_id, "completions": [claim]}}
        elif choice == 8:
            yield {draw.choice(["release_task", "extend_claim"]): claim}
        elif choice == 9:
            yield {draw.choice(["cancel_task", "requeue_task"]): {"task_id": claim["task_id"]}}
        elif choice == 10:
            beats = [{"session_id": f"s-{number:012d}"} for number in range(1, 5)]
            yield {"record_heartbeats": {"heartbeats": beats}}
        else:
            yield {"advance_time": {}, "ms": draw.choice([1, 900, 4_000, 11_000])}


def digest(seed: int) -> str:
    """Over all results, due times and some snapshots."""
    machine = StateMachine()
    seen = sha256()
    now_ms = START_MS
    settings = [
        {"name": name, "value": value}
        for name, value in (
            ("task.claim_timeout", "20s"), ("task.retention", "30s"), ("task.max_finished", "8"),
        )
    ]  # fmt: skip
    founding = {"cluster_id": "c", "feature_level": 2, "settings": settings}
    bodies = [{"found_cluster": founding}, *history(seed)]
    for index, body in enumerate(bodies, start=1):
        now_ms += body.pop("ms", 0)
        data = stamp(command(**body).SerializeToString(), now_ms, now_ms)
        seen.update(machine.apply(index, 2, data))
        seen.update(repr(machine.next_due_ms()).encode())
        if index % 100 == 0:
            seen.update(whole(machine))
    seen.update(whole(machine))
    return seen.hexdigest()[:16]


@pytest.mark.parametrize(("seed", "expected"), PINNED.items())
def test_the_queue_of_level_two_is_byte_for_byte_what_it_was(seed: int, expected: str) -> None:
    assert digest(seed) == expected


def test_nothing_of_level_three_comes_into_a_snapshot_below_it() -> None:
    log = Log(level=2)
    session = log.register("worker")
    log.enqueue()
    log.fail(log.claim(session)[0], error_type="ValueError", retry_delay_ms=9_000)
    assert log.task("t-000000000001").available_time.ToMilliseconds() == log.now_ms + 1_000
    assert log.task("t-000000000001").last_error_type == ""
    stats = log.stats()
    assert (stats.failed_attempts_total, stats.dead_letters_total) == (0, 0)
    refusal = log.refuse(put_task_policy={"task_type": "grade"})
    assert refusal.reason == "FEATURE_LEVEL"
    assert b"ValueError" not in whole(log.machine)
    change = {"name": "task.retry_jitter", "value": "1"}
    assert log.refuse(update_settings={"changes": [change]}).reason == "INVALID_ARGUMENT"
