"""Runs seeds, in several processes if asked to, and says what happened."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.sim.simulation import Simulation

ROOT = Path(__file__).resolve().parents[2]
SEEDS_FILE = Path(__file__).with_name("seeds.txt")
DEFAULT_SEEDS = 200
SELF_TEST_EVERY = 100
"""Each so many seeds one runs again, here and under another PYTHONHASHSEED."""
ENOUGH_SEEDS = 500
"""From so many on, everything in `SOMETIMES` must have happened; from 300 on, all in `OFTEN`."""

OFTEN = (
    "answered_again", "changes_refused", "crashes", "crashes_of_leaders", "cut_isolate",
    "cut_one_way", "damage_refused", "disk_full", "eio", "elections", "identity_refused",
    "installed_with_appends_under_way", "installs_begun", "members_added", "members_promoted",
    "members_removed", "members_removed_leader", "pauses", "peer_lost", "reads_checked",
    "reads_dropped", "restarts_from_a_snapshot", "snapshots_installed", "snapshots_made",
    "stepped_down_for_its_disk", "suffix_overwritten", "transfers_broken",
    "two_candidates_in_a_term", "wiped", "writes_lost",
)  # fmt: skip
SOMETIMES = (
    *OFTEN,
    "answered_again_in_another_term", "clock_steps", "crashed_between_sync_and_answer",
    "crashes_after_a_cut",
    "crashes_while_installing", "crashes_while_making",
    "crashes_while_receiving", "cut_bridge", "cut_deaf", "cut_freeze", "cut_halves",
    "cut_pair", "damaged_entries", "damaged_snapshots", "disk_stalls", "formatted", "handovers",
    "late_snapshots", "members_demoted", "members_removed_while_cut", "members_removed_while_down",
    "network_duplicated", "network_lost", "own_snapshot_overtaken",
    "replies_lost", "requests_given_up", "session_evicted", "session_expired",
    "session_opened_again", "snapshots_without_space", "suffix_overwritten_under_way",
    "term_grew_during_a_write", "transfers_needless", "transfers_resumed",
    "writes_torn_but_whole", "writes_without_space",
)  # fmt: skip
"""What a set of seeds must have met, or it proves little (faults 5.1)."""


class SimulationFailedError(AssertionError):
    """Names the seed, what it drew and what it met, so that it can be run again."""


@dataclass
class Outcome:
    """What one seed came to; `failure` is empty where all held."""

    seed: int
    trace: str
    counts: Counter[str]
    description: str
    failure: str = ""


@dataclass
class Tally:
    """The sum over several seeds."""

    seeds: int = 0
    failures: list[Outcome] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    """How many seeds met each thing at least once."""
    last: str = ""

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.last = outcome.description
        if outcome.failure:
            self.failures.append(outcome)
        self.counts += outcome.counts
        self.met.update(name for name, count in outcome.counts.items() if count)

    def missing(self) -> list[str]:
        """What should have happened and never did."""
        if self.seeds < DEFAULT_SEEDS:
            return []
        wanted = SOMETIMES if self.seeds >= ENOUGH_SEEDS else OFTEN
        return [name for name in wanted if not self.met[name]]

    def text(self) -> str:
        """Each thing: how often, and in how many seeds."""
        rows = [
            f"  {name:<36} {count:>10} in {self.met[name]:>6} seeds"
            for name, count in sorted(self.counts.items())
        ]
        return "\n".join(rows)


def regression_seeds() -> list[int]:
    """Seeds that once found a bug: first word of each line that is no comment."""
    lines = SEEDS_FILE.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def try_seed(seed: int) -> Outcome:
    """Runs one; a failure is told in the outcome."""
    simulation = Simulation(seed)
    try:
        trace = simulation.run()
    except Exception as error:
        recent = "\n    ".join(simulation.recent)
        where = traceback.format_exc(limit=-4)
        failure = f"{error}\n{simulation.describe()}\n  last:\n    {recent}\n{where}"
        return Outcome(seed, "", simulation.counts, simulation.describe(), failure)
    return Outcome(seed, trace, simulation.counts, simulation.describe())


def run_seed(seed: int) -> Outcome:
    """The same; raises `SimulationFailedError`."""
    outcome = try_seed(seed)
    if outcome.failure:
        raise SimulationFailedError(outcome.failure)
    return outcome


@contextmanager
def _outcomes(seeds: Sequence[int], jobs: int) -> Iterator[Iterable[Outcome]]:
    if jobs == 1:
        yield map(try_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield pool.imap(try_seed, seeds, chunksize=10)


def run_seeds(
    seeds: Sequence[int], jobs: int, report: Callable[[Tally, Outcome], None] | None = None
) -> Tally:
    """Runs all of them, and some twice: a trace is a function of its seed and of nothing else."""
    tally = Tally()
    with _outcomes(seeds, jobs) as outcomes:
        for outcome in outcomes:
            if outcome.seed % SELF_TEST_EVERY == 0 and not outcome.failure:
                outcome.failure = self_test(outcome)
            tally.add(outcome)
            if report is not None:
                report(tally, outcome)
    return tally


def self_test(outcome: Outcome) -> str:
    """What differs when the seed is run again; empty where nothing does."""
    again = try_seed(outcome.seed).trace
    elsewhere = trace_in_another_process(outcome.seed, str(outcome.seed % 97 + 1))
    if again == elsewhere == outcome.trace:
        return ""
    return f"SEED={outcome.seed} has traces {outcome.trace}, {again} and {elsewhere}"


def trace_in_another_process(seed: int, hash_seed: str) -> str:
    """Runs a seed under another PYTHONHASHSEED."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seed", str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    return next(line.removeprefix("  trace: ") for line in lines if line.startswith("  trace: "))
