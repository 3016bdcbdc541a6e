"""A machine from a snapshot's bytes, record by record as they come."""

from __future__ import annotations

import hashlib

from gaia.command.v1 import snapshot_pb2

from gaia_grpc.errors import StorageDamagedError
from gaia_grpc.state.feature_levels import FEATURE_LEVEL, FIRST_LEVEL
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.snapshot_codec import FORMAT, HEADER, MAX_RECORD_BYTES, TRAILER, tag_of

MAX_VARINT_BYTES = 4
"""Enough for `MAX_RECORD_BYTES`."""


class SnapshotDecoder:
    """Builds a `StateMachine`. After an error it must not be used any more."""

    def __init__(self) -> None:
        self._machine = StateMachine()
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._count = 0
        self._complete = False
        self._trailer_tag = tag_of(TRAILER)
        # Sections come in the order of the parts.
        self._tags = [tag_of(part.name) for part in self._machine.parts]
        self._place = 0

    def feed(self, data: bytes) -> None:
        """Takes the next bytes, cut anywhere. Raises `StorageDamagedError`."""
        buffer = self._buffer
        buffer += data
        start = 0
        while True:
            found = _varint(buffer, start)
            if found is None:
                break
            body, size = found
            if size > MAX_RECORD_BYTES:
                raise damaged(f"a record of {size} bytes")
            end = body + size
            if end > len(buffer):
                break
            if self._complete:
                raise damaged("records behind the trailer")
            self._record(bytes(buffer[start:end]), body - start)
            start = end
        del buffer[:start]

    def finish(self) -> StateMachine:
        """The machine. Raises `StorageDamagedError` where something is missing or left over."""
        if not self._complete or self._buffer:
            raise damaged("it is cut short" if not self._complete else "bytes behind the trailer")
        try:
            for part in self._machine.parts:
                part.loaded()
        except Exception as error:
            raise damaged(f"its records do not fit together: {error!r}") from error
        return self._machine

    def _record(self, data: bytes, start: int) -> None:
        """One record: its size, and from `start` on its tag, the size of its message, and that."""
        tag = _varint(data, start)
        size = _varint(data, tag[0]) if tag is not None else None
        if tag is None or size is None or size[0] + size[1] != len(data):
            raise damaged("a record that is no record")
        try:
            self._dispatch(tag[1], data[size[0] :])
        except StorageDamagedError:
            raise
        except Exception as error:
            # Whatever a table raises at a record that no table wrote.
            raise damaged(f"record {self._count + 1}: {error!r}") from error
        self._digest.update(data)
        self._count += 1

    def _dispatch(self, tag: int, message: bytes) -> None:
        if self._count == 0:
            if tag != tag_of(HEADER):
                raise damaged("it does not begin with a header")
            self._header(snapshot_pb2.SnapshotHeader.FromString(message))
        elif tag == self._trailer_tag:
            self._trailer(snapshot_pb2.SnapshotTrailer.FromString(message))
        else:
            while self._place < len(self._tags) and self._tags[self._place] != tag:
                self._place += 1
            if self._place == len(self._tags):
                raise damaged("a section that this version does not know, or at a wrong place")
            self._machine.parts[self._place].load(message)

    def _header(self, header: snapshot_pb2.SnapshotHeader) -> None:
        if header.format != FORMAT:
            raise damaged(f"its format is {header.format}; this version reads {FORMAT}")
        if not FIRST_LEVEL <= header.feature_level <= FEATURE_LEVEL:
            raise damaged(
                f"its cluster has the feature level {header.feature_level}; "
                f"this version understands {FEATURE_LEVEL}"
            )
        if len(header.state_hash) != self._digest.digest_size:
            raise damaged("it has no chain hash")
        self._machine.restore_header(header)

    def _trailer(self, trailer: snapshot_pb2.SnapshotTrailer) -> None:
        if trailer.record_count != self._count:
            raise damaged(f"{self._count} records, and not {trailer.record_count} as it says")
        if trailer.digest != self._digest.digest():
            raise damaged("its digest does not match")
        self._complete = True


def damaged(what: str) -> StorageDamagedError:
    """What is wrong with the snapshot."""
    return StorageDamagedError(f"the snapshot is damaged: {what}")


def _varint(data: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """(place behind it, value) of a size or tag; None where it is not whole yet."""
    value = 0
    for place in range(start, min(start + MAX_VARINT_BYTES, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << 7 * (place - start)
        if byte < 0x80:
            return place + 1, value
    if len(data) - start >= MAX_VARINT_BYTES:
        raise damaged("a size that is none")
    return None
