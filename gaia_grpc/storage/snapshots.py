"""Snapshot files of one peer, in a directory of their own.

    snapshot-INDEX-TERM.gaia     complete: synced before it got this name
    incoming-INDEX-TERM.part     arrives from another peer; survives restarts, so that it can go on
    making-INDEX-TERM.tmp        is being made; removed at the next open

Whether a complete one counts is decided by the log (`choose_snapshot`), never by its being here: a
crash may come between the rename and the transaction that installs it. A complete one that fails
its check stops the start and is not touched (NATS #7556 is what happens otherwise).

Files are synced every few megabytes on the way, so that the last sync is short: a long one would
hold up the journal of the log on the same disk.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable

from gaia_grpc.errors import NotFoundError, invariant
from gaia_grpc.raft.types import EntryId, Index, SnapshotMeta, Term
from gaia_grpc.storage.api import SnapshotInfo
from gaia_grpc.storage.files import Files
from gaia_grpc.storage.snapshot_file import BLOCK_BYTES, check_file, damaged_file, read_header
from gaia_grpc.storage.snapshot_handles import Guard, Incoming, Reader, Writer

_COMPLETE = re.compile(r"^snapshot-(\d{20})-(\d{20})\.gaia$")


def choose_snapshot(
    snapshots: Iterable[SnapshotMeta],
    base: EntryId,
    term_at: Callable[[Index], Term | None],
) -> SnapshotMeta | None:
    """The newest snapshot that the log vouches for; pure.

    It counts where it stands for the base or for an entry of the log: with another term there, or
    beyond the last entry, it was received and never installed (the log behind it is not its own).
    `term_at` knows the entries behind the base, and gives None for all others.
    """
    chosen: SnapshotMeta | None = None
    for meta in snapshots:
        if chosen is not None and meta.index < chosen.index:
            continue
        term = base.term if meta.index == base.index else term_at(meta.index)
        if term == meta.term:
            chosen = meta
    return chosen


class FileSnapshotStore:
    """`SnapshotStore` over `Files`. Its own calls may come from any thread."""

    def __init__(
        self, files: Files, *, block_bytes: int = BLOCK_BYTES, read_only: bool = False
    ) -> None:
        """Reads and checks every complete snapshot.

        Raises `StorageDamagedError` (nothing was changed) or `StorageFailedError`.
        """
        self._files = files
        self._block_bytes = block_bytes
        self._lock = threading.RLock()
        self._guard = Guard(files.where)
        self._complete: dict[SnapshotMeta, SnapshotInfo] = {}
        self._finished: dict[SnapshotMeta, SnapshotInfo] = {}
        self._incoming: Incoming | None = None
        with self._guard.during("reading the snapshots"):
            for name in files.names():
                if _COMPLETE.match(name):
                    info = self._check(name)
                    self._complete[info.meta] = info
            if not read_only:
                self._sweep()

    # --- what is there ---------------------------------------------------------------------------

    def complete(self) -> tuple[SnapshotInfo, ...]:
        """All complete snapshots, oldest first, whether they count or not."""
        return tuple(sorted(self._complete.values(), key=_age))

    def latest(self) -> SnapshotInfo | None:
        """The newest complete snapshot."""
        # Without the lock, which is held over syncs: a loop may ask.
        return max(tuple(self._complete.values()), key=_age, default=None)

    def open(self, meta: SnapshotMeta) -> Reader:
        """See `SnapshotStore.open`."""
        where = self._where(_complete_name(meta))
        with self._lock, self._guard.during("opening a snapshot"):
            if meta not in self._complete:
                raise NotFoundError(f"no snapshot at entry {meta.index}")
            try:
                file = self._files.open(_complete_name(meta))
            except FileNotFoundError as error:
                raise damaged_file(where, "it is gone") from error
        try:
            with self._guard.during("opening a snapshot"):
                info, layout = read_header(file, where)
            if info != self._complete.get(meta, info):
                raise damaged_file(where, "its header has changed")
        except BaseException:
            file.close()
            raise
        return Reader(self._guard, file, info, layout, where)

    # --- the own state ---------------------------------------------------------------------------

    def create(self, meta: SnapshotMeta) -> Writer:
        """See `SnapshotStore.create`."""
        with self._guard.during("beginning a snapshot"):
            return Writer(
                self._guard, self._files, _making_name(meta), meta, self._block_bytes, self._added
            )

    # --- from another peer -----------------------------------------------------------------------

    def incoming(self, meta: SnapshotMeta, size_bytes: int, sha256: bytes) -> Incoming:
        """See `SnapshotStore.incoming`; a transfer that is still open is shut out."""
        info = SnapshotInfo(meta, size_bytes, sha256)
        with self._lock, self._guard.during("beginning a transfer"):
            if self._incoming is not None:
                self._incoming.close()
            newest = self.latest()
            # A finished one may be on its way into the log: it goes when it is behind.
            for other in [each for each in self._finished if each != meta]:
                if newest is not None and other.index <= newest.meta.index:
                    self._finished.pop(other)
            self._finished.pop(meta, None)
            keep = {_incoming_name(each) for each in (*self._finished, meta)}
            self._remove(
                name for name in self._files.names() if _is_incoming(name) and name not in keep
            )
            self._incoming = Incoming(
                self._guard, self._files, _incoming_name(meta), info, self._block_bytes,
                self._received,
            )  # fmt: skip
            return self._incoming

    def promote(self, meta: SnapshotMeta) -> None:
        """See `SnapshotStore.promote`; once more is no change, since a full disk repeats writes."""
        with self._lock, self._guard.during("installing a snapshot"):
            if meta in self._complete:
                return
            invariant(meta in self._finished, f"snapshot {meta.index} was not received")
            self._files.rename(_incoming_name(meta), _complete_name(meta))
            self._sync_names()
            self._complete[meta] = self._finished.pop(meta)

    # --- giving space back -----------------------------------------------------------------------

    def drop_older(self, meta: SnapshotMeta) -> None:
        """See `SnapshotStore.drop_older`; also finished transfers that came too late."""
        self._drop(lambda each: each.index < meta.index)
        with self._lock, self._guard.during("removing a snapshot"):
            for late in [each for each in self._finished if each.index <= meta.index]:
                self._finished.pop(late)
                self._remove([_incoming_name(late)])

    def drop_newer(self, meta: SnapshotMeta | None) -> None:
        """At the start: removes what was never installed; with None, no snapshot counts."""
        self._drop(lambda each: meta is None or (each.index >= meta.index and each != meta))

    def _drop(self, unwanted: Callable[[SnapshotMeta], bool]) -> None:
        with self._lock, self._guard.during("removing a snapshot"):
            gone = [meta for meta in self._complete if unwanted(meta)]
            self._remove(_complete_name(meta) for meta in gone)
            for meta in gone:
                del self._complete[meta]

    # --- inside ----------------------------------------------------------------------------------

    def _added(self, info: SnapshotInfo) -> None:
        """Renames what was made to its final name."""
        with self._lock:
            self._files.rename(_making_name(info.meta), _complete_name(info.meta))
            self._sync_names()
            self._complete[info.meta] = info

    def _received(self, info: SnapshotInfo) -> None:
        """A transfer is whole and synced."""
        with self._lock:
            self._finished[info.meta] = info
            self._incoming = None

    def _sync_names(self) -> None:
        self._guard.sync_names(self._files)

    def _check(self, name: str) -> SnapshotInfo:
        file = self._files.open(name)
        try:
            info = check_file(file, self._where(name))
        finally:
            file.close()
        if _complete_name(info.meta) != name:
            raise damaged_file(self._where(name), "it is another snapshot than its name says")
        return info

    def _sweep(self) -> None:
        """Removes what an interrupted run left; of transfers the newest may still go on."""
        names = self._files.names()
        stale = [name for name in names if name.startswith("making-") and name.endswith(".tmp")]
        self._remove(stale + [name for name in names if _is_incoming(name)][:-1])

    def _remove(self, names: Iterable[str]) -> None:
        removed = False
        for name in names:
            self._files.remove(name)
            removed = True
        if removed:
            self._sync_names()

    def _where(self, name: str) -> str:
        return f"{self._files.where}/{name}"


def _age(info: SnapshotInfo) -> tuple[Index, Term]:
    return info.meta.index, info.meta.term


def _complete_name(meta: SnapshotMeta) -> str:
    return f"snapshot-{meta.index:020d}-{meta.term:020d}.gaia"


def _incoming_name(meta: SnapshotMeta) -> str:
    return f"incoming-{meta.index:020d}-{meta.term:020d}.part"


def _making_name(meta: SnapshotMeta) -> str:
    return f"making-{meta.index:020d}-{meta.term:020d}.tmp"


def _is_incoming(name: str) -> bool:
    return name.startswith("incoming-") and name.endswith(".part")
