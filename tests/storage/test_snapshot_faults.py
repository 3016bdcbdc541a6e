"""Damaged, failing and full disks below snapshots and a compacted log (B21 to B24)."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gaia_grpc.errors import (
    StartupError,
    StorageDamagedError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from gaia_grpc.raft.types import HardState, Index, Restored, Term
from gaia_grpc.storage.directory import DATABASE_NAME, MARK_NAME, SNAPSHOTS_NAME, DataDirectory
from gaia_grpc.storage.files import SystemFiles
from gaia_grpc.storage.memory import MemoryLog, MemorySnapshotStore
from gaia_grpc.storage.memory_files import Hook, os_error
from gaia_grpc.storage.snapshot_file import BLOCK_BYTES, CRC_BYTES, pack_block
from gaia_grpc.storage.snapshots import FileSnapshotStore
from tests.storage.recording import STRACE, strace_works
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

JOURNAL = f"{DATABASE_NAME}-wal"
STATE = HardState(Term(1), N1, Index(9))


def compacted(path: Path, *, clean: bool) -> tuple[list[Restored], Path]:
    """A directory with a snapshot and rubbish before the base, as a kill or a stop leaves it.

    Returns what was durable after each commit, oldest first.
    """
    opened = DataDirectory.open(path, N1)
    log = opened.log
    log.write([batch(*entries(1, 12), state=STATE)])
    save(opened.snapshots, meta(8))
    truth = [log.load()]
    log.compact(entry_id(5))
    log.maintain()
    truth.append(log.load(again=True))
    log.write([batch(*entries(11, 13, 2), state=HardState(Term(2), N1, Index(9)))])
    truth.append(log.load(again=True))
    log.write([batch(entry(14, 2))])
    truth.append(log.load(again=True))
    image = path.with_name("image")
    if clean:
        opened.close()
    shutil.copytree(path, image)
    opened.close()
    return truth, image


def outcome(path: Path) -> Restored | None:
    try:
        opened = DataDirectory.open(path, N1)
    except (StorageError, StartupError) as error:
        return None if "\n" not in error.message else Restored(HardState(Term(99)), ())
    try:
        return opened.log.load()
    finally:
        opened.close()


def flipped(data: bytes, step: int) -> Iterator[bytes]:
    for position in sorted({*range(min(len(data), 100)), *range(0, len(data), step)}):
        changed = bytearray(data)
        changed[position] ^= 0x41
        yield bytes(changed)


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("name", [DATABASE_NAME, JOURNAL])
def test_b21_flips_in_a_compacted_log(directory: Path, name: str, mark: bool) -> None:
    """A damaged middle is refused; only the last commit may pass for a torn tail."""
    truth, image = compacted(directory / "n1", clean=name == DATABASE_NAME)
    data = (image / name).read_bytes()
    refused = 0
    for changed in flipped(data, 97):
        copy = directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(image, copy)
        (copy / name).write_bytes(changed)
        if not mark:
            (copy / MARK_NAME).unlink()
        got = outcome(copy)
        allowed = truth[-1:] if mark or name == DATABASE_NAME else truth[-2:]
        assert got is None or got in allowed
        refused += got is None
    assert refused > 20


def snapshot_file(path: Path) -> Path:
    (file,) = (path / SNAPSHOTS_NAME).glob("snapshot-*.gaia")
    return file


def test_b22_a_flipped_byte_of_a_snapshot_is_refused_and_nothing_is_deleted(
    directory: Path,
) -> None:
    """Every byte of the header, and bytes of each block and checksum."""
    truth, image = compacted(directory / "n1", clean=True)
    name = snapshot_file(image)
    data = name.read_bytes()
    assert len(data) > 70_000
    before = sorted(file.name for file in name.parent.iterdir())
    for changed in flipped(data, 1_009):
        name.write_bytes(changed)
        with pytest.raises(StorageError, match=r"snapshot-") as caught:
            DataDirectory.open(image, N1)
        assert "\n" not in caught.value.message
        assert name.read_bytes() == changed
        assert sorted(file.name for file in name.parent.iterdir()) == before
    name.write_bytes(data)
    assert outcome(image) == truth[-1]


@pytest.mark.parametrize("size_bytes", [0, 1, 50, 90, 110, 65_000, 70_000])
def test_b22_a_snapshot_cut_short_is_refused(directory: Path, size_bytes: int) -> None:
    """Consul #665, etcd #4744: a file of no bytes made peers that could not start or forgot."""
    _, image = compacted(directory / "n1", clean=True)
    name = snapshot_file(image)
    with name.open("r+b") as file:
        file.truncate(size_bytes)
    with pytest.raises(StorageDamagedError, match=r"nothing was deleted.*--join"):
        DataDirectory.open(image, N1)
    assert name.exists()


def test_b22_a_snapshot_with_more_behind_it_or_another_name_is_refused(directory: Path) -> None:
    _, image = compacted(directory / "n1", clean=True)
    name = snapshot_file(image)
    with name.open("ab") as file:
        file.write(b"more")
    with pytest.raises(StorageDamagedError, match="size is wrong"):
        DataDirectory.open(image, N1)
    with name.open("r+b") as file:
        file.truncate(name.stat().st_size - 4)
    other = name.rename(name.with_name(name.name.replace("8-", "9-")))
    with pytest.raises(StorageDamagedError, match="another snapshot than its name"):
        DataDirectory.open(image, N1)
    assert other.exists()


def test_b22_a_block_with_its_own_right_checksum_is_still_not_the_content(directory: Path) -> None:
    """Only the digest tells: an old block of the same number, written where a new one was lost."""
    _, image = compacted(directory / "n1", clean=True)
    name = snapshot_file(image)
    data = bytearray(name.read_bytes())
    last = len(content(meta(8))) - BLOCK_BYTES
    data[-last - CRC_BYTES :] = pack_block(1, bytes(last))
    name.write_bytes(data)
    with pytest.raises(StorageDamagedError, match="digest is wrong"):
        DataDirectory.open(image, N1)


def test_b22_a_lost_snapshot_is_refused(directory: Path) -> None:
    _, image = compacted(directory / "n1", clean=True)
    snapshot_file(image).unlink()
    with pytest.raises(StorageDamagedError, match="begins behind entry 5, but no snapshot"):
        DataDirectory.open(image, N1)


def test_b22_snapshots_without_a_log_are_refused_and_kept(directory: Path) -> None:
    _, image = compacted(directory / "n1", clean=True)
    (image / DATABASE_NAME).unlink()
    (image / MARK_NAME).unlink()
    with pytest.raises(StorageDamagedError, match="it is empty, but snapshots are here"):
        DataDirectory.open(image, N1)
    assert snapshot_file(image).exists()


def test_b22_damage_after_the_start_is_found_by_each_read(directory: Path) -> None:
    """It must not spread to the peer that the snapshot is sent to."""
    opened = DataDirectory.open(directory / "n1", N1)
    opened.log.write([batch(*entries(1, 9), state=STATE)])
    save(opened.snapshots, meta(8))
    name = snapshot_file(directory / "n1")
    data = bytearray(name.read_bytes())
    reader = opened.snapshots.open(meta(8))
    data[-100] ^= 1
    name.write_bytes(data)
    assert reader.read(0, 65_536) == content(meta(8))[:65_536]
    with pytest.raises(StorageDamagedError, match="block 1 fails its check"):
        reader.read(65_000, 1_000)
    reader.close()
    name.unlink()
    with pytest.raises(StorageDamagedError, match="it is gone"):
        opened.snapshots.open(meta(8))
    opened.close()


def test_b22_the_twin_refuses_corrupted_snapshots_too() -> None:
    store = MemorySnapshotStore()
    log = MemoryLog(snapshots=store)
    log.write([batch(*entries(1, 9), state=STATE)])
    save(store, meta(8), 300)
    compact(log, entry_id(8))
    (name,) = store.files.names()
    for offset in range(store.files.open(name).size_bytes):
        store.files.corrupt(name, offset)
        log.crash(lambda low, high: high)
        with pytest.raises(StorageDamagedError):
            log.load()
        assert store.files.names() == [name]
        store.files.corrupt(name, offset)
    log.crash()
    assert log.load() == Restored(STATE, entries(9, 9), meta(8), entry_id(8))


# --- B23 ----------------------------------------------------------------------------------------


def all_states() -> list[Restored]:
    """What is durable after each step of the scenario."""
    twin = MemoryLog(snapshots=MemorySnapshotStore())
    assert twin.snapshots is not None
    return [twin.load() for _ in steps(twin, twin.snapshots)]


def failing_from(number: int, code: int, *operations: str) -> Hook:
    """From the n-th operation on, those that are named fail."""
    left = iter(range(number))

    def hook(operation: str, name: str) -> None:
        if next(left, None) is None and operation in operations:
            raise os_error(code)

    return hook


def test_b23_any_failed_operation_of_the_twin_ends_it() -> None:
    """EIO at the n-th file operation: nothing is acknowledged after it, and nothing works on."""
    everything = ("create", "write", "truncate", "sync", "rename", "remove", "sync_names")
    truth = all_states()
    for number in range(39):
        store = MemorySnapshotStore()
        log = MemoryLog(snapshots=store)
        seen: list[Restored] = []
        store.files.hook = failing_from(number, errno.EIO, *everything)
        with pytest.raises(StorageFailedError):
            seen.extend(log.load() for _ in steps(log, store, 500))
        store.files.hook = None
        with pytest.raises(StorageFailedError):
            store.create(meta(99))
        log.crash()
        assert log.load() in truth[len(seen) - 1 : len(seen) + 1]


def failures(calls: tuple[tuple[str, int, int], ...]) -> list[tuple[str, int]]:
    return [(call, number) for call, last, step in calls for number in range(1, last + 1, step)]


@pytest.mark.skipif(not strace_works(), reason="strace is not here (or may not trace)")
@pytest.mark.parametrize(("call", "number"), failures((("fsync", 16, 1), ("fdatasync", 32, 3))))
def test_b23_a_failed_fsync_ends_a_process_that_snapshots(
    tmp_path: Path, call: str, number: int
) -> None:
    """Of snapshot files, their directory, and the journal between them."""
    assert STRACE is not None
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    script = Path(__file__).with_name("scenario.py")
    child = subprocess.run(
        [STRACE, "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e",
         f"inject={call}:error=EIO:when={number}", sys.executable, str(script),
         str(tmp_path / "n1")],
        capture_output=True, timeout=60, check=False, env=quiet,
    )  # fmt: skip
    if child.returncode == 0 and call == "fdatasync":
        # SQLite syncs directories too, and ignores errors of that; ours comes before it.
        assert number in (2, 10, 15)
        return
    assert child.returncode == 3, child.stderr
    assert child.stderr.startswith(b"failed: ")
    assert child.stderr.count(b"\n") == 1
    acknowledged = [int(line) for line in child.stdout.split() if line.isdigit()]
    truth = all_states()
    done = acknowledged[-1] if acknowledged else 0
    assert outcome(tmp_path / "n1") in truth[done : done + 2]


# --- B24 ----------------------------------------------------------------------------------------


def test_b24_a_full_disk_at_any_operation_of_the_twin_heals_by_itself() -> None:
    """Snapshots and transfers are given up and made again; the log is as it was."""
    for number in range(1, 30):
        store = MemorySnapshotStore()
        log = MemoryLog(snapshots=store)
        log.write([batch(*entries(1, 9), state=STATE)])
        store.files.hook = failing_from(number, errno.ENOSPC, "write", "create")
        with suppress(StorageFullError):
            save(store, meta(4), 500)
        with suppress(StorageFullError):
            receive(store, meta(12), 500)
        store.files.hook = None
        assert log.load().entries == entries(1, 9)
        receive(store, meta(12), 500)
        save(store, meta(5), 500)
        log.write([batch(snapshot=meta(12))])
        log.crash()
        assert log.load() == Restored(STATE, (), meta(12), entry_id(12))


def exhaust(write: Callable[[], object]) -> None:
    """Until it raises."""
    while True:
        write()


def test_b24_a_snapshot_beyond_a_file_size_limit_is_given_up(tmp_path: Path) -> None:
    """A limit of the process stands in for a full disk where nothing can be mounted."""
    store = FileSnapshotStore(SystemFiles(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = store.create(meta(5))
    data = content(meta(6), 300_000)
    incoming = store.incoming(meta(6), len(data), hashlib.sha256(data).digest())
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(StorageFullError, match="no space left"):
            exhaust(lambda: writer.write(bytes(65_536)))
        writer.abort()
        with pytest.raises(StorageFullError, match="no space left"):
            incoming.append(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [name for name in os.listdir(tmp_path) if name.startswith("making")] == []
    again = store.incoming(meta(6), len(data), hashlib.sha256(data).digest())
    assert 0 < again.stored_size_bytes < 150_000
    again.append(data[again.stored_size_bytes :])
    again.finish()
    store.promote(meta(6))
    assert FileSnapshotStore(SystemFiles(tmp_path)).open(meta(6)).read(0, 400_000) == data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "gaia-test", str(path)],
        capture_output=True, timeout=10, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=10)


def test_b24_a_full_file_system_refuses_and_goes_on_when_space_returns(small_disk: Path) -> None:
    """etcd #4744: nothing needs a restart or a repair, and what is there stays readable."""
    path = small_disk / "n1"
    opened = DataDirectory.open(path, N1)
    log, store = opened.log, opened.snapshots
    log.write([batch(*entries(1, 9), state=STATE)])
    save(store, meta(5), 100_000)
    ballast = small_disk / "ballast"
    filled = 9

    def grow() -> None:
        nonlocal filled
        log.write([batch(entry(filled + 1, data=bytes(50_000)))])
        filled += 1
        log.maintain()

    writer = store.create(meta(8))
    incoming = store.incoming(meta(900), 200_000, bytes(32))
    with pytest.raises(StorageFullError):
        exhaust(grow)
    # To the last page, so that not even housekeeping finds room.
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        exhaust(lambda: file.write(bytes(4096)))
    with pytest.raises(StorageFullError):
        writer.write(bytes(200_000))
    writer.abort()
    with pytest.raises(StorageFullError):
        incoming.append(bytes(200_000))
    assert log.load(again=True).snapshot == meta(5)
    assert len(log.load().entries) == filled
    assert store.open(meta(5)).read(0, 100_000) == content(meta(5), 100_000)

    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True, timeout=10)
    log.write([batch(entry(filled + 1))])
    save(store, meta(8), 100_000)
    compact(log, entry_id(8))
    store.drop_older(meta(8))
    receive(store, meta(900, 2), 100_000)
    log.write([batch(entry(901, 2), snapshot=meta(900, 2))])
    opened.close()
    assert outcome(path) == Restored(STATE, (entry(901, 2),), meta(900, 2), entry_id(900, 2))


def test_b24_a_directory_that_was_killed_on_a_full_disk_starts_again(small_disk: Path) -> None:
    """Whatever half-written files are left: with space, no repair is needed."""
    path = small_disk / "n1"
    opened = DataDirectory.open(path, N1)
    opened.log.write([batch(*entries(1, 9), state=STATE)])
    save(opened.snapshots, meta(5), 100_000)
    incoming = opened.snapshots.incoming(meta(900), 9_000_000, bytes(32))
    writer = opened.snapshots.create(meta(8))

    def both() -> None:
        writer.write(bytes(65_536))
        incoming.append(bytes(65_536))

    with pytest.raises(StorageFullError):
        exhaust(both)
    image = small_disk.parent / "image"
    shutil.copytree(path, image)
    opened.close()
    before = sorted(os.listdir(image / SNAPSHOTS_NAME))
    assert [name[:6] for name in before] == ["incomi", "making", "snapsh"]
    assert outcome(image) == Restored(STATE, entries(1, 9), meta(5))
    assert sorted(os.listdir(image / SNAPSHOTS_NAME)) == [before[0], before[2]]
