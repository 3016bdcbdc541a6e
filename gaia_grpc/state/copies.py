"""Large records in a snapshot: copied before they change, and encoded in pieces when it is their
turn.

`Frozen` (snapshot.py) encodes a record at the moment it is about to change. A window of thousands
of metrics would hold up the command for a millisecond; its copy is a few slices of memory. A record
that is removed needs no copy: the snapshot holds it, and nobody changes it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Stamped(Protocol):
    """A record that can be copied; hashed by identity."""

    snapshot: int
    """Number of the snapshot that has its content, or need not have it; 0 before the first."""


Record = TypeVar("Record", bound=Stamped)


class Copies(Generic[Record]):
    """The records of one table as they are when `freeze` is called."""

    __slots__ = ("_active", "_copy", "_encode", "_number", "_saved")

    def __init__(
        self, copy: Callable[[Record], Record], encode: Callable[[Record], Iterator[bytes]]
    ) -> None:
        self._copy = copy
        self._encode = encode
        self._active = False
        self._number = 0
        self._saved: dict[Record, Record] = {}

    def changing(self, record: Record) -> None:
        """The record will be changed; not to be forgotten, or the snapshot is wrong."""
        if self._active and record.snapshot != self._number:
            record.snapshot = self._number
            self._saved[record] = self._copy(record)

    def added(self, record: Record) -> None:
        """A new record, which the snapshot does not have."""
        record.snapshot = self._number

    def freeze(self, records: Iterable[Record]) -> Iterator[bytes]:
        """The pieces of these records as they are now, whatever becomes of them meanwhile."""
        self.thaw()
        self._number += 1
        self._active = True
        # Copied now and not in the generator's first step: the table may have changed by then.
        return self._walk(list(records))

    def thaw(self) -> None:
        """Nothing is kept any more; an iterator that is still there must not be used."""
        self._active = False
        self._saved = {}

    def _walk(self, records: list[Record]) -> Iterator[bytes]:
        for record in records:
            frozen = self._saved.pop(record, None)
            if frozen is None:
                record.snapshot = self._number
                # It may change between its own pieces.
                frozen = self._copy(record)
            yield from self._encode(frozen)
