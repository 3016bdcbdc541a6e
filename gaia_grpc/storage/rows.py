"""Checks on stored values: the CRC of each kind of row, and the wording of damage.

SQLite checks the frames of its journal but not the pages of its database, so every row carries a
CRC-32 (zlib) over all of its columns, in the order and width given here. Integers are big-endian.
The layout is part of format 1 and never changes; `tests/storage/test_format.py` pins the bytes.
"""

from __future__ import annotations

import struct
import zlib

from gaia_grpc.errors import StorageDamagedError

_ENTRY_HEAD = struct.Struct(">QQQI")
_HARD_STATE_HEAD = struct.Struct(">QQQ")
_BASE = struct.Struct(">QQ")

pack_entry_head = _ENTRY_HEAD.pack
"""(index, term, commit number, kind): the CRC of an entry is that of this head and the data."""


def entry_crc(index: int, term: int, number: int, kind: int, data: bytes) -> int:
    """CRC-32 of an `entries` row."""
    return zlib.crc32(data, zlib.crc32(pack_entry_head(index, term, number, kind)))


def hard_state_crc(term: int, voted_for: str, commit_index: int, number: int) -> int:
    """CRC-32 of the `hard_state` row."""
    return zlib.crc32(
        voted_for.encode(), zlib.crc32(_HARD_STATE_HEAD.pack(term, commit_index, number))
    )


def base_crc(index: int, term: int) -> int:
    """CRC-32 of the `base` row."""
    return zlib.crc32(_BASE.pack(index, term))


def meta_crc(key: str, value: str) -> int:
    """CRC-32 of a `meta` row; the zero byte keeps ("a", "bc") and ("ab", "c") apart."""
    return zlib.crc32(f"{key}\0{value}".encode())


def damaged(where: str, what: str) -> StorageDamagedError:
    """The one wording for damage: what was found, and the only safe thing to do about it.

    A peer must not start from less than it acknowledged: its missing entries could have been the
    ones that made a majority (FAST'18, "Protocol-Aware Recovery").
    """
    return StorageDamagedError(
        f"{where}: {what}; this copy can't be trusted: move the data directory away, remove this "
        "peer from the cluster and start it again with --join"
    )
