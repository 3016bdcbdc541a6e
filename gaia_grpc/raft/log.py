"""The replicated log in memory: a plain list of entries behind a compacted prefix.

Owns contiguity and Log Matching on one peer (section 5.3). Knows nothing of what is durable
(`durability.py`) or committed; the caller passes the commit index where a rule needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from gaia_grpc.errors import invariant
from gaia_grpc.raft.types import Entry, EntryId, Index, Restored, Term


class RaftLog:
    """Entries `first_index .. last_index`; the entry before them is known by its term only.

    Invariant: `_entries[i].index == _base_index + 1 + i`, and terms never decrease.
    """

    __slots__ = ("_base_index", "_base_term", "_entries", "last_index", "last_term")

    def __init__(self, restored: Restored) -> None:
        self._base_index = int(restored.base.index)
        self._base_term = restored.base.term
        self._entries: list[Entry] = []
        self.last_index = Index(self._base_index)
        self.last_term = self._base_term
        if restored.entries:
            self.append(restored.entries)

    @property
    def first_index(self) -> Index:
        """The first entry that is still here, or would be."""
        return Index(self._base_index + 1)

    @property
    def base(self) -> EntryId:
        """The last entry of the compacted prefix; (0, 0) where there is none."""
        return EntryId(self._base_term, Index(self._base_index))

    def term_at(self, index: int) -> Term:
        """The term of the entry at `index`; 0 outside the log and in its compacted part."""
        position = index - self._base_index
        if position == 0:
            return self._base_term
        if 0 < position <= len(self._entries):
            return self._entries[position - 1].term
        return Term(0)

    def matches(self, index: int, term: Term) -> bool:
        """Whether the log holds the entry (term, index): the consistency check of section 5.3."""
        if index == self.last_index:
            return term == self.last_term
        return self._base_index <= index < self.last_index and self.term_at(index) == term

    def is_up_to_date(self, last_index: Index, last_term: Term) -> bool:
        """Whether a log that ends in (last_term, last_index) is no older than ours (5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def append(self, entries: Sequence[Entry]) -> None:
        """Adds at the end; raises `InvariantError` where they don't continue the log."""
        expected, term = self.last_index + 1, self.last_term
        for entry in entries:
            if entry.index != expected or entry.term < term:
                invariant(False, f"entry {entry.term}/{entry.index} can't follow {term}/{expected}")
            expected += 1
            term = entry.term
        self._entries.extend(entries)
        self.last_index, self.last_term = Index(expected - 1), term

    def first_conflict(self, entries: Sequence[Entry]) -> int | None:
        """Position in `entries` of the first one that the log has not got; None if it has all.

        Only from there on may the log change: a delayed or repeated request that is a prefix of
        what we hold must not cut off what came after it (faults B4).
        """
        for position, entry in enumerate(entries):
            if not self.matches(entry.index, entry.term):
                return position
        return None

    def truncate(self, first_removed: Index, commit_index: Index) -> None:
        """Removes `first_removed` and everything behind it; never a committed entry."""
        invariant(
            commit_index < first_removed <= self.last_index,
            f"truncating from {first_removed}, commit {commit_index}, last {self.last_index}",
        )
        del self._entries[first_removed - self._base_index - 1 :]
        self.last_index = Index(first_removed - 1)
        self.last_term = self.term_at(self.last_index)

    def compact(self, index: Index) -> None:
        """Forgets the entries up to `index`, but for the term of the last one."""
        invariant(
            self._base_index <= index <= self.last_index,
            f"compacting {self._base_index}..{self.last_index} up to {index}",
        )
        term = self.term_at(index)
        del self._entries[: index - self._base_index]
        self._base_index, self._base_term = int(index), term

    def replace(self, base: EntryId) -> None:
        """Begins anew behind a snapshot that ends in `base` (section 7)."""
        self._entries = []
        self._base_index, self._base_term = int(base.index), base.term
        self.last_index, self.last_term = base.index, base.term

    def slice(self, first: int, last: int) -> tuple[Entry, ...]:
        """The entries `first .. last` as far as they are here; costs only their number."""
        start = max(first - self._base_index - 1, 0)
        stop = last - self._base_index
        if stop <= start:
            return ()
        return tuple(self._entries[start:stop])

    def batch(self, first: int, max_entries: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries from `first` on within both limits, but at least one if there is one."""
        entries = self.slice(first, first + max_entries - 1)
        size = 0
        for position, entry in enumerate(entries):
            size += len(entry.data)
            if size > max_bytes and position:
                return tuple(islice(entries, position))
        return entries

    def last_at_or_below(self, index: int, term: Term) -> tuple[Index, Term]:
        """The last entry at or before `index` whose term is not above `term`.

        Both ends use it to skip whole terms of a conflict in one round trip (5.3, last
        paragraph): behind that entry the two logs can't agree, since terms never decrease.
        """
        position = min(index, int(self.last_index))
        while position > self._base_index and self.term_at(position) > term:
            position -= 1
        return Index(position), self.term_at(position)
