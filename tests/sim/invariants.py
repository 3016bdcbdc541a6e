"""The safety checker of `tests/support/checkers.py` for peers that come, go and are replaced.

Disks are counted by identity: a machine that was wiped holds nothing, and what its predecessor held
is remembered, since it was durable when it was counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.messages import Envelope, PreVoteRequest, VoteRequest, VoteResponse
from gaia_grpc.raft.types import Entry, EntryKind, Index, Members, NodeId
from tests.sim.identity import Membership, membership, name_of
from tests.support.checkers import DiskBook, Peer, SafetyChecker, require


@lru_cache(maxsize=1 << 12)
def voters_of(data: bytes) -> Members:
    """The identities that vote by a configuration."""
    return Members(tuple(NodeId(each) for each in membership(data).voters))


class Books(SafetyChecker):
    """Everything that left a peer, every disk, and every configuration."""

    def __init__(self, peers: Sequence[Peer], identities: Sequence[str]) -> None:
        self.identities = {NodeId(name_of(each)): each for each in identities}
        self.books: dict[str, DiskBook] = {}
        self.counts: Counter[str] = Counter()
        self.proposed: list[Entry] = []
        """Configurations that were put into a log, oldest first."""
        self._candidates: dict[int, NodeId] = {}
        super().__init__(peers)
        for name, identity in self.identities.items():
            self.books[identity] = self.disks[name]

    def add(self, peer: Peer, identity: str) -> None:
        """A machine with an empty disk, under a name that may have been another's."""
        name = peer.node_id
        self.peers[name] = peer
        self.identities[name] = identity
        self.books[identity] = self.disks[name] = DiskBook(peer.disk.load())
        self.members[name] = []
        self.terms.pop(name, None)
        self.commits.pop(name, None)
        self.match = {key: match for key, match in self.match.items() if name not in key}

    # --- messages ---------------------------------------------------------------------------------

    def on_sent(self, envelope: Envelope) -> None:
        super().on_sent(envelope)
        payload = envelope.payload
        if isinstance(payload, VoteRequest | PreVoteRequest):
            require(
                self._may_campaign(envelope.from_node),
                f"{self.identities[envelope.from_node]} campaigns without a vote",
            )
        if isinstance(payload, VoteRequest):
            first = self._candidates.setdefault(envelope.term, envelope.from_node)
            self.counts["two_candidates_in_a_term"] += first != envelope.from_node
        elif isinstance(payload, VoteResponse) and payload.granted:
            self._check_vote(envelope)

    def _may_campaign(self, name: NodeId) -> bool:
        """A voter, or one whose removal is not known to be committed (thesis 4.2.2).

        A request that waited for its write may leave when the campaign is over already.
        """
        node, own = self.peers[name].node, self.identities[name]
        if node.role not in (RoleName.CANDIDATE, RoleName.PRE_CANDIDATE):
            return True
        if own in membership(node.configuration).voters:
            return True
        index = node.configuration_index
        if index <= node.commit_index:
            return False
        return own in membership(node.configuration_at(Index(index - 1))).voters

    def _check_vote(self, envelope: Envelope) -> None:
        """Nobody votes for its predecessor under the same name (faults B26)."""
        candidate = self.peers[envelope.to_node]
        if not candidate.is_up or candidate.node.role is not RoleName.CANDIDATE:
            return
        asked = membership(candidate.node.configuration).identity_of(envelope.from_node)
        require(
            asked in ("", self.identities[envelope.from_node])
            or candidate.node.term != envelope.term,
            f"{self.identities[envelope.from_node]} votes in the place of {asked}",
        )

    # --- configurations ---------------------------------------------------------------------------

    def on_configuration_proposed(self, peer: Peer, entry: Entry, before: bytes) -> None:
        """What thesis 4.1 and the bug of 2015 ask of a leader that appends a configuration."""
        node = peer.node
        newest = node.entry_term(node.commit_index)
        require(newest == node.term, "a change before the leader committed in its term")
        uncommitted = node.entries(Index(node.commit_index + 1), 10_000)
        require(
            not any(e.kind is EntryKind.CONFIGURATION for e in uncommitted if e != entry),
            "two changes of the members under way",
        )
        _check_overlap(membership(before), membership(entry.data))
        self.proposed.append(entry)

    def _on_committed(self, peer: Peer, entry: Entry) -> None:
        known = len(self.committed)
        super()._on_committed(peer, entry)
        if len(self.committed) > known and entry.kind is EntryKind.CONFIGURATION:
            _check_overlap(membership(self.configuration_before(known)), membership(entry.data))
            self.counts["configurations_committed"] += 1

    def configuration_before(self, count: int) -> bytes:
        """The last configuration among the first `count` committed entries."""
        for entry in reversed(self.committed[:count]):
            if entry.kind is EntryKind.CONFIGURATION:
                return entry.data
        return b""

    def alive(self) -> list[Membership]:
        """The committed configuration, and those that may still come to be committed."""
        committed = self.committed
        found = [membership(self.configuration_before(len(committed)))]
        self.proposed = [each for each in self.proposed if each.index > len(committed)]
        return found + [membership(each.data) for each in self.proposed]

    # --- who holds what ---------------------------------------------------------------------------

    def _members(self, peer: Peer) -> list[Members]:
        node = peer.node
        before = Index(max(node.configuration_index - 1, 0))
        known = [node.configuration]
        if node.snapshot is None or before >= node.snapshot.index:
            known.append(node.configuration_at(before))
        return [voters_of(data) for data in known if data]

    def _holders(self, entry: Entry) -> list[NodeId]:
        return [NodeId(name) for name, book in self.books.items() if book.holds(entry)]

    def _knows(self, leader: Peer, other: NodeId) -> bool:
        named = membership(leader.node.configuration).identity_of(other)
        return named == self.identities[other]


def _check_overlap(before: Membership, after: Membership) -> None:
    """Any majority of the one and any of the other share a voter."""
    both = len(set(before.voters) & set(after.voters))
    needed = 0  # of the common voters, by two majorities that avoid each other
    for voters in (before.voters, after.voters):
        needed += max(0, len(voters) // 2 + 1 - (len(voters) - both))
    require(needed > both or not before.voters, f"{before} and {after} need not overlap")
