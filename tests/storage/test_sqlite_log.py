"""The durable log against a list in memory, its limits, and what its errors leave behind."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia_grpc.errors import (
    InvariantError,
    StorageDamagedError,
    StorageFailedError,
    StorageFullError,
)
from gaia_grpc.raft.types import Entry, EntryKind, HardState, Index, NodeId, Term, WriteBatch
from gaia_grpc.storage import sqlite_log
from gaia_grpc.storage.api import LogStorage
from gaia_grpc.storage.database import Database
from gaia_grpc.storage.directory import DATABASE_NAME, DataDirectory

N1 = NodeId("n1")


def entry(index: int, term: int = 1, data: bytes = b"command") -> Entry:
    return Entry(Term(term), Index(index), EntryKind.COMMAND, data)


def batch(*entries: Entry, state: HardState | None = None) -> WriteBatch:
    return WriteBatch(1, state, entries)


def test_all_kinds_of_values_come_back(directory: Path) -> None:
    opened = DataDirectory.open(directory, N1)
    log: LogStorage = opened.log
    state = HardState(Term(1 << 40), NodeId("peer-ü"), Index(2))
    entries = (
        Entry(Term(1), Index(1), EntryKind.NOOP, b""),
        Entry(Term(2), Index(2), EntryKind.CONFIGURATION, b"\0\xff"),
        Entry(Term(1 << 40), Index(3), EntryKind.COMMAND, bytes(300_000)),
    )
    log.write([batch(*entries, state=state)])
    assert log.read_entries(Index(2), 1) == entries[1:2]
    assert log.read_entries(Index(2), 10) == entries[1:]
    assert log.read_entries(Index(9), 10) == ()
    opened.close()
    again = DataDirectory.open(directory, N1)
    assert again.log.load().entries == entries
    assert again.log.load().hard_state == state
    again.close()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.floats(0, 1), st.integers(0, 4), st.booleans()), min_size=1, max_size=3
        ),
        max_size=12,
    ),
    st.data(),
)
def test_log_equals_a_list_across_restarts(
    writes: list[list[tuple[float, int, bool]]], data: st.DataObject
) -> None:
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        model: list[Entry] = []
        state = HardState()
        opened = DataDirectory.open(path, N1)
        term = 1
        for group in writes:
            batches = []
            for position, length, with_state in group:
                first = 1 + round(position * len(model)) if length else len(model) + 1
                added = tuple(
                    entry(first + offset, term, data.draw(st.binary(max_size=20)))
                    for offset in range(length)
                )
                if added:
                    model[first - 1 :] = added
                term += 1
                if with_state:
                    state = HardState(Term(term), N1, Index(0))
                batches.append(batch(*added, state=state if with_state else None))
            opened.log.write(batches)
            if data.draw(st.booleans()):
                opened.close()
                opened = DataDirectory.open(path, N1)
            restored = opened.log.load()
            assert restored.entries == tuple(model)
            assert restored.hard_state == state
        opened.close()
    finally:
        shutil.rmtree(path)


def test_entries_that_leave_a_gap_are_refused_and_nothing_is_written(directory: Path) -> None:
    opened = DataDirectory.open(directory, N1)
    opened.log.write([batch(entry(1))])
    for bad in (batch(entry(4)), batch(entry(2), entry(4)), batch(entry(0))):
        with pytest.raises(InvariantError):
            opened.log.write([batch(entry(2)), bad])
    assert opened.log.load(again=True).entries == (entry(1),)
    opened.close()


def test_commit_index_beyond_the_log_is_damage(directory: Path) -> None:
    """B8: SQLite writes both or none, so this can only be a bug or a manipulated file."""
    opened = DataDirectory.open(directory, N1)
    opened.log.write([batch(entry(1), state=HardState(Term(1), N1, Index(2)))])
    opened.close()
    with pytest.raises(StorageDamagedError, match="commit index 2 is beyond entry 1"):
        DataDirectory.open(directory, N1)


def test_full_disk_keeps_the_log_whole_and_writable_again(directory: Path) -> None:
    """B24: nothing of the refused write stays, and no repair is needed once there is space."""
    opened = DataDirectory.open(directory, N1)
    opened.log.write([batch(entry(1))])
    connection = opened.log._database.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 2}")
    for _ in range(3):
        with pytest.raises(StorageFullError, match="no space left"):
            opened.log.write([batch(entry(2), entry(3, data=bytes(100_000)))])
    assert opened.log.load(again=True).entries == (entry(1),)
    opened.log.write([batch(entry(2, term=2))])
    connection.execute("PRAGMA max_page_count=1000000")
    opened.log.write([batch(entry(3, data=bytes(100_000)))])
    opened.close()
    again = DataDirectory.open(directory, N1)
    assert [e.term for e in again.log.load().entries] == [1, 2, 1]
    again.close()


def test_b24_transaction_that_found_the_disk_full_is_taken_back_as_a_whole(
    tmp_path: Path,
) -> None:
    """SQLite itself takes back only the statement, where that may touch many rows, and leaves the
    transaction open: what came before would go with the next commit, if one could begin.
    """
    database = Database(tmp_path / "any.db")
    connection = database.connection
    connection.execute("CREATE TABLE numbers(number INTEGER PRIMARY KEY, data BLOB)")
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 10}")
    numbers = str(list(range(2, 100)))
    for _ in range(2):
        with pytest.raises(StorageFullError, match="no space left while filling"):
            fill(database, numbers)
        assert not connection.in_transaction
        assert connection.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
    with database.transaction("going on"):
        connection.execute("INSERT INTO numbers VALUES(7, x'00')")
    database.close()
    again = Database(database.path)
    assert again.connection.execute("SELECT number FROM numbers").fetchall() == [(7,)]
    again.close()


def fill(database: Database, numbers: str) -> None:
    with database.transaction("filling") as connection:
        connection.execute("INSERT INTO numbers VALUES(1, x'00')")
        connection.execute(
            "INSERT INTO numbers SELECT value, zeroblob(3000) FROM json_each(?)", (numbers,)
        )


def test_write_after_close_raises(directory: Path) -> None:
    opened = DataDirectory.open(directory, N1)
    opened.close()
    with pytest.raises(StorageFailedError, match="after close"):
        opened.log.write([batch(entry(1))])


def test_writes_from_another_thread(directory: Path) -> None:
    opened = DataDirectory.open(directory, N1)
    thread = threading.Thread(target=opened.log.write, args=([batch(entry(1))],))
    thread.start()
    thread.join()
    assert opened.log.load().entries == (entry(1),)
    opened.close()


def test_journal_stays_short_with_and_without_maintain(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "MAINTAIN_PAGES", 10)
    monkeypatch.setattr(sqlite_log, "FORCE_PAGES", 50)
    for name, maintained, limit in (("a", True, 40), ("b", False, 120)):
        opened = DataDirectory.open(directory / name, N1)
        for index in range(1, 300):
            opened.log.write([batch(entry(index, data=bytes(200)))])
            if maintained:
                opened.log.maintain()
        journal = directory / name / f"{DATABASE_NAME}-wal"
        assert journal.stat().st_size < limit * 4200
        assert len(opened.log.load(again=True).entries) == 299
        opened.close()
        assert not journal.exists()


def test_an_empty_write_costs_no_commit(directory: Path) -> None:
    opened = DataDirectory.open(directory, N1)
    before = opened.log.number
    opened.log.write([])
    opened.log.write([batch()])
    assert opened.log.number == before
    opened.close()
