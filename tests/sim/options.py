"""What a seed draws before the run starts: a swarm, each seed with rates of its own, many zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from gaia_grpc.transport.memory import NetworkFaults


@dataclass(frozen=True)
class Options:
    """Rates are chances per turn (of the whole cluster, unless something else is said)."""

    peers: int
    turns: int
    # network
    loss: float
    duplicate: float
    delay_ticks_max: int
    cut: float
    heal: float
    crash_at_heal: float
    """The chance that the leader crashes when a cut is healed."""
    break_transfer: float
    """The chance per turn that the connection of a transfer breaks."""
    chunk_bytes: int
    """Of a snapshot that is sent; one chunk arrives in a turn."""
    unreachable: float
    # clocks and processes
    clock_rate_spread: float
    """The ticks of a peer run by up to this much faster or slower."""
    clock_step: float
    """The chance that the wall clock of a peer jumps."""
    crash: float
    survive: bool
    """Whether a crash may keep what was written and not synced."""
    crash_at_work: float
    """The chance that a peer crashes that makes, receives, installs or restores a snapshot."""
    restart: float
    pause: float
    at_leader: float
    """How often a fault strikes the leader: elections are where the bugs are."""
    lazy: float
    """The chance that a peer leaves its effects for a later turn."""
    # disks
    persist: float
    """The chance that the next write of a peer begins in a turn."""
    latency_turns: int
    group: int
    """How many writes go into one transaction."""
    stall: float
    stall_ticks: int
    """A leader whose oldest write is older gives up its seat."""
    eio: float
    full: float
    damage: float
    wipe: float
    # snapshots
    snapshot_every: int
    keep_entries: int
    making_bytes: int
    """Content of an own snapshot that is written in a turn."""
    restore_turns: int
    lazy_apply: float
    """The chance that a peer applies nothing in a turn."""
    # what is asked
    clients: int
    burst: float
    """The chance that a leader gets some commands of nobody's session in a turn."""
    ask: float
    read: float
    lost_replies: float
    transfer: float
    peer_lost: float
    operator: float
    """The chance that the operator does something in a turn."""
    # the core
    max_entries: int
    max_inflight: int
    max_partial: int
    one_link_down: bool
    """Whether the end also asks for a stable leader with one link cut (faults B14)."""

    @classmethod
    def from_seed(cls, seed: int) -> Options:
        """A function of the seed alone."""
        random = Random(f"options {seed}")

        def rate(high: float, zero: float = 0.4) -> float:
            return 0.0 if random.random() < zero else round(random.uniform(high / 20, high), 4)

        return cls(
            peers=random.choice((3, 3, 3, 5)),
            turns=random.choice((200, 300)),
            loss=rate(random.choice((0.05, 0.3))),
            duplicate=rate(0.5),
            delay_ticks_max=random.choice((0, 0, 1, 2, 4, 8)),
            cut=rate(random.choice((0.02, 0.08))),
            heal=random.choice((0.03, 0.08, 0.2)),
            crash_at_heal=rate(0.5),
            break_transfer=rate(0.3),
            chunk_bytes=random.choice((40, 100, 400, 4_000)),
            unreachable=rate(0.2, zero=0.5),
            clock_rate_spread=random.choice((0.0, 0.1, 0.2)),
            clock_step=rate(0.05, zero=0.6),
            crash=rate(random.choice((0.02, 0.02, 0.1))),
            survive=random.random() < 0.6,
            crash_at_work=rate(0.1, zero=0.5),
            restart=random.choice((0.03, 0.1, 0.3)),
            pause=rate(0.03),
            at_leader=random.choice((0.0, 0.3, 0.8)),
            lazy=rate(0.5),
            persist=random.choice((1.0, 1.0, 0.7, 0.4)),
            latency_turns=random.choice((0, 0, 0, 1, 3)),
            group=random.choice((1, 2, 16)),
            stall=rate(0.01, zero=0.6),
            stall_ticks=random.choice((5, 15, 30)),
            eio=rate(0.01, zero=0.7),
            full=rate(0.02, zero=0.6),
            damage=rate(0.01, zero=0.4),
            wipe=rate(0.01, zero=0.4),
            snapshot_every=random.choice((5, 10, 20, 30, 50)),
            keep_entries=random.choice((0, 0, 1, 5)),
            making_bytes=random.choice((30, 100, 4_000)),
            restore_turns=random.choice((0, 1, 5)),
            lazy_apply=rate(0.6),
            clients=random.choice((2, 4, 8)),
            burst=random.choice((0.0, 0.5, 0.9)),
            ask=random.choice((0.2, 0.5, 0.9)),
            read=rate(0.5),
            lost_replies=rate(0.3),
            transfer=rate(0.04, zero=0.6),
            peer_lost=rate(0.1, zero=0.6),
            operator=rate(0.2, zero=0.25),
            max_entries=random.choice((1, 2, 5, 64)),
            max_inflight=random.choice((1, 2, 8)),
            max_partial=random.choice((1, 2, 8)),
            one_link_down=random.random() < 0.3,
        )

    def network_faults(self) -> NetworkFaults:
        """For messages; snapshots have connections of their own (`transfers.py`)."""
        return NetworkFaults(self.loss, self.duplicate, 0, self.delay_ticks_max)

    def quiet(self) -> Options:
        """The same without faults: what phase 2 runs with."""
        return replace(
            self,
            loss=0.0, duplicate=0.0, delay_ticks_max=0, cut=0.0, heal=0.0, break_transfer=0.0,
            crash_at_heal=0.0,
            chunk_bytes=max(self.chunk_bytes, 400), unreachable=0.0, clock_step=0.0, crash=0.0,
            crash_at_work=0.0, restart=0.0, pause=0.0, lazy=0.0, persist=1.0, latency_turns=0,
            stall=0.0, eio=0.0, full=0.0, damage=0.0, wipe=0.0, lost_replies=0.0, lazy_apply=0.0,
            transfer=0.0, peer_lost=0.0, operator=0.0, burst=0.0,
        )  # fmt: skip
