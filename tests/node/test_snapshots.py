"""Snapshots of one peer, and those that bring another one back."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from gaia_grpc.config import StorageConfig
from gaia_grpc.errors import (
    GaiaError,
    StorageDamagedError,
    StorageFailedError,
    StorageFullError,
    UnavailableError,
)
from gaia_grpc.node import snapshots as snapshots_module
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.node.restoring import Restorer
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import Index, NodeId
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.storage import snapshot_handles
from gaia_grpc.storage.api import SnapshotReader
from gaia_grpc.storage.snapshots import FileSnapshotStore
from gaia_grpc.storage.sqlite_log import SqliteLog
from tests.support.local_cluster import (
    FAST,
    LocalCluster,
    count_tasks,
    engine_of,
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


def is_not_heard(cluster: LocalCluster, leader: str, name: str) -> bool:
    """The leader keeps no log for it any more."""
    progress = engine_of(cluster.drivers[leader]).core.progress(NodeId(name))
    return progress is None or progress.heard_ticks_ago * FAST.tick_ms > (
        FAST.election_timeout_max_ms
    )


def is_tidy(stored: SqliteLog, snapshots: FileSnapshotStore) -> bool:
    return not stored.needs_maintenance and len(snapshots.complete()) == 1


async def ticks_pass(cluster: LocalCluster, name: str, count: int) -> None:
    stats = engine_of(cluster.drivers[name]).stats
    target = stats.ticks + count
    await until(lambda: stats.ticks >= target, 20)


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


async def test_b18_peer_restarts_from_its_snapshot_and_the_log_behind_it(tmp_path: Path) -> None:
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
        await until(partial(is_not_heard, cluster, leader, lagging))
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


async def test_snapshot_that_is_given_up_tells_who_asked_for_it(tmp_path: Path) -> None:
    """One from the leader has come in between: no cancellation, which nobody has asked for."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        await enqueue_some(cluster, "n1", 20)
        driver = cluster.drivers["n1"]
        taking = asyncio.create_task(driver.take_snapshot(timeout_s=5))
        snapshots = driver.inbound.running().snapshots
        await until(lambda: snapshots.stats.slices > 0)
        snapshots.give_up()
        with pytest.raises(UnavailableError, match="given up"):
            await taking
        assert (await driver.take_snapshot(timeout_s=5)).index > 0


async def test_download_that_is_given_up_while_it_begins_keeps_no_file_open(tmp_path: Path) -> None:
    """The thread opens it all the same, and nobody is left to close it."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        await enqueue_some(cluster, "n1", 20)
        driver = cluster.drivers["n1"]
        await driver.take_snapshot(timeout_s=5)
        files = tmp_path / "n1" / "snapshots"
        for _ in range(20):
            busy = threading.Event()
            waiting = asyncio.create_task(driver._disk.run(busy.wait))
            reading = asyncio.create_task(driver.read_snapshot(1_000))
            await asyncio.sleep(0.001)
            reading.cancel()
            await asyncio.wait((reading,))
            busy.set()
            await waiting
        assert await driver._disk.run(partial(open_files, files)) == []


def open_files(folder: Path) -> list[str]:
    """Which files of a folder this process has open."""
    gc.collect()
    opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return [path for path in opened if path.startswith(f"{folder}/")]


# --- crashes and damage ---------------------------------------------------------------------------

CRASH_POINTS = [
    ("create", "before"),
    ("create", "after"),
    ("commit", "before"),
    ("commit", "after"),
    ("compact", "before"),
    ("compact", "after"),
    ("drop_older", "before"),
    ("drop_older", "after"),
]


@pytest.mark.parametrize(("step", "when"), CRASH_POINTS)
async def test_b18_crash_between_apply_and_snapshot_skips_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    """etcd #13766: the applied index and the state must come from the same place."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        driver = cluster.drivers["n1"]
        await enqueue_some(cluster, "n1", 20)
        first = await driver.take_snapshot(timeout_s=5)
        await enqueue_some(cluster, "n1", 20)
        directory = cluster.directories["n1"]
        owner: object = {
            "commit": snapshot_handles.Writer,
            "compact": directory.log,
        }.get(step, directory.snapshots)
        original = getattr(owner, step)

        def dies(*arguments: object) -> object:
            done = original(*arguments) if when == "after" else None
            raise StorageFailedError(
                f"the process ended {when} {step}", metadata={"done": str(done)}
            )

        monkeypatch.setattr(owner, step, dies)
        before = driver.status()
        with suppress(GaiaError):
            await driver.take_snapshot(timeout_s=5)
        async with asyncio.timeout(5):
            await driver.failed
        monkeypatch.undo()
        await cluster.crash("n1")
        await cluster.start("n1")
        await cluster.leader()
        driver = cluster.drivers["n1"]
        assert driver.status(before.applied_index).state_hash == before.state_hash
        assert driver.status().snapshot_index in (first.index, before.applied_index)
        assert await count_tasks(driver) == 40
        await enqueue_some(cluster, "n1", 1)
        again = await driver.take_snapshot(timeout_s=5)
        assert again.index > before.applied_index


async def test_b22_damaged_snapshot_stops_the_start_and_deletes_nothing(tmp_path: Path) -> None:
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await enqueue_some(cluster, leader, 70)
        await cluster.agree()
        name = next(name for name in cluster.names if name != leader)
        await until(partial(has_compacted, cluster.drivers[name], 60))
        await cluster.stop(name)
        files = sorted((tmp_path / name / "snapshots").glob("*.gaia"))
        flip(files[-1])
        before = {path: path.read_bytes() for path in files}
        with pytest.raises(StorageDamagedError) as refused:
            await cluster.start(name)
        assert "\n" not in refused.value.message
        assert {path: path.read_bytes() for path in files} == before
        # The others never hear of it; the peer is replaced like a lost machine.
        await enqueue_some(cluster, leader, 5)
        cluster.wipe(name)
        await cluster.drivers[leader].remove_peer(name, timeout_s=10)
        starting = await cluster.wait_to_join(name)
        await cluster.add(name, via=leader)
        await starting
        await cluster.agree()


async def test_b22_damaged_snapshot_of_a_leader_is_not_sent_but_made_anew(tmp_path: Path) -> None:
    """Its state in memory is whole: the next snapshot heals what the disk has lost."""
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        lagging = next(name for name in cluster.names if name != leader)
        await cluster.crash(lagging)
        await until(partial(is_not_heard, cluster, leader, lagging))
        await enqueue_some(cluster, leader, 70)
        await until(partial(has_compacted, cluster.drivers[leader], 60))
        snapshots = cluster.directories[leader].snapshots
        await until(partial(is_tidy, cluster.directories[leader].log, snapshots))
        damaged = snapshots.complete()[0].meta
        flip(next((tmp_path / leader / "snapshots").glob("*.gaia")))
        await cluster.start(lagging)
        await until(lambda: cluster.drivers[lagging].status().snapshot_index > damaged.index, 20)
        await cluster.agree()
        assert not cluster.drivers[leader].failed.done()


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


async def test_follower_that_restores_answers_heartbeats_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restoring takes longer than an election timeout here: no election comes of it."""
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await enqueue_some(cluster, leader, 70)
        await cluster.agree()
        slow = next(name for name in cluster.names if name != leader)
        other = next(name for name in cluster.names if name not in (leader, slow))
        await until(partial(has_compacted, cluster.drivers[slow], 60))
        await cluster.crash(slow)
        await cluster.crash(other)
        gate = asyncio.Event()
        read = Restorer._read

        async def held(self: Restorer, reader: SnapshotReader) -> StateMachine:
            await gate.wait()
            return await read(self, reader)

        monkeypatch.setattr(Restorer, "_read", held)
        starting = asyncio.create_task(cluster.start(slow))
        # The leader commits with this one's answers alone, whose state is not there yet.
        await enqueue_some(cluster, leader, 5)
        await ticks_pass(cluster, slow, 2 * FAST.election_timeout_max_ms // FAST.tick_ms)
        await enqueue_some(cluster, leader, 5)
        assert not starting.done()
        assert cluster.drivers[slow].status().applied_index == 0
        with pytest.raises(UnavailableError):
            await count_tasks(cluster.drivers[slow])
        assert cluster.drivers[leader].status().role is RoleName.LEADER
        gate.set()
        await starting
        await cluster.agree()
        assert await count_tasks(cluster.drivers[slow]) == 80


async def test_leader_whose_state_is_not_there_yet_lets_another_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was elected all the same: its log is whole. Nobody could write until it has restored."""
    async with running(snapshotting(tmp_path)) as cluster:
        leader = await cluster.leader()
        await enqueue_some(cluster, leader, 70)
        await cluster.agree()
        slow = next(name for name in cluster.names if name != leader)
        await until(partial(has_compacted, cluster.drivers[slow], 60))
        await cluster.crash(slow)
        gate = asyncio.Event()
        read = Restorer._read

        async def held(self: Restorer, reader: SnapshotReader) -> StateMachine:
            await gate.wait()
            return await read(self, reader)

        monkeypatch.setattr(Restorer, "_read", held)
        starting = asyncio.create_task(cluster.start(slow))
        await enqueue_some(cluster, leader, 1)
        core = engine_of(cluster.drivers[leader]).core
        await until(lambda: core.match_index(NodeId(slow)) == core.last_index)
        engine_of(cluster.drivers[leader]).transfer(NodeId(slow))
        await until(lambda: cluster.drivers[slow].status().role is RoleName.LEADER)
        await enqueue_some(cluster, leader, 1)
        assert not starting.done()
        assert cluster.drivers[slow].status().role is not RoleName.LEADER
        gate.set()
        await starting
        await cluster.agree()


async def test_no_space_for_a_snapshot_costs_nothing_but_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots_module, "_FULL_PAUSE_MS", 50)
    cluster = LocalCluster(tmp_path, ("n1",))
    cluster.storage = SMALL
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        refused = 0

        def full(self: snapshot_handles.Writer, data: bytes) -> None:
            nonlocal refused
            refused += 1
            raise StorageFullError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(snapshot_handles.Writer, "write", full)
            await enqueue_some(cluster, "n1", 70)
            await until(lambda: refused >= 2)
            with pytest.raises(UnavailableError):
                await driver.take_snapshot(timeout_s=1)
            assert driver.status().writable
            assert driver.status().first_log_index == 1
        await until(lambda: driver.status().first_log_index > 1)
        assert not list((tmp_path / "n1" / "snapshots").glob("*.tmp"))


async def test_watch_by_topic_wakes_when_a_snapshot_replaces_the_state() -> None:
    board = TopicBoard()
    board.touch(["a"])
    seen = {topic: board.version(topic) for topic in ("a", "b")}
    waits = [asyncio.create_task(board.wait(topic, version, 5)) for topic, version in seen.items()]
    await asyncio.sleep(0)
    board.touch_all()
    versions = await asyncio.gather(*waits)
    assert all(version > seen[topic] for version, topic in zip(versions, seen, strict=True))
    assert board.waiting == 0
    again = board.version("a")
    board.touch(["a"])
    assert board.version("a") > again
