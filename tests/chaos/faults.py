"""The faults that a run can draw. Each one injects, heals, and tells what proves that it happened.

A fault that left no trace (no byte held up, no call delayed, a wrong exit code) makes the run void:
a run that met nothing proves nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gaia_grpc.testing.injured import CLIENTS, InjuredCluster
from gaia_grpc.testing.network import Traffic

READY_TIMEOUT_S = 25.0
EXIT_TIMEOUT_S = 20.0
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

    def leader_and_follower(self) -> tuple[str, str]:
        """The leader and one of the others."""
        leader = self.leader()
        others = [node_id for node_id in self.cluster.node_ids if node_id != leader]
        return leader, self.draw.choice(others)

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
    """A machine is lost with its disk; a new one joins under its name; then the others restart."""

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
        # The others reach it at the address that it was added with; from their next start on
        # through their own proxies to it, without which no later cut would meet it.
        for node_id in self.cluster.node_ids:
            if node_id != self.target:
                self.cluster.terminate(node_id, EXIT_TIMEOUT_S)
                self.start_again(node_id)

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
    """The leader and a follower lose each other, the third one knows both (faults B14)."""

    kind = "cut pair"

    def ways(self) -> list[tuple[str, str]]:
        # Followers say nothing to each other: without the leader nothing would be held up.
        first, second = self.stage.leader_and_follower()
        self.target = f"{first}|{second}"
        return [(first, second), (second, first)]


class OneWay(Cut):
    """The leader and a follower: one of them no longer hears the other."""

    kind = "one-way pair"

    def ways(self) -> list[tuple[str, str]]:
        first, second = self.stage.draw.sample(self.stage.leader_and_follower(), 2)
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


PROCESS_FAULTS: tuple[type[Fault], ...] = (
    Kill, KillMajority, KillAll, Terminate, Pause, Replace,
)  # fmt: skip
NETWORK_FAULTS: tuple[type[Fault], ...] = (Isolate, Mute, Deafen, CutPair, OneWay)
BACKGROUND_FAULTS: tuple[type[Fault], ...] = (Delay, LostReplies)
