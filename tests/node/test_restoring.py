"""The state out of a snapshot, while other things go on."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from gaia.command.v1 import command_pb2

from gaia_grpc.config import StorageConfig
from gaia_grpc.node.discarding import discard
from gaia_grpc.node.restoring import Restorer
from gaia_grpc.raft.types import EntryKind, WriteBatch
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.task_record import Task
from gaia_grpc.storage.api import SnapshotReader
from tests.support.local_cluster import (
    LocalCluster,
    count_tasks,
    engine_of,
    enqueue,
    running,
    until,
)

SMALL = StorageConfig(
    snapshot_every_entries=30, snapshot_keep_entries=5, snapshot_hold_size_bytes=1 << 10
)


async def enqueue_some(cluster: LocalCluster, name: str, count: int) -> None:
    for _ in range(count):
        await cluster.drivers[name].propose(enqueue(0), timeout_s=10)


async def fall_behind(cluster: LocalCluster, name: str, leader: str) -> int:
    """Cuts a peer off until the log that it needs is gone; returns its last index."""
    core = engine_of(cluster.drivers[name]).core
    cluster.isolate(name)
    await enqueue_some(cluster, leader, 100)
    await until(lambda: cluster.drivers[leader].status().first_log_index > core.last_index + 1)
    return core.last_index


async def test_restore_that_ends_while_a_newer_snapshot_is_written_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed behind the newer one would be applied to the older state: a gap."""
    cluster = LocalCluster(tmp_path)
    cluster.storage = SMALL
    reading, may_read = asyncio.Event(), asyncio.Event()
    may_write = threading.Event()
    read = Restorer._read

    async def held(self: Restorer, reader: SnapshotReader) -> StateMachine:
        reading.set()
        await may_read.wait()
        return await read(self, reader)

    try:
        async with running(cluster):
            leader = await cluster.leader()
            lagging = next(name for name in cluster.names if name != leader)
            driver = cluster.drivers[lagging]
            engine = engine_of(driver)
            await fall_behind(cluster, lagging, leader)
            monkeypatch.setattr(Restorer, "_read", held)
            cluster.network.heal()
            await asyncio.wait_for(reading.wait(), 10)
            older = engine.core.snapshot
            storage = cluster.directories[lagging].log
            write = storage.write

            def gated(batches: Sequence[WriteBatch]) -> None:
                if any(batch.snapshot is not None for batch in batches):
                    may_write.wait()
                write(batches)

            monkeypatch.setattr(storage, "write", gated)
            await fall_behind(cluster, lagging, leader)
            cluster.network.heal()
            await until(lambda: engine.core.is_installing and engine.core.snapshot != older, 10)
            restoring = driver.inbound.running().restorer._task
            assert restoring is not None
            await enqueue_some(cluster, leader, 5)
            may_read.set()
            await asyncio.wait((restoring,), timeout=5)
            assert restoring.done()
            assert engine.applier.restoring
            may_write.set()
            await cluster.agree()
            assert not driver.failed.done()
            assert await count_tasks(driver) == 205
    finally:
        may_write.set()


def grown(tasks: int) -> StateMachine:
    machine = StateMachine()
    commands = [command_pb2.Command(found_cluster=command_pb2.FoundCluster(cluster_id="c"))]
    spec = command_pb2.TaskSpec(task_type="t", affinity="math")
    for number in range(tasks // 100):
        enqueue_tasks = command_pb2.EnqueueTasks(tasks=[spec] * 100)
        commands.append(
            command_pb2.Command(
                request_id=f"r{number}", request_digest=b"d", enqueue_tasks=enqueue_tasks
            )
        )
    for index, command in enumerate(commands, 1):
        machine.apply(index, int(EntryKind.COMMAND), command.SerializeToString())
    return machine


def encoded(machine: StateMachine) -> bytes:
    encoder = machine.begin_snapshot()
    chunks = list(iter(lambda: encoder.take(100), b""))
    encoder.close()
    return b"".join(chunks)


def count_of(kind: type) -> int:
    return sum(type(each) is kind for each in gc.get_objects())


def test_replaced_state_goes_in_slices_and_leaves_nothing_for_the_collector() -> None:
    """Its tables refer to each other; a collection of 100,000 tasks stops the loop for 0.2 s."""
    twin, kept = grown(3_000), grown(3_000)
    gc.collect()
    machines, tasks = count_of(StateMachine), count_of(Task)
    gc.disable()
    try:
        replaced = grown(3_000)
        slices = sum(1 for _ in discard(replaced))
        assert slices > 1
        del replaced
        assert count_of(StateMachine) == machines
        assert count_of(Task) == tasks
        assert gc.collect() < 100
    finally:
        gc.enable()
    # What all states share is still there.
    assert encoded(kept) == encoded(twin)
    again = grown(3_000)
    assert encoded(again) == encoded(twin)
    assert again.state_hash() == twin.state_hash()


async def test_restored_state_is_not_collected_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who owns the process freezes it then; half of a state was looked through again and again."""
    enabled: list[bool] = []
    read = Restorer._read

    async def watched(self: Restorer, reader: SnapshotReader) -> StateMachine:
        machine = await read(self, reader)
        enabled.append(gc.isenabled())
        return machine

    monkeypatch.setattr(Restorer, "_read", watched)
    cluster = LocalCluster(tmp_path, ("n1",))
    cluster.on_state_loaded = lambda: enabled.append(gc.isenabled())
    async with running(cluster):
        await cluster.leader()
        await enqueue_some(cluster, "n1", 10)
        await cluster.drivers["n1"].take_snapshot(timeout_s=5)
        await cluster.crash("n1")
        await cluster.start("n1")
        assert enabled == [False, False]
        await until(gc.isenabled)
        assert await count_tasks(cluster.drivers["n1"]) == 10
