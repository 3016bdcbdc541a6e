"""What clients did and what they were told: one record a call, kept in memory and as JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """What a client knows after a call."""

    OK = "ok"
    REFUSED = "refused"
    """Understood and refused by the state machine: the refusal itself may be in the log."""
    FAILED = "failed"
    """Definitely not applied: nothing of it may ever show."""
    UNKNOWN = "unknown"
    """Nobody can tell; the client goes on under a new name."""


@dataclass(slots=True)
class Call:
    """One call of one client. Times are seconds of one monotonic clock."""

    client: str
    kind: str
    """The RPC, in snake case."""
    key: str
    """The object that it is about, where there is one."""
    peer: str
    called_at: float
    argument: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""
    returned_at: float = 0.0
    outcome: Outcome = Outcome.UNKNOWN
    reason: str = ""
    answer: dict[str, Any] = field(default_factory=dict)
    term: int = 0
    index: int = 0
    """Log index of the answer; 0 where it names none."""

    @property
    def is_ok(self) -> bool:
        """Whether it was acknowledged."""
        return self.outcome is Outcome.OK

    def __str__(self) -> str:
        span = f"{self.called_at:.3f}-{self.returned_at:.3f}"
        text = f"{self.client} {self.kind} {self.key} {self.argument} at {self.peer} {span}"
        return f"{text} -> {self.outcome} {self.reason} {self.answer} index {self.index}"


class History:
    """All calls of a run in the order of their beginning."""

    def __init__(self, calls: list[Call] | None = None) -> None:
        self.calls: list[Call] = calls or []

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def add(self, call: Call) -> Call:
        """Takes a call that has just begun; its outcome is filled in when it is known."""
        self.calls.append(call)
        return call

    def of(self, *kinds: str, outcome: Outcome | None = None) -> list[Call]:
        """Calls of these kinds, of one outcome where asked."""
        return [
            call
            for call in self.calls
            if call.kind in kinds and (outcome is None or call.outcome is outcome)
        ]

    def counts(self) -> dict[str, Counter[str]]:
        """Outcomes by kind."""
        found: dict[str, Counter[str]] = {}
        for call in self.calls:
            found.setdefault(call.kind, Counter())[call.outcome] += 1
        return found

    def save(self, path: Path) -> None:
        """One JSON object a line."""
        with path.open("w", encoding="utf-8") as file:
            for call in self.calls:
                file.write(json.dumps(asdict(call), sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> History:
        """What `save` wrote."""
        calls = []
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            calls.append(Call(**{**row, "outcome": Outcome(row["outcome"])}))
        return cls(calls)
