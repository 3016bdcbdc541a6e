"""The files of a spool: append-only segments of batches, each record with a CRC.

    lock                   held while a process uses the directory (flock)
    identity.json          source_id, and the epoch that was given out last
    00000001.spool ...     8 bytes of magic, then records:

    length of the body (4 bytes), CRC-32 of kind and body (4), kind (1), body

Kind 1 is a batch as it goes over the wire, kind 2 the key up to which everything has its outcome.
A process never appends to what an earlier one wrote, so a torn record can only be the last that a
process wrote: from a record that fails its check on, the rest of that segment is left out and
counted (`damaged_bytes`), and the next segment is read.

Segments go, oldest first, when all their batches have outcomes. Not safe for threads: the spool
calls everything here in one thread of its own, but for the numbers.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client.source import Key
from gaia_grpc.errors import StorageDamagedError, StorageError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock
    fcntl = None  # type: ignore[assignment]  # tested for below

MAGIC = b"GAIASPL1"
HEADER = struct.Struct("<IIB")
KEY = struct.Struct("<qq")
BATCH, DONE = 1, 2
MAX_RECORD_BYTES = 16 * 1024 * 1024
"""More than any batch takes: a longer one is damage."""
SEGMENTS = 16
"""The bound on bytes is kept by whole segments: at most a sixteenth of it holds what is done."""
NOTHING: Key = (0, 0)


@dataclass(slots=True)
class Segment:
    """One file."""

    path: Path
    size: int
    last: Key = NOTHING
    """Key of its last batch."""


@dataclass(frozen=True, slots=True)
class Read:
    """Batches of the backlog, in order."""

    batches: list[metrics_pb2.MetricBatch]
    through: Key
    """What was written up to here and is neither among them nor before them is lost."""


class SpoolFiles:
    """One directory. Raises `OSError` where the disk refuses."""

    def __init__(
        self, directory: Path, *, source_id: str, fresh_id: str, now_ms: int, max_bytes: int
    ) -> None:
        """Locks the directory, reads what is there, and begins a new epoch.

        A new directory belongs to `source_id`, or to `fresh_id` where that is empty.

        Raises:
            StorageError: another process has it (SPOOL_LOCKED), or it belongs to another source.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._segment_bytes = max(max_bytes // SEGMENTS, 4_096)
        self._lock = _locked(directory / "lock")
        self.damaged_bytes = 0
        self.done: Key = NOTHING
        self._segments: list[Segment] = []
        self._current: int | None = None
        self._next_number = 1
        self._read_at: tuple[Path, int] | None = None
        self._last_written: Key = NOTHING
        try:
            self.source_id, self.epoch = self._begin_epoch(source_id, fresh_id, now_ms)
            self.left_over = self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def used_bytes(self) -> int:
        """Size of all segments."""
        return sum(segment.size for segment in self._segments)

    def _begin_epoch(self, source_id: str, fresh_id: str, now_ms: int) -> tuple[str, int]:
        path = self._directory / "identity.json"
        try:
            known = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise StorageDamagedError(f"{path} is damaged: {error}") from error
        if known and source_id and known["source_id"] != source_id:
            raise StorageError(
                f"the spool {self._directory} belongs to the source {known['source_id']}",
                reason="SPOOL_OF_ANOTHER_SOURCE",
            )
        # Higher than the last also where the machine's clock went back, or it would be refused.
        identity = {
            "source_id": known.get("source_id") or source_id or fresh_id,
            "epoch": max(now_ms, known.get("epoch", 0) + 1),
        }
        aside = path.with_suffix(".new")
        with aside.open("w") as file:
            json.dump(identity, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        with suppress(OSError):
            # The room for the next start: what is left over must leave a disk that it has filled.
            aside.write_text(path.read_text())
        return identity["source_id"], identity["epoch"]

    def _recover(self) -> list[tuple[Key, int]]:
        """(key, metrics) of each batch without an outcome, in order."""
        found: list[tuple[Key, int]] = []
        for path in sorted(self._directory.glob("*.spool")):
            segment = Segment(path, path.stat().st_size)
            whole = len(MAGIC)
            for _, end, kind, body in _records(path, 0):
                whole = end
                if kind == DONE:
                    self.done = max(self.done, KEY.unpack(body))
                    continue
                batch = metrics_pb2.MetricBatch.FromString(body)
                segment.last = (batch.source_epoch, batch.sequence)
                found.append((segment.last, len(batch.metrics)))
            self.damaged_bytes += max(segment.size - whole, 0)
            self._segments.append(segment)
        if self._segments:
            self._next_number = int(self._segments[-1].path.stem) + 1
        self._drop_done()
        if self._segments:
            self._read_at = (self._segments[0].path, 0)
            # The last segment may hold notes of outcomes only.
            self._last_written = max(segment.last for segment in self._segments)
        return [(key, metrics) for key, metrics in found if key > self.done]

    def append(self, batch: metrics_pb2.MetricBatch, *, read_back: bool, sync: bool) -> None:
        """Writes a batch; with `read_back` it is handed out by `read` in its turn."""
        segment, offset = self._write(BATCH, batch.SerializeToString(), sync=sync)
        segment.last = self._last_written = (batch.source_epoch, batch.sequence)
        if not read_back:
            self._read_at = None
        elif self._read_at is None:
            self._read_at = (segment.path, offset)

    def settle(self, key: Key) -> None:
        """Notes that everything up to `key` has its outcome, and frees what is not needed."""
        self.done = max(self.done, key)
        try:
            self._write(DONE, KEY.pack(*self.done), sync=False)
        except OSError:
            # A full disk has no room for the note before something goes; without the note what
            # stands behind is sent once more, which counts once.
            if not self._drop_done():
                raise
            self._write(DONE, KEY.pack(*self.done), sync=False)
        self._drop_done()

    def _write(self, kind: int, body: bytes, *, sync: bool) -> tuple[Segment, int]:
        record = HEADER.pack(len(body), zlib.crc32(bytes([kind]) + body), kind) + body
        segment = self._segments[-1] if self._current is not None else None
        if segment is None or segment.size + len(record) > self._segment_bytes:
            segment = self._rotate()
        file = self._current
        if file is None:
            raise OSError(errno.EBADF, "no open segment")
        offset = segment.size
        try:
            written = 0
            while written < len(record):
                written += os.write(file, record[written:])
            if sync:
                os.fdatasync(file)
        except OSError:
            # A torn record would hide what is written behind it: the next goes to a new segment.
            self._close_current()
            segment.size = segment.path.stat().st_size
            raise
        segment.size += len(record)
        return segment, offset

    def _rotate(self) -> Segment:
        self._close_current()
        # Numbers only grow, also where all segments are gone: `_read_at` goes by them.
        path = self._directory / f"{self._next_number:08}.spool"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._next_number += 1
        try:
            if os.write(file, MAGIC) < len(MAGIC):
                raise OSError(errno.ENOSPC, "no room for a segment", str(path))
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self._segments.append(Segment(path, len(MAGIC)))
        self._current = file
        return self._segments[-1]

    def _close_current(self) -> None:
        if self._current is not None:
            file, self._current = self._current, None
            os.close(file)

    def _drop_done(self) -> bool:
        """Removes segments from the oldest on, so that no note of an outcome goes too early;
        whether there were any."""
        before = len(self._segments)
        while len(self._segments) > (self._current is not None):
            oldest = self._segments[0]
            if oldest.last > self.done:
                break
            oldest.path.unlink()
            del self._segments[0]
        return len(self._segments) < before

    def read(self, most_metrics: int) -> Read:
        """The next batches that were written to be read back, of about `most_metrics` metrics."""
        batches: list[metrics_pb2.MetricBatch] = []
        metrics = 0
        # Where reading fails in the middle, what was read is read again: so it is moved at the end.
        place = self._read_at
        for segment in list(self._segments):
            if place is None or segment.path < place[0]:
                continue
            offset = place[1] if segment.path == place[0] else 0
            for _, end, kind, body in _records(segment.path, offset):
                place = (segment.path, end)
                if kind != BATCH:
                    continue
                batch = metrics_pb2.MetricBatch.FromString(body)
                key = (batch.source_epoch, batch.sequence)
                if key <= self.done:
                    continue
                batches.append(batch)
                metrics += len(batch.metrics)
                if metrics >= most_metrics:
                    self._read_at = place
                    return Read(batches, key)
        self._read_at = place
        return Read(batches, self._last_written)

    def close(self) -> None:
        """Lets others have the directory; removes the segments where nothing is left in them."""
        self._close_current()
        self._drop_done()
        os.close(self._lock)


def _records(path: Path, offset: int) -> Iterator[tuple[int, int, int, bytes]]:
    """(begin, end, kind, body) of the records from `offset` on, up to one that is not whole."""
    with path.open("rb") as file:
        if offset < len(MAGIC):
            if file.read(len(MAGIC)) != MAGIC:
                return
            offset = len(MAGIC)
        file.seek(offset)
        while len(head := file.read(HEADER.size)) == HEADER.size:
            length, crc, kind = HEADER.unpack(head)
            if length > MAX_RECORD_BYTES:
                return
            body = file.read(length)
            if len(body) < length or zlib.crc32(bytes([kind]) + body) != crc:
                return
            end = offset + HEADER.size + length
            yield offset, end, kind, body
            offset = end


def _locked(path: Path) -> int:
    if fcntl is None:
        raise StorageError("a spool needs flock, which this system has not", reason="SPOOL_LOCKED")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise StorageError(
            f"another process uses the spool {path.parent}", reason="SPOOL_LOCKED"
        ) from None
    return file
