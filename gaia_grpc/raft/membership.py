"""Who takes part: the configurations that a log holds, and which change of them is safe.

A configuration is in force from the moment its entry is appended, committed or not, and is taken
back where that entry is truncated (thesis 4.1). Each one differs from the one before by at most one
voter, so any majority of the old one and any of the new one share a peer: no term has two leaders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gaia_grpc.errors import InvariantError, invariant
from gaia_grpc.raft.types import Entry, EntryKind, Index, Members, NodeId, Restored, SnapshotMeta

_CONFIGURATION = EntryKind.CONFIGURATION  # looked up once: each entry is compared with it

NOBODY = Members(())
"""What a peer knows that has never heard from a leader."""


def flaw_of(members: Members) -> str | None:
    """What is wrong with a configuration, for people; None where it is well formed."""
    for what, names in (("voters", members.voters), ("learners", members.learners)):
        if list(names) != sorted(set(names)) or "" in names:
            return f"{what} must be sorted, unique and not empty names: {names}"
    if not members.voters:
        return "a cluster has at least one voter"
    if [name for name in members.learners if name in members.voters]:
        return "a peer is a voter or a learner, not both"
    return None


def flaw_of_change(before: Members, after: Members) -> str | None:
    """What is wrong with a change from one configuration to the next; None where it is safe."""
    flaw = flaw_of(after)
    changed = [name for name in before.voters if name not in after.voters]
    changed += [name for name in after.voters if name not in before.voters]
    if flaw is None and len(changed) > 1:
        flaw = f"a change touches one voter at a time, not {', '.join(changed)}"
    return flaw


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration; `index` is that of its entry, or of a snapshot that holds it."""

    index: Index
    data: bytes
    members: Members


class Configurations:
    """The configurations of one log. Invariant: never empty, indexes strictly grow.

    The first one is that of the snapshot, or the initial one with index 0. It is committed, as is
    every other but the last (thesis 4.1), so at most the last one can be taken back.
    """

    __slots__ = ("_held", "_initial", "decode")

    def __init__(
        self, restored: Restored, initial: Members, decode: Callable[[bytes], Members]
    ) -> None:
        self.decode = decode
        self._initial = initial
        self._held = [Configuration(Index(0), b"", initial)]
        snapshot_index = 0
        if restored.snapshot is not None:
            self.installed(restored.snapshot)
            snapshot_index = restored.snapshot.index
        self.appended(entry for entry in restored.entries if entry.index > snapshot_index)

    @property
    def in_force(self) -> Configuration:
        """The last one, committed or not."""
        return self._held[-1]

    @property
    def before(self) -> Configuration:
        """The one before it; the same where no other is known."""
        return self._held[-2] if len(self._held) > 1 else self._held[-1]

    def at(self, index: Index) -> Configuration:
        """What is in force for a log that ends at `index`, at or after the snapshot."""
        for each in reversed(self._held):
            if each.index <= index:
                return each
        raise InvariantError(f"the configuration at {index} is not known any more")

    def appended(self, entries: Iterable[Entry]) -> bool:
        """Takes up what the entries at the end of the log say; True if there is a new one."""
        found = [entry for entry in entries if entry.kind is _CONFIGURATION]
        self._held += [self._read(entry.index, entry.data) for entry in found]
        return bool(found)

    def truncated(self, first_removed: Index) -> bool:
        """Falls back to what was in force before `first_removed`; True if that is another one."""
        count = len(self._held)
        while self._held[-1].index >= first_removed:
            self._held.pop()
        return len(self._held) < count

    def compacted(self, meta: SnapshotMeta) -> None:
        """A snapshot at `meta.index` holds what is in force there; older ones are forgotten."""
        kept = self.at(meta.index)
        invariant(
            meta.configuration == kept.data,
            f"the snapshot {meta.index} does not hold the configuration {kept.index}",
        )
        del self._held[: self._held.index(kept)]

    def installed(self, meta: SnapshotMeta) -> None:
        """The log begins anew behind a snapshot that was received."""
        self._held = [self._read(meta.index, meta.configuration)]

    def _read(self, index: Index, data: bytes) -> Configuration:
        if not data:  # a snapshot from before the first configuration
            return Configuration(index, data, self._initial)
        members = self.decode(data)
        flaw = flaw_of(members)
        invariant(flaw is None, f"configuration {index}: {flaw}")
        return Configuration(index, data, members)


def others(members: Members, node_id: NodeId) -> tuple[NodeId, ...]:
    """All members but one, sorted: every loop over peers uses this order."""
    return tuple(sorted(name for name in members.voters + members.learners if name != node_id))
