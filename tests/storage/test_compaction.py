"""Compaction in steps: what each removes at most, and that space comes back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gaia_grpc.errors import StorageFullError
from gaia_grpc.raft.types import Restored
from gaia_grpc.storage import free_pages, sqlite_log
from gaia_grpc.storage.directory import DATABASE_NAME, DataDirectory
from tests.storage.scenario import N1, batch, entries, entry, entry_id, meta, save


def rows(opened: DataDirectory) -> int:
    (count,) = opened.log._database.connection.execute("SELECT count(*) FROM entries").fetchone()
    return int(count)


def filled(path: Path, count: int, data: bytes = b"") -> DataDirectory:
    opened = DataDirectory.open(path, N1)
    opened.log.write([batch(*(entry(index, data=data) for index in range(1, count + 1)))])
    save(opened.snapshots, meta(count))
    return opened


def test_rows_are_removed_some_at_a_time(directory: Path) -> None:
    opened = filled(directory, 2_000)
    opened.log.compact(entry_id(1_900))
    assert rows(opened) == 2_000
    seen = []
    while opened.log.needs_maintenance:
        opened.log.maintain()
        seen.append(rows(opened))
        # Whatever is left of them, the log begins behind the base from the first step on.
        assert opened.log.load(again=True).entries == entries(1_901, 2_000)
        assert opened.log.load().base == entry_id(1_900)
    steps = [before - after for before, after in zip([2_000, *seen], seen, strict=False)]
    assert max(steps) == sqlite_log.REMOVE_ROWS
    assert rows(opened) == 100
    opened.close()


def test_large_rows_are_removed_fewer_at_a_time(directory: Path) -> None:
    opened = filled(directory, 40, bytes(300_000))
    opened.log.compact(entry_id(40))
    opened.log.maintain()
    assert rows(opened) == 36
    opened.close()


def test_a_restart_goes_on_removing(directory: Path) -> None:
    opened = filled(directory, 2_000)
    opened.log.compact(entry_id(1_900))
    opened.log.maintain()
    opened.log.write([batch(entry(2_001))])
    opened.close()
    again = DataDirectory.open(directory, N1)
    assert again.log.load() == Restored(
        again.log.hard_state, entries(1_901, 2_001), meta(2_000), entry_id(1_900)
    )
    assert 101 < rows(again) < 2_000
    while again.log.needs_maintenance:
        again.log.maintain()
    assert rows(again) == 101
    assert not again.log.needs_maintenance
    again.close()


def test_space_goes_back_to_the_file_system(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_pages, "KEEP_FREE_PAGES", 100)
    opened = filled(directory, 500, bytes(10_000))
    opened.log.compact(entry_id(490))
    large = directory / DATABASE_NAME
    opened.log._database.checkpoint()
    before = large.stat().st_size
    calls = 0
    while opened.log.needs_maintenance:
        opened.log.maintain()
        calls += 1
    opened.close()
    assert before > 5_000_000
    assert large.stat().st_size < 1_000_000
    assert 10 < calls < 50
    again = DataDirectory.open(directory, N1)
    assert len(again.log.load().entries) == 10
    again.close()


def test_a_database_that_can_not_shrink_uses_its_pages_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that an earlier version created."""
    DataDirectory.open(directory, N1).close()
    connection = sqlite3.connect(directory / DATABASE_NAME, isolation_level=None)
    connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    connection.execute("PRAGMA auto_vacuum=NONE")
    connection.execute("VACUUM")
    connection.close()
    monkeypatch.setattr(free_pages, "KEEP_FREE_PAGES", 100)
    opened = filled(directory, 500, bytes(10_000))
    opened.log.compact(entry_id(500))
    while opened.log.needs_maintenance:
        opened.log.maintain()
    opened.log._database.checkpoint()
    before = (directory / DATABASE_NAME).stat().st_size
    opened.log.write([batch(*(entry(index, data=bytes(10_000)) for index in range(501, 900)))])
    opened.close()
    assert (directory / DATABASE_NAME).stat().st_size == before


def files_with(path: Path, needle: bytes) -> list[str]:
    """Files of a directory that hold some bytes."""
    found = [each for each in sorted(path.rglob("*")) if each.is_file()]
    return [each.name for each in found if needle in each.read_bytes()]


@pytest.mark.parametrize("size_bytes", [20, 700, 9_000])
def test_what_was_deleted_is_in_no_file_once_it_is_cleaned(
    directory: Path, size_bytes: int
) -> None:
    """In rows that share a page, that fill one, and that go on in others; compacted before and
    after the deletion, while the log goes on being written."""
    secret = b"pupil-7f3a91"
    data = secret.ljust(size_bytes, b".")
    opened = filled(directory, 900, data)
    opened.log.compact(entry_id(300))
    while opened.log.needs_maintenance:
        opened.log.maintain()
    opened.log.write([batch(*(entry(index, data=b"other") for index in range(901, 1_200)))])
    opened.log.compact(entry_id(900))
    opened.log.clean()
    index = 1_200
    while opened.log.needs_maintenance:
        opened.log.maintain()
        opened.log.write([batch(entry(index, data=b"other"))])
        index += 1
    assert files_with(directory, secret) == []
    assert len(opened.log.load(again=True).entries) == index - 901
    opened.close()
    again = DataDirectory.open(directory, N1)
    assert len(again.log.load().entries) == index - 901
    again.close()


def test_without_cleaning_free_pages_keep_what_was_on_them(directory: Path) -> None:
    """Else the test above could not fail."""
    secret = b"pupil-7f3a91"
    opened = filled(directory, 900, secret.ljust(700, b"."))
    opened.log._database.checkpoint()
    opened.log.compact(entry_id(900))
    while opened.log.needs_maintenance:
        opened.log.maintain()
    opened.log._database.checkpoint()
    assert files_with(directory, secret) == [DATABASE_NAME, f"{DATABASE_NAME}-wal"]
    opened.close()


def test_a_full_disk_delays_compaction_and_nothing_else(directory: Path) -> None:
    """B24: the log stays writable where there is room, and the removal goes on later."""
    opened = filled(directory, 2_000)
    opened.log.compact(entry_id(1_900))
    connection = opened.log._database.connection
    connection.execute("CREATE TEMP TABLE stop(x)")
    connection.execute(
        "CREATE TEMP TRIGGER refuse BEFORE DELETE ON entries BEGIN "
        "SELECT RAISE(ABORT, 'no room'); END"
    )

    def full(error: sqlite3.Error, doing: str) -> StorageFullError:
        opened.log._database._rollback()
        return StorageFullError(str(error))

    original = opened.log._database._fail
    opened.log._database._fail = full  # type: ignore[method-assign] # SQLite can't be told to
    with pytest.raises(StorageFullError):
        opened.log.maintain()
    assert opened.log.needs_maintenance
    assert opened.log.load(again=True).base == entry_id(0, 0)
    connection.execute("DROP TRIGGER refuse")
    opened.log._database._fail = original  # type: ignore[method-assign] # as above
    while opened.log.needs_maintenance:
        opened.log.maintain()
    assert rows(opened) == 100
    opened.close()
