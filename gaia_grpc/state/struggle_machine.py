"""From a stream of confidences to a severity: when one is entered, kept and left.

A severity is entered when the confidence has been at its threshold or above, with what else it
needs, at every look over its dwell; it is left when the confidence has been below a lower threshold
for `exit_after`. So what flickers around a threshold changes nothing. Nothing is entered while the
model's own guards do not hold (`Estimate.ready`); leaving needs none.

Needs: medium one group of features that speaks, high two with failure among them, critical three or
a long streak. Critical is also what stays high for `unresolved_after`.

Context-free. The owner looks (`step`) at each evaluation and, while `next_check_ms` says so, at
multiples of 5 s of the timeline's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.settings import Settings

CHECK_MS: Final = 5_000
IDLE: Final = 0
LOW, MEDIUM, HIGH, CRITICAL = (
    int(alert_pb2.SEVERITY_LOW),
    int(alert_pb2.SEVERITY_MEDIUM),
    int(alert_pb2.SEVERITY_HIGH),
    int(alert_pb2.SEVERITY_CRITICAL),
)
SEVERITIES: Final = (LOW, MEDIUM, HIGH, CRITICAL)
LONG_STREAK: Final = 8
NEVER: Final = -1


class Look(Protocol):
    """What of an estimate (struggle.py) is looked at."""

    @property
    def confidence(self) -> float:
        """Calibrated, 0 to 1."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the model's guards hold."""
        ...

    @property
    def groups(self) -> int:
        """How many groups of features speak."""
        ...

    @property
    def failing(self) -> bool:
        """Whether the failure group is among them."""
        ...

    @property
    def streak(self) -> float:
        """Errors since the last success."""
        ...


@dataclass(frozen=True, slots=True)
class Ladder:
    """Thresholds and dwells by severity, LOW first."""

    enter: tuple[float, float, float, float]
    exit: tuple[float, float, float, float]
    dwell_ms: tuple[int, int, int, int]
    exit_after_ms: int
    unresolved_after_ms: int


def read_ladder(settings: Settings) -> Ladder:
    """The thresholds as the settings say."""
    number, milliseconds = settings.number, settings.milliseconds
    return Ladder(
        enter=(
            number("detector.low_enter"),
            number("detector.medium_enter"),
            number("detector.high_enter"),
            number("detector.critical_enter"),
        ),
        exit=(
            number("detector.low_exit"),
            number("detector.medium_exit"),
            number("detector.high_exit"),
            number("detector.critical_exit"),
        ),
        dwell_ms=(
            0,
            milliseconds("detector.medium_after"),
            milliseconds("detector.high_after"),
            milliseconds("detector.critical_after"),
        ),
        exit_after_ms=milliseconds("alert.exit_after"),
        unresolved_after_ms=milliseconds("detector.unresolved_after"),
    )


@dataclass(slots=True)
class Machine:
    """Where one student in one app stands; times in milliseconds, -1 where there is none."""

    severity: int = IDLE
    """`gaia.alert.v1.Severity`; 0 while there is no episode."""
    below_ms: int = NEVER
    """Since when the confidence has been below the exit of `severity`."""
    high_ms: int = NEVER
    """Since when it has been high or critical."""
    since_ms: list[int] = field(default_factory=lambda: [NEVER] * len(SEVERITIES))
    """Since when each severity could be entered."""

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost with it."""
        return self.severity == IDLE and max(self.since_ms) == NEVER

    def pack(self) -> list[int]:
        """For a snapshot."""
        return [self.severity, self.below_ms, self.high_ms, *self.since_ms]

    @classmethod
    def unpack(cls, packed: Sequence[int]) -> Machine:
        """The inverse. Raises `ValueError`."""
        if len(packed) != 3 + len(SEVERITIES) or not IDLE <= packed[0] <= CRITICAL:
            raise ValueError("no machine of an episode")
        return cls(packed[0], packed[1], packed[2], list(packed[3:]))


def next_check_ms(machine: Machine, clock_ms: int) -> int | None:
    """When to look again if no evaluation comes before; None where there is nothing to wait for."""
    return None if machine.idle else (clock_ms // CHECK_MS + 1) * CHECK_MS


def step(machine: Machine, clock_ms: int, look: Look, ladder: Ladder) -> bool:
    """One look; whether the severity changed."""
    before = machine.severity
    for at, severity in enumerate(SEVERITIES):
        if not _may_enter(severity, look, ladder):
            machine.since_ms[at] = NEVER
        elif machine.since_ms[at] == NEVER:
            machine.since_ms[at] = clock_ms
    _rise(machine, clock_ms, look, ladder)
    if machine.severity == before:
        _fall(machine, clock_ms, look, ladder)
    else:
        machine.below_ms = NEVER
    if machine.severity < HIGH:
        machine.high_ms = NEVER
    elif machine.high_ms == NEVER:
        machine.high_ms = clock_ms
    return machine.severity != before


def _has_needs(severity: int, look: Look) -> bool:
    if severity == CRITICAL:
        return look.groups >= 3 or look.streak >= LONG_STREAK
    if severity == HIGH:
        return look.groups >= 2 and look.failing
    return severity < MEDIUM or look.groups >= 1


def _may_enter(severity: int, look: Look, ladder: Ladder) -> bool:
    enter = ladder.enter[severity - LOW]
    return look.ready and look.confidence >= enter and _has_needs(severity, look)


def _rise(machine: Machine, clock_ms: int, look: Look, ladder: Ladder) -> None:
    for severity, since_ms, dwell_ms in zip(
        SEVERITIES, machine.since_ms, ladder.dwell_ms, strict=True
    ):
        if since_ms != NEVER and clock_ms - since_ms >= dwell_ms:
            machine.severity = max(machine.severity, severity)
    unresolved = (
        machine.severity == HIGH
        and machine.high_ms != NEVER
        and clock_ms - machine.high_ms >= ladder.unresolved_after_ms
    )
    if unresolved and look.confidence >= ladder.exit[HIGH - LOW] and _has_needs(CRITICAL, look):
        machine.severity = CRITICAL


def _fall(machine: Machine, clock_ms: int, look: Look, ladder: Ladder) -> None:
    if machine.severity == IDLE or look.confidence >= ladder.exit[machine.severity - LOW]:
        machine.below_ms = NEVER
        return
    if machine.below_ms == NEVER:
        machine.below_ms = clock_ms
    if clock_ms - machine.below_ms < ladder.exit_after_ms:
        return
    machine.below_ms = NEVER
    left = [each for each in SEVERITIES if each < machine.severity]
    kept = [each for each in left if look.confidence >= ladder.exit[each - LOW]]
    machine.severity = max(kept, default=IDLE)
