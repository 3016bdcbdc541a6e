"""What a deliberate bug is, and where all of them are listed.

A mutant is one exact replacement in one file of the product, with the tests that must notice it.
Its old text must be found exactly once: code that moves takes its mutants along or fails the
contract test, so the list cannot rot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BUG_CLASSES: dict[str, str] = {
    "B1": "term or vote not on disk before the reply",
    "B2": "acknowledged before it is on disk",
    "B3": "entry of an old term committed by counting",
    "B4": "late append truncates what is there",
    "B5": "tail after a conflict is kept",
    "B6": "acknowledged index beyond what was sent",
    "B7": "commit index goes back, or beyond what was verified",
    "B8": "commit index stored ahead of the log",
    "B9": "stale read from a deposed or paused leader",
    "B10": "read before the leader's own entry is committed",
    "B11": "two leaders in a term",
    "B12": "the term falls",
    "B13": "a returning peer deposes a healthy leader",
    "B14": "partial connectivity ends in endless elections",
    "B15": "a leader with a hung disk keeps its seat",
    "B16": "an old leader expires leases",
    "B17": "a change of leader restarts or cuts timers",
    "B18": "applied index and state disagree",
    "B19": "a retry applies twice, or a lost reply is never told again",
    "B20": "snapshot and log do not match",
    "B21": "a damaged middle is taken for a torn tail",
    "B22": "a damaged snapshot makes the peer delete data",
    "B23": "an error of fsync is swallowed",
    "B24": "a full disk leaves a peer that cannot start",
    "B25": "unsafe change of members",
    "B26": "a wiped peer votes",
    "B27": "apply is not deterministic",
    "B28": "a stream repeats, goes back or drops events",
    "B29": "what was refused becomes visible",
    "B30": "replication stalls for ever",
    "B31": "a late fsync counts for what was overwritten since",
}
"""The classes of bugs that other systems had; each has a named test `test_bNN_...` and a mutant."""

LISTS = ("core", "disk", "peers", "above", "work")
"""Modules of this folder with a `MUTANTS` each."""

DEFAULT_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """One deliberate bug."""

    bug: str
    """A class of `BUG_CLASSES`, or a word of its own for a rule beyond them."""
    name: str
    path: str
    """Below the root, as in `gaia_grpc/raft/log.py`."""
    old: str
    new: str
    tests: tuple[str, ...]
    """`path::test` below the root; at least one must fail."""
    limit_s: float = DEFAULT_LIMIT_S
    """A test that is still under way then counts as failed: the mutant hangs it."""
    fast: bool = False
    """Is run by the suite too, not only by `make mutants`."""

    @property
    def label(self) -> str:
        """How it is named in the table."""
        return f"{self.bug} {self.name}"

    def apply(self, text: str) -> str:
        """The mutated text. `ValueError` where the old one isn't there exactly once."""
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.label}: its text is {found} times in {self.path}, not once")
        return text.replace(self.old, self.new)


@cache
def all_mutants() -> tuple[Mutant, ...]:
    """Every mutant of every list, in order of their class."""
    found: list[Mutant] = []
    for name in LISTS:
        found += import_module(f"tests.mutants.{name}").MUTANTS
    return tuple(sorted(found, key=lambda mutant: (_number(mutant.bug), mutant.name)))


def _number(bug: str) -> int:
    return int(bug[1:]) if bug in BUG_CLASSES else len(BUG_CLASSES) + 1


@cache
def named_tests() -> frozenset[str]:
    """Every test function of the suite as `path::name`."""
    pattern = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
    return frozenset(
        f"{path.relative_to(ROOT).as_posix()}::{name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    )


def prefix_of(bug: str) -> str:
    """How the tests of a class begin: `test_b04_` for B4."""
    return f"test_b{int(bug[1:]):02d}_"
