"""Seeded simulations of whole clusters (faults 5.1): safety at every step, then progress.

`GAIA_SIM_SEEDS` sets how many seeds run, `GAIA_SIM_SEED` picks one (`make sim SEEDS=n SEED=k`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.__main__ import main
from tests.sim.runner import (
    DEFAULT_SEEDS,
    TALLY,
    SimulationFailedError,
    regression_seeds,
    run_seed,
)
from tests.sim.simulation import Options, Simulation
from tests.support.checkers import ViolationError

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]
ONE_SEED = os.environ.get("GAIA_SIM_SEED", "")
SEED_COUNT = int(os.environ.get("GAIA_SIM_SEEDS", "") or DEFAULT_SEEDS)
SEEDS = [int(ONE_SEED)] if ONE_SEED else sorted({*regression_seeds(), *range(SEED_COUNT)})


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fault_breaks_safety_and_healing_brings_progress(seed: int) -> None:
    run_seed(seed, TALLY)


def test_the_faults_really_happened() -> None:
    """A swarm that never loses a write or overwrites a suffix would prove nothing."""
    if DEFAULT_SEEDS > TALLY.seeds:
        pytest.skip(f"only {TALLY.seeds} seeds ran before")
    assert TALLY.missing() == []


def trace_in_another_process(seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seed", str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return next(line for line in done.stdout.splitlines() if line.startswith("  trace: "))


def test_a_seed_always_gives_the_same_trace() -> None:
    """Also in other processes, with other hash seeds: nothing depends on the order of a set."""
    here, _ = run_seed(7)
    assert run_seed(7)[0] == here
    assert trace_in_another_process(7, "1") == f"  trace: {here}"
    assert trace_in_another_process(7, "2") == f"  trace: {here}"
    assert run_seed(8)[0] != here


def test_a_failed_run_names_its_seed_and_what_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(simulation: Simulation) -> None:
        raise ViolationError("broken on purpose")

    monkeypatch.setattr(Simulation, "_clients", broken)
    with pytest.raises(
        SimulationFailedError, match=r"broken on purpose\nSEED=3\n  options: peers="
    ):
        run_seed(3)
    assert main(["--seed", "3"]) == 1


def test_options_come_from_the_seed_alone() -> None:
    assert Options.from_seed(5) == Options.from_seed(5)
    assert len({Options.from_seed(seed) for seed in range(20)}) == 20
