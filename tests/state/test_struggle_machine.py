"""The episode machine: thresholds, dwells, needs, and nothing that flickers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state.settings import Settings
from gaia_grpc.state.struggle_machine import (
    CRITICAL,
    HIGH,
    IDLE,
    LOW,
    MEDIUM,
    Machine,
    next_check_ms,
    read_ladder,
    step,
)

LADDER = read_ladder(Settings())
SECOND = 1_000


@dataclass(frozen=True)
class Seen:
    confidence: float
    ready: bool = True
    groups: int = 3
    failing: bool = True
    streak: float = 0.0


def drive(machine: Machine, begin_s: int, end_s: int, look: Seen, every_s: int = 5) -> None:
    """Looks every 5 s, from the first second up to the last."""
    for second in range(begin_s, end_s + 1, every_s):
        step(machine, second * SECOND, look, LADDER)


def after(seconds: int, look: Seen) -> int:
    machine = Machine()
    drive(machine, 0, seconds, look)
    return machine.severity


def test_low_is_entered_at_once() -> None:
    assert after(0, Seen(0.149)) == IDLE
    assert after(0, Seen(0.15)) == LOW


def test_medium_needs_two_looks_10_s_apart() -> None:
    assert after(5, Seen(0.3)) == LOW
    assert after(10, Seen(0.3)) == MEDIUM
    machine = Machine()
    for second, confidence in ((0, 0.3), (5, 0.29), (10, 0.3), (15, 0.3)):
        step(machine, second * SECOND, Seen(confidence), LADDER)
    assert machine.severity == LOW
    step(machine, 20 * SECOND, Seen(0.3), LADDER)
    assert machine.severity == MEDIUM


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (Seen(0.5), HIGH),
        (Seen(0.5, groups=1), MEDIUM),
        (Seen(0.5, failing=False), MEDIUM),
        (Seen(0.5, groups=0), LOW),
        (Seen(0.7, groups=2), HIGH),
        (Seen(0.7, groups=2, streak=8), CRITICAL),
        (Seen(0.7), CRITICAL),
        (Seen(0.7, ready=False), IDLE),
    ],
)
def test_what_a_severity_needs(look: Seen, expected: int) -> None:
    assert after(60, look) == expected


def test_high_takes_20_s_and_critical_60_s() -> None:
    assert after(15, Seen(0.7)) == MEDIUM
    assert after(55, Seen(0.7)) == HIGH
    assert after(60, Seen(0.7)) == CRITICAL


def test_what_stays_high_for_4_minutes_is_critical() -> None:
    assert after(255, Seen(0.46)) == HIGH
    assert after(260, Seen(0.46)) == CRITICAL
    assert after(600, Seen(0.46, groups=2)) == HIGH


def test_a_severity_is_left_below_its_exit_for_60_s() -> None:
    machine = Machine()
    drive(machine, 0, 10, Seen(0.35))
    drive(machine, 15, 600, Seen(0.2))
    assert machine.severity == MEDIUM
    drive(machine, 605, 660, Seen(0.12))
    assert machine.severity == MEDIUM
    step(machine, 665 * SECOND, Seen(0.12), LADDER)
    assert machine.severity == LOW
    drive(machine, 670, 730, Seen(0.09, ready=False))
    assert machine.severity == IDLE
    assert machine.idle


def test_a_flicker_changes_nothing() -> None:
    machine = Machine()
    drive(machine, 0, 10, Seen(0.35))
    for second in range(15, 1_000, 5):
        confidence = 0.19 if second % 55 else 0.2
        assert not step(machine, second * SECOND, Seen(confidence), LADDER)
    for second in range(1_000, 2_000, 10):
        step(machine, second * SECOND, Seen(0.44), LADDER)
        assert not step(machine, (second + 5) * SECOND, Seen(0.46), LADDER)


def test_it_falls_past_what_does_not_hold_either() -> None:
    machine = Machine()
    drive(machine, 0, 60, Seen(0.7))
    drive(machine, 65, 125, Seen(0.05))
    assert machine.severity == IDLE


def test_ticks_end_with_the_episode() -> None:
    machine = Machine()
    assert next_check_ms(machine, 12_345) is None
    step(machine, 12_345, Seen(0.15), LADDER)
    assert next_check_ms(machine, 12_345) == 15_000
    assert next_check_ms(machine, 15_000) == 20_000


LOOKS = st.lists(
    st.tuples(
        st.integers(250, 30_000),
        st.builds(
            Seen,
            st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.9]),
            st.booleans(),
            st.integers(0, 3),
            st.booleans(),
            st.sampled_from([0.0, 8.0]),
        ),
    ),
    max_size=60,
)


@given(LOOKS)
def test_a_packed_machine_goes_on_as_it_would_have(looks: list[tuple[int, Seen]]) -> None:
    machine, restored = Machine(), Machine()
    clock_ms = 0
    for wait_ms, look in looks:
        clock_ms += wait_ms
        restored = Machine.unpack(restored.pack())
        assert step(machine, clock_ms, look, LADDER) == step(restored, clock_ms, look, LADDER)
        assert machine == restored


@given(LOOKS)
def test_it_never_rises_without_need_nor_falls_in_less_than_a_minute(
    looks: list[tuple[int, Seen]],
) -> None:
    machine = Machine()
    clock_ms = changed_ms = 0
    for wait_ms, look in looks:
        clock_ms += wait_ms
        before = machine.severity
        step(machine, clock_ms, look, LADDER)
        if machine.severity > before:
            assert look.ready or before == HIGH
            assert look.confidence >= LADDER.exit[machine.severity - 2 if before == HIGH else 0]
        elif machine.severity < before:
            assert look.confidence < LADDER.exit[before - 1]
            assert clock_ms - changed_ms >= LADDER.exit_after_ms
        if machine.severity != before:
            changed_ms = clock_ms


@given(LOOKS)
def test_more_confidence_never_gives_a_lower_severity(looks: list[tuple[int, Seen]]) -> None:
    machine, higher = Machine(), Machine()
    clock_ms = 0
    for wait_ms, look in looks:
        clock_ms += wait_ms
        step(machine, clock_ms, look, LADDER)
        more = replace(look, confidence=min(look.confidence + 0.1, 1.0))
        step(higher, clock_ms, more, LADDER)
        assert higher.severity >= machine.severity


def test_bad_bytes_are_no_machine() -> None:
    for packed in ([], [9, 0, 0, 0, 0, 0, 0], [1, 2, 3]):
        with pytest.raises(ValueError, match="no machine"):
            Machine.unpack(packed)
