"""Lets the work of a crowd pass a little at a time.

The loop runs everything that is ready before it looks at its timers and at the peers again. With a
thousand streams that have something to say at the same moment, one such round takes a third of a
second, and what waits for three or four rounds (a task on its way into the log, a heartbeat) waits
for more than a leader may. So whoever belongs to a crowd asks here before each step: as many go on
in one round as fit into a slice of time, and the others in the next ones, first come, first served.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

SLICE_NS = 2_000_000
STEPS_IN_A_ROUND = 8
"""Of those that waited; what one takes is not known before."""


class Turns:
    """One line of a crowd; all methods are called on the loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slice_end_ns: int | None = None
        """None where nobody asked in this round."""

    async def wait(self) -> None:
        """Returns when it is the caller's turn: at once while the round is short."""
        now_ns = time.perf_counter_ns()
        if self._slice_end_ns is None:
            self._slice_end_ns = now_ns + SLICE_NS
            asyncio.get_running_loop().call_soon(self._next_round)
        if not self._waiting and now_ns < self._slice_end_ns:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _next_round(self) -> None:
        going = 0
        while self._waiting and going < STEPS_IN_A_ROUND:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                going += 1
        if going:
            self._slice_end_ns = 0
            asyncio.get_running_loop().call_soon(self._next_round)
        else:
            self._slice_end_ns = None
