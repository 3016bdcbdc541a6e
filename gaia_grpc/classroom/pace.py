"""The clock of a simulated class: faster than the wall's, and held while an answer is due.

A class on a timeline must give the same alerts at any speed and through any failover. Its clock is
what the students stamp as `sent_at_ms`, and the cluster's windows end there. So it may not run far
ahead of a measurement that is not made yet, or of an urgent one that is still on its way: at 60
times the speed, the half second of an election, or of a machine that is busy elsewhere, is 30 s of
class, enough to push the first errors of a burst out of its 60-s window.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LEAD_MS = 5_000
"""How far the class may go on beyond a measurement that is held."""
SLICE_S = 0.02
"""How often to look at the clock again while a hold keeps it from getting there."""


class ClassClock:
    """Milliseconds since the begin of class; `speed` class seconds pass in one second."""

    def __init__(
        self,
        *,
        speed: float,
        length_ms: int,
        now_s: Callable[[], float],
        lead_ms: int = LEAD_MS,
    ) -> None:
        if speed <= 0:
            raise ValueError("speed must be above 0")
        self._speed = speed
        self._length_ms = length_ms
        self._now_s = now_s
        self._lead_ms = lead_ms
        self._held: dict[int, int] = {}
        self._next_hold = 0
        self._read_at_s = now_s()
        self._stopped = False
        self._class_ms = 0.0
        self.held_ms = 0.0
        """Class time that the holds have cost so far."""

    def stop(self) -> None:
        """Class time stands still from now on, for as long as it takes."""
        self.now_ms()
        self._stopped = True

    def start(self) -> None:
        """Class time goes on from where it stands."""
        self._read_at_s = self._now_s()
        self._stopped = False

    def now_ms(self) -> int:
        """Class time now; never goes back, never passes the end."""
        if self._stopped:
            return int(self._class_ms)
        now_s = self._now_s()
        target = self._class_ms + (now_s - self._read_at_s) * 1_000.0 * self._speed
        self._read_at_s = now_s
        reached = max(self._class_ms, min(target, float(self._limit_ms())))
        if reached < self._length_ms:
            self.held_ms += target - reached
        self._class_ms = reached
        return int(reached)

    def _limit_ms(self) -> int:
        """How far class time may go now."""
        held_until = min(self._held.values()) + self._lead_ms if self._held else self._length_ms
        return min(held_until, self._length_ms)

    @property
    def over(self) -> bool:
        """Whether class is over."""
        return self.now_ms() >= self._length_ms

    async def until(self, at_ms: int) -> None:
        """Waits until class time is at least `at_ms` (at most the length of class)."""
        goal_ms = min(at_ms, self._length_ms)
        while True:
            left_ms = goal_ms - self.now_ms()
            if left_ms <= 0:
                return
            wait_s = left_ms / 1_000.0 / self._speed
            await asyncio.sleep(wait_s if goal_ms <= self._limit_ms() else SLICE_S)

    @asynccontextmanager
    async def hold(self, at_ms: int) -> AsyncIterator[None]:
        """Keeps the clock from going more than LEAD_MS beyond `at_ms` inside the block.

        Who holds a time that is still to come may wait for it: no other hold is in its way for
        longer than that one takes.
        """
        self.now_ms()
        self._next_hold += 1
        number = self._next_hold
        self._held[number] = at_ms
        try:
            yield
        finally:
            self.now_ms()
            del self._held[number]
