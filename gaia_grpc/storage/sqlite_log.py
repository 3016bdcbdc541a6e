"""The durable log: hard state and entries in one SQLite database.

Format 1 (final; a reader refuses any other number). File `raft.db`, application id `GAIA`:

    meta(key TEXT PRIMARY KEY, value TEXT, crc)   format=1, node_id, peer_uuid, boot, cluster_id
                                                  (absent until the peer belongs to a cluster)
    hard_state(id=1, term, voted_for, commit_index, number, crc)         always exactly one row
    entries(log_index INTEGER PRIMARY KEY, term, kind, number, data BLOB, crc)
    base(id=1, log_index, term, crc)              the entry before the first stored one: (0, 0)
                                                  until a snapshot replaces a prefix of the log

`number` counts commits and is the same in all rows of one commit, so the highest number found tells
how far the database got; `acknowledged.mark` beside it tells how far it had been (`wal_check`).
Each row carries the CRC of `rows`. Entries are contiguous from base + 1; `commit_index` is written
in the same transaction as what it covers, so it never points beyond the last entry.

Compaction moves the base in one small transaction. Rows at or before the base are rubbish from then
on: nobody reads them, and `maintain` removes them some at a time. So no state in between needs
repair, and an installed snapshot costs the same small transaction as an own one.

What stops a start: a bad CRC, a gap, a missing row, a commit index or a mark beyond the last entry
or commit, a base without the snapshot that stands for it, and anything SQLite calls malformed. A
torn last commit is none of these: SQLite drops it.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from gaia_grpc.errors import StorageError, StorageFailedError, invariant
from gaia_grpc.raft.types import (
    Entry,
    EntryId,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Restored,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.database import Database, translate
from gaia_grpc.storage.free_pages import FreePages
from gaia_grpc.storage.rows import base_crc, damaged, entry_crc, hard_state_crc
from gaia_grpc.storage.snapshots import FileSnapshotStore, choose_snapshot
from gaia_grpc.storage.wal_check import Mark

PAGE_BYTES = 4096
MAINTAIN_PAGES = 1000
"""`maintain` checkpoints from about this many journal pages on: 4 MB, a few milliseconds."""
FORCE_PAGES = 8 * MAINTAIN_PAGES
"""`write` does it itself from here on, should nobody call `maintain`."""

REMOVE_ROWS = 512
REMOVE_BYTES = 1024 * 1024
"""One step of `maintain` removes up to this much rubbish: a millisecond or two."""

_INSERT = "INSERT INTO entries(log_index, term, kind, number, data, crc) VALUES (?,?,?,?,?,?)"
_DELETE = "DELETE FROM entries WHERE log_index >= ?"
_DELETE_RUBBISH = "DELETE FROM entries WHERE log_index <= ?"
_RUBBISH = "SELECT log_index, length(data) FROM entries WHERE log_index <= ? ORDER BY 1 LIMIT ?"
_BASE = "UPDATE base SET log_index=?, term=?, crc=? WHERE id=1"
_HARD_STATE = (
    "UPDATE hard_state SET term=?, voted_for=?, commit_index=?, number=?, crc=? WHERE id=1"
)
_SELECT = (
    "SELECT log_index, term, kind, number, data, crc FROM entries "
    "WHERE log_index >= ? ORDER BY log_index LIMIT ?"
)
_KINDS = {int(kind): kind for kind in EntryKind}


def write_hard_state(connection: sqlite3.Connection, state: HardState, number: int) -> None:
    """Replaces the hard state row inside the caller's transaction."""
    crc = hard_state_crc(state.term, state.voted_for, state.commit_index, number)
    connection.execute(_HARD_STATE, (state.term, state.voted_for, state.commit_index, number, crc))


def write_entries(connection: sqlite3.Connection, entries: Sequence[Entry], number: int) -> None:
    """Inserts entries inside the caller's transaction; their indexes must be free."""
    connection.executemany(
        _INSERT,
        [
            (
                entry.index,
                entry.term,
                int(entry.kind),
                number,
                entry.data,
                entry_crc(entry.index, entry.term, number, entry.kind, entry.data),
            )
            for entry in entries
        ],
    )


def write_base(connection: sqlite3.Connection, base: EntryId) -> None:
    """Replaces the base row inside the caller's transaction."""
    connection.execute(_BASE, (base.index, base.term, base_crc(base.index, base.term)))


class SqliteLog:
    """`LogStorage` on SQLite. Made by `DataDirectory`, which owns schema, meta rows and lock."""

    def __init__(self, database: Database, mark: Mark, snapshots: FileSnapshotStore) -> None:
        self._database = database
        self._mark = mark
        self._snapshots = snapshots
        self._path: Path = database.path
        self._number = 0
        self._last_index = 0
        self._base = EntryId(Term(0), Index(0))
        self._target: EntryId | None = None
        self._rubbish = True
        self._free_pages = FreePages(database)
        self._pages = 0
        self._restored: Restored | None = None
        self._hard_state = HardState()
        self._loaded = False
        self._closed = False

    # --- reading ---------------------------------------------------------------------------------

    def load(self, *, again: bool = False) -> Restored:
        """Reads and checks everything; 100,000 small entries take well under a second.

        The value is kept until the first write, so that opening a directory reads it only once;
        `again` reads anew. Raises `StorageDamagedError`, or `StorageFailedError` where the disk
        can't be read.
        """
        if self._restored is not None and not again:
            return self._with_snapshot(self._restored)
        try:
            state, state_number = self._read_hard_state()
            base = self._read_base()
            after = Index(base.index + 1)
            entries, entries_number = self._read_rows(after, -1, after)
        except sqlite3.Error as error:
            raise translate(error, self._path, "reading the log") from error
        last_index = base.index + len(entries)
        number = max(state_number, entries_number)
        if state.commit_index > last_index:
            raise self._damaged(f"commit index {state.commit_index} is beyond entry {last_index}")
        acknowledged = self._mark.read()
        if acknowledged > number:
            raise self._damaged(f"commit {acknowledged} was acknowledged, but {number} is the last")
        restored = self._with_snapshot(Restored(state, entries, None, base))
        self._number, self._last_index, self._loaded = number, last_index, True
        self._hard_state = state
        self._base = base
        self._restored = restored
        return restored

    def _with_snapshot(self, restored: Restored) -> Restored:
        base, entries = restored.base, restored.entries
        first = base.index + 1
        snapshot = choose_snapshot(
            [info.meta for info in self._snapshots.complete()],
            base,
            lambda index: (
                entries[index - first].term if first <= index < first + len(entries) else None
            ),
        )
        if base.index > 0 and snapshot is None:
            raise self._damaged(f"the log begins behind entry {base.index}, but no snapshot of it")
        return replace(restored, snapshot=snapshot)

    def read_entries(self, first: Index, count: int) -> tuple[Entry, ...]:
        """Up to `count` entries from `first`, or from behind the base, on.

        Raises `StorageDamagedError`.
        """
        first = Index(max(first, self._base.index + 1))
        try:
            return self._read_rows(first, count, first)[0]
        except sqlite3.Error as error:
            raise translate(error, self._path, "reading the log") from error

    def _read_rows(
        self, first: Index, count: int, expected: Index
    ) -> tuple[tuple[Entry, ...], int]:
        # An unfinished cursor would keep the table locked after an error.
        with closing(self._database.connection.execute(_SELECT, (first, count))) as rows:
            return self._check_rows(rows, expected)

    def _check_rows(self, rows: sqlite3.Cursor, first: Index) -> tuple[tuple[Entry, ...], int]:
        entries: list[Entry] = []
        expected = int(first)
        highest = 0
        for index, term, kind, number, data, crc in rows:
            if index != expected:
                raise self._damaged(f"entry {expected} is missing")
            if not (
                type(data) is bytes
                and type(term) is int
                and type(number) is int
                and term >= 0
                and number >= 0
                and kind in _KINDS
                and crc == entry_crc(index, term, number, kind, data)
            ):
                raise self._damaged(f"entry {index} fails its check")
            entries.append(Entry(Term(term), Index(index), _KINDS[kind], data))
            expected += 1
            if number > highest:
                highest = number
        return tuple(entries), highest

    def _read_hard_state(self) -> tuple[HardState, int]:
        rows = self._database.connection.execute(
            "SELECT term, voted_for, commit_index, number, crc FROM hard_state"
        ).fetchall()
        if len(rows) != 1:
            raise self._damaged("the hard state row is missing")
        term, voted_for, commit_index, number, crc = rows[0]
        if not (
            isinstance(voted_for, str)
            and all(isinstance(value, int) and value >= 0 for value in (term, commit_index, number))
            and crc == hard_state_crc(term, voted_for, commit_index, number)
        ):
            raise self._damaged("the hard state row fails its check")
        return HardState(Term(term), NodeId(voted_for), Index(commit_index)), number

    def _read_base(self) -> EntryId:
        rows = self._database.connection.execute("SELECT log_index, term, crc FROM base").fetchall()
        if len(rows) != 1:
            raise self._damaged("the base row is missing")
        index, term, crc = rows[0]
        if not (
            all(isinstance(value, int) and value >= 0 for value in (index, term))
            and crc == base_crc(index, term)
        ):
            raise self._damaged("the base row fails its check")
        return EntryId(Term(term), Index(index))

    def _damaged(self, what: str) -> StorageError:
        return damaged(str(self._path), what)

    # --- writing ---------------------------------------------------------------------------------

    def write(self, batches: Sequence[WriteBatch]) -> None:
        """One transaction, one fsync, for all batches; see `LogStorage.write` for the errors."""
        invariant(self._loaded, "write before load")
        if self._closed:
            raise StorageFailedError(f"{self._path}: written to after close")
        if not any(batch.entries or batch.hard_state or batch.snapshot for batch in batches):
            return
        for batch in batches:
            if batch.snapshot is not None:
                # Before the transaction: a base without its snapshot would be no log at all.
                self._snapshots.promote(batch.snapshot)
        number = self._number + 1
        size = 0
        base, last_index = self._base, self._last_index
        # Only the last hard state counts: they are all in the same transaction.
        states = [batch.hard_state for batch in batches if batch.hard_state is not None]
        state = states[-1] if states else self._hard_state
        with self._database.transaction("writing the log") as connection:
            for batch in batches:
                if batch.snapshot is not None:
                    invariant(batch.snapshot.index > base.index, "a snapshot before the log")
                    base = EntryId(batch.snapshot.term, batch.snapshot.index)
                    connection.execute(_DELETE, (base.index + 1,))
                    last_index = base.index
                if batch.entries:
                    first = batch.entries[0].index
                    invariant(base.index < first <= last_index + 1, f"entry {first} leaves a gap")
                    if first <= last_index:
                        connection.execute(_DELETE, (first,))
                    write_entries(connection, batch.entries, number)
                    last_index = batch.entries[-1].index
                    invariant(last_index - first + 1 == len(batch.entries), "entries have a gap")
                    size += sum(len(entry.data) for entry in batch.entries)
            if base != self._base:
                write_base(connection, base)
            if states or base != self._base:
                write_hard_state(connection, state, number)
        self._hard_state = state
        self._last_index = last_index
        self._restored = None
        self._moved(base)
        self.acknowledge(number)
        self._pages += 3 + size // PAGE_BYTES
        if self._pages >= FORCE_PAGES:
            self._checkpoint()

    def compact(self, base: EntryId) -> None:
        """See `LogStorage.compact`; a base that is not ahead of the present one is no change."""
        if base.index <= self._base.index:
            return
        newest = self._snapshots.latest()
        invariant(newest is not None and newest.meta.index >= base.index, "no snapshot stands in")
        invariant(base.index <= self._last_index, "the base is beyond the log")
        self._target = base

    def clean(self) -> None:
        """See `LogStorage.clean`."""
        self._free_pages.clean()

    def _moved(self, base: EntryId) -> None:
        if base != self._base:
            self._base = base
            self._rubbish = True
        if self._target is not None and self._target.index <= base.index:
            self._target = None

    def acknowledge(self, number: int) -> None:
        """Notes that commit `number` is on disk; also called for the directory's own commits."""
        self._number = number
        try:
            self._mark.write(number)
        except OSError as error:
            # Only a file system that copies on write needs space for it; the mark may lag.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFailedError(f"{self._path}: the mark: {error.strerror}") from error

    @property
    def number(self) -> int:
        """The number of the last commit."""
        return self._number

    @property
    def hard_state(self) -> HardState:
        """The hard state of the last commit."""
        return self._hard_state

    @property
    def needs_maintenance(self) -> bool:
        """True as long as `maintain` would find something to remove."""
        due = self._rubbish or self._free_pages.due or self._target is not None
        return due and not self._closed

    def maintain(self) -> None:
        """One step of each: removing what was compacted, giving space back, moving the journal
        into the database. Each is a few milliseconds at most; raises like `write`.
        """
        if self._closed:
            return
        if self._rubbish or self._target is not None:
            self._remove_some()
        elif self._free_pages.due:
            self._tend_free_pages()
        if self._pages >= MAINTAIN_PAGES:
            self._checkpoint()

    def _remove_some(self) -> None:
        """Moves the base where that is due, and removes some rows before it."""
        base = self._target or self._base
        number = self._number + 1
        upto = rows = size = 0
        with self._database.transaction("compacting the log") as connection:
            with closing(connection.execute(_RUBBISH, (base.index, REMOVE_ROWS))) as found:
                for index, data_bytes in found:
                    upto, rows, size = index, rows + 1, size + data_bytes
                    if size >= REMOVE_BYTES:
                        break
            if rows:
                connection.execute(_DELETE_RUBBISH, (upto,))
            if base != self._base:
                write_base(connection, base)
            if rows or base != self._base:
                # The number of a removed row must not be missed: the mark stands for it.
                write_hard_state(connection, self._hard_state, number)
        if rows or base != self._base:
            self._restored = None
            self._moved(base)
            self.acknowledge(number)
            self._pages += 4 + rows // 16
        self._rubbish = rows > 0
        if rows:
            self._free_pages.removed()

    def _tend_free_pages(self) -> None:
        written = self._free_pages.step()
        self._pages = 0 if written is None else self._pages + written

    def _checkpoint(self) -> None:
        self._database.checkpoint()
        self._pages = 0

    def close(self) -> None:
        """Checkpoints, syncs the mark and closes; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._database.close()
        finally:
            try:
                self._mark.close(sync=True)
            except OSError as error:
                raise StorageFailedError(f"{self._path}: the mark: {error.strerror}") from error
