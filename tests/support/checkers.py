"""The safety properties of Figure 3, checked while a cluster runs; each raises `ViolationError`.

The checker sees what leaves a peer (messages, writes, committed entries, grants) and what is on
every disk. It keeps its own books and trusts no status of the core.
"""

from __future__ import annotations

from collections.abc import Iterable

from gaia_grpc.raft.effects import Effects, RoleName
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Entry, EntryKind, HardState, Index, NodeId, WriteBatch
from tests.support.cluster import Peer


class ViolationError(AssertionError):
    """A safety property does not hold."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ViolationError(message)


class DiskBook:
    """What is durable on one peer, kept from the writes that were synced."""

    def __init__(self, start: HardState, entries: Iterable[Entry]) -> None:
        self.hard_state = start
        self.entries = list(entries)

    def synced(self, write: WriteBatch) -> None:
        if write.hard_state is not None:
            before, after = self.hard_state, write.hard_state
            require(after.term >= before.term, "the stored term went back")
            if after.term == before.term and before.voted_for:
                require(after.voted_for == before.voted_for, "the stored vote changed in its term")
            require(after.commit_index >= before.commit_index, "the stored commit index went back")
            self.hard_state = after
        if write.entries:
            del self.entries[write.entries[0].index - 1 :]
            require(len(self.entries) == write.entries[0].index - 1, "a gap on disk")
            self.entries += write.entries
        require(
            self.hard_state.commit_index <= len(self.entries),
            "the stored commit index is ahead of the stored entries",
        )

    def holds(self, entry: Entry) -> bool:
        return entry.index <= len(self.entries) and self.entries[entry.index - 1] == entry


class SafetyChecker:
    """Books over a whole run; feed it everything that leaves a peer."""

    def __init__(self, peers: Iterable[Peer]) -> None:
        self.peers = {peer.node_id: peer for peer in peers}
        self.disks: dict[NodeId, DiskBook] = {}
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
            self.disks[peer.node_id] = DiskBook(start.hard_state, start.entries)
            self._record_chain(start.entries, 0)
        self._complete: dict[tuple[int, NodeId], None] = {}
        self.majority = len(self.peers) // 2 + 1

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
        require(index <= len(disk.entries), f"entry {index} acknowledged before it is on disk")
        leader = self.peers[envelope.to_node]
        if leader.is_up and (leader.node.role, leader.node.term) == (
            RoleName.LEADER,
            envelope.term,
        ):
            term = leader.node.entry_term(Index(index))
            require(term == disk.entries[index - 1].term, "acknowledged what does not match")

    def on_effects(self, peer: Peer, effects: Effects) -> None:
        """Committed entries never change, and are durable on a majority when first seen."""
        if effects.write is not None and effects.write.entries:
            previous_index = Index(effects.write.entries[0].index - 1)
            self._record_chain(effects.write.entries, peer.node.entry_term(previous_index))
        for entry in effects.committed:
            self._on_committed(peer, entry)

    def _on_committed(self, peer: Peer, entry: Entry) -> None:
        position = entry.index - 1
        require(position <= len(self.committed), f"{peer.node_id} skips committed entries")
        if position == len(self.committed):
            holders = [name for name, disk in self.disks.items() if disk.holds(entry)]
            require(
                len(holders) >= self.majority,
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
        cut_from = write.entries[0].index if write.entries else len(book.entries) + 1
        removed = [
            entry
            for entry in book.entries[cut_from - 1 : len(self.committed)]
            if self.committed[entry.index - 1] == entry
        ]
        book.synced(write)
        for entry in removed:
            holders = [name for name, disk in self.disks.items() if disk.holds(entry)]
            require(
                len(holders) >= self.majority,
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
        require(stored.hard_state == book.hard_state, "the twin and the book differ: hard state")

    # --- what holds at any time ------------------------------------------------------------------

    def check(self, peer: Peer) -> None:
        """State machine of one peer: monotone, and a leader has everything committed."""
        node, name = peer.node, peer.node_id
        require(node.term >= self.terms.get(name, 0), f"the term of {name} went back")
        self.terms[name] = node.term
        require(node.commit_index >= self.commits.get(name, 0), f"commit of {name} went back")
        require(node.commit_index <= node.last_index, f"{name} commits beyond its log")
        self.commits[name] = node.commit_index
        if node.role is RoleName.LEADER:
            self._check_leader(peer)

    def _check_leader(self, peer: Peer) -> None:
        node = peer.node
        if node.term not in self.leaders or (node.term, peer.node_id) not in self._complete:
            leader = self.leaders.setdefault(node.term, peer.node_id)
            require(leader == peer.node_id, f"two leaders in term {node.term}")
            for entry, term in zip(self.committed, self.commit_terms, strict=True):
                if term < node.term:
                    require(
                        node.entry_term(entry.index) == entry.term,
                        f"leader {peer.node_id} of {node.term} lacks {entry.term}/{entry.index}",
                    )
            self._complete[(node.term, peer.node_id)] = None
        for other, disk in self.disks.items():
            key = (peer.node_id, int(node.term), other)
            match = node.match_index(other)
            require(match >= self.match.get(key, 0) or other == peer.node_id, "match went back")
            self.match[key] = match
            if disk.hard_state.term <= node.term:
                require(match <= len(disk.entries), f"{other} is believed to hold {match}")

    # --- inside ----------------------------------------------------------------------------------

    def _record_chain(self, entries: Iterable[Entry], previous_term: int) -> None:
        """Log Matching (section 5.3): an entry has one content and one predecessor, anywhere."""
        for entry in entries:
            link = (previous_term, entry.kind, entry.data)
            known = self.chain.setdefault((entry.index, entry.term), link)
            require(known == link, f"two entries {entry.term}/{entry.index}: {known} and {link}")
            previous_term = entry.term
