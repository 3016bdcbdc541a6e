"""How much log stays in memory behind a snapshot: what somebody needs, and no more than that."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from gaia.command.v1 import command_pb2

from gaia_grpc.config import StorageConfig
from gaia_grpc.node.snapshot_transfer import OutgoingFile, SnapshotTransfer
from gaia_grpc.raft.types import Index
from tests.support.local_cluster import LocalCluster, engine_of, running, until, writing


def is_small(cluster: LocalCluster, name: str) -> bool:
    core = engine_of(cluster.drivers[name]).core
    count = core.last_index - core.first_index + 1
    return sum(len(entry.data) for entry in core.entries(core.first_index, count)) < 3 << 20


def enqueue_large(size_bytes: int) -> bytes:
    return command_pb2.Command(
        enqueue_tasks=command_pb2.EnqueueTasks(
            tasks=[command_pb2.TaskSpec(task_type="t", payload=bytes(size_bytes))]
        )
    ).SerializeToString()


async def test_follower_catches_up_though_the_log_is_compacted_faster_than_a_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each snapshot would be followed by the next one, for ever (etcd holds it back too)."""
    opened: list[Index] = []
    original = SnapshotTransfer.open

    async def slow(self: SnapshotTransfer, at_least: int = 0) -> OutgoingFile | None:
        file = await original(self, at_least)
        if file is not None:
            opened.append(file.meta.index)
            core, loop = self._engine.core, asyncio.get_running_loop()
            target, until_s = core.last_index + 60, loop.time() + 1
            while core.last_index < target and loop.time() < until_s:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.01)
        return file

    monkeypatch.setattr(SnapshotTransfer, "open", slow)
    cluster = LocalCluster(tmp_path)
    cluster.storage = StorageConfig(snapshot_every_entries=20, snapshot_keep_entries=0)
    async with running(cluster), writing(cluster) as writer:
        leader = await cluster.leader()
        lagging = next(name for name in cluster.names if name != leader)
        await cluster.crash(lagging)
        await writer.more(100)
        await cluster.start(lagging)
        await writer.more(100)
        leading = engine_of(cluster.drivers[await cluster.leader()]).core

        def follows() -> bool:
            progress = leading.progress(engine_of(cluster.drivers[lagging]).core.node_id)
            return progress is not None and progress.state == "replicate"

        await until(follows, 10)
        assert len(opened) <= 3


async def test_large_entries_do_not_stay_in_memory_by_their_number(tmp_path: Path) -> None:
    """Ten thousand entries of a megabyte would be ten gigabytes."""
    cluster = LocalCluster(tmp_path)
    cluster.storage = StorageConfig(
        snapshot_every_size_bytes=1 << 20,
        snapshot_keep_size_bytes=1 << 20,
    )
    async with running(cluster):
        leader = await cluster.leader()
        for _ in range(60):
            await cluster.drivers[leader].propose(enqueue_large(100_000), timeout_s=10)
        await cluster.agree()
        for name in cluster.names:
            await until(partial(is_small, cluster, name))
