"""Tells a torn journal tail from a damaged journal middle.

SQLite ends its recovery at the first journal frame with a bad checksum and drops the rest in
silence. That is right for a torn tail (a commit that was never acknowledged) and wrong for a
flipped bit in the middle, behind which acknowledged commits lie. Two independent proofs find it:

- **frames**: with `synchronous=FULL` a commit is on disk before the next one begins, so at most one
  commit frame can lie behind the end of a torn journal. Two of them mean a damaged middle, and a
  bad header with frames behind it too, because SQLite syncs a new header before any frame.
- **mark**: after each commit its number is written to a small file beside the database, without
  fsync. It can lag (power loss) but never lead, so a mark above the recovered number proves that
  an acknowledged commit is gone. It covers process kills, where the page cache survives.

What neither sees: a power loss, and damage to the journal frames of exactly the last commit before
it, while the mark of that commit was still in the page cache (the kernel writes it back within some
30 s; a clean stop syncs it). Then this commit looks like one that was torn before its fsync
returned, and it is dropped: this peer forgets one acknowledged write, be it a vote or entries. To
lose a committed entry that way, the peers with the other copies must be away as well while this one
takes part in an election. Only a second durable write after each commit could tell the two apart,
and it would double what a commit costs. `tests/storage/test_damage.py` pins the limit: without the
mark nothing but the last commit is ever missing.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_MAGICS = (0x377F0682, 0x377F0683)
_MARK = struct.Struct(">8sQI")
_MARK_MAGIC = b"GAIAMARK"


@dataclass(frozen=True, slots=True)
class JournalScan:
    """`commit_frames` are the 1-based numbers of the frames that end a commit, by their headers."""

    header_valid: bool
    size_bytes: int
    commit_frames: tuple[int, ...]

    def lost_commits(self, recovered_frames: int) -> bool:
        """True if acknowledged commits lie behind the last frame that SQLite recovered."""
        if not self.header_valid:
            return self.size_bytes > HEADER_BYTES
        return sum(1 for frame in self.commit_frames if frame > recovered_frames) >= 2


def _checksum(data: bytes, order: str) -> tuple[int, int]:
    """The journal's own checksum (sqlite.org/fileformat2.html, section 4.2)."""
    first = second = 0
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second


def scan_journal(path: Path) -> JournalScan:
    """Reads the journal's headers only; must run before SQLite opens (and recovers) the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return JournalScan(header_valid=True, size_bytes=0, commit_frames=())
    try:
        size = os.fstat(descriptor).st_size
        header = os.pread(descriptor, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES:
            return JournalScan(header_valid=True, size_bytes=size, commit_frames=())
        magic, _, page_size = struct.unpack(">3I", header[:12])
        order = ">" if magic & 1 else "<"
        if magic not in _MAGICS or _checksum(header[:24], order) != struct.unpack(
            ">2I", header[24:]
        ):
            return JournalScan(header_valid=False, size_bytes=size, commit_frames=())
        salt_1, salt_2 = header[16:20], header[20:24]
        commits = []
        step = FRAME_HEADER_BYTES + page_size
        for number in range(1, (size - HEADER_BYTES) // step + 1):
            frame = os.pread(descriptor, FRAME_HEADER_BYTES, HEADER_BYTES + (number - 1) * step)
            # One salt is enough: frames of an earlier journal share neither, and the flipped byte
            # may be in the other one.
            current = frame[8:12] == salt_1 or frame[12:16] == salt_2
            if current and frame[4:8] != b"\0\0\0\0":
                commits.append(number)
        return JournalScan(header_valid=True, size_bytes=size, commit_frames=tuple(commits))
    finally:
        os.close(descriptor)


class Mark:
    """The number of the last acknowledged commit, as far as the operating system kept it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> int:
        """0 where there is none: a torn or foreign mark proves nothing."""
        data = os.pread(self._descriptor, _MARK.size, 0)
        if len(data) < _MARK.size:
            return 0
        magic, number, crc = _MARK.unpack(data)
        if magic != _MARK_MAGIC or crc != zlib.crc32(data[:-4]):
            return 0
        return int(number)

    def write(self, number: int) -> None:
        """Overwrites in place: one small write into the page cache, no sync."""
        head = _MARK.pack(_MARK_MAGIC, number, 0)[:-4]
        os.pwrite(self._descriptor, head + struct.pack(">I", zlib.crc32(head)), 0)

    def close(self, *, sync: bool) -> None:
        """Syncs (a clean stop leaves an exact mark) and closes."""
        try:
            if sync:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
