"""One life of a log with snapshots, in small steps, for every storage and every way to die."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from gaia_grpc.errors import GaiaError
from gaia_grpc.raft.types import (
    Entry,
    EntryId,
    EntryKind,
    HardState,
    Index,
    NodeId,
    SnapshotMeta,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.api import LogStorage, SnapshotStore
from gaia_grpc.storage.directory import DataDirectory

N1 = NodeId("n1")


def entry(index: int, term: int = 1, data: bytes = b"") -> Entry:
    return Entry(Term(term), Index(index), EntryKind.COMMAND, data or b"command %d" % index * 9)


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(entry(index, term) for index in range(first, last + 1))


def meta(index: int, term: int = 1) -> SnapshotMeta:
    return SnapshotMeta(Index(index), Term(term), b"members at %d" % index)


def entry_id(index: int, term: int = 1) -> EntryId:
    return EntryId(Term(term), Index(index))


def content(of: SnapshotMeta, size_bytes: int = 70_000) -> bytes:
    return (b"state at %d/%d " % (of.term, of.index) * (size_bytes // 10 + 1))[:size_bytes]


def batch(
    *added: Entry, state: HardState | None = None, snapshot: SnapshotMeta | None = None
) -> WriteBatch:
    return WriteBatch(1, state, added, snapshot)


def save(store: SnapshotStore, of: SnapshotMeta, size_bytes: int = 70_000) -> None:
    """A snapshot of the own state."""
    writer = store.create(of)
    data = content(of, size_bytes)
    for start in range(0, len(data), 30_000):
        writer.write(data[start : start + 30_000])
    writer.commit()


def receive(store: SnapshotStore, of: SnapshotMeta, size_bytes: int = 70_000) -> None:
    """A snapshot from another peer, interrupted once."""
    data = content(of, size_bytes)
    digest = hashlib.sha256(data).digest()
    for until in (len(data) // 2, len(data)):
        incoming = store.incoming(of, len(data), digest)
        incoming.append(data[incoming.stored_size_bytes : until])
        if until == len(data):
            incoming.finish()
        incoming.close()


def compact(log: LogStorage, base: EntryId) -> None:
    log.compact(base)
    log.maintain()
    while log.needs_maintenance:
        log.maintain()


def steps(log: LogStorage, store: SnapshotStore, size_bytes: int = 70_000) -> Iterator[None]:
    """Yields where all before it is acknowledged; each step changes one durable thing at most."""
    yield
    log.write([batch(*entries(1, 6), state=HardState(Term(1), N1, Index(6)))])
    yield
    save(store, meta(4), size_bytes)
    yield
    compact(log, entry_id(2))
    yield
    log.write([batch(*entries(7, 9)), batch(state=HardState(Term(1), N1, Index(9)))])
    yield
    save(store, meta(8), size_bytes)
    yield
    compact(log, entry_id(6))
    store.drop_older(meta(8))
    yield
    log.write([batch(*entries(10, 13, 2), state=HardState(Term(2), N1, Index(9)))])
    yield
    receive(store, meta(11, 3), size_bytes)
    yield
    installed = HardState(Term(3), N1, Index(11))
    log.write([batch(entry(12, 3), state=installed, snapshot=meta(11, 3))])
    yield
    compact(log, entry_id(11, 3))
    store.drop_older(meta(11, 3))
    yield
    log.write([batch(*entries(13, 14, 3))])
    yield
    save(store, meta(13, 3), size_bytes)
    yield
    compact(log, entry_id(13, 3))
    store.drop_older(meta(13, 3))
    yield
    log.write([batch(entry(14, 4), state=HardState(Term(4), N1, Index(13)))])
    yield


def main() -> None:
    """As a process, with DIR: says the number of each step when it is done."""
    try:
        opened = DataDirectory.open(Path(sys.argv[1]), N1)
        for number, _ in enumerate(steps(opened.log, opened.snapshots)):
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
        opened.close()
        sys.stdout.write("closed\n")
    except GaiaError as error:
        sys.stderr.write(f"failed: {error}\n")
        sys.exit(3)


if __name__ == "__main__":
    main()
