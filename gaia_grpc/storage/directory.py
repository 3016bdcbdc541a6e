"""The data directory of one peer: who it is, and that nobody else uses it.

    DIR/lock                held (flock) while a process uses the directory; holds its pid
    DIR/raft.db (-wal)      meta rows, hard state, entries: see `sqlite_log`
    DIR/acknowledged.mark   number of the last acknowledged commit: see `wal_check`
    DIR/snapshots/          snapshot files: see `snapshots`

The `peer_uuid` is minted with the directory and dies with it: a wiped peer comes back as somebody
else, so it can't vote from a memory that it does not have. The boot counter grows durably at each
open, which makes (peer_uuid, boot, counter) unique.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from gaia_grpc.errors import IdentityRefusedError, StartupError, invariant
from gaia_grpc.raft.types import Entry, EntryId, HardState, NodeId, SnapshotMeta
from gaia_grpc.storage.database import APPLICATION_ID, Database, fsync_directory, translate
from gaia_grpc.storage.files import SystemFiles
from gaia_grpc.storage.rows import base_crc, damaged, hard_state_crc, meta_crc
from gaia_grpc.storage.snapshots import FileSnapshotStore
from gaia_grpc.storage.sqlite_log import SqliteLog, write_base, write_entries, write_hard_state
from gaia_grpc.storage.wal_check import Mark

FORMAT = 1
DATABASE_NAME = "raft.db"
MARK_NAME = "acknowledged.mark"
LOCK_NAME = "lock"
SNAPSHOTS_NAME = "snapshots"

_SCHEMA = (
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE hard_state(id INTEGER PRIMARY KEY, term INTEGER NOT NULL,"
    " voted_for TEXT NOT NULL, commit_index INTEGER NOT NULL, number INTEGER NOT NULL,"
    " crc INTEGER NOT NULL)",
    "CREATE TABLE entries(log_index INTEGER PRIMARY KEY, term INTEGER NOT NULL,"
    " kind INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE base(id INTEGER PRIMARY KEY, log_index INTEGER NOT NULL, term INTEGER NOT NULL,"
    " crc INTEGER NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this peer is; `cluster_id` is None until it was founded or joined a cluster."""

    node_id: NodeId
    peer_uuid: str
    cluster_id: str | None
    boot: int


class DataDirectory:
    """An opened data directory. `log` is its storage; close the directory, not the log.

    `snapshots` are its snapshot files, at the start only the one that the log was loaded with.
    """

    def __init__(
        self,
        path: Path,
        lock: int,
        database: Database,
        log: SqliteLog,
        snapshots: FileSnapshotStore,
        identity: Identity,
    ) -> None:
        """Use `open`."""
        self.path = path
        self.log = log
        self.snapshots = snapshots
        self._lock = lock
        self._database = database
        self._identity = identity

    @classmethod
    def open(cls, path: Path, node_id: NodeId) -> DataDirectory:
        """Opens `path` for the peer `node_id`, creating it where nothing is there.

        Raises `StartupError` (in use, not writable, another peer's, another format) or
        `StorageDamagedError`; each message is one line.
        """
        with ExitStack() as undo:
            lock = _lock_directory(path)
            undo.callback(os.close, lock)
            try:
                mark = Mark(path / MARK_NAME)
            except OSError as error:
                raise StartupError(f"{path}: can't be written: {error.strerror}") from error
            undo.callback(mark.close, sync=False)
            snapshots = _open_snapshots(path)
            database = Database(path / DATABASE_NAME)
            undo.callback(database.abandon)
            if database.is_blank():
                if mark.read() > 0:
                    raise damaged(str(database.path), "it is empty, but was written to before")
                if snapshots.latest() is not None:
                    raise damaged(str(database.path), "it is empty, but snapshots are here")
                _create(database, node_id)
                database.close()
                database = Database(path / DATABASE_NAME)
                undo.callback(database.abandon)
            identity = read_identity(database, path)
            if identity.node_id != node_id:
                raise StartupError(f"{path}: belongs to peer {identity.node_id}, not to {node_id}")
            log = SqliteLog(database, mark, snapshots)
            restored = log.load()
            snapshots.drop_newer(restored.snapshot)
            if restored.snapshot is not None:
                snapshots.drop_older(restored.snapshot)
            identity = replace(identity, boot=identity.boot + 1)
            with database.transaction("counting the boot") as connection:
                _put_meta(connection, "boot", str(identity.boot))
                write_hard_state(connection, restored.hard_state, log.number + 1)
            log.acknowledge(log.number + 1)
            undo.pop_all()
        return cls(path, lock, database, log, snapshots, identity)

    @classmethod
    def restore(
        cls,
        path: Path,
        node_id: NodeId,
        cluster_id: str,
        meta: SnapshotMeta,
        content: Iterable[bytes],
        entries: Sequence[Entry],
        hard_state: HardState,
        *,
        peer_uuid: str,
    ) -> None:
        """Makes the directory of a peer whose cluster begins with a snapshot; `open` it then.

        `peer_uuid` is fresh, and comes from the caller because `meta.configuration` names it.

        All or nothing: the snapshot file comes first, and one transaction makes it count. An error
        leaves nothing behind; a crash in between a directory that `open` refuses. `entries` follow
        the snapshot. Raises `StartupError` where the directory is not empty, and storage errors.
        """
        invariant(cluster_id != "", "a cluster id is not empty")
        lock = _lock_directory(path)
        try:
            _refuse_other_files(path)
            try:
                _fill(path, node_id, peer_uuid, cluster_id, meta, content, entries, hard_state)
            except BaseException as error:
                for name in (f"{DATABASE_NAME}-wal", DATABASE_NAME, MARK_NAME):
                    (path / name).unlink(missing_ok=True)
                shutil.rmtree(path / SNAPSHOTS_NAME, ignore_errors=True)
                if isinstance(error, OSError):
                    raise StartupError(f"{path}: can't be written: {error}") from error
                raise
        finally:
            os.close(lock)

    def identity(self) -> Identity:
        """Who this peer is."""
        return self._identity

    @property
    def is_empty(self) -> bool:
        """True if nothing was ever promised here: no cluster, no vote, no entry."""
        if self._identity.cluster_id is not None:
            return False
        restored = self.log.load()
        if restored.snapshot is not None or restored.entries:
            return False
        return restored.hard_state == HardState()

    def found(self, cluster_id: str, entries: Sequence[Entry], hard_state: HardState) -> None:
        """Writes the founding record: cluster id, first entries and hard state, all or nothing.

        Raises `StartupError` where the directory is not empty.
        """
        if not self.is_empty:
            raise StartupError(f"{self.path}: holds data already, nothing is founded here")
        invariant(cluster_id != "", "a cluster id is not empty")
        number = self.log.number + 1
        with self._database.transaction("founding the cluster") as connection:
            _put_meta(connection, "cluster_id", cluster_id)
            write_entries(connection, entries, number)
            write_hard_state(connection, hard_state, number)
        self.log.acknowledge(number)
        self.log.load(again=True)
        self._identity = replace(self._identity, cluster_id=cluster_id)

    def adopt(self, cluster_id: str) -> None:
        """Notes durably that this peer belongs to `cluster_id`; the same one again is no change.

        Raises `IdentityRefusedError` where it belongs to another.
        """
        if self._identity.cluster_id == cluster_id:
            return
        if self._identity.cluster_id is not None:
            raise IdentityRefusedError(
                f"{self.path}: belongs to cluster {self._identity.cluster_id}, not {cluster_id}"
            )
        invariant(cluster_id != "", "a cluster id is not empty")
        number = self.log.number + 1
        with self._database.transaction("joining the cluster") as connection:
            _put_meta(connection, "cluster_id", cluster_id)
            write_hard_state(connection, self.log.hard_state, number)
        self.log.acknowledge(number)
        self._identity = replace(self._identity, cluster_id=cluster_id)

    def close(self) -> None:
        """Closes the log and gives the directory free; idempotent."""
        if self._lock < 0:
            return
        try:
            self.log.close()
        finally:
            os.close(self._lock)
            self._lock = -1


def _open_snapshots(path: Path) -> FileSnapshotStore:
    """Opens DIR/snapshots, made where it is missing (older directories have none)."""
    folder = path / SNAPSHOTS_NAME
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
            fsync_directory(path)
        return FileSnapshotStore(SystemFiles(folder))
    except OSError as error:
        raise StartupError(f"{folder}: can't be written: {error.strerror}") from error


def _lock_directory(path: Path) -> int:
    """Makes the directory (mode 0700, its name durable) and takes its lock."""
    try:
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_directory(path.parent)
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(f"{path}: can't be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StartupError(f"{path}: in use by another process (pid {holder})") from error
    except OSError as error:
        os.close(lock)
        raise StartupError(f"{path}: can't be written: {error.strerror}") from error
    return lock


def _refuse_other_files(path: Path) -> None:
    try:
        found = sorted(name for name in os.listdir(path) if name != LOCK_NAME)
    except OSError as error:
        raise StartupError(f"{path}: can't be read: {error.strerror}") from error
    if found:
        raise StartupError(
            f"{path}: holds {found[0]} already, nothing is restored here: choose another "
            "directory; what is in this one was not changed"
        )


def _fill(
    path: Path,
    node_id: NodeId,
    peer_uuid: str,
    cluster_id: str,
    meta: SnapshotMeta,
    content: Iterable[bytes],
    entries: Sequence[Entry],
    hard_state: HardState,
) -> None:
    """The files of `DataDirectory.restore`."""
    snapshots = _open_snapshots(path)
    writer = snapshots.create(meta)
    for data in content:
        writer.write(data)
    writer.commit()

    def rows(connection: sqlite3.Connection) -> None:
        _put_meta(connection, "peer_uuid", peer_uuid)
        _put_meta(connection, "cluster_id", cluster_id)
        write_base(connection, EntryId(meta.term, meta.index))
        write_entries(connection, entries, 1)
        write_hard_state(connection, hard_state, 1)

    database = Database(path / DATABASE_NAME)
    try:
        _create(database, node_id, rows)
        mark = Mark(path / MARK_NAME)
        try:
            restored = SqliteLog(database, mark, snapshots).load()
            invariant(restored.snapshot == meta, "the restored snapshot does not count")
            mark.write(1)
        finally:
            mark.close(sync=True)
        database.close()
    except BaseException:
        database.abandon()
        raise
    fsync_directory(path)


def _create(
    database: Database,
    node_id: NodeId,
    more: Callable[[sqlite3.Connection], None] = lambda connection: None,
) -> None:
    """Schema and first rows in one transaction: a crash leaves all of it or a blank file."""
    state = HardState()
    crc = hard_state_crc(state.term, state.voted_for, state.commit_index, 0)
    with database.transaction("creating the data directory") as connection:
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO hard_state VALUES (1,?,?,?,0,?)",
            (state.term, state.voted_for, state.commit_index, crc),
        )
        connection.execute("INSERT INTO base VALUES (1,0,0,?)", (base_crc(0, 0),))
        _put_meta(connection, "format", str(FORMAT))
        _put_meta(connection, "node_id", node_id)
        _put_meta(connection, "peer_uuid", str(uuid.uuid4()))
        _put_meta(connection, "boot", "0")
        more(connection)


def _put_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO meta(key, value, crc) VALUES (?,?,?)",
        (key, value, meta_crc(key, value)),
    )


def read_identity(database: Database, path: Path) -> Identity:
    """Reads and checks the meta rows; the format comes first, the rest may mean something else."""
    meta: dict[str, str] = {}
    try:
        for key, value, crc in database.connection.execute("SELECT key, value, crc FROM meta"):
            if (
                not isinstance(key, str)
                or not isinstance(value, str)
                or crc != meta_crc(key, value)
            ):
                raise damaged(str(database.path), "a meta row fails its check")
            meta[key] = value
    except sqlite3.Error as error:
        raise translate(error, database.path, "reading the meta rows") from error
    if "format" in meta and meta["format"] != str(FORMAT):
        raise StartupError(
            f"{path}: has data format {meta['format']}, this version reads {FORMAT} only"
        )
    missing = [key for key in ("format", "node_id", "peer_uuid", "boot") if key not in meta]
    if missing:
        raise damaged(str(database.path), f"the meta row {missing[0]} is missing")
    return Identity(
        NodeId(meta["node_id"]), meta["peer_uuid"], meta.get("cluster_id"), int(meta["boot"])
    )
