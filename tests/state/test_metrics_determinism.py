"""The same log gives the same state, in any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gaia_grpc.state.machine import StateMachine
from tests.state.scenario import answers, run

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 50


def test_any_hash_seed_gives_the_same_state_and_answers() -> None:
    printed = []
    for hash_seed in ("0", "1", "4711"):
        finished = subprocess.run(
            [sys.executable, "-m", "tests.state.scenario"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}",
                "TZ": f"UTC{hash_seed[0]}",
            },
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        printed.append(finished.stdout)
    assert len(printed[0].splitlines()) == 3
    assert printed[1:] == [printed[0], printed[0]]


def test_replaying_the_log_gives_the_same_state_and_answers() -> None:
    lesson = run(seed=7)
    first_hash, first_answers = lesson.machine.state_hash(), answers(lesson)
    again = StateMachine()
    for index, (kind, data) in enumerate(lesson.entries, start=1):
        again.apply(index, kind, data)
    lesson.machine = again
    assert again.state_hash() == first_hash
    assert answers(lesson) == first_answers


def test_the_scenario_reaches_what_it_is_for() -> None:
    changes = [
        name
        for seed in range(5)
        for lesson in [run(seed)]
        for timeline in ("", "t", "u")
        for name in lesson.changes(timeline_id=timeline)
    ]
    assert set(changes) >= {
        "OPENED", "SEVERITY_RAISED", "ACKNOWLEDGED", "RESOLVED", "SNOOZED", "INTERVENTION",
        "ESCALATED", "PUSHED", "ERASED",
    }  # fmt: skip
