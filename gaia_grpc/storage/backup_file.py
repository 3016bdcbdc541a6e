"""Backups: one snapshot in a file of its own, in the layout of `snapshot_file`, anywhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gaia_grpc.errors import NotFoundError, StorageDamagedError
from gaia_grpc.raft.types import SnapshotMeta
from gaia_grpc.storage.api import SnapshotInfo
from gaia_grpc.storage.files import SystemFile, SystemFiles, translate_os_error
from gaia_grpc.storage.snapshot_file import (
    BLOCK_BYTES,
    BlockWriter,
    check_file,
    layout_for,
    pack_header,
    read_block,
    read_header,
)


def write_backup(
    path: Path, meta: SnapshotMeta, chunks: Iterable[bytes], *, sha256: bytes = b""
) -> SnapshotInfo:
    """Writes the content aside, syncs it and gives it its name: `path` is whole or not there.

    Raises `StorageDamagedError` where the content is not that of `sha256` (if given),
    `StorageFullError` and `StorageFailedError`; a file that was there before stays then.
    """
    files = SystemFiles(path.parent)
    name = f".{path.name}.{os.getpid()}.part"
    try:
        file = files.create(name)
        try:
            blocks = BlockWriter(file, layout_for(meta, BLOCK_BYTES), hashlib.sha256(), 0)
            for data in chunks:
                blocks.append(data)
            if sha256 and blocks.sha256 != sha256:
                raise StorageDamagedError(f"{path}: what arrived is not what the peer has")
            blocks.flush()
            info = SnapshotInfo(meta, blocks.size_bytes, blocks.sha256)
            file.write(0, pack_header(info, BLOCK_BYTES))
            file.sync()
        finally:
            file.close()
        files.rename(name, path.name)
        files.sync_names()
    except OSError as error:
        raise translate_os_error(error, str(path), "writing the backup") from error
    finally:
        (path.parent / name).unlink(missing_ok=True)
    return info


def check_backup(path: Path) -> SnapshotInfo:
    """Reads all of a backup; raises `NotFoundError` or `StorageDamagedError`."""
    file = _open(path)
    try:
        return check_file(file, str(path))
    finally:
        file.close()


def read_backup(path: Path) -> Iterator[bytes]:
    """The content in blocks, each checked; raises like `check_backup`."""
    file = _open(path)
    try:
        info, layout = read_header(file, str(path))
        left, number = info.size_bytes, 0
        while left > 0:
            data = read_block(file, layout, number, min(left, layout.block_bytes), str(path))
            yield data
            left -= len(data)
            number += 1
    finally:
        file.close()


def _open(path: Path) -> SystemFile:
    try:
        return SystemFiles(path.parent).open(path.name)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise translate_os_error(error, str(path), "opening the backup") from error
