"""Runs seeds and says what happened; shared by pytest and `python -m tests.sim`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.sim.simulation import Simulation

SEEDS_FILE = Path(__file__).with_name("seeds.txt")
DEFAULT_SEEDS = 150

SOMETIMES = (
    "acknowledged", "crashes", "cut_isolate", "cut_one_way", "cut_pair", "eio", "leaders",
    "overwritten_under_way", "pauses", "peer_lost", "reads_dropped", "reads_granted", "restarts",
    "suffix_overwritten", "transfers", "writes_in_flight", "writes_lost",
    "writes_torn_off_half_way",
)  # fmt: skip
"""What a set of seeds must have met at least once, or it proves little."""


@dataclass
class Tally:
    """The sum over several seeds."""

    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""
    """What the last seed drew and met."""

    def text(self) -> str:
        return " ".join(f"{name}={count}" for name, count in sorted(self.counts.items()))

    def missing(self) -> list[str]:
        return [name for name in SOMETIMES if not self.counts[name]]


TALLY = Tally()
"""Of the seeds that pytest ran."""


class SimulationFailedError(AssertionError):
    """Names the seed, what it drew and what it met, so that it can be run again."""


def regression_seeds() -> list[int]:
    """Seeds that once found a bug: first word of each line that is no comment."""
    lines = SEEDS_FILE.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def run_seed(seed: int, tally: Tally | None = None) -> tuple[str, str]:
    """The trace hash and the description of a run; raises `SimulationFailedError`."""
    simulation = Simulation(seed)
    try:
        trace = simulation.run()
    except Exception as error:
        raise SimulationFailedError(f"{error}\n{simulation.describe()}") from error
    if tally is not None:
        tally.seeds += 1
        tally.counts += simulation.counts
        tally.last = simulation.describe()
    return trace, simulation.describe()
