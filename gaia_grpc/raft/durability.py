"""What is on disk, what is on its way there, and which messages must wait for it.

Several writes may be under way at once. They complete in order, so the state needed is small: how
far the log is durable, which term and vote are, and for each write under way how far the log will
be durable once it is done.

Why a completion can't be matched by (term, index) (faults B31): a peer hands out entry 1/6 in
write 1. A leader of term 2 overwrites index 6 (write 2), and a leader of a later term brings 1/6
back (write 3). When write 1 completes, the disk holds 1/6 for a moment, and write 2 then removes
it. Had that completion been taken for an acknowledgement of the entry 1/6 that is in memory now, a
crash between writes 2 and 3 would lose an acknowledged entry. So each truncation lowers what the
writes under way stand for. (Since a new leader's term must be on disk before anything is answered
to it, the story can't come that far today; this rule does not lean on that one.)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gaia_grpc.errors import invariant
from gaia_grpc.raft.log import RaftLog
from gaia_grpc.raft.messages import Envelope
from gaia_grpc.raft.types import (
    HardState,
    Index,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
    WriteBatch,
)


@dataclass(slots=True)
class _Write:
    number: int
    last_index: Index
    """Up to here the log in memory is what this write and those before it make durable."""
    term: Term
    voted_for: NodeId
    messages: list[Envelope]
    """Made after the hand-out, with nothing newer to write: they leave once it is done."""


class Durability:
    """The ledger of writes. Invariant: durable_index <= every _Write.last_index <= last index."""

    __slots__ = (
        "_after_write",
        "_hard_state_changed",
        "_last_number",
        "_next_index",
        "_snapshot",
        "_under_way",
        "_written_commit",
        "durable_index",
        "durable_term",
        "durable_vote",
    )

    def __init__(self, restored: Restored, last_index: Index) -> None:
        self.durable_index = last_index
        self.durable_term = restored.hard_state.term
        self.durable_vote = restored.hard_state.voted_for
        self._written_commit = restored.hard_state.commit_index
        self._hard_state_changed = False
        self._snapshot: SnapshotMeta | None = None
        self._next_index = Index(last_index + 1)
        self._last_number = 0
        self._under_way: deque[_Write] = deque()
        self._after_write: list[Envelope] = []

    def hard_state_changed(self) -> None:
        """Term or vote changed in memory: a write is owed."""
        self._hard_state_changed = True

    def truncated(self, first_removed: Index) -> None:
        """The log lost `first_removed` and what followed: no earlier write stands for them."""
        last_kept = Index(first_removed - 1)
        self.durable_index = min(self.durable_index, last_kept)
        self._next_index = min(self._next_index, first_removed)
        for write in self._under_way:
            write.last_index = min(write.last_index, last_kept)

    def installed(self, meta: SnapshotMeta, last_kept: Index) -> None:
        """A snapshot replaces the whole log, of which it has only the part to `last_kept` in it.

        Until its write is done nothing beyond that part is durable: a crash may still bring the old
        log back.
        """
        self.truncated(Index(last_kept + 1))
        self._next_index = Index(meta.index + 1)
        self._snapshot = meta

    def owes_write(self, last_index: Index) -> bool:
        """Whether memory holds something that was not handed out yet."""
        return (
            self._hard_state_changed or self._next_index <= last_index or self._snapshot is not None
        )

    def defer(self, envelope: Envelope, last_index: Index) -> bool:
        """Keeps a message until all that is in memory now is on disk; False if it already is."""
        if self.owes_write(last_index):
            self._after_write.append(envelope)
        elif self._under_way:
            self._under_way[-1].messages.append(envelope)
        else:
            return False
        return True

    def hard_state_is_durable(self) -> bool:
        """Whether the current term and vote are on disk."""
        if self._hard_state_changed:
            return False
        return not self._under_way or (
            self._under_way[-1].term == self.durable_term
            and self._under_way[-1].voted_for == self.durable_vote
        )

    def hand_out(
        self, log: RaftLog, hard_state: HardState
    ) -> tuple[WriteBatch | None, tuple[Envelope, ...]]:
        """The write that is owed, with the messages that may follow it.

        The commit index travels only with other changes. It can't get ahead of the entries: this
        write and those before it hold the whole log, of which the commit index is a prefix.
        """
        if not self.owes_write(log.last_index):
            return None, ()
        entries = log.slice(self._next_index, log.last_index)
        moved = self._hard_state_changed or hard_state.commit_index != self._written_commit
        self._last_number += 1
        self._under_way.append(
            _Write(self._last_number, log.last_index, hard_state.term, hard_state.voted_for, [])
        )
        self._written_commit = hard_state.commit_index
        self._hard_state_changed = False
        self._next_index = Index(log.last_index + 1)
        snapshot, self._snapshot = self._snapshot, None
        messages, self._after_write = tuple(self._after_write), []
        hard_state_moved = hard_state if moved else None
        return WriteBatch(self._last_number, hard_state_moved, entries, snapshot), messages

    def complete(self, write_number: int) -> list[Envelope]:
        """All writes up to `write_number` are on disk; returns what waited for them."""
        invariant(
            write_number <= self._last_number,
            f"write {write_number} was never handed out, the last one is {self._last_number}",
        )
        released: list[Envelope] = []
        while self._under_way and self._under_way[0].number <= write_number:
            write = self._under_way.popleft()
            self.durable_index = write.last_index
            self.durable_term, self.durable_vote = write.term, write.voted_for
            released += write.messages
        return released
