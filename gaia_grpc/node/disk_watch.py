"""Notices a disk that hangs: a write that has not come back for too long (faults B15).

A leader whose disk hangs still answers heartbeats, so nobody else would ever replace it. Time is
counted in ticks: those that a stall of the loop missed do not exist, so a peer that was stopped
and goes on does not take its own pause for its disk's.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from gaia_grpc.errors import GaiaError
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NodeId

if TYPE_CHECKING:
    from gaia_grpc.node.engine import Engine

log = structlog.get_logger("gaia.node")


class DiskWatch:
    """Knows how long the oldest write has been under way."""

    def __init__(self, stall_ticks: int) -> None:
        self._stall_ticks = stall_ticks
        self._under_way: deque[tuple[int, int]] = deque()
        self._now_ticks = 0

    def tick(self) -> None:
        """A tick has passed."""
        self._now_ticks += 1

    def submitted(self, write_number: int) -> None:
        """A write is on its way to the disk."""
        self._under_way.append((write_number, self._now_ticks))

    def persisted(self, write_number: int) -> None:
        """It is there, and all before it."""
        while self._under_way and self._under_way[0][0] <= write_number:
            self._under_way.popleft()

    @property
    def stalled_ticks(self) -> int:
        """How long it has been stalled; 0 where it is not."""
        if not self._under_way:
            return 0
        return max(0, self._now_ticks - self._under_way[0][1] - self._stall_ticks)

    @property
    def stalled(self) -> bool:
        """Whether the oldest write takes longer than a healthy disk ever does."""
        return self.stalled_ticks > 0


class Abdication:
    """What a leader does about its stalled disk: hands over, or steps down if that fails.

    One whose state is still being restored hands over too: it was elected for its log, and nobody
    can write before it is ready, while another peer may be.
    """

    def __init__(
        self,
        engine: Engine,
        target: Callable[[], str | None],
        on_change: Callable[[], None],
        patience_ticks: int,
    ) -> None:
        """`target` names the peer that should lead, None where nobody else could."""
        self._engine = engine
        self._target = target
        self._on_change = on_change
        self._patience_ticks = patience_ticks
        self._ticks = 0
        self._was_stalled = False

    def on_tick(self) -> None:
        """Acts once the disk has stalled (as a follower, only tells that it has), and after an
        election timeout without a state."""
        engine = self._engine
        # A full disk answers: its peer refuses writes, and serves again when there is space.
        stalled = engine.disk.stalled and not engine.disk_full
        if stalled is not self._was_stalled:
            self._was_stalled = stalled
            log.warning("disk_stalled" if stalled else "disk_works_again")
            self._on_change()
        waits = stalled or engine.applier.restoring
        if not waits or engine.core.role is not RoleName.LEADER:
            self._ticks = 0
            return
        target = self._target()
        if target is None:
            return  # nobody would be helped
        self._ticks += 1
        if stalled and self._ticks > self._patience_ticks:
            engine.step_down()
        elif self._ticks == 1 if stalled else self._ticks % self._patience_ticks == 0:
            with contextlib.suppress(GaiaError):
                engine.transfer(NodeId(target))
