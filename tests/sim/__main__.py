"""`make sim SEEDS=1000`, or `make sim SEED=7` for one of them with everything it met."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from tests.sim.runner import (
    DEFAULT_SEEDS,
    Outcome,
    SimulationFailedError,
    Tally,
    regression_seeds,
    run_seed,
    run_seeds,
)


def show(text: str) -> None:
    """Prints at once, also into a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def progress(total: int) -> Callable[[Tally, Outcome], None]:
    """Shows failures as they come, and now and then how far it is."""
    step = max(50, total // 50)

    def report(tally: Tally, outcome: Outcome) -> None:
        if outcome.failure:
            show(f"FAILED: {outcome.failure}")
        if tally.seeds % step == 0:
            show(f"{tally.seeds} of {total} seeds, {len(tally.failures)} failed")

    return report


def run_one(seed: int) -> int:
    """Shows what it drew and met."""
    try:
        outcome = run_seed(seed)
    except SimulationFailedError as error:
        show(str(error))
        return 1
    show(f"{outcome.description}\n  trace: {outcome.trace}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, default=None, help="only this one")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        return run_one(chosen.seed)
    new = range(chosen.first, chosen.first + chosen.seeds)
    seeds = [*(seed for seed in regression_seeds() if seed not in new), *new]
    began = time.monotonic()
    tally = run_seeds(seeds, chosen.jobs, progress(len(seeds)))
    missing = tally.missing()
    show(tally.text())
    failed = sorted(outcome.seed for outcome in tally.failures)
    took = time.monotonic() - began
    show(f"{tally.seeds - len(failed)} seeds passed, {len(failed)} failed, {took:.0f} s")
    for seed in failed:
        show(f"  make sim SEED={seed}    # runs it again; it belongs into tests/sim/seeds.txt")
    if missing:
        show(f"never happened in {tally.seeds} seeds: {', '.join(missing)}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
