"""One SQLite database of a data directory: opening, transactions, and what its errors mean.

Pragmas and why:
- `journal_mode=WAL`, `synchronous=FULL`: a commit returns after one fsync of the journal.
- `locking_mode=EXCLUSIVE`: one process at a time; also keeps the journal index in memory instead of
  in a shared mapping.
- `wal_autocheckpoint=0`: SQLite ignores errors of its automatic checkpoints, and a swallowed fsync
  error is the one thing a log must not have. `checkpoint` is called explicitly instead.
- `auto_vacuum=INCREMENTAL`: a database that was created with it can shrink, a step at a time; one
  that was created without only uses its free pages again.
- `secure_delete=FAST`: zeroing removed entries would write each of their pages to the journal; what
  must not be left on free pages is removed by `rebuild`.
- `fullfsync`: on macOS plain fsync does not reach the medium.
- `cell_size_check`, `quick_check` at open: structural damage shows at the start and not later.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gaia_grpc.errors import (
    StartupError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from gaia_grpc.storage.rows import damaged
from gaia_grpc.storage.wal_check import scan_journal

APPLICATION_ID = 0x47414941
"""`GAIA` in ASCII, in the header of the database file (`file` and `sqlite3` show it)."""

JOURNAL_LIMIT_BYTES = 64 * 1024 * 1024
"""A journal that grew beyond this (one huge transaction) is cut back at its next reset."""

_INCREMENTAL = 2

_PRAGMAS = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA auto_vacuum=INCREMENTAL",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",
    "PRAGMA checkpoint_fullfsync=ON",
    "PRAGMA wal_autocheckpoint=0",
    f"PRAGMA journal_size_limit={JOURNAL_LIMIT_BYTES}",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA secure_delete=FAST",
    "PRAGMA cell_size_check=ON",
    "PRAGMA trusted_schema=OFF",
)


def fsync_directory(path: Path) -> None:
    """Makes the names in `path` durable; a new file survives a crash only after this.

    Raises `StorageFailedError`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageFailedError(f"{path}: syncing the directory failed: {error}") from error


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def translate(error: sqlite3.Error, path: Path, doing: str) -> StorageError:
    """Maps SQLite's error codes; whatever is not known to be harmless is `StorageFailedError`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFullError(f"{path}: no space left while {doing}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(str(path), f"{error} while {doing}")
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StorageFailedError(f"{path}: {doing} failed: {error} ({name})")


class Database:
    """A connection that one process owns; calls may come from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates `path`, finishes an interrupted commit or drops it, and checks pages.

        Raises `StartupError` (in use, not writable) or `StorageDamagedError`.
        """
        self.path = path
        self._failed: StorageFailedError | None = None
        journal_path = path.with_name(path.name + "-wal")
        journal = scan_journal(journal_path)
        try:
            _touch(path)
            if path.stat().st_size > 0:
                _touch(journal_path)
            # SQLite syncs the name of a new journal too, but ignores an error of that sync.
            fsync_directory(path.parent)
            self.connection = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise StartupError(f"{path}: can't be opened: {error}") from error
        # Damaged text must fail its CRC, not the decoder.
        self.connection.text_factory = lambda data: data.decode(errors="replace")
        try:
            for pragma in _PRAGMAS:
                self.connection.execute(pragma).fetchone()
            _, recovered, _ = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if journal.lost_commits(recovered):
                raise damaged(f"{path}-wal", "the journal is damaged before its end")
            # What recovery took from the page cache may never have reached the disk (its fsync
            # may be what ended the last run), so it is written and synced again (ATC'20).
            self.checkpoint(truncate=True)
            (verdict,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise damaged(str(path), " ".join(str(verdict).split()))
        except sqlite3.Error as error:
            self.connection.close()
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise translate(error, path, "opening") from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StartupError(f"{path}: in use by another process") from error
            raise StartupError(f"{path}: can't be opened: {error}") from error
        except StorageError:
            self.connection.close()
            raise

    def is_blank(self) -> bool:
        """True for a file that was just created; raises `StorageDamagedError` for a foreign one."""
        try:
            (tables,) = self.connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
            (application,) = self.connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.Error as error:
            raise translate(error, self.path, "opening") from error
        if tables == 0 and pages <= 1:
            return True
        if application != APPLICATION_ID:
            raise damaged(str(self.path), "it is not a GAIA database")
        return False

    @contextmanager
    def transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        """Commits (one fsync) at the end, rolls back at any error.

        Raises `StorageFullError` with nothing written, or `StorageFailedError`; after the latter
        every further transaction raises it again, since a retried fsync can lie.
        """
        if self._failed is not None:
            raise self._failed
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._fail(error, doing) from error
        except BaseException:
            self._rollback()
            raise

    def _fail(self, error: sqlite3.Error, doing: str) -> StorageError:
        translated = translate(error, self.path, doing)
        if isinstance(translated, StorageFullError):
            try:
                self._rollback()
            except sqlite3.Error as second:
                translated = StorageFailedError(f"{self.path}: rollback failed: {second}")
        if isinstance(translated, StorageFailedError):
            self._failed = translated
        return translated

    def _rollback(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Copies the journal into the database file and syncs it; raises like a transaction."""
        if self._failed is not None:
            raise self._failed
        mode = "TRUNCATE" if truncate else "PASSIVE"
        try:
            self.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            raise self._fail(error, "checkpointing") from error

    def free_pages(self) -> int:
        """Pages that `shrink` could give back; 0 for a database that was created without it."""
        try:
            (mode,) = self.connection.execute("PRAGMA auto_vacuum").fetchone()
            (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        except sqlite3.Error as error:
            raise self._fail(error, "counting free pages") from error
        return int(free) if mode == _INCREMENTAL else 0

    def shrink(self, pages: int) -> None:
        """Cuts free pages off the file, in a transaction of its own; raises like one."""
        if self._failed is not None:
            raise self._failed
        try:
            # `execute` would stop after the first page: each one is a row without columns.
            self.connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        except sqlite3.Error as error:
            raise self._fail(error, "giving space back") from error

    def rebuild(self) -> None:
        """Writes all rows to new pages and empties the journal: nothing is left of others, nor of
        free pages. One transaction; raises like one."""
        if self._failed is not None:
            raise self._failed
        try:
            self.connection.execute("VACUUM")
        except sqlite3.Error as error:
            raise self._fail(error, "building the database anew") from error
        self.checkpoint(truncate=True)

    def abandon(self) -> None:
        """Closes after a refused start; its reason must not be hidden by a second error."""
        self.connection.close()

    def close(self) -> None:
        """Checkpoints and closes; after a failure it only closes."""
        try:
            if self._failed is None:
                self.checkpoint(truncate=True)
        finally:
            self.connection.close()
