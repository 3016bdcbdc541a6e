"""What runs did, as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.history import Outcome as CallOutcome
from tests.chaos.run import Outcome

MOST_VIOLATIONS = 5
MOST_CHARACTERS = 2_000


def describe(outcome: Outcome) -> str:
    """Faults, calls and checks of one run."""
    verdict = "passed" if outcome.passed else "FAILED"
    lines = [f"--- seed {outcome.seed}: {verdict} in {outcome.seconds:.0f} s ---", "faults"]
    lines += [f"  {fault}" for fault in sorted(outcome.injected, key=lambda one: one.began_at)]
    lines += ["calls", *_call_lines(outcome.calls), "checks"]
    for check in outcome.checks:
        state = "ok" if check.passed else "NOT VERIFIED" if not check.violations else "VIOLATED"
        lines.append(f"  {check.name:<18} {state:<12} {check.detail}")
        for violation in check.violations[:MOST_VIOLATIONS]:
            lines.append(f"    {violation[:MOST_CHARACTERS]}")
        if len(check.violations) > MOST_VIOLATIONS:
            lines.append(f"    and {len(check.violations) - MOST_VIOLATIONS} more")
    lines.append(f"  {outcome.snapshots_made} snapshots made, {outcome.installs} installed")
    lines += [f"error: {error[:MOST_CHARACTERS]}" for error in outcome.errors]
    return "\n".join(lines) + "\n"


def _call_lines(calls: Mapping[str, Mapping[str, int]]) -> list[str]:
    names = [str(name) for name in CallOutcome]
    lines = ["  " + f"{'':<18}" + "".join(f"{name:>9}" for name in names)]
    for kind in sorted(calls):
        counts = "".join(f"{calls[kind].get(name, 0):>9}" for name in names)
        lines.append(f"  {kind:<18}{counts}")
    return lines


@dataclass(slots=True)
class Total:
    """The sum over runs."""

    runs: int = 0
    seconds: float = 0.0
    snapshots_made: int = 0
    installs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    checks: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One run more."""
        self.runs += 1
        self.seconds += outcome.seconds
        self.snapshots_made += outcome.snapshots_made
        self.installs += outcome.installs
        self.faults += Counter(fault.kind for fault in outcome.injected)
        for kind, counts in outcome.calls.items():
            self.calls.setdefault(kind, Counter()).update(counts)
        self.checks += Counter(check.name for check in outcome.checks if check.passed)
        if not outcome.passed:
            self.failed.append(outcome.seed)

    def text(self) -> str:
        """The table at the end."""
        lines = [f"=== {self.runs} runs in {self.seconds / 60:.1f} minutes ===", "faults injected"]
        lines += [f"  {kind:<18}{count:>9}" for kind, count in sorted(self.faults.items())]
        lines.append(f"  {'all':<18}{sum(self.faults.values()):>9}")
        lines.append(f"{self.snapshots_made} snapshots made, {self.installs} installed")
        lines += ["calls by outcome", *_call_lines(self.calls)]
        lines.append("checks passed, of the runs")
        lines += [
            f"  {name:<18}{count:>5} of {self.runs}" for name, count in sorted(self.checks.items())
        ]
        lines.append(f"failed seeds: {self.failed}" if self.failed else "no run failed")
        return "\n".join(lines) + "\n"
