"""`python -m tests.sim.teeth`: which deliberate bugs of the core does the simulation find?

The bugs are those of `tests/mutants`, each applied in a private copy of the tree. Random runs can't
find all of them (some need what no seed does, some are harmless twins of a second line of defence);
`make mutants` has a test for each. What this shows is that the simulation sees the usual ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.mutants.catalogue import Mutant, all_mutants
from tests.mutants.runner import private_copy

ONE_MUTANT = """
import sys
from tests.sim.runner import try_seed
for seed in range(int(sys.argv[1])):
    outcome = try_seed(seed)
    if outcome.failure:
        print(seed, outcome.failure.splitlines()[0], flush=True)
        break
"""


def mutants_of_the_core(only: str) -> list[Mutant]:
    """All of them, or those of one class."""
    found = [each for each in all_mutants() if each.path.startswith("gaia_grpc/raft/")]
    return [each for each in found if not only or each.bug == only or only in each.name]


def hunt(folder: Path, mutant: Mutant, seeds: int, limit_s: float) -> str:
    """The first seed that fails with the mutant in place, and why; empty where none does."""
    path = folder / mutant.path
    clean = path.read_text(encoding="utf-8")
    path.write_text(mutant.apply(clean), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-c", ONE_MUTANT, str(seeds)],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(folder), str(folder / "generated"))),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "time limit: no end"
    finally:
        path.write_text(clean, encoding="utf-8")
    return done.stdout.strip() or done.stderr.strip()[-200:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.teeth", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many each may take")
    parser.add_argument("--only", default="", help="a class of bugs, as B25, or a part of a name")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one mutant")
    chosen = parser.parse_args(arguments)
    mutants = mutants_of_the_core(chosen.only)
    found = 0
    with private_copy() as folder:
        for mutant in mutants:
            outcome = hunt(folder, mutant, chosen.seeds, chosen.limit)
            found += bool(outcome)
            sys.stdout.write(f"{mutant.bug:<6} {mutant.name:<56} {outcome[:90] or 'not found'}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{found} of {len(mutants)} found within {chosen.seeds} seeds each\n")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
