"""A backup is whole or not there, and tells when it was damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gaia_grpc.errors import NotFoundError, StorageDamagedError, StorageFullError
from gaia_grpc.raft.types import Index, SnapshotMeta, Term
from gaia_grpc.storage.backup_file import check_backup, read_backup, write_backup
from gaia_grpc.storage.files import SystemFile

META = SnapshotMeta(Index(7), Term(2), b"")
CONTENT = bytes(range(256)) * 1_000


def pieces() -> list[bytes]:
    return [CONTENT[at : at + 10_000] for at in range(0, len(CONTENT), 10_000)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "school.backup"
    info = write_backup(path, META, pieces(), sha256=hashlib.sha256(CONTENT).digest())
    assert (info.meta, info.size_bytes) == (META, len(CONTENT))
    assert check_backup(path) == info
    assert b"".join(read_backup(path)) == CONTENT
    assert [found.name for found in tmp_path.iterdir()] == ["school.backup"]


def test_an_empty_state_is_a_backup_too(tmp_path: Path) -> None:
    write_backup(tmp_path / "b", META, [])
    assert check_backup(tmp_path / "b").size_bytes == 0
    assert list(read_backup(tmp_path / "b")) == []


def test_content_that_is_not_what_was_announced_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageDamagedError):
        write_backup(tmp_path / "b", META, pieces(), sha256=b"x" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_keeps_the_backup_of_before(tmp_path: Path) -> None:
    path = tmp_path / "b"
    before = write_backup(path, META, [b"before"])

    def broken() -> object:
        yield CONTENT
        raise ConnectionError("the peer is gone")

    with pytest.raises(Exception, match="gone"):
        write_backup(path, META, broken())  # type: ignore[arg-type] # an iterator that raises
    assert check_backup(path) == before
    assert [found.name for found in tmp_path.iterdir()] == ["b"]


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: SystemFile, offset_bytes: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SystemFile, "write", full)
    with pytest.raises(StorageFullError):
        write_backup(tmp_path / "b", META, pieces())
    assert list(tmp_path.iterdir()) == []


def test_each_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "b"
    write_backup(path, META, [CONTENT[:5_000]])
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(StorageDamagedError):
            check_backup(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(StorageDamagedError):
        check_backup(path)


def test_no_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check_backup(tmp_path / "nothing")
