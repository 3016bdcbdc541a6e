"""Identity, lock and founding record of a data directory."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gaia_grpc.errors import IdentityRefusedError, StartupError, StorageDamagedError
from gaia_grpc.raft.types import Entry, EntryKind, HardState, Index, NodeId, Term, WriteBatch
from gaia_grpc.storage.directory import DATABASE_NAME, DataDirectory
from gaia_grpc.storage.rows import meta_crc

N1 = NodeId("n1")
FIRST = (
    Entry(Term(1), Index(1), EntryKind.CONFIGURATION, b"members"),
    Entry(Term(1), Index(2), EntryKind.COMMAND, b"founding"),
)
FOUNDED = HardState(Term(1), N1, Index(2))


def test_identity_outlives_restarts_and_the_boot_counter_grows(directory: Path) -> None:
    seen = []
    for _ in range(3):
        opened = DataDirectory.open(directory / "n1", N1)
        seen.append(opened.identity())
        opened.close()
    assert len({identity.peer_uuid for identity in seen}) == 1
    assert [identity.boot for identity in seen] == [1, 2, 3]
    assert all(identity.node_id == N1 and identity.cluster_id is None for identity in seen)


def test_a_wiped_directory_is_somebody_else(directory: Path) -> None:
    first = DataDirectory.open(directory / "n1", N1)
    first.close()
    shutil.rmtree(directory / "n1")
    second = DataDirectory.open(directory / "n1", N1)
    second.close()
    assert first.identity().peer_uuid != second.identity().peer_uuid


def test_directory_is_private(directory: Path) -> None:
    DataDirectory.open(directory / "a" / "n1", N1).close()
    assert (directory / "a" / "n1").stat().st_mode & 0o777 == 0o700
    assert (directory / "a" / "n1" / DATABASE_NAME).stat().st_mode & 0o777 == 0o600


def test_another_peer_is_refused_in_one_line(directory: Path) -> None:
    DataDirectory.open(directory / "n1", N1).close()
    with pytest.raises(StartupError, match=r"belongs to peer n1, not to n2") as caught:
        DataDirectory.open(directory / "n1", NodeId("n2"))
    assert "\n" not in caught.value.message
    DataDirectory.open(directory / "n1", N1).close()


def test_second_process_is_refused_and_the_first_goes_on(directory: Path) -> None:
    first = DataDirectory.open(directory / "n1", N1)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gaia_grpc.storage.directory import DataDirectory\n"
        "from gaia_grpc.errors import StartupError\n"
        "try:\n"
        "    DataDirectory.open(Path(sys.argv[1]), 'n1')\n"
        "except StartupError as error:\n"
        "    sys.exit(str(error))\n"
    )
    second = subprocess.run(
        [sys.executable, "-c", script, str(directory / "n1")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "in use by another process (pid " in second.stderr
    first.log.write([WriteBatch(1, FOUNDED, FIRST)])
    first.close()


def test_database_alone_refuses_a_second_process_too(directory: Path) -> None:
    opened = DataDirectory.open(directory / "n1", N1)
    script = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM meta')"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(directory / "n1" / DATABASE_NAME)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "database is locked" in other.stderr
    opened.close()


@pytest.mark.parametrize("parent", ["file", "proc"])
def test_unwritable_directory_is_a_startup_error(directory: Path, parent: str) -> None:
    (directory / "file").write_text("not a directory")
    path = directory / "file" / "n1" if parent == "file" else Path("/proc/gaia/n1")
    with pytest.raises(StartupError, match="can't be written") as caught:
        DataDirectory.open(path, N1)
    assert "\n" not in caught.value.message


def test_founding_is_durable_and_happens_once(directory: Path) -> None:
    opened = DataDirectory.open(directory / "n1", N1)
    assert opened.is_empty
    opened.found("c1", FIRST, FOUNDED)
    assert not opened.is_empty
    assert opened.log.load().entries == FIRST
    with pytest.raises(StartupError, match="holds data already"):
        opened.found("c2", FIRST, FOUNDED)
    opened.log.write([WriteBatch(1, None, (Entry(Term(2), Index(3), EntryKind.NOOP, b""),))])
    opened.close()

    again = DataDirectory.open(directory / "n1", N1)
    assert again.identity().cluster_id == "c1"
    restored = again.log.load()
    assert restored.hard_state == FOUNDED
    assert restored.entries[:2] == FIRST
    assert len(restored.entries) == 3
    again.close()


def test_a_vote_makes_a_directory_not_empty(directory: Path) -> None:
    opened = DataDirectory.open(directory / "n1", N1)
    opened.log.write([WriteBatch(1, HardState(Term(1), NodeId("n2")), ())])
    assert not opened.is_empty
    opened.close()


def test_adopting_a_cluster_is_durable_and_final(directory: Path) -> None:
    opened = DataDirectory.open(directory / "n1", N1)
    opened.adopt("c1")
    opened.adopt("c1")
    opened.close()
    again = DataDirectory.open(directory / "n1", N1)
    assert again.identity().cluster_id == "c1"
    assert not again.is_empty
    with pytest.raises(IdentityRefusedError, match="belongs to cluster c1, not c2"):
        again.adopt("c2")
    again.close()


def test_adopting_keeps_the_vote_and_the_log(directory: Path) -> None:
    opened = DataDirectory.open(directory / "n1", N1)
    opened.log.write([WriteBatch(1, FOUNDED, FIRST)])
    opened.adopt("c1")
    opened.close()
    again = DataDirectory.open(directory / "n1", N1)
    assert again.log.load().hard_state == FOUNDED
    assert again.log.load().entries == FIRST
    again.close()


def test_another_format_is_refused_before_anything_else_is_read(directory: Path) -> None:
    DataDirectory.open(directory / "n1", N1).close()
    connection = sqlite3.connect(directory / "n1" / DATABASE_NAME)
    connection.execute(
        "UPDATE meta SET value='2', crc=? WHERE key='format'", (meta_crc("format", "2"),)
    )
    connection.execute("DELETE FROM meta WHERE key='peer_uuid'")
    connection.commit()
    connection.close()
    with pytest.raises(StartupError, match="has data format 2, this version reads 1 only"):
        DataDirectory.open(directory / "n1", N1)


def test_a_database_that_vanished_is_not_a_fresh_start(directory: Path) -> None:
    """B26: the mark remembers that there were commits, so an emptied peer can't vote again."""
    opened = DataDirectory.open(directory / "n1", N1)
    opened.log.write([WriteBatch(1, HardState(Term(4), NodeId("n2")), ())])
    opened.close()
    (directory / "n1" / DATABASE_NAME).unlink()
    with pytest.raises(StorageDamagedError, match="empty, but was written to before"):
        DataDirectory.open(directory / "n1", N1)


def test_a_foreign_database_is_refused(directory: Path) -> None:
    (directory / "n1").mkdir()
    connection = sqlite3.connect(directory / "n1" / DATABASE_NAME)
    connection.execute("CREATE TABLE meta(key, value, crc)")
    connection.commit()
    connection.close()
    with pytest.raises(StorageDamagedError, match="not a GAIA database"):
        DataDirectory.open(directory / "n1", N1)


def test_closing_twice_and_opening_after_a_refusal(directory: Path) -> None:
    opened = DataDirectory.open(directory / "n1", N1)
    opened.close()
    opened.close()
    for _ in range(2):
        with pytest.raises(StartupError):
            DataDirectory.open(directory / "n1", NodeId("n2"))
    DataDirectory.open(directory / "n1", N1).close()
