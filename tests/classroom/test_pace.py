"""The clock of a simulated class."""

from __future__ import annotations

import pytest

from gaia_grpc.classroom.pace import ClassClock


class Wall:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_clock(wall: Wall, speed: float = 60.0, length_ms: int = 300_000) -> ClassClock:
    return ClassClock(speed=speed, length_ms=length_ms, now_s=wall, lead_ms=2_000)


def test_class_time_is_wall_time_times_speed_and_ends() -> None:
    wall = Wall()
    clock = make_clock(wall)
    wall.now_s += 1.0
    assert clock.now_ms() == 60_000
    assert not clock.over
    wall.now_s += 100.0
    assert clock.now_ms() == 300_000
    assert clock.over


async def test_a_hold_stops_the_clock_2_s_of_class_after_it() -> None:
    wall = Wall()
    clock = make_clock(wall)
    wall.now_s += 1.0
    async with clock.hold(60_000):
        wall.now_s += 0.5
        assert clock.now_ms() == 62_000
        wall.now_s += 10.0
        assert clock.now_ms() == 62_000
    assert clock.now_ms() == 62_000
    wall.now_s += 1.0
    assert clock.now_ms() == 122_000
    assert clock.held_ms == pytest.approx(10.5 * 60_000 - 2_000)


async def test_the_oldest_hold_counts() -> None:
    wall = Wall()
    clock = make_clock(wall)
    async with clock.hold(0):
        async with clock.hold(1_000):
            wall.now_s += 1.0
            assert clock.now_ms() == 2_000
        wall.now_s += 1.0
        assert clock.now_ms() == 2_000


async def test_a_hold_of_the_past_never_turns_the_clock_back() -> None:
    wall = Wall()
    clock = make_clock(wall)
    wall.now_s += 1.0
    assert clock.now_ms() == 60_000
    async with clock.hold(10_000):
        wall.now_s += 1.0
        assert clock.now_ms() == 60_000


async def test_who_holds_a_time_to_come_gets_there_and_nobody_jumps_over_it() -> None:
    """A stall of the process may not carry the clock past a measurement that is not made yet."""
    wall = Wall()
    clock = make_clock(wall)
    async with clock.hold(10_000):
        wall.now_s += 60.0
        await clock.until(10_000)
        assert clock.now_ms() == 12_000


async def test_until_returns_at_the_time_and_at_once_when_it_has_passed() -> None:
    wall = Wall()
    clock = make_clock(wall, speed=1e9)
    wall.now_s += 1.0
    await clock.until(300_000)
    await clock.until(10**12)


def test_a_stopped_clock_goes_on_where_it_stood() -> None:
    wall = Wall()
    clock = make_clock(wall)
    wall.now_s += 1.0
    clock.stop()
    wall.now_s += 100.0
    assert clock.now_ms() == 60_000
    clock.start()
    wall.now_s += 1.0
    assert clock.now_ms() == 120_000
    assert clock.held_ms == 0.0


def test_a_speed_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="speed"):
        ClassClock(speed=0.0, length_ms=1, now_s=Wall())
