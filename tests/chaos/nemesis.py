"""Draws the faults of a run from its seed and carries them out: bounded in number and in time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gaia_grpc.testing.disk import small_disk_missing, strace_missing
from tests.chaos.disk_faults import SYNC_FAULTS, Flip, FullDisk
from tests.chaos.faults import BACKGROUND_FAULTS, NETWORK_FAULTS, PROCESS_FAULTS, Fault, Stage

MAX_FAULTS = 200
ALL_FAULTS: tuple[type[Fault], ...] = (
    *PROCESS_FAULTS, *NETWORK_FAULTS, *BACKGROUND_FAULTS, *SYNC_FAULTS, FullDisk, Flip,
)  # fmt: skip
BY_KIND: dict[str, type[Fault]] = {fault.kind: fault for fault in ALL_FAULTS}


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of the plan. The peer that it meets depends on who leads at that time."""

    kind: str
    wait_s: float
    hold_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed stands for: one fault after the other, and some beside them."""

    seed: int
    foreground: tuple[Step, ...]
    background: tuple[Step, ...]

    @property
    def kinds(self) -> set[str]:
        """Kinds of faults that it holds."""
        return {step.kind for step in (*self.foreground, *self.background)}


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that is over."""

    kind: str
    target: str
    began_at: float
    ended_at: float
    evidence: str
    error: str = ""
    """Why the cluster did not come back, where it did not."""

    def __str__(self) -> str:
        span = f"{self.began_at:7.2f} - {self.ended_at:7.2f} s"
        what = self.error or self.evidence or "NO TRACE OF IT"
        return f"{span}  {self.kind:<14} {self.target:<9} {what}"


def possible_faults() -> tuple[list[type[Fault]], list[str]]:
    """What can be injected on this machine, and why the rest can't, for people."""
    possible = [*PROCESS_FAULTS, *NETWORK_FAULTS, *BACKGROUND_FAULTS, Flip]
    skipped = []
    if (why := strace_missing()) is None:
        possible += SYNC_FAULTS
    else:
        skipped.append(f"no injured syncs: {why}")
    if (why := small_disk_missing()) is None:
        possible.append(FullDisk)
    else:
        skipped.append(f"no full disk: {why}")
    return possible, skipped


def draw_plan(seed: int, seconds: float, kinds: Sequence[str], *, swarm: bool = True) -> Plan:
    """The same seed, length and kinds always give the same plan.

    A seed leaves out some kinds (`swarm`), so that the others come more often; the kinds that are
    left come in shuffled rounds, so that none is forgotten.
    """
    draw = random.Random(f"nemesis {seed}")
    left = [kind for kind in sorted(kinds) if draw.random() < 0.75]
    chosen = left if swarm and left else sorted(kinds)
    steps: dict[bool, list[Step]] = {False: [], True: []}
    for background, lane in steps.items():
        members = [kind for kind in chosen if BY_KIND[kind].background is background]
        at_s = 0.0
        bag: list[str] = []
        while members and at_s < seconds and len(lane) < MAX_FAULTS:
            if not bag:
                bag = draw.sample(members, len(members))
            kind = bag.pop()
            wait_s = draw.uniform(0.5, 2.5)
            hold_s = draw.uniform(*BY_KIND[kind].hold_s)
            lane.append(Step(kind, wait_s, hold_s, draw.randrange(1 << 30)))
            at_s += wait_s + hold_s
    return Plan(seed, tuple(steps[False]), tuple(steps[True]))


class Nemesis:
    """Carries out a plan until the time is up."""

    def __init__(self, plan: Plan, stage: Stage, seconds: float) -> None:
        self.plan = plan
        self.injected: list[Injected] = []
        self.health: list[tuple[float, bool]] = []
        """(time, whether a connected majority is well), at each change."""
        self._stage = stage
        self._seconds = seconds
        self._began_at = 0.0

    @property
    def counts(self) -> Counter[str]:
        """Faults by kind."""
        return Counter(fault.kind for fault in self.injected)

    async def run(self) -> None:
        """Returns when the time is up, everything healed."""
        loop = asyncio.get_running_loop()
        self._began_at = loop.time()
        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lane(self.plan.foreground))
                group.create_task(self._lane(self.plan.background))
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            self.health.append((loop.time(), self._well))

    @property
    def _well(self) -> bool:
        stage = self._stage
        lost = len(stage.unhealthy - {"quorum"})
        return "quorum" not in stage.unhealthy and 2 * lost < len(stage.cluster.node_ids)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self.health or self.health[-1][1] != self._well:
                self.health.append((loop.time(), self._well))
            await asyncio.sleep(0.02)

    async def _lane(self, steps: Sequence[Step]) -> None:
        """Ends early where the cluster did not come back: nothing more can be learned."""
        loop = asyncio.get_running_loop()
        for step in steps:
            if any(fault.error for fault in self.injected):
                return
            left_s = self._began_at + self._seconds - loop.time()
            if left_s < step.wait_s + step.hold_s:
                return
            await asyncio.sleep(step.wait_s)
            await self._one(step)

    async def _one(self, step: Step) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time() - self._began_at
        stage = replace(self._stage, draw=random.Random(step.seed))
        fault = BY_KIND[step.kind](stage)
        error = evidence = ""
        try:
            await asyncio.to_thread(fault.inject)
            await asyncio.sleep(step.hold_s)
            await asyncio.to_thread(fault.heal)
            evidence = fault.evidence()
        except Exception as failure:  # whatever it is belongs to the report of the run
            error = f"{type(failure).__name__}: {failure}"
        ended_at = loop.time() - self._began_at
        self.injected.append(Injected(step.kind, fault.target, began_at, ended_at, evidence, error))
