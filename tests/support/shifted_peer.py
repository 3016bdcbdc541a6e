"""`gaia` on a machine whose clocks are wrong: `python -m tests.support.shifted_peer serve ...`.

PEER_WALL_SHIFT_S moves the wall clock, PEER_CLOCK_RATE is how fast both clocks run (0.8: they lose
a fifth), PEER_MONOTONIC_START_S is what the monotonic one shows at the start.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial

from gaia_grpc import server
from gaia_grpc.cli.main import main


class ShiftedClock:
    """See the module."""

    def __init__(self, wall_shift_s: float, rate: float, monotonic_start_s: float) -> None:
        self._began_ns = time.monotonic_ns()
        self._wall_ms = time.time_ns() // 1_000_000 + int(wall_shift_s * 1_000)
        self._start_ns = int(monotonic_start_s * 1e9)
        self._rate = rate

    def monotonic_ns(self) -> int:
        """Nanoseconds since the chosen start."""
        return self._start_ns + int((time.monotonic_ns() - self._began_ns) * self._rate)

    def wall_ms(self) -> int:
        """Milliseconds since 1970, as this machine believes."""
        return self._wall_ms + (self.monotonic_ns() - self._start_ns) // 1_000_000


if __name__ == "__main__":
    clock = ShiftedClock(
        float(os.environ.get("PEER_WALL_SHIFT_S", "0")),
        float(os.environ.get("PEER_CLOCK_RATE", "1")),
        float(os.environ.get("PEER_MONOTONIC_START_S", "0")),
    )
    server.run = partial(server.run, clock=clock)
    sys.exit(main())
