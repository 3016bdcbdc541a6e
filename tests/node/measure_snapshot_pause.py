"""Measures how long the loop stands still by hand: `python -m tests.node.measure_snapshot_pause`.

One peer with 100,000 tasks in state takes a snapshot while one writer goes on; then it restarts
from it; then others join and install it; then one of them lags and installs another one over its
state. No test. A sample is taken at each turn of the loop, in wall time and in CPU time of the
loop's thread: on a busy machine only the latter says what the code does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from gaia.command.v1 import command_pb2

from gaia_grpc.config import StorageConfig
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import NodeId
from gaia_grpc.server import keep_what_is_loaded
from tests.support.local_cluster import FAST, LocalCluster, engine_of, running, until

PER_COMMAND = 1_000


class Turns:
    """The longest turn of the loop."""

    def __init__(self) -> None:
        self.longest_wall_ms = 0.0
        self.longest_cpu_ms = 0.0
        self._stop = False

    async def run(self) -> None:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        while not self._stop:
            await asyncio.sleep(0)
            now_s, now_cpu_s = time.perf_counter(), time.thread_time()
            self.longest_wall_ms = max(self.longest_wall_ms, 1000 * (now_s - wall_s))
            self.longest_cpu_ms = max(self.longest_cpu_ms, 1000 * (now_cpu_s - cpu_s))
            wall_s, cpu_s = now_s, now_cpu_s

    def stop(self) -> None:
        self._stop = True


def enqueue(count: int, request_id: str) -> bytes:
    spec = command_pb2.TaskSpec(task_type="grade", payload=bytes(200), affinity="math")
    return command_pb2.Command(
        request_id=request_id,
        request_digest=b"same",
        enqueue_tasks=command_pb2.EnqueueTasks(tasks=[spec] * count),
    ).SerializeToString()


async def measured(what: str, work: Callable[[], Awaitable[object]]) -> None:
    turns = Turns()
    sampling = asyncio.create_task(turns.run())
    started_s = time.perf_counter()
    await work()
    took_s = time.perf_counter() - started_s
    turns.stop()
    await sampling
    sys.stdout.write(
        f"{what:<34} {took_s:6.2f} s, longest turn {turns.longest_cpu_ms:6.1f} ms of CPU, "
        f"{turns.longest_wall_ms:6.1f} ms of wall time\n"
    )


async def install_at(name: str, cluster: LocalCluster, starting: asyncio.Task[None]) -> None:
    await cluster.add(name, via="n1", timeout_s=120)
    await starting


def is_heard(core: RaftNode, name: NodeId) -> bool:
    known = core.progress(name)
    return known is not None and known.heard_ticks_ago * FAST.tick_ms <= (
        FAST.election_timeout_max_ms
    )


async def lag_and_install(cluster: LocalCluster) -> None:
    """A further peer has the state, falls behind, and gets another one in its place."""
    starting = await cluster.wait_to_join("n3")
    await install_at("n3", cluster, starting)
    lagging = cluster.drivers["n3"]
    await until(lambda: lagging.status().restored_index > 0, 60)
    await cluster.agree()
    cluster.isolate("n3")
    await cluster.drivers["n1"].propose(enqueue(PER_COMMAND, "more"), timeout_s=20)
    leading, n3 = engine_of(cluster.drivers["n1"]).core, engine_of(lagging).core.node_id
    await until(lambda: not is_heard(leading, n3), 60)
    seen = (await cluster.drivers["n1"].take_snapshot(timeout_s=120)).index

    async def install_over() -> None:
        cluster.network.heal()
        await until(lambda: lagging.status().restored_index >= seen, 60)
        await lagging.inbound.running().restorer.ended()

    await measured("a third lags and installs another one", install_over)


async def main(tasks: int, root: Path) -> None:
    cluster = LocalCluster(root, ("n1",))
    cluster.storage = StorageConfig(snapshot_keep_entries=0)
    cluster.on_state_loaded = gc.freeze
    async with running(cluster):
        await cluster.leader()
        for number in range(tasks // PER_COMMAND):
            await cluster.drivers["n1"].propose(enqueue(PER_COMMAND, f"b{number}"), timeout_s=20)
        keep_what_is_loaded()
        stop = asyncio.Event()
        written = 0

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                await cluster.drivers["n1"].propose(enqueue(1, f"w{written}"), timeout_s=20)
                written += 1

        async def for_a_moment() -> None:
            await until(lambda: written >= 500, 60)

        async def snapshot() -> None:
            await cluster.drivers["n1"].take_snapshot(timeout_s=120)

        writing = asyncio.create_task(write())
        await measured("writes alone", for_a_moment)
        sys.stdout.write(f"  {written} writes meanwhile\n")
        before = written
        await measured("writes and a snapshot", snapshot)
        sys.stdout.write(f"  {written - before} writes meanwhile\n")
        stop.set()
        await writing
        await cluster.drivers["n1"].take_snapshot(timeout_s=120)
        gc.unfreeze()
        await cluster.crash("n1")
        await measured("restart from the snapshot", lambda: cluster.start("n1"))
        await cluster.leader()
        await cluster.drivers["n1"].take_snapshot(timeout_s=120)
        starting = await cluster.wait_to_join("n2")

        await measured("a second peer joins", lambda: install_at("n2", cluster, starting))
        await lag_and_install(cluster)
        for name, driver in sorted(cluster.drivers.items()):
            slice_ms = driver.inbound.running().restorer.longest_slice_ns / 1e6
            sys.stdout.write(f"  {name}: longest slice of restoring {slice_ms:.1f} ms\n")
        await cluster.agree()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(parser.parse_args().tasks, Path(directory)))
