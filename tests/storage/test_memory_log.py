"""The twin of the disk keeps the promises that the simulations rely on."""

from __future__ import annotations

import pytest

from gaia_grpc.errors import (
    InvariantError,
    StorageDamagedError,
    StorageFailedError,
    StorageFullError,
)
from gaia_grpc.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    Restored,
    SnapshotMeta,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.api import LogStorage
from gaia_grpc.storage.memory import MemoryLog


def entry(term: int, index: int) -> Entry:
    return Entry(Term(term), Index(index), EntryKind.COMMAND, b"x")


def batch(*entries: Entry, state: HardState | None = None) -> WriteBatch:
    return WriteBatch(1, state, entries)


def test_what_was_written_is_loaded_and_read() -> None:
    log: LogStorage = MemoryLog()
    state = HardState(Term(2), commit_index=Index(1))
    log.write([batch(entry(1, 1), entry(1, 2)), batch(entry(2, 2), state=state)])
    assert log.load() == Restored(state, (entry(1, 1), entry(2, 2)))
    assert log.read_entries(Index(2), 5) == (entry(2, 2),)


def test_a_crash_loses_what_was_not_synced() -> None:
    log = MemoryLog()
    log.write([batch(entry(1, 1))])
    log.stage([batch(entry(1, 2))])
    assert log.staged == 1
    assert log.crash() == 0
    assert log.load().entries == (entry(1, 1),)


def test_a_crash_may_keep_a_prefix_of_the_transactions() -> None:
    log = MemoryLog()
    for index in (1, 2, 3):
        log.stage([batch(entry(1, index))])
    assert log.crash(lambda low, high: min(2, high)) == 2
    assert log.load().entries == (entry(1, 1), entry(1, 2))


def test_a_full_disk_keeps_nothing_of_a_write_and_recovers() -> None:
    log = MemoryLog()
    log.set_full(True)
    with pytest.raises(StorageFullError):
        log.write([batch(entry(1, 1))])
    assert log.load().entries == ()
    log.set_full(False)
    log.write([batch(entry(1, 1))])
    assert log.load().entries == (entry(1, 1),)


def test_after_an_io_error_nothing_works_until_a_restart() -> None:
    log = MemoryLog()
    log.stage([batch(entry(1, 1))])
    log.fail()
    for attempt in (log.sync, log.sync_one, lambda: log.stage([batch(entry(1, 2))])):
        with pytest.raises(StorageFailedError):
            attempt()
    log.crash(lambda low, high: high)
    assert log.load().entries == (entry(1, 1),)
    log.write([batch(entry(1, 2))])
    assert log.syncs == 1


def test_transactions_sync_one_by_one() -> None:
    log = MemoryLog()
    log.stage([batch(entry(1, 1))])
    log.stage([batch(entry(1, 2))])
    assert log.sync_one() == (batch(entry(1, 1)),)
    assert log.load().entries == (entry(1, 1),)


def test_a_damaged_entry_is_found() -> None:
    log = MemoryLog()
    log.write([batch(entry(1, 1), entry(1, 2))])
    log.damage(Index(2))
    with pytest.raises(StorageDamagedError):
        log.load()
    with pytest.raises(StorageDamagedError):
        log.read_entries(Index(1), 2)
    assert log.read_entries(Index(1), 1) == (entry(1, 1),)
    with pytest.raises(InvariantError):
        log.damage(Index(3))


def test_a_write_after_close_fails() -> None:
    log = MemoryLog()
    log.close()
    with pytest.raises(StorageFailedError, match="closed"):
        log.write([batch(entry(1, 1))])


def test_a_log_behind_a_snapshot() -> None:
    snapshot = SnapshotMeta(Index(5), Term(1), b"")
    log = MemoryLog(Restored(HardState(Term(1)), (entry(1, 6),), snapshot))
    log.write([batch(entry(1, 7))])
    assert log.read_entries(Index(1), 9) == (entry(1, 6), entry(1, 7))
    assert log.load().snapshot == snapshot
    with pytest.raises(InvariantError, match="gap"):
        log.write([batch(entry(1, 9))])
