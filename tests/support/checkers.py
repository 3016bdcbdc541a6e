"""The safety properties of Figure 3, checked while a cluster runs; each raises `ViolationError`.

The checker sees what leaves a peer (messages, writes, committed entries, grants) and what is on
every disk. It keeps its own books and trusts no status of the core.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.effects import Effects, RoleName
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import (
    Entry,
    EntryId,
    EntryKind,
    Index,
    Members,
    NodeId,
    Restored,
    WriteBatch,
)
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import decode_members


class ViolationError(AssertionError):
    """A safety property does not hold."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ViolationError(message)


class Peer(Protocol):
    """What the checker looks at."""

    @property
    def node_id(self) -> NodeId: ...

    @property
    def config(self) -> RaftConfig: ...

    @property
    def disk(self) -> MemoryLog: ...

    @property
    def is_up(self) -> bool: ...

    @property
    def node(self) -> RaftNode: ...


class DiskBook:
    """What is durable on one peer, kept from the writes that were synced."""

    def __init__(self, start: Restored) -> None:
        self.hard_state = start.hard_state
        self.base = start.base
        self.entries = list(start.entries)

    def synced(self, write: WriteBatch) -> None:
        if write.hard_state is not None:
            before, after = self.hard_state, write.hard_state
            require(after.term >= before.term, "the stored term went back")
            if after.term == before.term and before.voted_for:
                require(after.voted_for == before.voted_for, "the stored vote changed in its term")
            require(after.commit_index >= before.commit_index, "the stored commit index went back")
            self.hard_state = after
        if write.snapshot is not None:
            require(write.snapshot.index > self.base.index, "an installed snapshot goes back")
            self.base = EntryId(write.snapshot.term, write.snapshot.index)
            self.entries.clear()
        if write.entries:
            kept = write.entries[0].index - 1 - self.base.index
            require(0 <= kept <= len(self.entries), "a gap on disk")
            del self.entries[kept:]
            self.entries += write.entries
        require(
            self.hard_state.commit_index <= self.last_index,
            "the stored commit index is ahead of the stored entries",
        )

    def compacted(self, base: EntryId) -> None:
        """The disk forgot what is behind a durable snapshot."""
        require(base.index >= self.base.index, "the base of a log goes back")
        del self.entries[: base.index - self.base.index]
        self.base = base

    @property
    def last_index(self) -> int:
        return self.base.index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        """None for what a snapshot stands for."""
        if index == self.base.index:
            return self.base.term
        position = index - self.base.index - 1
        return self.entries[position].term if 0 <= position < len(self.entries) else None

    def holds(self, entry: Entry) -> bool:
        """As an entry, or in a snapshot: only what is committed is ever in one."""
        position = entry.index - self.base.index - 1
        if position < 0:
            return True
        return position < len(self.entries) and self.entries[position] == entry


class SafetyChecker:
    """Books over a whole run; feed it everything that leaves a peer."""

    def __init__(self, peers: Iterable[Peer]) -> None:
        self.peers = {peer.node_id: peer for peer in peers}
        self.disks: dict[NodeId, DiskBook] = {}
        self.members: dict[NodeId, list[Members]] = {}
        """By whose majority a peer would say that something is safe; kept while it is down."""
        self.leaders: dict[int, NodeId] = {}
        self.chain: dict[tuple[int, int], tuple[int, EntryKind, bytes]] = {}
        self.committed: list[Entry] = []
        self.commit_terms: list[int] = []
        """In which term each entry was committed, or a later one."""
        self.terms: dict[NodeId, int] = {}
        self.commits: dict[NodeId, int] = {}
        self.match: dict[tuple[NodeId, int, NodeId], int] = {}
        for peer in self.peers.values():
            start = peer.disk.load()
            self.disks[peer.node_id] = DiskBook(start)
            self.members[peer.node_id] = self._members(peer)
            self._record_chain(start.entries, start.base.term)
        self._complete: dict[tuple[int, NodeId], None] = {}

    # --- what happens ----------------------------------------------------------------------------

    def on_sent(self, envelope: Envelope) -> None:
        """Nothing leaves that promises more than the sender's disk keeps (faults B1, B2)."""
        disk = self.disks[envelope.from_node]
        stored, payload = disk.hard_state, envelope.payload
        match payload:
            case AppendResponse(success=True):
                require(stored.term >= envelope.term, "an acknowledgement before its term is kept")
                if stored.term == envelope.term and payload.match_index:
                    self._require_match(envelope, disk)
            case VoteResponse(granted=True):
                require(stored.term >= envelope.term, "a vote left before it was on disk")
                if stored.term == envelope.term:
                    require(stored.voted_for == envelope.to_node, "a vote for two candidates")
            case VoteRequest():
                require(stored.term >= envelope.term, "a candidacy left before it was on disk")
                if stored.term == envelope.term:
                    require(stored.voted_for == envelope.from_node, "a candidate without its vote")
            case AppendRequest():
                leader = self.leaders.setdefault(envelope.term, envelope.from_node)
                require(leader == envelope.from_node, f"two leaders send in term {envelope.term}")
            case _:
                pass

    def _require_match(self, envelope: Envelope, disk: DiskBook) -> None:
        assert isinstance(envelope.payload, AppendResponse)
        index = envelope.payload.match_index
        require(index <= disk.last_index, f"entry {index} acknowledged before it is on disk")
        leader = self.peers[envelope.to_node]
        if leader.is_up and (leader.node.role, leader.node.term) == (
            RoleName.LEADER,
            envelope.term,
        ):
            term, stored = leader.node.entry_term(Index(index)), disk.term_at(index)
            is_known = stored is not None and index >= leader.node.first_index
            require(not is_known or term == stored, "acknowledged what does not match")

    def on_effects(self, peer: Peer, effects: Effects) -> None:
        """Committed entries never change, and are durable on a majority when first seen."""
        if effects.configuration is not None:
            self.members[peer.node_id] = self._members(peer)
        if effects.write is not None and effects.write.entries:
            previous_index = Index(effects.write.entries[0].index - 1)
            self._record_chain(effects.write.entries, peer.node.entry_term(previous_index))
        if effects.install is not None:
            meta = effects.install
            require(meta.index <= len(self.committed), "a snapshot of what is not committed")
            require(self.committed[meta.index - 1].term == meta.term, "a snapshot of another log")
        for entry in effects.committed:
            self._on_committed(peer, entry)

    def on_compacted(self, peer: Peer, base: EntryId) -> None:
        """The disk of `peer` forgot the entries up to `base`."""
        self.disks[peer.node_id].compacted(base)

    def _holders(self, entry: Entry) -> list[NodeId]:
        return [name for name, disk in self.disks.items() if disk.holds(entry)]

    def _knows(self, leader: Peer, other: NodeId) -> bool:
        """Whether the leader replicates to that very peer."""
        return leader.node.progress(other) is not None

    def _on_majority(self, peer: Peer, holders: list[NodeId]) -> bool:
        """By the configuration in force at `peer`, or the one before it: the last change may have
        come in the turn that committed the entry."""
        if peer.is_up:
            self.members[peer.node_id] = self._members(peer)
        return any(
            sum(name in holders for name in members.voters) > len(members.voters) // 2
            for members in self.members[peer.node_id]
        )

    def _members(self, peer: Peer) -> list[Members]:
        node = peer.node
        before = Index(max(node.configuration_index - 1, 0))
        known = [node.members]
        if node.snapshot is None or before >= node.snapshot.index:
            data = node.configuration_at(before)
            known.append(decode_members(data) if data else peer.config.initial_members)
        return known

    def _on_committed(self, peer: Peer, entry: Entry) -> None:
        position = entry.index - 1
        require(position <= len(self.committed), f"{peer.node_id} skips committed entries")
        if position == len(self.committed):
            holders = self._holders(entry)
            require(
                self._on_majority(peer, holders),
                f"{peer.node_id} commits {entry.term}/{entry.index}, on disk only at {holders}",
            )
            self.committed.append(entry)
            self.commit_terms.append(peer.node.term)
        known = self.committed[position]
        require(
            known == entry,
            f"{peer.node_id} commits {entry.term}/{entry.index}, was {known.term}/{known.index}",
        )

    def on_synced(self, peer: Peer, write: WriteBatch) -> None:
        """A committed entry is on the disks of a majority for ever (CommittedIsDurable).

        A single disk may lose one: an older write that is still under way can remove it for a
        moment, as long as this disk was not counted (faults B31).
        """
        book = self.disks[peer.node_id]
        cut_from = write.entries[0].index if write.entries else book.last_index + 1
        removed = [
            entry
            for entry in book.entries
            if cut_from <= entry.index <= len(self.committed)
            and self.committed[entry.index - 1] == entry
        ]
        book.synced(write)
        for entry in removed:
            holders = self._holders(entry)
            require(
                self._on_majority(peer, holders),
                f"committed {entry.term}/{entry.index} is left only on {holders}",
            )

    def on_crash(self, peer: Peer, survived: Iterable[WriteBatch]) -> None:
        for write in survived:
            self.on_synced(peer, write)
        # What was only in memory may be forgotten: nobody else has heard of it (`on_sent`).
        self.commits.pop(peer.node_id, None)
        self.terms[peer.node_id] = self.disks[peer.node_id].hard_state.term
        stored, book = peer.disk.load(), self.disks[peer.node_id]
        require(list(stored.entries) == book.entries, "the twin and the book differ: entries")
        require(stored.base == book.base, "the twin and the book differ: base")
        require(stored.hard_state == book.hard_state, "the twin and the book differ: hard state")

    # --- what holds at any time ------------------------------------------------------------------

    def check(self, peer: Peer, *, leader_heard: bool = True) -> None:
        """State machine of one peer: monotone, and a leader has everything committed.

        `leader_heard=False`: no answer came, so what a leader knows of the others is as before.
        """
        node, name = peer.node, peer.node_id
        require(node.term >= self.terms.get(name, 0), f"the term of {name} went back")
        self.terms[name] = node.term
        require(node.commit_index >= self.commits.get(name, 0), f"commit of {name} went back")
        require(node.commit_index <= node.last_index, f"{name} commits beyond its log")
        self.commits[name] = node.commit_index
        if node.role is RoleName.LEADER and (
            leader_heard or (node.term, name) not in self._complete
        ):
            self._check_leader(peer)

    def _check_leader(self, peer: Peer) -> None:
        node = peer.node
        if node.term not in self.leaders or (node.term, peer.node_id) not in self._complete:
            leader = self.leaders.setdefault(node.term, peer.node_id)
            require(leader == peer.node_id, f"two leaders in term {node.term}")
            for entry, term in zip(self.committed, self.commit_terms, strict=True):
                if term < node.term and entry.index >= node.first_index:
                    require(
                        node.entry_term(entry.index) == entry.term,
                        f"leader {peer.node_id} of {node.term} lacks {entry.term}/{entry.index}",
                    )
            self._complete[(node.term, peer.node_id)] = None
        for other, disk in self.disks.items():
            key = (peer.node_id, int(node.term), other)
            if other != peer.node_id and not self._knows(peer, other):
                self.match.pop(key, None)  # no member; one that comes back begins anew
                continue
            match = node.match_index(other)
            require(match >= self.match.get(key, 0) or other == peer.node_id, "match went back")
            self.match[key] = match
            if disk.hard_state.term <= node.term:
                require(match <= disk.last_index, f"{other} is believed to hold {match}")

    # --- inside ----------------------------------------------------------------------------------

    def _record_chain(self, entries: Iterable[Entry], previous_term: int) -> None:
        """Log Matching (section 5.3): an entry has one content and one predecessor, anywhere."""
        for entry in entries:
            link = (previous_term, entry.kind, entry.data)
            known = self.chain.setdefault((entry.index, entry.term), link)
            require(known == link, f"two entries {entry.term}/{entry.index}: {known} and {link}")
            previous_term = entry.term
