"""The layout of one snapshot file.

Format 1, integers big-endian:

    magic `GAIASNAP`, format u32, block size u32, index u64, term u64, content size u64,
    SHA-256 of the content, size of the configuration u32
    configuration
    CRC-32 of all of the above
    blocks: up to `block size` bytes of content, then their CRC-32, begun at the block's number

The SHA-256 names the content and is checked over the whole of it; the CRCs check each read, find
where an interrupted transfer was torn, and tell swapped blocks. A file that is being made has zeros
for a header, so it can't pass for a complete one.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from gaia_grpc.errors import StorageDamagedError
from gaia_grpc.raft.types import Index, SnapshotMeta, Term
from gaia_grpc.storage.api import SnapshotInfo
from gaia_grpc.storage.files import File

MAGIC = b"GAIASNAP"
FORMAT = 1
BLOCK_BYTES = 64 * 1024
CRC_BYTES = 4
MAX_CONFIGURATION_BYTES = 1 << 20
_HEAD = struct.Struct(">8sIIQQQ32sI")
_CRC = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the blocks of a file lie."""

    header_bytes: int
    block_bytes: int

    def block_offset_bytes(self, number: int) -> int:
        """Where block `number` begins in the file."""
        return self.header_bytes + number * (self.block_bytes + CRC_BYTES)

    def file_size_bytes(self, content_bytes: int) -> int:
        """Size of the whole file."""
        blocks = -(-content_bytes // self.block_bytes)
        return self.header_bytes + content_bytes + blocks * CRC_BYTES


def layout_for(meta: SnapshotMeta, block_bytes: int) -> Layout:
    """The header's size depends on the configuration only, so blocks can be written before it."""
    return Layout(_HEAD.size + len(meta.configuration) + CRC_BYTES, block_bytes)


def pack_header(info: SnapshotInfo, block_bytes: int) -> bytes:
    """The header of a file."""
    meta = info.meta
    head = _HEAD.pack(
        MAGIC, FORMAT, block_bytes, meta.index, meta.term, info.size_bytes, info.sha256,
        len(meta.configuration),
    )  # fmt: skip
    head += meta.configuration
    return head + _CRC.pack(zlib.crc32(head))


def pack_block(number: int, data: bytes) -> bytes:
    """One block with its CRC."""
    return data + _CRC.pack(zlib.crc32(data, number))


def read_header(file: File, where: str) -> tuple[SnapshotInfo, Layout]:
    """Raises `StorageDamagedError` unless the header is whole and of a format that we know."""
    head = file.read(0, _HEAD.size)
    if len(head) < _HEAD.size or head[:8] != MAGIC:
        raise damaged_file(where, "it has no snapshot header")
    _, version, block_bytes, index, term, size, sha256, configuration_bytes = _HEAD.unpack(head)
    if configuration_bytes > MAX_CONFIGURATION_BYTES:
        raise damaged_file(where, "its header fails its check")
    rest = file.read(_HEAD.size, configuration_bytes + CRC_BYTES)
    configuration = rest[:configuration_bytes]
    crc = _CRC.pack(zlib.crc32(configuration, zlib.crc32(head)))
    if rest[configuration_bytes:] != crc:
        raise damaged_file(where, "its header fails its check")
    if version != FORMAT or block_bytes == 0:
        raise StorageDamagedError(
            f"{where}: has snapshot format {version}, this version reads {FORMAT} only"
        )
    meta = SnapshotMeta(Index(index), Term(term), configuration)
    return SnapshotInfo(meta, size, sha256), layout_for(meta, block_bytes)


def read_block(file: File, layout: Layout, number: int, size_bytes: int, where: str) -> bytes:
    """The content of block `number`, of which it has `size_bytes`; raises `StorageDamagedError`."""
    stored = file.read(layout.block_offset_bytes(number), size_bytes + CRC_BYTES)
    data = stored[:size_bytes]
    if stored[size_bytes:] != _CRC.pack(zlib.crc32(data, number)):
        raise damaged_file(where, f"block {number} fails its check")
    return data


def check_file(file: File, where: str) -> SnapshotInfo:
    """Reads all of a complete file; raises `StorageDamagedError` where anything differs."""
    info, layout = read_header(file, where)
    if file.size_bytes != layout.file_size_bytes(info.size_bytes):
        raise damaged_file(where, "its size is wrong")
    digest = hashlib.sha256()
    left = info.size_bytes
    number = 0
    while left > 0:
        data = read_block(file, layout, number, min(left, layout.block_bytes), where)
        digest.update(data)
        left -= len(data)
        number += 1
    if digest.digest() != info.sha256:
        raise damaged_file(where, "its digest is wrong")
    return info


def damaged_file(where: str, what: str) -> StorageDamagedError:
    """The one wording for a damaged snapshot. It is kept: it may be the last copy of its state."""
    return StorageDamagedError(
        f"{where}: {what}; this copy can't be trusted and nothing was deleted: move the data "
        "directory away, remove this peer from the cluster and start it again with --join"
    )


class BlockWriter:
    """Appends content in blocks; `offset_bytes` of it are already in the file, whole blocks only.

    Also used for a transfer: `flush` writes the last, short block as it is, and it is written anew
    when more comes.
    """

    def __init__(
        self, file: File, layout: Layout, digest: hashlib._Hash, offset_bytes: int
    ) -> None:
        self._file = file
        self._layout = layout
        self._digest = digest
        self._tail = bytearray()
        self._number = offset_bytes // layout.block_bytes
        self._flushed = True
        self.size_bytes = offset_bytes

    def append(self, data: bytes) -> None:
        """Raises `OSError`, after which the writer must not be used."""
        self._digest.update(data)
        self._tail += data
        self.size_bytes += len(data)
        self._flushed = False
        size = self._layout.block_bytes
        whole = len(self._tail) // size
        if whole == 0:
            return
        packed = b"".join(
            pack_block(self._number + each, bytes(self._tail[each * size : (each + 1) * size]))
            for each in range(whole)
        )
        self._file.write(self._layout.block_offset_bytes(self._number), packed)
        self._number += whole
        del self._tail[: whole * size]

    def flush(self) -> None:
        """Writes the short block at the end; raises `OSError`."""
        if self._tail and not self._flushed:
            packed = pack_block(self._number, bytes(self._tail))
            self._file.write(self._layout.block_offset_bytes(self._number), packed)
        self._flushed = True

    @property
    def sha256(self) -> bytes:
        """Of everything so far."""
        return self._digest.digest()


def resume(file: File, meta: SnapshotMeta, block_bytes: int, where: str) -> BlockWriter:
    """A writer that goes on behind the last block that is whole, and cuts off what follows it.

    A crash leaves anything behind the last sync: a torn block, or a gap of zeros.
    """
    layout = layout_for(meta, block_bytes)
    digest = hashlib.sha256()
    number = 0
    short = b""
    size = file.size_bytes
    while True:
        room = size - layout.block_offset_bytes(number) - CRC_BYTES
        if room <= 0:
            break
        try:
            data = read_block(file, layout, number, min(room, block_bytes), where)
        except StorageDamagedError:
            break
        if len(data) < block_bytes:
            short = data
            break
        digest.update(data)
        number += 1
    file.truncate(layout.block_offset_bytes(number))
    writer = BlockWriter(file, layout, digest, number * block_bytes)
    if short:
        writer.append(short)
    return writer
