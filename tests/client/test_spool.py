"""The spool on disk: what a killed, restarted or cut off app still delivers, and counts once."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path

import grpc
import pytest
from gaia.metrics.v1 import metrics_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.client import publisher as publisher_module
from gaia_grpc.client import spool as spool_module
from gaia_grpc.client.gaps import BUFFER_FULL
from gaia_grpc.client.spool_files import SpoolFiles
from gaia_grpc.errors import StorageError
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, refuse
from tests.client.test_buffer import Request, Response, Store, published

Peers = tuple[FakePeer, FakePeer]
APP = Path(__file__).parent / "spooling_app.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(publisher_module, "RETRY_PAUSE_S", 0.01)


def opened(directory: Path, now_ms: int = 1_000, max_bytes: int = 1 << 20) -> SpoolFiles:
    return SpoolFiles(directory, source_id="", fresh_id="fresh", now_ms=now_ms, max_bytes=max_bytes)


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


def numbered(epoch: int, sequence: int, metrics: int = 3) -> metrics_pb2.MetricBatch:
    return metrics_pb2.MetricBatch(
        source_id="fresh",
        source_epoch=epoch,
        sequence=sequence,
        student_id="s",
        app_name="a",
        metrics=[
            metrics_pb2.Metric(metric_type="keypress", value=number) for number in range(metrics)
        ],
    )


async def test_a_killed_app_delivers_what_it_had_recorded_and_it_counts_once(
    peers: Peers, connect: Connect, tmp_path: Path
) -> None:
    """The cluster takes the first attempt, and the app dies before it hears of that."""
    store = Store(*peers)
    plain = store.publish

    async def take_and_say_nothing(request: Request, context: Context) -> Response:
        await plain(request, context)
        await asyncio.Event().wait()
        return Response()

    peers[0].answers["PublishMetrics"] = take_and_say_nothing
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}
    app = await asyncio.create_subprocess_exec(
        *(sys.executable, str(APP), peers[0].address, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        assert app.stdout is not None
        async with asyncio.timeout(20):
            assert await app.stdout.readline() == b"recorded\n"
            await store.arrived.wait()
        client = await connect(peers[1])
        with pytest.raises(StorageError, match="another process uses the spool"):
            await client.metrics.open_spool(tmp_path)
    finally:
        app.kill()
        await app.wait()
    before = set(store.batches)
    peers[0].answers["PublishMetrics"] = plain
    spool = await client.metrics.open_spool(tmp_path)
    assert spool.source_id == "tablet-7"
    assert spool.counters.recovered == 250
    async with asyncio.timeout(20):
        while spool.counters.acknowledged < 250:
            await client.metrics.publisher.wait_call()
    assert sorted(store.metrics()) == list(range(250))
    assert before <= set(store.batches), "sent again under the key that it had"
    assert spool.counters.duplicates == len(before)
    assert len({(source, epoch) for source, epoch, _ in store.batches}) == 1
    assert client.metrics.counters.adds_up


async def test_an_outage_goes_to_disk_and_comes_back_in_order(
    peers: Peers, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "LOAD_METRICS", 70)
    store = Store(*peers)
    store.fail_next = 1_000_000
    client = await connect(peers[0])
    spool = await client.metrics.open_spool(tmp_path)
    spool.source.max_queued = 100
    pair = [
        client.metrics.buffer(student_id=student, app_name="a", flush_size=10, spool=spool)
        for student in ("ana", "ben")
    ]
    for number in range(1_000):
        assert pair[number % 2].record("keypress", number)
    await client.metrics.publisher.wait_call()
    counts = client.metrics.counters
    assert counts.adds_up
    assert counts.pending <= 120
    assert counts.spooled >= 880
    store.fail_next = 0
    for buffer in pair:
        await buffer.flush()
        assert buffer.counters.acknowledged == 500
    assert [batch.sequence for batch in store.batches.values()] == list(range(1, 101))
    assert sorted(store.metrics()) == list(range(1_000))
    assert pair[0].record("error")
    await pair[0].flush()
    assert spool.backlog == 0
    await client.close()
    assert not segments(tmp_path), "what has an outcome leaves nothing behind"


async def test_a_close_during_an_outage_keeps_everything_for_the_next_start(
    peers: Peers, connect: Connect, tmp_path: Path
) -> None:
    store = Store(*peers)
    store.fail_next = 1_000_000
    epochs = []
    for start in range(6):  # more epochs than the cluster remembers of one source
        client = await connect(peers[0], clock=lambda start=start: 9_000 - start)
        spool = await client.metrics.open_spool(tmp_path)
        epochs.append(spool.source.source_epoch)
        assert spool.counters.spooled == spool.counters.recovered == 5 * start
        buffer = client.metrics.buffer(student_id="s", app_name="a", spool=spool)
        for number in range(5):
            buffer.record("keypress", 10 * start + number)
        await buffer.close(timeout=0.01)
        assert (buffer.counters.spooled, buffer.counters.dropped) == (5, 0)
        await client.close()
        assert client.metrics.counters.spooled == 5 * start + 5
        assert client.metrics.counters.adds_up
    assert epochs == [9_000, 9_001, 9_002, 9_003, 9_004, 9_005], "also where the clock went back"
    calls_before = len(published(peers))
    store.fail_next = 0
    client = await connect(peers[0])
    spool = await client.metrics.open_spool(tmp_path)
    async with asyncio.timeout(10):
        while spool.counters.acknowledged < 30:
            await client.metrics.publisher.wait_call()
    assert [key[1] for key in store.batches] == epochs
    for request in published(peers)[calls_before:]:
        assert len({batch.source_epoch for batch in request.batches}) == 1


async def test_a_full_spool_keeps_the_oldest_and_tells_what_it_dropped(
    peers: Peers, connect: Connect, tmp_path: Path
) -> None:
    store = Store(*peers)
    store.fail_next = 1_000_000
    client = await connect(peers[0])
    spool = await client.metrics.open_spool(tmp_path, max_bytes=20_000)
    spool.source.max_queued = 50
    buffer = client.metrics.buffer(student_id="s", app_name="a", flush_size=10, spool=spool)
    taken = []
    for number in range(2_000):
        taken.append(buffer.record("keypress", number))
        if number % 10 == 9:
            await asyncio.sleep(0)
    kept = [number for number, was_taken in enumerate(taken) if was_taken]
    assert 300 < len(kept) < 1_000
    assert kept[:300] == list(range(300))
    assert kept[-1] < 1_000, "the newest are dropped"
    assert spool.used_bytes < 22_000
    store.fail_next = 0
    await buffer.flush()
    await buffer.flush()
    counts = buffer.counters
    assert (counts.acknowledged, counts.dropped) == (len(kept), 2_000 - len(kept))
    marks = [mark for batch in store.batches.values() for mark in batch.omissions]
    assert {mark.reason for mark in marks} == {BUFFER_FULL}
    assert sum(mark.count for mark in marks) == counts.gaps_told == counts.dropped
    assert sorted(store.metrics()) == kept
    await spool._on_thread(lambda: None)  # behind the note that frees the segments
    assert buffer.record("error"), "there is room again"
    await buffer.flush()


async def test_a_disk_that_refuses_is_a_full_spool_and_memory_still_delivers(
    peers: Peers, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(*peers)
    store.fail_next = 1_000_000
    client = await connect(peers[0])
    spool = await client.metrics.open_spool(tmp_path)
    buffer = client.metrics.buffer(student_id="s", app_name="a", flush_size=10, spool=spool)
    for number in range(10):
        buffer.record("keypress", number)

    def no_space(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("gaia_grpc.client.spool_files.os.write", no_space)
        while not spool.full:
            buffer.record("keypress", 10)
            await asyncio.sleep(0)
        assert "No space" in spool.last_error
        assert not buffer.record("keypress", 11)
        await buffer.close(timeout=0.01)
        await client.close()  # now every write has been refused
        counts = buffer.counters
        assert counts.adds_up
        assert counts.dropped >= 11, "what is neither on disk nor acknowledged"
    again = await connect(peers[0])
    spool = await again.metrics.open_spool(tmp_path)
    assert spool.counters.recovered == counts.spooled


async def test_a_directory_of_another_source_is_refused(
    peers: Peers, connect: Connect, tmp_path: Path
) -> None:
    client = await connect(peers[0])
    spool = await client.metrics.open_spool(tmp_path, source_id="tablet-7")
    assert await client.metrics.open_spool(tmp_path) is spool
    await client.close()
    other = await connect(peers[0])
    with pytest.raises(StorageError, match="belongs to the source tablet-7"):
        await other.metrics.open_spool(tmp_path, source_id="tablet-8")
    assert (await other.metrics.open_spool(tmp_path)).source_id == "tablet-7"


@given(cut=st.integers(1, 400), flip=st.booleans())
def test_a_torn_or_damaged_tail_leaves_what_stands_before_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: bool
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    files = opened(directory)
    ends = []
    for sequence in range(1, 9):
        files.append(numbered(files.epoch, sequence), read_back=False, sync=False)
        ends.append(files.used_bytes)
    os.close(files._lock)
    [path] = directory.glob("*.spool")
    data = bytearray(path.read_bytes())
    place = len(data) - min(cut, len(data) - 1)
    if flip:
        data[place] ^= 0xFF
    path.write_bytes(data if flip else data[:place])
    files = opened(directory)
    whole = sum(end <= place for end in ends)
    assert files.left_over == [((1_000, sequence), 3) for sequence in range(1, whole + 1)]
    assert bool(files.damaged_bytes) == (flip or place not in {8, *ends})
    # What comes now is written behind it and read in its turn.
    files.append(numbered(files.epoch, 1), read_back=True, sync=True)
    read = files.read(1_000)
    assert [batch.sequence for batch in read.batches] == [*range(1, whole + 1), 1]
    assert read.through == (files.epoch, 1)
    files.settle(read.through)
    files.close()
    assert not list(directory.glob("*.spool"))


def test_segments_go_when_all_before_them_have_outcomes(tmp_path: Path) -> None:
    files = opened(tmp_path, max_bytes=16 * 4_096)
    for sequence in range(1, 400):
        files.append(numbered(files.epoch, sequence), read_back=False, sync=False)
    count = len(list(tmp_path.glob("*.spool")))
    assert count > 4
    for sequence in range(1, 400):
        files.settle((files.epoch, sequence))
        assert files.used_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.spool"))
    assert len(list(tmp_path.glob("*.spool"))) == 1
    os.close(files._lock)
    files = opened(tmp_path)
    assert files.left_over == []


async def test_a_refused_batch_of_an_earlier_life_does_not_hold_up_the_others(
    peers: Peers, connect: Connect, tmp_path: Path
) -> None:
    files = opened(tmp_path)
    for sequence in range(1, 4):
        files.append(numbered(files.epoch, sequence), read_back=False, sync=False)
    os.close(files._lock)

    async def publish(request: Request, context: Context) -> Response:
        if any(batch.sequence == 2 for batch in request.batches):
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        return await store.publish(request, context)

    store = Store(*peers)
    peers[0].answers["PublishMetrics"] = publish
    client = await connect(peers[0])
    spool = await client.metrics.open_spool(tmp_path)
    async with asyncio.timeout(10):
        while spool.counters.spooled or spool.counters.pending:
            await client.metrics.publisher.wait_call()
    counts = spool.counters
    assert (counts.recovered, counts.acknowledged, counts.rejected) == (9, 6, 3)
    assert [sequence for _, _, sequence in store.batches] == [1, 3]


def test_a_read_that_fails_in_the_middle_is_done_again_from_its_begin(tmp_path: Path) -> None:
    files = opened(tmp_path, max_bytes=16 * 4_096)
    for sequence in range(1, 200):
        files.append(numbered(files.epoch, sequence), read_back=True, sync=False)
    last = segments(tmp_path)[-1]
    away = last.rename(last.with_suffix(".away"))
    with pytest.raises(FileNotFoundError):
        files.read(100_000)
    away.rename(last)
    read = files.read(100_000)
    assert [batch.sequence for batch in read.batches] == list(range(1, 200))
    assert files.read(100_000).batches == []
    files.close()


def test_a_last_segment_without_batches_hides_none_before_it(tmp_path: Path) -> None:
    files = opened(tmp_path)
    for sequence in (1, 2):
        files.append(numbered(files.epoch, sequence), read_back=False, sync=False)
    os.close(files._lock)
    files = opened(tmp_path)
    files.settle((1_000, 1))
    os.close(files._lock)
    files = opened(tmp_path)
    assert files.left_over == [((1_000, 2), 3)]
    read = files.read(100)
    assert ([batch.sequence for batch in read.batches], read.through) == ([2], (1_000, 2))
    files.close()


class SmallDisk:
    """A disk of so many bytes under a directory: what is written beyond them is refused, as much as
    fits of it is there."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.directory = directory
        self.size_bytes = size_bytes
        self._write = os.write

    def write(self, file: int, data: bytes) -> int:
        """In place of `os.write`."""
        used = sum(each.stat().st_size for each in segments(self.directory))
        room = self.size_bytes - used
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(file, data[:room])


def fill(files: SpoolFiles, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Writes batches until the disk has refused 20 times; returns the last sequence."""
    monkeypatch.setattr(os, "write", SmallDisk(directory, 10_000).write)
    sequence = refused = 0
    while refused < 20:
        sequence += 1
        try:
            files.append(numbered(files.epoch, sequence), read_back=False, sync=False)
        except OSError:
            refused += 1
    return sequence


def test_a_full_disk_costs_no_files_and_frees_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note that everything is delivered has no room: what is delivered makes it."""
    files = opened(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    sequence = fill(files, tmp_path, monkeypatch)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(segments(tmp_path)) <= 2
    files.settle((files.epoch, sequence))
    assert files.used_bytes < 1_000
    files.append(numbered(files.epoch, sequence + 1), read_back=False, sync=False)
    files.close()
    again = opened(tmp_path)
    assert again.left_over == [((files.epoch, sequence + 1), 3)]
    again.close()


def test_an_app_starts_again_on_the_disk_that_it_has_filled(tmp_path: Path) -> None:
    """What the identity of the next start takes is there before the disk is full."""
    files = opened(tmp_path)
    reserved = tmp_path / "identity.new"
    assert reserved.stat().st_size >= (tmp_path / "identity.json").stat().st_size
    files.close()
    again = opened(tmp_path)
    assert again.epoch > files.epoch
    assert reserved.exists()
    again.close()
