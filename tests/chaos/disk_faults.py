"""Faults of disks: slow, hanging and failing syncs, no space, other bytes than were written."""

from __future__ import annotations

import shutil
import time

import grpc

from gaia_grpc.testing.disk import FlippedBytes, SyncFault
from tests.chaos.faults import EXIT_TIMEOUT_S, READY_TIMEOUT_S, Fault

FLIPPED_START_TIMEOUT_S = 12.0


class SlowSync(Fault):
    """Each fsync of one peer takes a while."""

    kind = "slow fsync"
    hold_s = (1.5, 4.0)
    delay_s = (0.02, 0.4)

    def inject(self) -> None:
        self.target = self.stage.pick(0.6)
        self.seconds = self.stage.draw.uniform(*self.delay_s)
        log = self.stage.directory / f"{self.target}.strace"
        self.fault = SyncFault(self.cluster.peer(self.target).pid, log, delay_s=self.seconds)
        self.stage.unhealthy.add(self.target)

    def heal(self) -> None:
        self.fault.stop()
        self.injured = self.fault.injured_calls
        if not self.cluster.peer(self.target).running:
            self.start_again(self.target)
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        return f"{self.injured} syncs of {self.seconds:.2f} s" if self.injured else ""


class StalledSync(SlowSync):
    """The disk hangs for seconds (faults B15)."""

    kind = "stalled fsync"
    hold_s = (3.0, 6.0)
    delay_s = (5.0, 8.0)


class FailedSync(Fault):
    """fsync returns EIO: the process must end, and not say that anything was written (B23)."""

    kind = "failed fsync"
    hold_s = (0.1, 1.0)

    def inject(self) -> None:
        self.target = self.stage.pick(0.6)
        log = self.stage.directory / f"{self.target}.strace"
        peer = self.cluster.peer(self.target)
        self.stage.unhealthy.add(self.target)
        self.fault = SyncFault(peer.pid, log, error="EIO")
        try:
            self.code = peer.wait(EXIT_TIMEOUT_S)
        finally:
            self.fault.stop()
        self.cluster.network.refuse(self.target)

    def heal(self) -> None:
        self.start_again(self.target)

    def evidence(self) -> str:
        if self.code == 0 or not self.fault.injured_calls:
            return ""
        return f"exit code {self.code} after {self.fault.injured_calls} failed syncs"


class FullDisk(Fault):
    """The one peer with a small disk has no byte left; later it has (B24)."""

    kind = "full disk"
    hold_s = (2.0, 4.0)

    def inject(self) -> None:
        self.target, self.disk = next(iter(self.cluster.disks.items()))
        if self.stage.leader() == self.target:
            self.stage.unhealthy.add("quorum")
        self.stage.unhealthy.add(self.target)
        self.filled = self.disk.fill()

    def heal(self) -> None:
        self.left = self.disk.free_bytes
        self.disk.free()
        self.ended = not self.cluster.peer(self.target).running
        if self.ended:
            self.start_again(self.target)
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        return f"{self.filled} bytes taken, {self.left} left, ended: {self.ended}"


class Flip(Fault):
    """Bytes of a stopped peer's files change: it must refuse, or serve what is right (B21, B22)."""

    kind = "flipped bytes"
    hold_s = (0.1, 0.3)

    def inject(self) -> None:
        self.target = self.stage.pick(0.3)
        self.stage.unhealthy.add(self.target)
        self.cluster.kill(self.target)
        self.stage.keep_log(self.target)
        directory = self.cluster.peer(self.target).data_dir
        if self.target in self.cluster.disks:
            directory = self.cluster.disks[self.target].outside
        self.directory = directory
        self.kept = self.stage.directory / f"{self.target}-before-the-flip"
        shutil.copytree(directory, self.kept)
        files = sorted(
            path
            for path in directory.rglob("*")
            if path.is_file()
            and path.stat().st_size
            and path.name not in ("lock", "ballast")
            and not path.name.endswith("-shm")
        )
        self.flipped = FlippedBytes(
            self.stage.draw.choice(files), self.stage.draw.randint(1, 8), self.stage.draw
        )
        self.cluster.respawn(self.target)
        self.outcomes = [self._wait()]
        if self.outcomes[0].startswith("refused"):  # as a supervisor does that starts it again
            self.cluster.respawn(self.target)
            self.outcomes.append(self._wait())

    def _wait(self) -> str:
        """Whether the peer refused to start, or serves."""
        peer = self.cluster.peer(self.target)
        deadline = time.monotonic() + FLIPPED_START_TIMEOUT_S
        while time.monotonic() < deadline:
            if not peer.running:
                return f"refused with exit code {peer.wait(1)}"
            try:
                self.cluster.status(self.target)
                return "serves"
            except grpc.RpcError:
                time.sleep(0.05)
        return "neither serves nor ends"

    def heal(self) -> None:
        if self.outcomes[-1].startswith("refused"):
            if not self.flipped.untouched_since:
                self.outcomes.append("and the file was changed")
            shutil.copytree(self.kept, self.directory, dirs_exist_ok=True)
            self.start_again(self.target)
        shutil.rmtree(self.kept)
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        offsets = ", ".join(str(offset) for offset in self.flipped.offsets)
        return f"{self.flipped.path.name} at {offsets}: {', '.join(self.outcomes)}"


SYNC_FAULTS: tuple[type[Fault], ...] = (SlowSync, StalledSync, FailedSync)
