"""`python -m tests.sim --seeds 1000`, or `--seed 7` for one of them with everything it met."""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.sim.runner import DEFAULT_SEEDS, SimulationFailedError, Tally, regression_seeds, run_seed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, default=None, help="only this one")
    parser.add_argument("--quiet", action="store_true", help="only the sum")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        seeds = [chosen.seed]
    else:
        seeds = [*regression_seeds(), *range(chosen.first, chosen.first + chosen.seeds)]
    tally, failed = Tally(), []
    for seed in seeds:
        try:
            trace, description = run_seed(seed, tally)
        except SimulationFailedError as error:
            failed.append(seed)
            traceback.print_exception(error, file=sys.stdout)
            continue
        if not chosen.quiet:
            sys.stdout.write(f"{description}\n  trace: {trace}\n")
    sys.stdout.write(f"{tally.seeds} seeds passed, {len(failed)} failed {failed}\n{tally.text()}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
