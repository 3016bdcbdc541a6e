"""A student's own long-run level in one app: the causal mean of each feature over past windows.

A window is added once in 20 s of activity, after it was judged: so a judgement never sees itself.
The mean is drawn to the cohort's as if 20 windows of it had been seen before. Sums are in
millionths, so they are whole numbers; part of the snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gaia_grpc.state.packing import MICRO

LEARN_EVERY_MS: Final = 20_000
PRIOR_WINDOWS: Final = 20
NOT_YET: Final = -1
MAX_WINDOWS: Final = 1 << 40


@dataclass(slots=True)
class Level:
    """What the detector remembers; times are those of the timeline."""

    evaluated_ms: int = NOT_YET
    learned_ms: int = NOT_YET
    count: int = 0
    """Windows."""
    sums_micro: list[int] = field(default_factory=list)
    """Of each feature over them, in the order of features.FEATURES; empty before the first."""

    def copy(self) -> Level:
        """For a snapshot."""
        return Level(self.evaluated_ms, self.learned_ms, self.count, self.sums_micro[:])

    def mean(self, feature: int, cohort: float) -> float:
        """The long-run mean of a feature, drawn to the cohort's."""
        if feature >= len(self.sums_micro):
            return cohort
        seen = self.sums_micro[feature] / MICRO
        return (seen + cohort * PRIOR_WINDOWS) / (self.count + PRIOR_WINDOWS)

    def add(self, values: Sequence[float], clock_ms: int) -> None:
        """One more window."""
        if len(self.sums_micro) < len(values):
            self.sums_micro += [0] * (len(values) - len(self.sums_micro))
        for at, value in enumerate(values):
            self.sums_micro[at] += round(value * MICRO)
        self.count += 1
        self.learned_ms = clock_ms

    def pack(self) -> list[int]:
        """For a snapshot."""
        return [self.evaluated_ms, self.learned_ms, self.count, *self.sums_micro]

    @classmethod
    def unpack(cls, packed: Sequence[int]) -> Level:
        """The inverse. Raises `ValueError`."""
        if len(packed) < 3 or not 0 <= packed[2] <= MAX_WINDOWS:
            raise ValueError("no level of a student")
        return cls(packed[0], packed[1], packed[2], list(packed[3:]))
