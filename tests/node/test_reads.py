"""Linearizable reads through cuts, crashes and changes of leader (faults B9, B10).

One writer, whose values only grow, so the check is a comparison: what a read returns is at least
what was acknowledged before it began, and at most what was begun before it ended; and of two reads
of which one ended before the other began, on whatever peers, the second sees no less.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from gaia_grpc.errors import GaiaError
from gaia_grpc.raft.types import NodeId
from tests.support.local_cluster import (
    LocalCluster,
    change_setting,
    read_setting,
    result_of,
    running,
    until,
)

SETTING = "task.claim_timeout"
FIRST = 10_000
"""In milliseconds: any value that the setting may have, and that is below the default of none."""


@dataclass
class History:
    begun: int = FIRST
    acknowledged: int = FIRST
    seen: int = FIRST
    reads: int = 0
    attempts: int = 0

    async def go_on(self, attempts: int) -> None:
        """Returns after so many more attempts to read, whatever became of them."""
        end = self.attempts + attempts
        await until(lambda: self.attempts >= end, timeout_s=30)


async def write(cluster: LocalCluster, history: History, random: Random) -> None:
    while True:
        value = history.begun + 1
        history.begun = value
        name = random.choice(sorted(cluster.drivers))
        with contextlib.suppress(GaiaError):
            applied = await cluster.drivers[name].propose(
                change_setting(SETTING, f"{value}ms", f"w{value}"), timeout_s=0.5
            )
            assert result_of(applied).WhichOneof("body") == "settings"
            history.acknowledged = value
        await asyncio.sleep(0.002)


async def read(cluster: LocalCluster, history: History, random: Random) -> None:
    while True:
        name = random.choice(sorted(cluster.drivers))
        least = max(history.acknowledged, history.seen)
        with contextlib.suppress(GaiaError):
            text = await read_setting(cluster.drivers[name], SETTING, timeout_s=0.5)
            value = milliseconds(text)
            assert least <= value <= history.begun, f"{name} read {value} after {least}"
            history.seen = max(history.seen, value)
            history.reads += 1
        history.attempts += 1
        await asyncio.sleep(0.001)


def milliseconds(text: str) -> int:
    if text.endswith("ms"):
        return int(text[:-2])
    return round(float(text.removesuffix("s")) * 1000)


async def disturb(cluster: LocalCluster, history: History, random: Random, rounds: int) -> None:
    for _ in range(rounds):
        await history.go_on(random.randint(20, 100))
        name = random.choice(cluster.names)
        others = [NodeId(each) for each in cluster.names if each != name]
        match random.randrange(3):
            case 0:
                cluster.network.isolate(NodeId(name), others)
                await history.go_on(random.randint(5, 40))
                cluster.network.heal()
            case 1:
                cluster.network.cut(NodeId(name), others[random.randrange(2)])
                await history.go_on(random.randint(5, 40))
                cluster.network.heal()
            case _:
                await cluster.crash(name)
                await history.go_on(random.randint(0, 20))
                await cluster.start(name)


@pytest.mark.parametrize("seed", [1, 2])
async def test_read_sees_all_that_was_acknowledged_before_it(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    async with running(LocalCluster(tmp_path)) as cluster:
        await cluster.drivers["n1"].propose(
            change_setting(SETTING, f"{FIRST}ms", "first"), timeout_s=10
        )
        history = History()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(write(cluster, history, random)),
                *(group.create_task(read(cluster, history, random)) for _ in range(4)),
            ]
            await disturb(cluster, history, random, 10)
            for task in tasks:
                task.cancel()
        await cluster.leader()
        await cluster.agree()
    assert history.reads > 50
    assert history.acknowledged > FIRST + 10
