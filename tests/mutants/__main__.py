"""`make mutants`: every deliberate bug must be noticed by the tests that name it.

    python -m tests.mutants [--only B4] [--fast] [--jobs 2] [--no-baseline]

`--only` takes a class, the word of a rule, or a part of a mutant's name. Prints what killed which,
and exits with 1 where one survives, where a mutant's text is not found exactly once, or where the
tests fail without any bug.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.mutants.catalogue import BUG_CLASSES, Mutant, all_mutants
from tests.mutants.runner import Verdict, baseline, run_mutants


def chosen(only: str, fast: bool) -> list[Mutant]:
    """The mutants that are asked for."""
    known = {mutant.bug for mutant in all_mutants()}
    return [
        mutant
        for mutant in all_mutants()
        if (mutant.fast or not fast)
        and (not only or (mutant.bug == only if only in known else only in mutant.name))
    ]


def show(text: str) -> None:
    """Prints at once, also into a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def line(verdict: Verdict) -> str:
    """One row of the table."""
    mutant = verdict.mutant
    outcome = verdict.killed_by.removeprefix("tests/") or verdict.problem.upper()
    return f"{mutant.bug:<10} {mutant.name:<52} {verdict.seconds:6.1f} s  {outcome}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("--only", default="", help="a class (B4), or a part of a name")
    parser.add_argument("--fast", action="store_true", help="what the suite runs too")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--no-baseline", action="store_true", help="skip the tests without a bug")
    arguments = parser.parse_args()
    mutants = chosen(arguments.only, arguments.fast)
    if not mutants:
        show(f"error: there is no mutant {arguments.only!r}")
        return 2
    began = time.monotonic()
    if not arguments.no_baseline:
        run = baseline(mutants)
        if run.exit_code != 0:
            show(run.output)
            show("error: the tests fail without any mutant")
            return 1
        show(f"without a mutant all their tests pass ({run.seconds:.0f} s)")
    verdicts = run_mutants(mutants, arguments.jobs, lambda verdict: show(line(verdict)))
    failures = [verdict for verdict in verdicts if verdict.problem]
    classes = {verdict.mutant.bug for verdict in verdicts} & set(BUG_CLASSES)
    show(
        f"\n{len(verdicts) - len(failures)} of {len(verdicts)} mutants killed, "
        f"{len(classes)} of {len(BUG_CLASSES)} classes, {time.monotonic() - began:.0f} s"
    )
    for verdict in failures:
        show(f"error: {verdict.mutant.label}: {verdict.problem}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
