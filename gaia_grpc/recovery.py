"""Backups checked, and new clusters made out of them; also out of what a lost quorum left behind.

A backup is believed only when all of it holds together: every byte by its checks, the state that it
decodes to encodes to the same bytes again, and that state's chain hash is the one that it names. A
restored cluster is a new one: its id differs, so no peer of the old one, no subscriber's cursor and
no forgotten process can mistake it for its own. Its first entry says where it came from.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gaia.command.v1 import command_pb2

from gaia_grpc.errors import StorageDamagedError
from gaia_grpc.node.clock import SystemClock
from gaia_grpc.node.members import encode_configuration
from gaia_grpc.raft.types import Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.restore import SnapshotDecoder
from gaia_grpc.state.stamp import stamp
from gaia_grpc.storage.api import SnapshotStore
from gaia_grpc.storage.backup_file import check_backup, read_backup, write_backup
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.storage.stopped import read_stopped
from gaia_grpc.transport.api import Member

_RECORDS_A_CHUNK = 500
_CHUNK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a backup holds, and for a restored one the cluster that it became."""

    cluster_id: str
    source_cluster_id: str
    index: int
    term: int
    size_bytes: int
    sha256: bytes
    state_hash: bytes


def save_backup(
    path: Path, index: int, term: int, sha256: bytes, content: Iterable[bytes]
) -> Recovered:
    """Keeps a snapshot that was downloaded, and verifies what was kept."""
    write_backup(path, SnapshotMeta(Index(index), Term(term), b""), content, sha256=sha256)
    return verify_backup(path)


def verify_backup(path: Path) -> Recovered:
    """Raises `NotFoundError` or `StorageDamagedError` unless all of the backup holds together."""
    return _verify(path)[0]


def _verify(path: Path) -> tuple[Recovered, StateMachine]:
    info = check_backup(path)
    machine = _decode(read_backup(path))
    if machine.applied_index != info.meta.index:
        raise StorageDamagedError(
            f"{path}: its state is that of entry {machine.applied_index}, not {info.meta.index}"
        )
    digest = hashlib.sha256()
    for data in _encode(machine):
        digest.update(data)
    if digest.digest() != info.sha256:
        raise StorageDamagedError(f"{path}: its state does not encode to the same bytes again")
    found = Recovered(
        cluster_id=machine.cluster_id,
        source_cluster_id=machine.cluster_id,
        index=info.meta.index,
        term=info.meta.term,
        size_bytes=info.size_bytes,
        sha256=info.sha256,
        state_hash=_state_hash(machine),
    )
    return found, machine


def back_up_directory(data_dir: Path, path: Path) -> Recovered:
    """A backup out of the directory of a peer that does not run.

    It holds the whole log of that peer, also entries that it did not know to be committed: some of
    them may have been acknowledged (a majority that is gone now had them). Of several directories
    that are left, the one whose log ends last, by (term, index), has everything that any of them
    knows to be acknowledged.
    """
    machine = StateMachine()
    term = Term(0)
    with read_stopped(data_dir) as stopped:
        snapshot = stopped.restored.snapshot
        if snapshot is not None:
            machine = _decode(_read_snapshot(stopped.snapshots, snapshot))
            term = snapshot.term
        for entry in stopped.restored.entries:
            if entry.index > machine.applied_index:
                machine.apply(entry.index, int(entry.kind), entry.data)
                term = entry.term
    if not machine.cluster_id:
        raise StorageDamagedError(f"{data_dir}: holds no cluster's state")
    write_backup(path, SnapshotMeta(Index(machine.applied_index), term, b""), _encode(machine))
    return verify_backup(path)


def restore_directory(path: Path, data_dir: Path, node_id: str, peer_address: str) -> Recovered:
    """Makes the directory of a new cluster's only member, with the backup's state in it.

    Raises `StartupError` where the directory holds data, and what `verify_backup` raises; nothing
    is left behind then.
    """
    found, machine = _verify(path)
    cluster_id, peer_uuid = uuid.uuid4().hex, str(uuid.uuid4())
    member = Member(NodeId(node_id), peer_uuid, peer_address, "")
    meta = SnapshotMeta(
        Index(found.index), Term(found.term), encode_configuration(cluster_id, [member])
    )
    command = command_pb2.Command(
        restore_cluster=command_pb2.RestoreCluster(
            cluster_id=cluster_id,
            source_cluster_id=found.source_cluster_id,
            source_index=found.index,
        )
    )
    data = stamp(
        command.SerializeToString(deterministic=True), machine.elapsed_ms, SystemClock().wall_ms()
    )
    first = Entry(meta.term, Index(found.index + 1), EntryKind.COMMAND, data)
    DataDirectory.restore(
        data_dir,
        NodeId(node_id),
        peer_uuid=peer_uuid,
        cluster_id=cluster_id,
        meta=meta,
        content=read_backup(path),
        entries=(first,),
        hard_state=HardState(term=meta.term, commit_index=first.index),
    )
    machine.apply(first.index, int(first.kind), first.data)
    return Recovered(
        cluster_id=machine.cluster_id,
        source_cluster_id=found.source_cluster_id,
        index=machine.applied_index,
        term=found.term,
        size_bytes=found.size_bytes,
        sha256=found.sha256,
        state_hash=_state_hash(machine),
    )


def _decode(content: Iterable[bytes]) -> StateMachine:
    decoder = SnapshotDecoder()
    for data in content:
        decoder.feed(data)
    return decoder.finish()


def _encode(machine: StateMachine) -> Iterator[bytes]:
    encoder = machine.begin_snapshot()
    try:
        while data := encoder.take(_RECORDS_A_CHUNK):
            yield data
    finally:
        encoder.close()


def _read_snapshot(store: SnapshotStore, meta: SnapshotMeta) -> Iterator[bytes]:
    reader = store.open(meta)
    try:
        offset = 0
        while data := reader.read(offset, _CHUNK_BYTES):
            yield data
            offset += len(data)
    finally:
        reader.close()


def _state_hash(machine: StateMachine) -> bytes:
    known = machine.state_hash()
    return b"" if known is None else known[1]
