"""A directory made from a snapshot, and one that is read while its peer is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaia_grpc.errors import StartupError, StorageDamagedError, StorageFullError
from gaia_grpc.raft.types import HardState, Index, NodeId, Restored, Term
from gaia_grpc.storage.directory import SNAPSHOTS_NAME, DataDirectory
from gaia_grpc.storage.stopped import read_stopped
from tests.storage.recording import record, replayed, strace_works
from tests.storage.scenario import (
    N1,
    batch,
    compact,
    content,
    entries,
    entry,
    entry_id,
    meta,
    save,
)

FIRST = (entry(6, 2),)
STATE = HardState(Term(2), N1, Index(6))
EXPECTED = Restored(STATE, FIRST, meta(5), entry_id(5))

RESTORER = """
import sys
import uuid
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.storage.test_restore import restore
restore(Path(sys.argv[1]))
sys.stdout.write("restored\\n")
"""


def restore(path: Path) -> None:
    data = content(meta(5))
    chunks = [data[:30_000], data[30_000:]]
    DataDirectory.restore(
        path, N1, "c2", meta(5), chunks, FIRST, STATE, peer_uuid=str(uuid.uuid4())
    )


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_a_restored_directory_is_that_of_a_new_peer_behind_the_snapshot(directory: Path) -> None:
    restore(directory / "n1")
    restore(directory / "n2")
    seen = []
    for name in ("n1", "n2"):
        opened = DataDirectory.open(directory / name, N1)
        assert not opened.is_empty
        assert opened.log.load() == EXPECTED
        reader = opened.snapshots.open(meta(5))
        assert reader.read(0, 100_000) == content(meta(5))
        reader.close()
        opened.log.write([batch(entry(7, 2))])
        opened.close()
        assert (opened.identity().cluster_id, opened.identity().boot) == ("c2", 1)
        seen.append(opened.identity().peer_uuid)
    assert seen[0] != seen[1]


def test_a_directory_with_anything_in_it_is_refused_and_kept(directory: Path) -> None:
    restore(directory / "n1")
    DataDirectory.open(directory / "n2", N1).close()
    (directory / "n3").mkdir()
    (directory / "n3" / "notes.txt").write_text("mine")
    for name in ("n1", "n2", "n3"):
        before = files_of(directory / name)
        with pytest.raises(StartupError, match="already, nothing is restored here") as caught:
            restore(directory / name)
        assert "\n" not in caught.value.message
        assert {**files_of(directory / name), "lock": b""} == {**before, "lock": b""}


def test_a_directory_in_use_is_refused(directory: Path) -> None:
    opened = DataDirectory.open(directory / "n1", N1)
    with pytest.raises(StartupError, match="in use"):
        restore(directory / "n1")
    opened.close()


def test_a_restore_that_fails_leaves_nothing(directory: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield content(meta(5))
        raise StorageDamagedError("the backup is damaged")

    path = directory / "n1"
    with pytest.raises(StorageDamagedError, match="the backup is damaged"):
        DataDirectory.restore(path, N1, "c2", meta(5), broken(), FIRST, STATE, peer_uuid="u1")
    assert os.listdir(path) == ["lock"]
    with pytest.raises(StorageDamagedError):  # the commit index lies beyond the entries
        DataDirectory.restore(
            path, N1, "c2", meta(5), [b"x"], FIRST, HardState(Term(2), N1, Index(9)), peer_uuid="u1"
        )
    assert os.listdir(path) == ["lock"]
    restore(path)
    opened = DataDirectory.open(path, N1)
    assert opened.log.load() == EXPECTED
    opened.close()


@pytest.mark.skipif(not strace_works(), reason="strace is not here (or may not trace)")
def test_b20_a_restore_is_all_or_nothing_at_every_system_call(
    tmp_path: Path, directory: Path
) -> None:
    script = tmp_path / "restore.py"
    script.write_text(RESTORER.format(root=str(Path(__file__).parents[2])))
    operations = record(script, tmp_path / "n1", tmp_path / "trace")
    whole = nothing = 0
    for cut in range(len(operations) + 1):
        for keep in (True, False):
            replay = replayed(
                operations, tmp_path / "n1", cut,
                lambda replay: None if keep else replay.crash(None),  # noqa: B023 - called at once
            )  # fmt: skip
            replay.put(directory / "copy")
            try:
                opened = DataDirectory.open(directory / "copy", N1)
            except StorageDamagedError:
                assert replay.output == b""
                nothing += 1
                continue
            if opened.is_empty:
                assert replay.output == b""
                nothing += 1
            else:
                assert opened.log.load() == EXPECTED
                assert opened.identity().cluster_id == "c2"
                whole += 1
            opened.close()
    assert whole > 5
    assert nothing > 20


def fill(path: Path) -> Restored:
    opened = DataDirectory.open(path, N1)
    opened.adopt("c1")
    opened.log.write([batch(*entries(1, 9), state=HardState(Term(1), N1, Index(9)))])
    save(opened.snapshots, meta(5))
    compact(opened.log, entry_id(3))
    restored = opened.log.load()
    opened.close()
    return restored


def test_a_stopped_peer_is_read_without_a_change(directory: Path) -> None:
    restored = fill(directory / "n1")
    before = files_of(directory / "n1")
    for _ in range(2):
        with read_stopped(directory / "n1") as stopped:
            assert stopped.restored == restored
            assert stopped.identity.node_id == N1
            assert stopped.identity.cluster_id == "c1"
            reader = stopped.snapshots.open(meta(5))
            assert reader.read(0, 100_000) == content(meta(5))
            reader.close()
            with pytest.raises(StartupError, match="in use"):
                DataDirectory.open(directory / "n1", N1)
    assert files_of(directory / "n1") == before


def test_a_killed_peer_is_read_with_its_journal(directory: Path) -> None:
    """What was acknowledged last is only in the journal, which must not be touched."""
    script = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\n"
        "from gaia_grpc.storage.directory import DataDirectory\n"
        "from tests.storage.scenario import N1, batch, entry\n"
        "opened = DataDirectory.open(Path(sys.argv[1]), N1)\n"
        "opened.log.write([batch(entry(10))])\n"
        "opened.snapshots.create(__import__('tests.storage.scenario').storage.scenario.meta(7))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    fill(directory / "n1")
    killed = subprocess.run(
        [sys.executable, "-c", script, str(directory / "n1")], timeout=60, check=False
    )
    assert killed.returncode == -9
    before = files_of(directory / "n1")
    assert any(name.startswith(f"{SNAPSHOTS_NAME}/making-") for name in before)
    with read_stopped(directory / "n1") as stopped:
        assert stopped.restored.entries == entries(4, 10)
        assert stopped.restored.snapshot == meta(5)
    assert files_of(directory / "n1") == before


def test_a_damaged_stopped_peer_is_refused_by_its_own_name(directory: Path) -> None:
    fill(directory / "n1")
    (file,) = (directory / "n1" / SNAPSHOTS_NAME).iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with (
        pytest.raises(StorageDamagedError, match=r"n1/snapshots/snapshot-"),
        read_stopped(directory / "n1"),
    ):
        pass
    file.unlink()
    with pytest.raises(StorageDamagedError, match=r"n1/raft\.db"), read_stopped(directory / "n1"):
        pass


def test_reading_nothing_or_a_running_peer_is_refused(directory: Path) -> None:
    with pytest.raises(StartupError, match="no data directory"), read_stopped(directory / "n1"):
        pass
    assert not (directory / "n1").exists()
    opened = DataDirectory.open(directory / "n1", N1)
    with pytest.raises(StartupError, match="stop the peer first"), read_stopped(directory / "n1"):
        pass
    opened.close()


def test_a_restore_onto_a_full_disk_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, offset_bytes: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gaia_grpc.storage.files.SystemFile.write", full)
    with pytest.raises(StorageFullError):
        DataDirectory.restore(
            directory / "n1", NodeId("n1"), "c2", meta(5), [b"x"], FIRST, STATE, peer_uuid="u1"
        )
    assert os.listdir(directory / "n1") == ["lock"]
