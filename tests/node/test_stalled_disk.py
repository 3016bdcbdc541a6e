"""B15: a disk that hangs says nothing, so its peer has to notice by itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gaia_grpc.config import StorageConfig
from gaia_grpc.errors import StorageFailedError
from gaia_grpc.node.disk_watch import DiskWatch
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import SnapshotMeta, WriteBatch
from gaia_grpc.storage.api import SnapshotWriter
from tests.support.local_cluster import LocalCluster, engine_of, enqueue, running, until, writing

PATIENCE = StorageConfig(disk_stall_ms=300)


class Gate:
    """A disk that can be made to hang."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    def hang(self) -> None:
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    def install(self, cluster: LocalCluster, name: str) -> None:
        storage = cluster.directories[name].log
        write = storage.write

        def gated(batches: Sequence[WriteBatch]) -> None:
            self._open.wait()
            write(batches)

        storage.write = gated  # type: ignore[method-assign]  # only this one's disk hangs


@asynccontextmanager
async def stalling(tmp_path: Path) -> AsyncIterator[tuple[LocalCluster, Gate]]:
    cluster, gate = LocalCluster(tmp_path), Gate()
    cluster.storage = PATIENCE
    try:
        async with running(cluster):
            yield cluster, gate
            gate.go_on()
    finally:
        gate.go_on()


def test_a_pause_of_the_loop_is_no_stall_of_the_disk() -> None:
    watch = DiskWatch(stall_ticks=3)
    watch.submitted(1)
    for _ in range(3):
        watch.tick()
    assert not watch.stalled
    watch.tick()
    assert watch.stalled
    watch.submitted(2)
    watch.persisted(1)
    assert not watch.stalled


async def test_b15_leader_with_a_hung_disk_is_replaced_and_comes_back(tmp_path: Path) -> None:
    async with stalling(tmp_path) as (cluster, gate), writing(cluster) as writer:
        await writer.more(5)
        old = await cluster.leader()
        gate.install(cluster, old)
        started_s = time.monotonic()
        gate.hang()
        await until(
            lambda: any(
                driver.status().role is RoleName.LEADER
                for name, driver in cluster.drivers.items()
                if name != old
            ),
            10,
        )
        assert time.monotonic() - started_s < 5
        await writer.more(10)
        # A follower takes no part in what its disk is for, and answers all the same.
        assert cluster.drivers[old].status().role is not RoleName.LEADER
        gate.go_on()
        await until(lambda: not engine_of(cluster.drivers[old]).disk.stalled)
        await writer.more(10)


async def test_leader_with_a_hung_disk_says_that_it_takes_no_writes(tmp_path: Path) -> None:
    """Alone, so nobody could take over: it keeps its office, and tells the truth."""
    cluster, gate = LocalCluster(tmp_path, ("n1",)), Gate()
    cluster.storage = PATIENCE
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        gate.install(cluster, "n1")
        gate.hang()
        try:
            proposing = asyncio.create_task(driver.propose(enqueue(0), timeout_s=20))
            await until(lambda: not driver.status().writable)
            assert driver.status().role is RoleName.LEADER
        finally:
            gate.go_on()
        await proposing
        await until(lambda: driver.status().writable)


async def test_stop_with_a_hung_disk_ends_in_time_and_as_a_failure(tmp_path: Path) -> None:
    async with stalling(tmp_path) as (cluster, gate):
        old = await cluster.leader()
        gate.install(cluster, old)
        gate.hang()
        driver = cluster.drivers.pop(old)
        directory = cluster.directories.pop(old)
        writing = asyncio.create_task(driver.propose(enqueue(0), timeout_s=5))
        started_s = time.monotonic()
        with pytest.raises(StorageFailedError, match="does not answer"):
            await driver.stop()
        assert time.monotonic() - started_s < 5
        assert driver.disk_hangs
        await asyncio.wait((writing,))
        gate.go_on()
        await until(lambda: not engine_of(driver).writer.running)
        directory.close()
        await cluster.leader()


async def test_committed_by_the_others_and_never_durable_here(tmp_path: Path) -> None:
    """The leader's disk hangs, the followers commit, the leader dies: what it has applied is there
    on the others, and comes back to it."""
    async with stalling(tmp_path) as (cluster, gate):
        leader = await cluster.leader()
        await cluster.agree()
        gate.install(cluster, leader)
        gate.hang()
        core = engine_of(cluster.drivers[leader]).core
        before = core.durable_index
        applied = await cluster.drivers[leader].propose(enqueue(0), timeout_s=5)
        assert core.durable_index == before < applied.index
        follower = next(name for name in cluster.names if name != leader)
        await until(lambda: cluster.drivers[follower].status().applied_index >= applied.index)
        state_hash = cluster.drivers[follower].status(applied.index).state_hash
        assert cluster.drivers[leader].status(applied.index).state_hash == state_hash
        # The write is lost with the process.
        storage = cluster.directories[leader].log
        storage.write = lambda batches: None  # type: ignore[method-assign]  # nothing arrives
        crashing = asyncio.create_task(cluster.crash(leader))
        gate.go_on()
        await crashing
        await cluster.start(leader)
        await cluster.agree()
        assert cluster.drivers[leader].status(applied.index).state_hash == state_hash


async def test_stop_ends_in_time_where_a_snapshot_file_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    async with stalling(tmp_path) as (cluster, _):
        leader = await cluster.leader()
        driver = cluster.drivers.pop(leader)
        directory = cluster.directories.pop(leader)
        create = directory.snapshots.create

        def hang(meta: SnapshotMeta) -> SnapshotWriter:
            gate.wait()
            return create(meta)

        monkeypatch.setattr(directory.snapshots, "create", hang)
        taking = asyncio.create_task(driver.take_snapshot(timeout_s=20))
        await asyncio.sleep(0.05)
        try:
            with pytest.raises(StorageFailedError, match="does not answer"):
                async with asyncio.timeout(5):
                    await driver.stop()
        finally:
            gate.set()
        await asyncio.wait((taking,), timeout=5)
        assert taking.done()
        directory.close()


async def test_b8_snapshot_is_complete_only_once_the_log_is_on_disk_up_to_it(
    tmp_path: Path,
) -> None:
    """Committed by the others, applied here, and not on this disk: a snapshot of it that lives
    through a crash would stand for more than the log holds."""
    async with stalling(tmp_path) as (cluster, gate):
        leader = await cluster.leader()
        await cluster.agree()
        gate.install(cluster, leader)
        gate.hang()
        driver = cluster.drivers[leader]
        applied = await driver.propose(enqueue(0), timeout_s=5)
        assert engine_of(driver).core.durable_index < applied.index
        taking = asyncio.create_task(driver.take_snapshot(timeout_s=10))
        snapshots = cluster.directories[leader].snapshots
        await until(lambda: driver.inbound.running().snapshots.stats.slices > 0)
        stats = engine_of(driver).stats
        ticks = stats.ticks
        await until(lambda: stats.ticks >= ticks + 40)
        assert snapshots.latest() is None
        gate.go_on()
        assert (await taking).index >= applied.index
        info = snapshots.latest()
        assert info is not None
        assert engine_of(driver).core.durable_index >= info.meta.index
