"""Pins format 1: what an older version wrote must stay readable, byte for byte."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from pathlib import Path

import pytest

from gaia_grpc.errors import StorageDamagedError
from gaia_grpc.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    SnapshotMeta,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.directory import DATABASE_NAME, DataDirectory
from gaia_grpc.storage.files import SystemFiles
from gaia_grpc.storage.rows import base_crc, entry_crc, hard_state_crc, meta_crc
from gaia_grpc.storage.snapshots import FileSnapshotStore
from gaia_grpc.storage.wal_check import Mark

SCHEMA = {
    "meta": ["key", "value", "crc"],
    "hard_state": ["id", "term", "voted_for", "commit_index", "number", "crc"],
    "entries": ["log_index", "term", "kind", "number", "data", "crc"],
    "base": ["id", "log_index", "term", "crc"],
}


def test_checksums_of_rows() -> None:
    assert entry_crc(7, 3, 11, 2, b"data") == 0xF0E21343
    assert hard_state_crc(3, "n1", 7, 11) == 0x837484EA
    assert base_crc(0, 0) == 0xECBB4B55
    assert meta_crc("format", "1") == 0xA8AC05BF


def test_file_layout(directory: Path) -> None:
    opened = DataDirectory.open(directory, NodeId("n1"))
    opened.adopt("c1")
    opened.log.write(
        [
            WriteBatch(
                1,
                HardState(Term(3), NodeId("n1"), Index(1)),
                (Entry(Term(3), Index(1), EntryKind.COMMAND, b"data"),),
            )
        ]
    )
    number = opened.log.number
    opened.close()
    connection = sqlite3.connect(directory / DATABASE_NAME)
    try:
        tables = {
            name: [column[1] for column in connection.execute(f"PRAGMA table_info({name})")]
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")
        }
        assert tables == SCHEMA
        assert connection.execute("PRAGMA application_id").fetchone() == (0x47414941,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT * FROM entries").fetchall() == [
            (1, 3, 2, number, b"data", entry_crc(1, 3, number, 2, b"data"))
        ]
        assert connection.execute("SELECT * FROM hard_state").fetchall() == [
            (1, 3, "n1", 1, number, hard_state_crc(3, "n1", 1, number))
        ]
        assert connection.execute("SELECT * FROM base").fetchall() == [(1, 0, 0, base_crc(0, 0))]
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        assert set(meta) == {"format", "node_id", "peer_uuid", "boot", "cluster_id"}
        assert (meta["format"], meta["node_id"], meta["cluster_id"]) == ("1", "n1", "c1")
    finally:
        connection.close()
    names = {file.name for file in directory.iterdir()}
    assert names == {"lock", "raft.db", "acknowledged.mark", "snapshots"}


def test_bytes_of_a_snapshot(tmp_path: Path) -> None:
    meta = SnapshotMeta(Index(7), Term(3), b"members")
    store = FileSnapshotStore(SystemFiles(tmp_path), block_bytes=4)
    writer = store.create(meta)
    writer.write(b"content")
    info = writer.commit()
    (name,) = os.listdir(tmp_path)
    assert name == "snapshot-00000000000000000007-00000000000000000003.gaia"
    header = (
        b"GAIASNAP"
        + (1).to_bytes(4, "big")
        + (4).to_bytes(4, "big")
        + b"".join(number.to_bytes(8, "big") for number in (7, 3, 7))
        + hashlib.sha256(b"content").digest()
        + (7).to_bytes(4, "big")
        + b"members"
    )
    assert (tmp_path / name).read_bytes() == (
        header
        + zlib.crc32(header).to_bytes(4, "big")
        + b"cont"
        + zlib.crc32(b"cont", 0).to_bytes(4, "big")
        + b"ent"
        + zlib.crc32(b"ent", 1).to_bytes(4, "big")
    )
    assert FileSnapshotStore(SystemFiles(tmp_path)).latest() == info


def test_a_snapshot_of_another_format_is_refused(tmp_path: Path) -> None:
    store = FileSnapshotStore(SystemFiles(tmp_path))
    store.create(SnapshotMeta(Index(7), Term(3), b"")).commit()
    (name,) = os.listdir(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[8:12] = (2).to_bytes(4, "big")
    data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "big")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StorageDamagedError, match="snapshot format 2, this version reads 1 only"):
        FileSnapshotStore(SystemFiles(tmp_path))


def test_bytes_of_the_mark(directory: Path) -> None:
    mark = Mark(directory / "mark")
    assert mark.read() == 0
    mark.write(258)
    assert mark.read() == 258
    mark.close(sync=True)
    data = (directory / "mark").read_bytes()
    assert data[:16] == b"GAIAMARK" + (258).to_bytes(8, "big")
    assert len(data) == 20
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        (directory / "mark").write_bytes(changed)
        mark = Mark(directory / "mark")
        assert mark.read() == 0
        mark.close(sync=False)
