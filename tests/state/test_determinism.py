"""The same log gives the same bytes in every process, whatever its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gaia_grpc.state.machine import StateMachine
from tests.state.harness import Log
from tests.state.replay_hash import mixed_log

ROOT = Path(__file__).resolve().parents[2]
SEED, STEPS = 7, 600


def run(**environment: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "generated")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.state.replay_hash", str(SEED), str(STEPS)],
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"], **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return done.stdout


def test_hash_seed_time_zone_and_locale_change_nothing() -> None:
    first = run(PYTHONHASHSEED="0", TZ="UTC", LC_ALL="C")
    second = run(PYTHONHASHSEED="4711", TZ="Asia/Kathmandu", LC_ALL="C.UTF-8", PYTHONUTF8="1")
    assert first == second
    _, _, claims, failed = first.split()
    assert int(claims) > 50, "the log must do something worth comparing"
    assert int(failed) >= 0


def replayed(log: Log) -> StateMachine:
    twin = StateMachine()
    for index, (kind, data) in enumerate(log.entries, start=1):
        twin.apply(index, kind, data)
    return twin


@pytest.mark.parametrize("seed", range(3))
def test_queries_between_the_entries_leave_no_trace(seed: int) -> None:
    # The first machine answered many queries on the way, the second none.
    log = mixed_log(seed, 300)
    twin = replayed(log)
    assert twin.state_hash() == log.machine.state_hash()
    assert twin.next_due_ms() == log.machine.next_due_ms()
    for query in (b"\x2a\x00", b"\x12\x00", b"\x32\x00"):  # lists of tasks, sessions; counts
        assert twin.query(query, log.now_ms) == log.machine.query(query, log.now_ms)


def test_another_result_gives_another_hash() -> None:
    one, two = Log(), Log(("task.max_retries", "2"))
    for log in (one, two):
        log.enqueue()
    assert one.machine.state_hash() != two.machine.state_hash()
