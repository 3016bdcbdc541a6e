"""The log time of a leader: when it begins, and when the log needs an entry to carry it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gaia.command.v1 import command_pb2

from gaia_grpc.node.api import Applied
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.clock import Clock, LogClock, entry_needed_ms
from gaia_grpc.raft.effects import RoleChange, RoleName
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import Term

_ADVANCE_TIME = command_pb2.Command(advance_time=command_pb2.AdvanceTime()).SerializeToString()


class LeaderTime:
    """Runs while this peer leads and has applied all that earlier leaders committed."""

    def __init__(
        self,
        core: RaftNode,
        applier: Applier,
        clock: Clock,
        propose: Callable[[bytes], asyncio.Future[Applied]],
    ) -> None:
        """`propose` queues a command of this peer's own."""
        self.clock = LogClock(clock)
        self._core = core
        self._applier = applier
        self._propose = propose
        self._term = Term(0)
        self._advance_pending = False

    @property
    def running(self) -> bool:
        """Whether this peer leads and knows what time it is."""
        return self.clock.running

    def now_ms(self) -> int:
        """The log time as far as this peer can tell."""
        applied_ms = self._applier.machine.elapsed_ms
        if not self.clock.running:
            return applied_ms
        return max(self.clock.advance_ms(), applied_ms)

    def start_if_ready(self) -> bool:
        """A new leader's log time begins where the applied log ends, so first all is applied."""
        core, applier = self._core, self._applier
        if self.clock.running or not core.is_ready_leader or applier.behind:
            return False
        self.clock.start(applier.machine.elapsed_ms)
        self._term = core.term
        self._advance_pending = False
        return True

    def role_changed(self, change: RoleChange) -> None:
        """Time stops with the office; also where this peer leads again, in a later term."""
        if self.clock.running and (change.role is not RoleName.LEADER or change.term != self._term):
            self.stop()

    def stop(self) -> None:
        """This peer does not lead."""
        self.clock.stop()
        self._advance_pending = False

    def pass_on(self, *, may_propose: bool) -> None:
        """Lets log time pass, and proposes AdvanceTime when it is needed; one at a time.

        Time passes in each tick, needed or not: what passes in one go is cut to `MAX_ADVANCE_MS`,
        so an idle leader that did not look would lose all of its idle time.
        """
        if not self.clock.running:
            return
        now_ms = self.clock.advance_ms()
        machine = self._applier.machine
        needed = now_ms >= entry_needed_ms(machine.elapsed_ms, machine.next_due_ms())
        if needed and not self._advance_pending and may_propose:
            self._advance_pending = True
            self._propose(_ADVANCE_TIME).add_done_callback(self._advanced)

    def _advanced(self, future: asyncio.Future[Applied]) -> None:
        self._advance_pending = False
        if not future.cancelled():
            future.exception()  # a lost leader's AdvanceTime is the next leader's business
