"""The state out of a snapshot, while other things go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from gaia_grpc.config import StorageConfig
from gaia_grpc.node.restoring import Restorer
from gaia_grpc.raft.types import WriteBatch
from gaia_grpc.state.machine import StateMachine
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
