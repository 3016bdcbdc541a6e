"""Snapshots of the state machine: what a table offers, and how records are frozen while it goes on.

A snapshot is a sequence of records, taken some at a time while commands are applied. So each record
must come out as it was at the snapshot's index: a table tells its `Frozen` before it changes or
removes one, which encodes it at that moment if its turn has not come yet (copy on write).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Part(Protocol):
    """One table's share of a snapshot. Parts and their records have a fixed order (sorted keys, or
    an order that is itself state), so equal states give equal bytes."""

    @property
    def name(self) -> str:
        """Names the section; part of the format, never changed."""
        ...

    def freeze(self) -> Iterator[bytes]:
        """Called at the snapshot's index. Yields the encoded records as they are now, lazily, one
        a step, whatever is applied between the steps."""
        ...

    def thaw(self) -> None:
        """The snapshot is complete or given up; nothing needs to be kept for it any more."""
        ...

    def load(self, record: bytes) -> None:
        """Takes in one record of an empty table, in the order in which they were yielded."""
        ...

    def loaded(self) -> None:
        """All records of all parts are in: rebuilds indexes and sets timers, from records alone."""
        ...
