"""Snapshots as bytes: size-delimited `gaia.command.v1.SnapshotRecord`s, header first, trailer last.

Parts encode the message of their section; the record around it is one tag and one size, written
here by hand so that nothing is encoded twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from gaia.command.v1 import snapshot_pb2
from google.protobuf.message import Message

from gaia_grpc.errors import InvariantError
from gaia_grpc.state.snapshot import Part

# A peer of an older version may get the file. What it would not read (a section, a field, another
# format) may be written only where the cluster's feature level says that no such peer is left.
FORMAT = 1
HEADER = "header"
TRAILER = "trailer"
MAX_RECORD_BYTES = 64 << 20
"""A size beyond this is damage: a task's payload, checkpoint and result are a few MiB at most."""

LENGTH_DELIMITED = 2
"""Wire type of nested messages."""


def varint(value: int) -> bytes:
    """A number that is not negative, as protobuf writes it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def tag_of(name: str) -> int:
    """The tag of a section: that of its field in `SnapshotRecord`."""
    number: int = snapshot_pb2.SnapshotRecord.DESCRIPTOR.fields_by_name[name].number
    return number << 3 | LENGTH_DELIMITED


def frame(tag: bytes, message: bytes) -> bytes:
    """One record with its size; `tag` is encoded."""
    size = varint(len(message))
    return varint(len(tag) + len(size) + len(message)) + tag + size + message


class SnapshotEncoder:
    """A snapshot under way. `index` and `state_hash` are those of the last entry in it."""

    def __init__(self, header: snapshot_pb2.SnapshotHeader, parts: Sequence[Part]) -> None:
        self.index: int = header.index
        self.state_hash: bytes = header.state_hash
        self._parts = parts
        self._digest = hashlib.sha256()
        self._closed = False
        self._complete = False
        # All parts are frozen here, in the same turn as the header.
        sections = [(varint(tag_of(part.name)), part.freeze()) for part in parts]
        self._frames = self._walk(header, sections)

    @property
    def closed(self) -> bool:
        """Complete or given up: nothing is kept for it any more."""
        return self._closed

    def take(self, max_records: int) -> bytes:
        """The next bytes: up to `max_records` records, each whole; empty once it is complete.

        Raises `InvariantError` where it was given up: what was taken is no snapshot.
        """
        if self._complete:
            return b""
        if self._closed:
            raise InvariantError("the snapshot was given up")
        taken = []
        for _ in range(max(1, max_records)):
            record = next(self._frames, None)
            if record is None:
                self._complete = True
                self.close()
                break
            taken.append(record)
        return b"".join(taken)

    def close(self) -> None:
        """Ends it, or gives it up; may be called again."""
        if self._closed:
            return
        self._closed = True
        self._frames = iter(())
        for part in self._parts:
            part.thaw()

    def _walk(
        self,
        header: snapshot_pb2.SnapshotHeader,
        sections: Sequence[tuple[bytes, Iterator[bytes]]],
    ) -> Iterator[bytes]:
        count = 1
        yield self._hashed(_message_frame(HEADER, header))
        for tag, records in sections:
            for record in records:
                count += 1
                yield self._hashed(frame(tag, record))
        trailer = snapshot_pb2.SnapshotTrailer(record_count=count, digest=self._digest.digest())
        yield _message_frame(TRAILER, trailer)

    def _hashed(self, record: bytes) -> bytes:
        self._digest.update(record)
        return record


def _message_frame(name: str, message: Message) -> bytes:
    return frame(varint(tag_of(name)), message.SerializeToString(deterministic=True))
