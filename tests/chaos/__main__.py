"""`python -m tests.chaos --minutes 5`, or `--seed 7` to repeat the schedule of one run.

Each run is one seed on a cluster of its own. The exit code is 0 only where every run injected what
it planned and every check passed; a failed run leaves its history, the peers' logs and its report
in a directory that it names.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

from gaia_grpc.testing.process import PROGRAM
from tests.chaos.nemesis import possible_faults
from tests.chaos.report import Total, describe
from tests.chaos.run import BUGS, Run, broken_program

RUN_SECONDS = 60.0
OVERHEAD_SECONDS = 25.0
"""Start, settling and checks of one run, about."""
FIRST_SEED = 1
RESULTS = Path(".cache/chaos")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="about how long in all")
    parser.add_argument("--seed", type=int, default=None, help="only this one")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first seed")
    parser.add_argument("--run-seconds", type=float, default=RUN_SECONDS, help="faults a run")
    parser.add_argument("--kind", action="append", help="only these kinds of faults")
    parser.add_argument(
        "--snapshots", action=argparse.BooleanOptionalAction, help="peers snapshot all the time"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="what failed runs leave")
    parser.add_argument("--bug", choices=sorted(BUGS), help="peers with a bug: runs must fail")
    chosen = parser.parse_args(arguments)
    possible, skipped = possible_faults()
    for line in skipped:
        sys.stdout.write(f"{line}\n")
    names = [fault.kind for fault in possible]
    unknown = sorted(set(chosen.kind or ()) - set(names))
    if unknown:
        parser.error(f"no such fault here: {', '.join(unknown)} (there are {', '.join(names)})")
    total = Total()
    end_at = time.monotonic() + chosen.minutes * 60
    seed = chosen.first if chosen.seed is None else chosen.seed
    while True:
        _one(seed, chosen, total)
        seed += 1
        left_s = end_at - time.monotonic()
        if chosen.seed is not None or left_s < chosen.run_seconds + OVERHEAD_SECONDS:
            break
    sys.stdout.write(total.text())
    return 1 if total.failed else 0


def _one(seed: int, chosen: argparse.Namespace, total: Total) -> None:
    directory: Path = chosen.results / f"seed-{seed}-{os.getpid()}"
    try:
        directory.mkdir(parents=True)
        program = PROGRAM if chosen.bug is None else broken_program(chosen.bug)
        run = Run(
            seed, chosen.run_seconds, kinds=chosen.kind, program=program, snapshots=chosen.snapshots
        )
        outcome = asyncio.run(run.execute(directory))
    except Exception as error:
        traceback.print_exception(error, file=sys.stdout)
        total.failed.append(seed)
        sys.stdout.write(f"SEED={seed} failed; see {directory}\n")
        return
    total.add(outcome)
    text = describe(outcome)
    sys.stdout.write(text)
    if outcome.passed:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        (directory / "report.txt").write_text(text, encoding="utf-8")
        sys.stdout.write(f"SEED={seed} failed; history, logs and report are in {directory}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
