"""Backups are believed only when all of them holds together, and restored as another cluster."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from gaia.command.v1 import command_pb2

from gaia_grpc.errors import NotFoundError, StartupError, StorageDamagedError
from gaia_grpc.node.members import decode_configuration
from gaia_grpc.raft.types import EntryKind, Index, NodeId, SnapshotMeta, Term
from gaia_grpc.recovery import back_up_directory, restore_directory, verify_backup
from gaia_grpc.storage.backup_file import read_backup, write_backup
from gaia_grpc.storage.directory import DataDirectory
from tests.support.local_cluster import LocalCluster, enqueue, running

ADDRESS = "127.0.0.1:50151"


@pytest.fixture
async def stopped(tmp_path: Path) -> tuple[Path, bytes, int]:
    """Directory of a peer that was stopped, its last state hash, and the index of that."""
    async with running(LocalCluster(tmp_path / "cluster")) as cluster:
        leader = cluster.drivers[await cluster.leader()]
        for _ in range(20):
            await leader.propose(enqueue(0), timeout_s=5.0)
        await cluster.agree()
        status = leader.status()
        path = Path(cluster.config(status.node_id).data_dir)
        found = (path, status.state_hash, status.hash_index)
    return found


def test_a_stopped_peers_directory_becomes_a_backup(
    stopped: tuple[Path, bytes, int], tmp_path: Path
) -> None:
    data_dir, state_hash, index = stopped
    before = sorted((path.name, path.stat().st_size) for path in data_dir.iterdir())
    found = back_up_directory(data_dir, tmp_path / "backup")
    assert found.index >= index
    if found.index == index:
        assert found.state_hash == state_hash
    assert verify_backup(tmp_path / "backup") == found
    assert sorted((path.name, path.stat().st_size) for path in data_dir.iterdir()) == before


def test_a_backup_becomes_the_directory_of_a_new_cluster(
    stopped: tuple[Path, bytes, int], tmp_path: Path
) -> None:
    backup, data_dir = tmp_path / "backup", tmp_path / "restored"
    source = back_up_directory(stopped[0], backup)
    found = restore_directory(backup, data_dir, "n1", ADDRESS)
    assert found.source_cluster_id == source.cluster_id != found.cluster_id
    directory = DataDirectory.open(data_dir, NodeId("n1"))
    try:
        identity, restored = directory.identity(), directory.log.load()
        assert identity.cluster_id == found.cluster_id
        assert restored.snapshot is not None
        cluster_id, members = decode_configuration(restored.snapshot.configuration)
        assert cluster_id == found.cluster_id
        assert [(member.node_id, member.peer_uuid) for member in members] == [
            ("n1", identity.peer_uuid)
        ]
        [entry] = restored.entries
        assert (entry.index, entry.kind) == (source.index + 1, EntryKind.COMMAND)
        command = command_pb2.Command.FromString(entry.data).restore_cluster
        assert (command.cluster_id, command.source_cluster_id, command.source_index) == (
            found.cluster_id,
            source.cluster_id,
            source.index,
        )
    finally:
        directory.close()


def test_nothing_is_restored_over_data(stopped: tuple[Path, bytes, int], tmp_path: Path) -> None:
    back_up_directory(stopped[0], tmp_path / "backup")
    with pytest.raises(StartupError, match="already"):
        restore_directory(tmp_path / "backup", stopped[0], "n1", ADDRESS)


def test_a_backup_whose_parts_contradict_each_other_is_refused(
    stopped: tuple[Path, bytes, int], tmp_path: Path
) -> None:
    """Each of these files passes the checks of its bytes: a digest does not tell what they mean."""
    backup, other = tmp_path / "backup", tmp_path / "other"
    found = back_up_directory(stopped[0], backup)
    content = b"".join(read_backup(backup))
    meta = SnapshotMeta(Index(found.index), Term(found.term), b"")

    write_backup(other, SnapshotMeta(Index(found.index + 1), meta.term, b""), [content])
    with pytest.raises(StorageDamagedError, match="entry"):
        verify_backup(other)
    write_backup(other, meta, [content[:-1]])
    with pytest.raises(StorageDamagedError):
        verify_backup(other)
    write_backup(other, meta, [content], sha256=hashlib.sha256(content).digest())
    assert verify_backup(other) == found
    for place in range(0, len(content), max(len(content) // 50, 1)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        write_backup(other, meta, [bytes(damaged)])
        with pytest.raises(StorageDamagedError):
            verify_backup(other)


def test_what_is_not_there_can_be_neither_saved_nor_checked(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        verify_backup(tmp_path / "nothing")
    with pytest.raises(StartupError):
        back_up_directory(tmp_path / "nothing", tmp_path / "backup")
