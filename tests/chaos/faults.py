"""The faults that a run can draw. Each one injects, heals, and tells what proves that it happened.

A fault that left no trace (no byte held up, no call delayed, a wrong exit code) makes the run void:
a run that met nothing proves nothing.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from gaia_grpc.testing.disk import FlippedBytes, SyncFault
from gaia_grpc.testing.injured import CLIENTS, InjuredCluster
from gaia_grpc.testing.network import Traffic

READY_TIMEOUT_S = 25.0
EXIT_TIMEOUT_S = 20.0
FLIPPED_START_TIMEOUT_S = 12.0
LOSS_TIMEOUT_S = 2.0


@dataclass(slots=True)
class Stage:
    """What faults work on."""

    cluster: InjuredCluster
    draw: random.Random
    directory: Path
    keep_log: Callable[[str], None]
    """Called with a peer that has just ended, before it runs again: its log may be read."""
    unhealthy: set[str] = field(default_factory=set)
    """Peers that take no part now; the word `quorum` where no majority is well."""

    def followers(self) -> list[str]:
        """Peers that do not lead."""
        leader = self.leader()
        return [node_id for node_id in self.cluster.node_ids if node_id != leader]

    def leader(self) -> str:
        """The leader; any peer where none answers."""
        try:
            return self.cluster.leader(5)
        except TimeoutError:
            return self.draw.choice(self.cluster.node_ids)

    def pick(self, leader_chance: float = 0.5) -> str:
        """A peer, the leader rather often."""
        if self.draw.random() < leader_chance:
            return self.leader()
        return self.draw.choice(self.cluster.node_ids)


class Fault:
    """One fault, used once. The methods run in a thread and may block."""

    kind = ""
    background = False
    """May go on while others come and go."""
    hold_s = (1.0, 3.0)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.cluster = stage.cluster
        self.target = ""

    def inject(self) -> None:
        """Does the damage."""
        raise TypeError("a fault does damage")

    def heal(self) -> None:
        """Ends it and waits until the peers concerned serve again."""

    def evidence(self) -> str:
        """What shows that it happened; empty where nothing does."""
        raise TypeError("a fault leaves a trace")

    def start_again(self, *node_ids: str) -> None:
        """Starts peers that have ended, their logs read before."""
        for node_id in node_ids:
            self.stage.keep_log(node_id)
            self.cluster.respawn(node_id)
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()


# --- processes -----------------------------------------------------------------------------------


class Kill(Fault):
    """SIGKILL of some peers at once."""

    kind = "kill"
    hold_s = (0.2, 2.5)

    def victims(self) -> list[str]:
        """Whom it meets."""
        return [self.stage.pick()]

    def inject(self) -> None:
        targets = self.victims()
        self.target = "+".join(targets)
        if 2 * len(targets) > len(self.cluster.node_ids):
            self.stage.unhealthy.add("quorum")
        self.stage.unhealthy.update(targets)
        self.cluster.kill(*targets)
        self.codes = {target: self.cluster.peer(target).exit_code for target in targets}

    def heal(self) -> None:
        self.start_again(*self.target.split("+"))

    def evidence(self) -> str:
        return f"exit codes {self.codes}" if set(self.codes.values()) == {-9} else ""


class KillMajority(Kill):
    """Two of three at once."""

    kind = "kill majority"
    hold_s = (0.2, 1.0)

    def victims(self) -> list[str]:
        nodes = list(self.cluster.node_ids)
        self.stage.draw.shuffle(nodes)
        return nodes[: len(nodes) // 2 + 1]


class KillAll(Kill):
    """The power fails."""

    kind = "kill all"
    hold_s = (0.1, 0.5)

    def victims(self) -> list[str]:
        return list(self.cluster.node_ids)


class Terminate(Fault):
    """SIGTERM, as in a rolling restart."""

    kind = "terminate"
    hold_s = (0.1, 1.0)

    def inject(self) -> None:
        self.target = self.stage.pick(0.7)
        self.stage.unhealthy.add(self.target)
        self.code = self.cluster.terminate(self.target, EXIT_TIMEOUT_S)

    def heal(self) -> None:
        self.start_again(self.target)

    def evidence(self) -> str:
        return "exit code 0" if self.code == 0 else ""


class Replace(Fault):
    """A machine is lost with its disk; a new one joins under its name, as a learner first."""

    kind = "replaced machine"
    hold_s = (0.1, 0.5)

    def inject(self) -> None:
        with_own_disk = [n for n in self.cluster.node_ids if n not in self.cluster.disks]
        self.target = self.stage.draw.choice(with_own_disk)
        self.stage.unhealthy.add(self.target)
        before = self.cluster.status(self.target).peer_uuid
        self.cluster.kill(self.target)
        self.stage.keep_log(self.target)
        self.cluster.replace(self.target, READY_TIMEOUT_S)
        self.replaced = self.cluster.status(self.target).peer_uuid != before

    def heal(self) -> None:
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        return "voter with a new peer_uuid" if self.replaced else ""


class Pause(Fault):
    """SIGSTOP, then SIGCONT: connections stay, nothing is said, and time has passed."""

    kind = "pause"
    hold_s = (0.5, 4.0)

    def inject(self) -> None:
        self.target = self.stage.pick(0.7)
        self.stage.unhealthy.add(self.target)
        self.cluster.pause(self.target)
        pid = self.cluster.peer(self.target).pid
        self.state = ""
        deadline = time.monotonic() + 2
        while self.state != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
            self.state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2]

    def heal(self) -> None:
        self.cluster.resume(self.target)
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        return "process state T" if self.state == "T" else ""


# --- network -------------------------------------------------------------------------------------


class Cut(Fault):
    """What some peers say does not reach others."""

    kind = "cut"
    hold_s = (1.0, 5.0)

    def ways(self) -> list[tuple[str, str]]:
        """(source, target) pairs."""
        raise TypeError("a cut says what it cuts")

    def inject(self) -> None:
        self.cut_ways = self.ways()
        self.before = [self.cluster.network.traffic(*way) for way in self.cut_ways]
        for way in self.cut_ways:
            self.cluster.network.cut(*way)

    def heal(self) -> None:
        after = [self.cluster.network.traffic(*way) for way in self.cut_ways]
        self.held_bytes = sum(
            now.held_bytes - then.held_bytes for now, then in zip(after, self.before, strict=True)
        )
        self.attempts = sum(
            now.connections - then.connections for now, then in zip(after, self.before, strict=True)
        )
        if self.stage.draw.random() < 0.3:  # what was held up is lost: all connections are new
            for way in self.cut_ways:
                self.cluster.network.reset(*way)
        for way in self.cut_ways:
            self.cluster.network.heal(*way)
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        return f"{self.held_bytes} bytes held up" if self.held_bytes else ""


class Isolate(Cut):
    """One peer against all others, both ways."""

    kind = "isolate"

    def ways(self) -> list[tuple[str, str]]:
        self.target = self.stage.pick(0.6)
        self.stage.unhealthy.add(self.target)
        others = [node_id for node_id in self.cluster.node_ids if node_id != self.target]
        return [(self.target, other) for other in others] + [
            (other, self.target) for other in others
        ]


class Mute(Cut):
    """One peer hears everything and is heard by nobody."""

    kind = "one-way out"

    def ways(self) -> list[tuple[str, str]]:
        self.target = self.stage.pick(0.6)
        self.stage.unhealthy.add(self.target)
        return [(self.target, other) for other in self.cluster.node_ids if other != self.target]


class Deafen(Cut):
    """One peer is heard by everybody and hears nothing."""

    kind = "one-way in"

    def ways(self) -> list[tuple[str, str]]:
        self.target = self.stage.pick(0.6)
        self.stage.unhealthy.add(self.target)
        return [(other, self.target) for other in self.cluster.node_ids if other != self.target]


class CutPair(Cut):
    """Two peers lose each other, the third one knows both (faults B14)."""

    kind = "cut pair"

    def ways(self) -> list[tuple[str, str]]:
        first = self.stage.pick(0.6)
        second = self.stage.draw.choice(
            [node_id for node_id in self.cluster.node_ids if node_id != first]
        )
        self.target = f"{first}|{second}"
        return [(first, second), (second, first)]


class OneWay(Cut):
    """One peer no longer hears one other."""

    kind = "one-way pair"

    def ways(self) -> list[tuple[str, str]]:
        first, second = self.stage.draw.sample(self.cluster.node_ids, 2)
        self.target = f"{first}>{second}"
        return [(first, second)]


class Delay(Fault):
    """Everything between peers takes longer."""

    kind = "delay"
    background = True
    hold_s = (3.0, 8.0)

    def inject(self) -> None:
        self.seconds = self.stage.draw.uniform(0.005, 0.06)
        self.target = f"{self.seconds * 1000:.0f} ms"
        self.before = self._passed()
        for source in self.cluster.node_ids:
            for target in self.cluster.node_ids:
                if source != target:
                    self.cluster.network.delay(source, target, self.seconds)

    def heal(self) -> None:
        self.delayed_bytes = self._passed() - self.before
        for source in self.cluster.node_ids:
            for target in self.cluster.node_ids:
                if source != target:
                    self.cluster.network.delay(source, target, 0.0)

    def _passed(self) -> int:
        return sum(
            self.cluster.network.traffic(source, target).passed_bytes
            for source in self.cluster.node_ids
            for target in self.cluster.node_ids
            if source != target
        )

    def evidence(self) -> str:
        return f"{self.delayed_bytes} bytes delayed" if self.delayed_bytes else ""


class LostReplies(Fault):
    """Clients' calls are done, and nobody hears of it."""

    kind = "lost replies"
    background = True
    hold_s = (0.5, 2.0)

    def inject(self) -> None:
        answering = self.cluster.answering or self.cluster.node_ids
        self.target = self.stage.draw.choice(answering)
        self.before = self._traffic()
        self.cluster.lose_replies(self.target)

    def heal(self) -> None:
        deadline = time.monotonic() + LOSS_TIMEOUT_S
        while not self._lost() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.lost_bytes = self._lost()
        self.cluster.heal_clients(self.target)
        if not self.lost_bytes:  # that peer was down: another one has something to say
            self.inject()
            time.sleep(LOSS_TIMEOUT_S)
            self.lost_bytes = self._lost()
            self.cluster.heal_clients(self.target)

    def _lost(self) -> int:
        return self._traffic().discarded_bytes - self.before.discarded_bytes

    def _traffic(self) -> Traffic:
        return self.cluster.network.traffic(self.target, CLIENTS)

    def evidence(self) -> str:
        return f"{self.lost_bytes} bytes of replies lost" if self.lost_bytes else ""


# --- disks ---------------------------------------------------------------------------------------


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
        self.outcome = self._wait()

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
        if self.outcome.startswith("refused"):
            if not self.flipped.untouched_since:
                self.outcome += ", and changed the file"
            shutil.copytree(self.kept, self.directory, dirs_exist_ok=True)
            self.start_again(self.target)
        shutil.rmtree(self.kept)
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        offsets = ", ".join(str(offset) for offset in self.flipped.offsets)
        return f"{self.flipped.path.name} at {offsets}: {self.outcome}"


PROCESS_FAULTS: tuple[type[Fault], ...] = (
    Kill, KillMajority, KillAll, Terminate, Pause, Replace,
)  # fmt: skip
NETWORK_FAULTS: tuple[type[Fault], ...] = (Isolate, Mute, Deafen, CutPair, OneWay)
BACKGROUND_FAULTS: tuple[type[Fault], ...] = (Delay, LostReplies)
SYNC_FAULTS: tuple[type[Fault], ...] = (SlowSync, StalledSync, FailedSync)
ALL_FAULTS: tuple[type[Fault], ...] = (
    *PROCESS_FAULTS, *NETWORK_FAULTS, *BACKGROUND_FAULTS, *SYNC_FAULTS, FullDisk, Flip,
)  # fmt: skip
