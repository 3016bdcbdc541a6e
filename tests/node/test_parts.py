"""The parts of the driver that have a life of their own: topics, clock, writer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gaia_grpc.errors import GaiaError, StorageFailedError, StorageFullError
from gaia_grpc.node import writer as writer_module
from gaia_grpc.node.clock import LogClock, SystemClock
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.node.writer import LogWriter
from gaia_grpc.raft.types import Entry, Index, WriteBatch
from gaia_grpc.storage.memory import MemoryLog


class HandClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.ns = 0

    def monotonic_ns(self) -> int:
        return self.ns

    def wall_ms(self) -> int:
        return 0


def test_log_time_advances_by_at_most_half_a_second_a_pass() -> None:
    clock = HandClock()
    log_clock = LogClock(clock)
    log_clock.start(1_000)
    clock.ns += 20_000_000
    assert log_clock.advance_ms() == 1_020
    clock.ns += 3_600_000_000_000  # an hour asleep
    assert log_clock.advance_ms() == 1_520
    log_clock.stop()
    assert not log_clock.running


def test_log_time_keeps_what_is_less_than_a_millisecond() -> None:
    clock = HandClock()
    log_clock = LogClock(clock)
    log_clock.start(0)
    for _ in range(3_000):
        clock.ns += 500_000
        log_clock.advance_ms()
    assert log_clock.advance_ms() == 1_500


def test_system_clock_goes_forward() -> None:
    clock = SystemClock()
    assert clock.monotonic_ns() <= clock.monotonic_ns()
    assert clock.wall_ms() > 1_700_000_000_000


async def test_topic_wakes_only_its_own_waiters() -> None:
    board = TopicBoard()
    first, second = board.version("a"), board.version("b")
    waits_a = asyncio.create_task(board.wait("a", first, 5))
    waits_b = asyncio.create_task(board.wait("b", second, 0.05))
    await asyncio.sleep(0)
    board.touch(["a"])
    assert await waits_a != first
    assert await waits_b == second
    assert board.waiting == 0


async def test_change_between_look_and_wait_is_seen() -> None:
    board = TopicBoard()
    version = board.version("a")
    board.touch(["a"])
    assert await asyncio.wait_for(board.wait("a", version, 60), 1) != version


async def test_forgotten_topic_wakes_for_nothing_rather_than_never() -> None:
    board = TopicBoard(max_topics=2)
    board.touch(["a"])
    version = board.version("a")
    board.touch(["b", "c", "d"])
    assert board.version("a") != version or board.version("a") >= version
    before = board.version("a")
    board.touch(["a"])
    assert board.version("a") != before


class FaultyLog(MemoryLog):
    """A log whose writes fail as told."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.maintenance_failures: list[Exception] = []
        self.written: list[int] = []

    def write(self, batches: Sequence[WriteBatch]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.written += [batch.write_number for batch in batches]

    def maintain(self) -> None:
        if self.maintenance_failures:
            raise self.maintenance_failures.pop(0)

    def read_entries(self, first: Index, count: int) -> tuple[Entry, ...]:
        return ()


class Heard:
    """What the writer told."""

    def __init__(self) -> None:
        self.persisted: list[int] = []
        self.full: list[bool] = []
        self.failed: list[GaiaError] = []
        self.event = asyncio.Event()

    def make(self, log: FaultyLog) -> LogWriter:
        return LogWriter(
            log, on_persisted=self.on_persisted, on_full=self.on_full, on_failed=self.on_failed
        )

    def on_persisted(self, write_number: int) -> None:
        self.persisted.append(write_number)
        self.event.set()

    def on_full(self, full: bool) -> None:
        self.full.append(full)
        self.event.set()

    def on_failed(self, error: GaiaError) -> None:
        self.failed.append(error)
        self.event.set()


async def test_writer_reports_the_last_number_of_a_transaction() -> None:
    log, heard = FaultyLog(), Heard()
    writer = heard.make(log)
    for number in range(1, 6):
        writer.submit(WriteBatch(number, None, ()))
    writer.start()
    await asyncio.wait_for(heard.event.wait(), 5)
    await writer.stop()
    assert log.written == [1, 2, 3, 4, 5]
    assert heard.persisted[-1] == 5
    assert writer.stats.batches == 5


async def test_full_disk_is_told_and_the_write_is_made_when_there_is_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer_module, "FULL_RETRY_S", 0.01)
    log, heard = FaultyLog(), Heard()
    log.failures = [StorageFullError("full"), StorageFullError("full")]
    writer = heard.make(log)
    writer.start()
    writer.submit(WriteBatch(1, None, ()))
    async with asyncio.timeout(5):
        while not heard.persisted:
            heard.event.clear()
            await heard.event.wait()
    await writer.stop()
    assert heard.full == [True, False]
    assert heard.persisted == [1]


@pytest.mark.parametrize("error", [StorageFailedError("fsync failed"), KeyError("a bug")])
async def test_failed_write_is_never_tried_again(error: Exception) -> None:
    log, heard = FaultyLog(), Heard()
    log.failures = [error]
    writer = heard.make(log)
    writer.start()
    writer.submit(WriteBatch(1, None, ()))
    await asyncio.wait_for(heard.event.wait(), 5)
    writer.submit(WriteBatch(2, None, ()))
    await writer.stop()
    (told,) = heard.failed
    assert isinstance(told, StorageFailedError)
    assert told is error or "KeyError" in told.message
    assert heard.persisted == []
    assert log.written == []


@pytest.mark.parametrize("error", [StorageFailedError("checkpoint failed"), KeyError("a bug")])
async def test_failed_housekeeping_ends_the_peer(error: Exception) -> None:
    """Else the thread is gone, and a peer lives on that never acknowledges anything."""
    log, heard = FaultyLog(), Heard()
    log.maintenance_failures = [error]
    writer = heard.make(log)
    writer.start()
    writer.submit(WriteBatch(1, None, ()))
    async with asyncio.timeout(5):
        while not heard.failed:
            heard.event.clear()
            await heard.event.wait()
    await writer.stop()
    assert heard.persisted == [1]
    assert isinstance(heard.failed[0], StorageFailedError)


async def test_housekeeping_without_space_is_left_for_later() -> None:
    log, heard = FaultyLog(), Heard()
    log.maintenance_failures = [StorageFullError("full")]
    writer = heard.make(log)
    writer.start()
    for number in (1, 2):
        heard.event.clear()
        writer.submit(WriteBatch(number, None, ()))
        await asyncio.wait_for(heard.event.wait(), 5)
    await writer.stop()
    assert log.written == [1, 2]
    assert heard.failed == []
    assert heard.full == []


async def test_writer_stops_while_the_disk_is_full() -> None:
    log, heard = FaultyLog(), Heard()
    log.failures = [StorageFullError("full") for _ in range(1_000)]
    writer = heard.make(log)
    writer.start()
    writer.submit(WriteBatch(1, None, ()))
    await asyncio.wait_for(heard.event.wait(), 5)
    await asyncio.wait_for(writer.stop(), 5)
    assert heard.full == [True]
    assert heard.persisted == []


async def test_writer_that_never_started_stops() -> None:
    await asyncio.wait_for(Heard().make(FaultyLog()).stop(), 5)
