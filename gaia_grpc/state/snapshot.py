"""Snapshots of the state machine: what a table offers, and how records are frozen while it goes on.

A snapshot is a sequence of records, taken some at a time while commands are applied. So each record
must come out as it was at the snapshot's index: a table tells its `Frozen` before it adds, changes
or removes one, which encodes it at that moment if its turn has not come yet (copy on write).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key")
Record = TypeVar("Record")


class Part(Protocol):
    """One table's share of a snapshot. Parts and their records have a fixed order (sorted keys, or
    an order that is itself state), so equal states give equal bytes."""

    @property
    def name(self) -> str:
        """Names the section: its field in `SnapshotRecord`, so part of the format."""
        ...

    def freeze(self) -> Iterator[bytes]:
        """Called at the snapshot's index. Yields the encoded records as they are now, lazily, one
        a step, whatever is applied between the steps."""
        ...

    def thaw(self) -> None:
        """The snapshot is complete or given up; nothing needs to be kept for it any more."""
        ...

    def load(self, record: bytes) -> None:
        """Takes in one record of an empty table, in the order in which they were yielded. Records
        of earlier parts are in."""
        ...

    def loaded(self) -> None:
        """All records of all parts are in: rebuilds indexes and sets timers, from records alone."""
        ...


class Frozen(Generic[Key, Record]):
    """The records of one mapping as they are when `freeze` is called.

    Their order is that of the mapping's insertions; a table that loads them in this order has it
    too. Whoever changes the mapping calls `changing` first: that is one attribute check where no
    snapshot is under way.
    """

    __slots__ = ("_active", "_encode", "_passed", "_records", "_saved")

    def __init__(
        self, records: Mapping[Key, Record], encode: Callable[[Key, Record], bytes]
    ) -> None:
        self._records = records
        self._encode = encode
        self._active = False
        # Turn over, encoded already, or not there when the snapshot began: only asked for members.
        self._passed: set[Key] = set()
        self._saved: dict[Key, bytes] = {}

    def changing(self, key: Key) -> None:
        """The record under `key` will be added, changed or removed. Calling it once more than
        needed costs one encoding at most; forgetting it makes the snapshot wrong."""
        if not self._active:
            return
        if key in self._passed:
            return
        self._passed.add(key)
        record = self._records.get(key)
        # A new record is not in yet: none of its later changes need an encoding then.
        if record is not None:
            self._saved[key] = self._encode(key, record)

    def freeze(self) -> Iterator[bytes]:
        """The encoded records as they are now, whatever happens to the mapping meanwhile."""
        self.thaw()
        self._active = True
        # Copied now and not in the generator's first step: the mapping may have changed by then.
        return self._walk(list(self._records))

    def thaw(self) -> None:
        """Nothing is kept any more; an iterator that is still there must not be used."""
        self._active = False
        self._passed = set()
        self._saved = {}

    def _walk(self, keys: Iterable[Key]) -> Iterator[bytes]:
        for key in keys:
            if key in self._passed:
                yield self._saved.pop(key)
                continue
            self._passed.add(key)
            yield self._encode(key, self._records[key])


class FrozenInOrder(Frozen[int, Record]):
    """The same for positive numbers that only grow, as ids do: where the walk stands tells which
    turns are over, so a million records need no set of a million keys. New records need no telling:
    their numbers lie behind all of the snapshot's."""

    __slots__ = ("_last", "_turn")

    def __init__(
        self, records: Mapping[int, Record], encode: Callable[[int, Record], bytes]
    ) -> None:
        super().__init__(records, encode)
        self._turn = 0
        self._last = 0

    def changing(self, key: int) -> None:
        """See `Frozen`."""
        if not self._active:
            return
        if key <= self._turn or key > self._last or key in self._saved:
            return
        record = self._records.get(key)
        if record is not None:
            self._saved[key] = self._encode(key, record)

    def freeze(self) -> Iterator[bytes]:
        """See `Frozen`."""
        self.thaw()
        self._active = True
        keys = list(self._records)
        self._turn, self._last = 0, keys[-1] if keys else 0
        return self._walk(keys)

    def _walk(self, keys: Iterable[int]) -> Iterator[bytes]:
        for key in keys:
            self._turn = key
            saved = self._saved.pop(key, None)
            yield self._encode(key, self._records[key]) if saved is None else saved


def _nothing() -> None:
    """What most parts do when they thaw or are loaded."""


class Section:
    """A `Part` made of functions. `freeze` must look at the state when it is called, and not only
    when its iterator is first advanced."""

    __slots__ = ("_freeze", "_load", "_loaded", "_name", "_thaw")

    def __init__(
        self,
        name: str,
        freeze: Callable[[], Iterator[bytes]],
        load: Callable[[bytes], None],
        *,
        thaw: Callable[[], None] = _nothing,
        loaded: Callable[[], None] = _nothing,
    ) -> None:
        self._name = name
        self._freeze = freeze
        self._load = load
        self._thaw = thaw
        self._loaded = loaded

    @property
    def name(self) -> str:
        """Field in `SnapshotRecord`."""
        return self._name

    def freeze(self) -> Iterator[bytes]:
        """See `Part`."""
        return self._freeze()

    def thaw(self) -> None:
        """See `Part`."""
        self._thaw()

    def load(self, record: bytes) -> None:
        """See `Part`."""
        self._load(record)

    def loaded(self) -> None:
        """See `Part`."""
        self._loaded()


def records_section(
    name: str,
    frozen: Frozen[Key, Record],
    load: Callable[[bytes], None],
    *,
    loaded: Callable[[], None] = _nothing,
) -> Section:
    """The section of a mapping's records, one record each."""
    return Section(name, frozen.freeze, load, thaw=frozen.thaw, loaded=loaded)


def single_section(
    name: str,
    encode: Callable[[], bytes],
    load: Callable[[bytes], None],
    *,
    loaded: Callable[[], None] = _nothing,
) -> Section:
    """A section with one record (counters and the like), encoded when the snapshot begins."""
    return Section(name, lambda: iter((encode(),)), load, loaded=loaded)


def list_section(
    name: str,
    items: Callable[[], list[Record]],
    encode: Callable[[list[Record]], bytes],
    load: Callable[[bytes], None],
    *,
    per_record: int = 256,
    loaded: Callable[[], None] = _nothing,
) -> Section:
    """A section of immutable items, `per_record` in each record. `items` gives a copy."""

    def freeze() -> Iterator[bytes]:
        frozen = items()
        return (
            encode(frozen[start : start + per_record])
            for start in range(0, len(frozen), per_record)
        )

    return Section(name, freeze, load, loaded=loaded)
