"""A disk that is full while a snapshot is being made (faults B24)."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from gaia_grpc.config import StorageConfig
from gaia_grpc.errors import UnavailableError
from gaia_grpc.node import snapshots as snapshots_module
from gaia_grpc.storage.files import SystemFile, SystemFiles
from tests.support.local_cluster import FAST, LocalCluster, engine_of, enqueue, running, until

PAUSE_TICKS = 60
EVERY_ENTRIES = 30


class FullDisk:
    """Refuses files that are being made, from the given operation of each one on."""

    def __init__(self, spared: int) -> None:
        self.is_full = True
        self.begun: list[int] = []
        """The tick of each attempt."""
        self._spared = spared
        self._left: dict[SystemFile, int] = {}

    def install(self, patch: pytest.MonkeyPatch, cluster: LocalCluster, name: str) -> None:
        """Every attempt begins with a new file."""
        stats = engine_of(cluster.drivers[name]).stats
        create, write = SystemFiles.create, SystemFile.write

        def create_some(files: SystemFiles, name: str) -> SystemFile:
            if name.startswith("making-") and self.is_full:
                self.begun.append(stats.ticks)
            file = create(files, name)
            if name.startswith("making-"):
                self._left[file] = self._spared
            return file

        def write_some(file: SystemFile, offset_bytes: int, data: bytes) -> None:
            left = self._left.get(file)
            if self.is_full and left is not None:
                if left == 0:
                    write(file, offset_bytes, data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._left[file] = left - 1
            write(file, offset_bytes, data)

        patch.setattr(SystemFiles, "create", create_some)
        patch.setattr(SystemFile, "write", write_some)


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "_FULL_PAUSE_MS", PAUSE_TICKS * FAST.tick_ms)


@pytest.mark.usefixtures("pause")
@pytest.mark.parametrize("spared", [0, 1, 2], ids=["header", "block", "end"])
async def test_b24_snapshot_on_a_full_disk_is_given_up_and_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spared: int
) -> None:
    """Not even half of it stays, since it would fill the disk further; nobody else notices."""
    cluster = LocalCluster(tmp_path, ("n1",))
    cluster.storage = StorageConfig(snapshot_every_entries=EVERY_ENTRIES, snapshot_keep_entries=5)
    folder = tmp_path / "n1" / "snapshots"
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        disk = FullDisk(spared)
        disk.install(monkeypatch, cluster, "n1")
        making = driver.inbound.running().snapshots
        while len(disk.begun) < 3:
            await driver.propose(enqueue(0), timeout_s=5)
            await asyncio.sleep(0)
        await until(lambda: making._making is None)
        assert list(folder.iterdir()) == []
        waited = [later - sooner for sooner, later in zip(disk.begun, disk.begun[1:], strict=False)]
        assert min(waited) >= PAUSE_TICKS // 2, "tried again at once: that is all the disk does"
        with pytest.raises(UnavailableError, match="given up"):
            await driver.take_snapshot(timeout_s=5)
        assert list(folder.iterdir()) == []
        assert driver.status().writable
        assert (driver.status().snapshot_index, driver.status().first_log_index) == (0, 1)
        disk.is_full = False
        await until(lambda: driver.status().first_log_index > 1)
        await driver.propose(enqueue(0), timeout_s=5)
    async with running(cluster):
        await until(lambda: cluster.drivers["n1"].status().snapshot_index > 0)
