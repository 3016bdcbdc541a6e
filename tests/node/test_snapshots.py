"""Snapshots of one peer, and those that bring another one back."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from gaia_grpc.config import StorageConfig
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.raft.types import Index
from gaia_grpc.storage.snapshots import FileSnapshotStore
from gaia_grpc.storage.sqlite_log import SqliteLog
from tests.support.local_cluster import (
    LocalCluster,
    count_tasks,
    enqueue,
    running,
    until,
    writing,
)

SMALL = StorageConfig(snapshot_every_entries=30, snapshot_keep_entries=5)


def snapshotting(root: Path, storage: StorageConfig = SMALL) -> LocalCluster:
    cluster = LocalCluster(root)
    cluster.storage = storage
    return cluster


def has_compacted(driver: NodeDriver, index: int) -> bool:
    status = driver.status()
    return status.snapshot_index >= index and status.first_log_index > index - 10


def is_tidy(stored: SqliteLog, snapshots: FileSnapshotStore) -> bool:
    return not stored.needs_maintenance and len(snapshots.complete()) == 1


async def enqueue_some(cluster: LocalCluster, name: str, count: int) -> None:
    for _ in range(count):
        await cluster.drivers[name].propose(enqueue(0), timeout_s=10)


async def test_snapshots_are_made_and_the_log_behind_them_goes(tmp_path: Path) -> None:
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await enqueue_some(cluster, leader, 100)
        await cluster.agree()
        for name, driver in cluster.drivers.items():
            await until(partial(has_compacted, driver, 60))
            status = driver.status()
            # What lags by no more than the kept entries needs no snapshot.
            assert status.first_log_index <= status.snapshot_index - 4
            stored = cluster.directories[name].log
            snapshots = cluster.directories[name].snapshots
            await until(partial(is_tidy, stored, snapshots))
            assert stored.read_entries(Index(1), 1)[0].index == status.first_log_index
            assert snapshots.complete()[0].meta.index == status.snapshot_index


async def test_peer_restarts_from_its_snapshot_and_the_log_behind_it(tmp_path: Path) -> None:
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await enqueue_some(cluster, leader, 75)
        await cluster.agree()
        name = next(name for name in cluster.names if name != leader)
        await until(lambda: cluster.drivers[name].status().snapshot_index > 0)
        before = cluster.drivers[name].status()
        await cluster.crash(name)
        await cluster.start(name)
        await cluster.agree()
        after = cluster.drivers[name].status(before.applied_index)
        assert after.first_log_index > 1
        assert after.snapshot_index == before.snapshot_index
        assert after.state_hash == before.state_hash
        assert await count_tasks(cluster.drivers[name]) == 75
        await enqueue_some(cluster, name, 5)
        await cluster.agree()


async def test_whole_cluster_restarts_from_snapshots(tmp_path: Path) -> None:
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await enqueue_some(cluster, leader, 75)
        state_hash = await cluster.agree()
        index = cluster.drivers[leader].status().applied_index
        for name in cluster.names:
            await cluster.stop(name)
        await cluster.start()
        await cluster.leader()
        await cluster.agree()
        for driver in cluster.drivers.values():
            assert driver.status(index).state_hash == state_hash
        await enqueue_some(cluster, "n2", 40)
        await cluster.agree()


async def test_lagging_follower_is_brought_back_by_a_snapshot_while_writes_go_on(
    tmp_path: Path,
) -> None:
    async with running(snapshotting(tmp_path)) as cluster, writing(cluster) as writer:
        leader = await cluster.leader()
        lagging = next(name for name in cluster.names if name != leader)
        await writer.more(10)
        await cluster.crash(lagging)
        await writer.more(150)
        first = cluster.drivers[await cluster.leader()].status().first_log_index
        assert first > 50
        await cluster.start(lagging)
        await until(lambda: cluster.drivers[lagging].status().snapshot_index >= first, 20)
        await writer.more(20)


async def test_follower_that_was_cut_off_gets_a_snapshot_without_a_restart(tmp_path: Path) -> None:
    """Whoever waits for a topic hears of it, though no entry touched it here."""
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        lagging = next(name for name in cluster.names if name != leader)
        version = cluster.drivers[lagging].topic_version("tasks")
        cluster.isolate(lagging)
        await enqueue_some(cluster, leader, 150)
        cluster.network.heal()
        await until(lambda: cluster.drivers[lagging].status().snapshot_index > 100, 20)
        await cluster.agree()
        assert cluster.drivers[lagging].topic_version("tasks") != version
        assert await count_tasks(cluster.drivers[lagging]) == 150


async def test_snapshot_on_demand_can_be_read_by_anybody(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        await enqueue_some(cluster, "n1", 20)
        driver = cluster.drivers["n1"]
        summary = await driver.take_snapshot(timeout_s=5)
        status = driver.status(summary.index)
        assert summary.index == driver.status().applied_index
        assert summary.state_hash == status.state_hash
        assert await driver.take_snapshot(timeout_s=5) == summary
        stream = await driver.read_snapshot(1_000)
        assert stream.summary == summary
        data = b"".join([chunk async for chunk in stream])
        await stream.close()
        assert hashlib.sha256(data).digest() == summary.sha256
