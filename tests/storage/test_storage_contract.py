"""One suite for both sides of the seam: what SQLite with files does, the twin in memory does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from gaia_grpc.errors import (
    InvariantError,
    NotFoundError,
    StorageDamagedError,
    StorageFailedError,
)
from gaia_grpc.raft.types import HardState, Index, Restored, Term
from gaia_grpc.storage.api import IncomingSnapshot, LogStorage, SnapshotStore
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.storage.memory import MemoryLog, MemorySnapshotStore
from tests.storage.scenario import (
    N1,
    batch,
    compact,
    content,
    entries,
    entry,
    entry_id,
    meta,
    receive,
    save,
    steps,
)

STATE = HardState(Term(1), N1, Index(3))


class Disk(Protocol):
    @property
    def log(self) -> LogStorage: ...

    @property
    def store(self) -> SnapshotStore: ...

    def restart(self) -> Restored:
        """A clean end and a new start."""
        ...


class RealDisk:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.opened = DataDirectory.open(path, N1)

    @property
    def log(self) -> LogStorage:
        return self.opened.log

    @property
    def store(self) -> SnapshotStore:
        return self.opened.snapshots

    def restart(self) -> Restored:
        self.opened.close()
        self.opened = DataDirectory.open(self._path, N1)
        return self.log.load()


class TwinDisk:
    def __init__(self) -> None:
        self._store = MemorySnapshotStore()
        self._log = MemoryLog(snapshots=self._store)

    @property
    def log(self) -> LogStorage:
        return self._log

    @property
    def store(self) -> SnapshotStore:
        return self._store

    def restart(self) -> Restored:
        self._log.crash(lambda low, high: high)
        return self._log.load()


@pytest.fixture(params=["sqlite", "memory"])
def disk(request: pytest.FixtureRequest, directory: Path) -> Iterator[Disk]:
    if request.param == "memory":
        yield TwinDisk()
        return
    real = RealDisk(directory / "n1")
    yield real
    real.opened.close()


def fill(disk: Disk, last: int = 9) -> None:
    disk.log.write([batch(*entries(1, last), state=STATE)])


def test_a_whole_life_reads_back_after_each_step(disk: Disk) -> None:
    twin = MemoryLog(snapshots=MemorySnapshotStore())
    assert twin.snapshots is not None
    expected = [twin.load() for _ in steps(twin, twin.snapshots)]
    for number, _ in enumerate(steps(disk.log, disk.store)):
        assert disk.log.load() == expected[number]
    assert disk.restart() == expected[-1]


def test_a_new_disk_is_empty(disk: Disk) -> None:
    assert disk.log.load() == Restored(HardState(), ())
    assert disk.store.latest() is None


def test_a_snapshot_counts_once_it_is_complete(disk: Disk) -> None:
    fill(disk)
    writer = disk.store.create(meta(5))
    writer.write(content(meta(5)))
    assert disk.store.latest() is None
    info = writer.commit()
    writer.abort()
    assert disk.store.latest() == info
    assert (info.meta, info.size_bytes) == (meta(5), 70_000)
    assert info.sha256 == hashlib.sha256(content(meta(5))).digest()
    assert disk.restart().snapshot == meta(5)


def test_an_empty_snapshot_is_one_too(disk: Disk) -> None:
    fill(disk)
    disk.store.create(meta(5)).commit()
    assert disk.restart().snapshot == meta(5)
    assert disk.store.open(meta(5)).read(0, 10) == b""


def test_a_snapshot_that_is_given_up_leaves_nothing(disk: Disk) -> None:
    fill(disk)
    writer = disk.store.create(meta(5))
    writer.write(b"half")
    writer.abort()
    writer.abort()
    with pytest.raises(InvariantError):
        writer.write(b"more")
    assert disk.restart().snapshot is None
    assert disk.store.latest() is None


@pytest.mark.parametrize("size_bytes", [0, 1, 63, 64, 65, 65_536, 65_537, 200_000])
def test_any_part_of_a_snapshot_can_be_read(disk: Disk, size_bytes: int) -> None:
    fill(disk)
    save(disk.store, meta(5), size_bytes)
    data = content(meta(5), size_bytes)
    reader = disk.store.open(meta(5))
    assert reader.info.size_bytes == size_bytes
    for start in (0, 1, 63, 64, 65_535, 65_536, 70_000, size_bytes - 1, size_bytes):
        for size in (0, 1, 64, 65, 66_000, size_bytes + 5):
            if start >= 0:
                assert reader.read(start, size) == data[start : start + size]
    reader.close()
    reader.close()


def test_a_reader_keeps_what_it_has_opened(disk: Disk) -> None:
    fill(disk)
    save(disk.store, meta(3))
    reader = disk.store.open(meta(3))
    save(disk.store, meta(5))
    disk.store.drop_older(meta(5))
    assert reader.read(0, 100_000) == content(meta(3))
    with pytest.raises(NotFoundError):
        disk.store.open(meta(3))
    reader.close()


def test_compaction_keeps_what_is_behind_the_base(disk: Disk) -> None:
    fill(disk)
    save(disk.store, meta(6))
    compact(disk.log, entry_id(4))
    expected = Restored(STATE, entries(5, 9), meta(6), entry_id(4))
    assert disk.log.load() == expected
    assert disk.log.read_entries(Index(1), 3) == entries(5, 7)
    assert disk.restart() == expected
    disk.log.write([batch(*entries(8, 10, 2))])
    assert disk.restart().entries == (*entries(5, 7), *entries(8, 10, 2))


def test_compaction_never_goes_back(disk: Disk) -> None:
    fill(disk)
    save(disk.store, meta(6))
    compact(disk.log, entry_id(5))
    compact(disk.log, entry_id(2))
    assert disk.log.load().base == entry_id(5)


def test_compaction_up_to_the_last_entry(disk: Disk) -> None:
    fill(disk)
    save(disk.store, meta(9))
    compact(disk.log, entry_id(9))
    assert disk.restart() == Restored(STATE, (), meta(9), entry_id(9))
    disk.log.write([batch(entry(10, 2))])
    assert disk.restart().entries == (entry(10, 2),)


def test_nothing_is_compacted_without_a_snapshot(disk: Disk) -> None:
    fill(disk)
    save(disk.store, meta(4))
    with pytest.raises(InvariantError, match="no snapshot"):
        disk.log.compact(entry_id(5))
    save(disk.store, meta(99))
    with pytest.raises(InvariantError, match="beyond"):
        disk.log.compact(entry_id(10))


def test_an_installed_snapshot_replaces_the_log(disk: Disk) -> None:
    fill(disk)
    save(disk.store, meta(3))
    receive(disk.store, meta(7, 2))
    state = HardState(Term(2), N1, Index(7))
    disk.log.write([batch(*entries(10, 11)), batch(entry(8, 2), state=state, snapshot=meta(7, 2))])
    expected = Restored(state, (entry(8, 2),), meta(7, 2), entry_id(7, 2))
    assert disk.log.load() == expected
    compact(disk.log, entry_id(7, 2))
    disk.store.drop_older(meta(7, 2))
    assert disk.restart() == expected
    assert disk.store.open(meta(7, 2)).read(0, 70_000) == content(meta(7, 2))


def test_an_installed_snapshot_without_a_hard_state_keeps_the_old_one(disk: Disk) -> None:
    fill(disk)
    receive(disk.store, meta(12, 2))
    disk.log.write([batch(snapshot=meta(12, 2))])
    assert disk.restart() == Restored(STATE, (), meta(12, 2), entry_id(12, 2))


def test_a_snapshot_that_was_not_received_is_not_installed(disk: Disk) -> None:
    fill(disk)
    data = content(meta(12))
    incoming = disk.store.incoming(meta(12), len(data), hashlib.sha256(data).digest())
    incoming.append(data)
    with pytest.raises(InvariantError, match="not received"):
        disk.log.write([batch(snapshot=meta(12))])
    assert disk.log.load().entries == entries(1, 9)


def test_a_transfer_goes_on_after_a_restart(disk: Disk) -> None:
    fill(disk)
    data = content(meta(12))
    digest = hashlib.sha256(data).digest()
    incoming = disk.store.incoming(meta(12), len(data), digest)
    incoming.append(data[:66_001])
    incoming.close()
    disk.restart()
    incoming = disk.store.incoming(meta(12), len(data), digest)
    assert incoming.stored_size_bytes == 66_001
    incoming.append(data[66_001:])
    incoming.finish()
    disk.log.write([batch(snapshot=meta(12))])
    assert disk.store.open(meta(12)).read(0, 70_000) == data


@pytest.mark.parametrize("other", ["size", "digest", "meta"])
def test_another_snapshot_does_not_go_on_with_the_old_transfer(disk: Disk, other: str) -> None:
    fill(disk)
    data = content(meta(12))
    digest = hashlib.sha256(data).digest()
    disk.store.incoming(meta(12), len(data), digest).append(data[:66_000])
    if other == "meta":
        assert disk.store.incoming(meta(13), len(data), digest).stored_size_bytes == 0
    else:
        size = len(data) + (other == "size")
        digest = digest if other == "size" else bytes(32)
        assert disk.store.incoming(meta(12), size, digest).stored_size_bytes == 0


def test_a_transfer_with_another_digest_is_dropped(disk: Disk) -> None:
    fill(disk)
    data = content(meta(12))
    digest = hashlib.sha256(data).digest()
    for wrong in (data[:-1] + b"?", data[:-1], data + b"?"):
        incoming = disk.store.incoming(meta(12), len(data), digest)
        assert incoming.stored_size_bytes == 0
        with pytest.raises(StorageDamagedError, match="dropped"):
            finish(incoming, wrong)
    assert disk.store.latest() is None


def finish(incoming: IncomingSnapshot, data: bytes) -> None:
    incoming.append(data)
    incoming.finish()


def test_a_transfer_is_shut_out_by_the_next_one(disk: Disk) -> None:
    data = content(meta(12))
    digest = hashlib.sha256(data).digest()
    first = disk.store.incoming(meta(12), len(data), digest)
    first.append(data[:100])
    second = disk.store.incoming(meta(12), len(data), digest)
    assert second.stored_size_bytes == 100
    with pytest.raises(StorageDamagedError, match="ended"):
        first.append(data[100:])
    with pytest.raises(StorageDamagedError, match="ended"):
        first.finish()
    first.close()
    second.append(data[100:])
    second.finish()
    disk.store.promote(meta(12))


def test_b20_a_second_transfer_does_not_drop_a_finished_one(disk: Disk) -> None:
    """The first waits for the writer when the next one begins: both are installed in order."""
    fill(disk)
    receive(disk.store, meta(12, 2))
    receive(disk.store, meta(20, 3))
    disk.log.write([batch(snapshot=meta(12, 2))])
    disk.log.write([batch(entry(21, 3), snapshot=meta(20, 3))])
    disk.store.drop_older(meta(20, 3))
    assert disk.restart() == Restored(STATE, (entry(21, 3),), meta(20, 3), entry_id(20, 3))


def test_b20_two_installs_in_one_transaction(disk: Disk) -> None:
    fill(disk)
    receive(disk.store, meta(12, 2))
    receive(disk.store, meta(20, 3))
    disk.log.write([batch(entry(13, 2), snapshot=meta(12, 2)), batch(snapshot=meta(20, 3))])
    assert disk.restart() == Restored(STATE, (), meta(20, 3), entry_id(20, 3))


def test_b20_an_older_snapshot_after_a_newer_one_changes_nothing(disk: Disk) -> None:
    """A slow own snapshot is completed after a newer one was installed."""
    fill(disk)
    slow = disk.store.create(meta(5))
    receive(disk.store, meta(12, 2))
    disk.log.write([batch(snapshot=meta(12, 2))])
    slow.write(b"old")
    slow.commit()
    newest = disk.store.latest()
    assert newest is not None
    assert newest.meta == meta(12, 2)
    assert disk.log.load().snapshot == meta(12, 2)
    disk.log.compact(entry_id(3))
    assert disk.restart() == Restored(STATE, (), meta(12, 2), entry_id(12, 2))
    with pytest.raises(NotFoundError):
        disk.store.open(meta(5))
    receive(disk.store, meta(6))
    disk.store.drop_older(meta(12, 2))
    with pytest.raises(InvariantError, match="not received"):
        disk.store.promote(meta(6))


def test_b20_a_snapshot_that_was_never_installed_is_dropped_at_the_start(disk: Disk) -> None:
    """A crash between its rename and the transaction: the log knows nothing of it."""
    fill(disk)
    save(disk.store, meta(4))
    for never in (meta(12, 2), meta(7, 2)):
        receive(disk.store, never)
        disk.store.promote(never)
        assert disk.restart() == Restored(STATE, entries(1, 9), meta(4))
        newest = disk.store.latest()
        assert newest is not None
        assert newest.meta == meta(4)


def test_promoting_again_is_no_change(disk: Disk) -> None:
    """A full disk makes the writer repeat a batch whose snapshot has its name already."""
    fill(disk)
    receive(disk.store, meta(12))
    disk.store.promote(meta(12))
    disk.store.promote(meta(12))
    disk.log.write([batch(snapshot=meta(12))])
    assert disk.restart().snapshot == meta(12)


def test_an_entry_that_leaves_a_gap_behind_the_base_is_refused(disk: Disk) -> None:
    fill(disk)
    save(disk.store, meta(6))
    compact(disk.log, entry_id(6))
    for bad in (entry(6), entry(11)):
        with pytest.raises(InvariantError, match="gap"):
            disk.log.write([batch(bad)])
    assert disk.restart().entries == entries(7, 9)


def test_a_write_after_close_fails(disk: Disk) -> None:
    disk.log.close()
    with pytest.raises(StorageFailedError):
        disk.log.write([batch(entry(1))])
