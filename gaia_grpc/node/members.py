"""Who belongs to the cluster, and whether a speaker is who it should be (design section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gaia.raft.v1 import raft_pb2

from gaia_grpc.errors import invariant
from gaia_grpc.raft.node import RaftNode
from gaia_grpc.raft.types import Entry, EntryKind, Index, Members, NodeId
from gaia_grpc.transport.api import Hello, Member


def decode_configuration(data: bytes) -> tuple[str, tuple[Member, ...]]:
    """The cluster id and the members of a CONFIGURATION entry, sorted by node id."""
    message = raft_pb2.Configuration.FromString(data)
    members = tuple(
        Member(
            NodeId(member.node_id),
            member.peer_uuid,
            member.peer_address,
            member.client_address,
            member.learner,
        )
        for member in sorted(message.members, key=lambda member: member.node_id)
    )
    return message.cluster_id, members


def decode_members(data: bytes) -> Members:
    """Who takes part, and who of them votes, by the content of a CONFIGURATION entry."""
    _, members = decode_configuration(data)
    return Members(
        tuple(member.node_id for member in members if not member.learner),
        tuple(member.node_id for member in members if member.learner),
    )


def encode_configuration(cluster_id: str, members: Iterable[Member]) -> bytes:
    """The content of a CONFIGURATION entry."""
    return raft_pb2.Configuration(
        cluster_id=cluster_id,
        members=[
            raft_pb2.Member(
                node_id=member.node_id,
                peer_uuid=member.peer_uuid,
                peer_address=member.peer_address,
                client_address=member.client_address,
                learner=member.learner,
            )
            for member in sorted(members, key=lambda member: member.node_id)
        ],
    ).SerializeToString(deterministic=True)


def latest_configuration(entries: Iterable[Entry]) -> tuple[str, tuple[Member, ...]] | None:
    """The last configuration of a log, committed or not (thesis 4.1); None where there is none."""
    found: bytes | None = None
    for entry in entries:
        if entry.kind is EntryKind.CONFIGURATION:
            found = entry.data
    return None if found is None else decode_configuration(found)


def decode_members_for(node_id: NodeId, peer_uuid: str, data: bytes) -> Members:
    """The same, for the core of one peer: a stranger where its name means other data.

    A replaced machine reads in the log of its predecessor that "it" has a vote. It remembers
    nothing of what was promised then, so it must not take that for its own (faults B26).
    """
    voters: list[NodeId] = []
    learners: list[NodeId] = []
    for member in decode_configuration(data)[1]:
        is_other = member.node_id == node_id and member.peer_uuid != peer_uuid
        name = NodeId(f"{node_id}/{member.peer_uuid}") if is_other else member.node_id
        (learners if member.learner else voters).append(name)
    return Members(tuple(sorted(voters)), tuple(sorted(learners)))


@dataclass(frozen=True, order=True, slots=True)
class Standing:
    """The place in the log, (term, index), by which a configuration was in force; (0, 0): none.

    Of two, the later one in this order is the newer, as logs are compared (section 5.4.1). Let a
    leader's configuration give a name to machine B while another peer's still gives it to A. That
    A is removed was committed before B could be added, so whoever was elected later had it in its
    log, and no configuration made after it names A. The other peer's was made before it: it is
    older in this order too, even one that was never committed.
    """

    term: int
    index: int


def standing_of(core: RaftNode) -> Standing:
    """Of the configuration in force; by the start of the log where its entry is compacted."""
    index = max(core.configuration_index, Index(core.first_index - 1))
    return Standing(core.entry_term(index), index)


@dataclass(frozen=True, slots=True)
class Announced:
    """What a peer has told of itself since this one was started."""

    peer_uuid: str
    client_address: str
    feature_level: int
    software_version: str


class Membership:
    """The members by the configuration in force, with what they announced since."""

    def __init__(
        self,
        cluster_id: str,
        members: Iterable[Member],
        *,
        node_id: NodeId,
        peer_uuid: str,
        peer_addresses: dict[NodeId, str],
        client_address: str,
        feature_level: int,
        software_version: str,
    ) -> None:
        """No members: a peer that waits to hear of them from a leader.

        `peer_addresses` are this peer's own `--peer` list. Addresses are local knowledge, so they
        override those of the configuration, until a machine takes a name over at another address.
        """
        self.cluster_id = cluster_id
        self.node_id = node_id
        self.peer_uuid = peer_uuid
        self.feature_level = feature_level
        self.own = Announced(peer_uuid, client_address, feature_level, software_version)
        self._listed = peer_addresses
        self._stands_for: dict[NodeId, str] = {}
        self._successors: dict[NodeId, tuple[Standing, str]] = {}
        self._announced: dict[NodeId, Announced] = {}
        self._members: dict[NodeId, Member] = {}
        self._take(members)

    def follow(self, data: bytes) -> None:
        """Another configuration is in force."""
        cluster_id, members = decode_configuration(data) if data else (self.cluster_id, ())
        invariant(
            cluster_id == self.cluster_id,
            f"the log names cluster {cluster_id}, the directory {self.cluster_id}",
        )
        self._take(members)

    def _take(self, members: Iterable[Member]) -> None:
        self._members = {
            member.node_id: replace(member, peer_address=self._address_of(member))
            for member in members
        }

    def _address_of(self, member: Member) -> str:
        listed = self._listed.get(member.node_id)
        if listed is None:
            return member.peer_address
        meant = self._stands_for.setdefault(member.node_id, member.peer_address)
        return listed if member.peer_address == meant else member.peer_address

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, sorted by node id, with the client addresses that they announced last."""
        return tuple(
            replace(member, client_address=self.client_address(member.node_id))
            for _, member in sorted(self._members.items())
        )

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """Node ids of the members that have a vote, sorted."""
        return tuple(name for name, member in sorted(self._members.items()) if not member.learner)

    @property
    def is_member(self) -> bool:
        """Whether the configuration names this very peer."""
        own = self._members.get(self.node_id)
        return own is not None and own.peer_uuid == self.peer_uuid

    def other_addresses(self) -> dict[NodeId, str]:
        """Where the other members listen for peers."""
        return {
            name: member.peer_address
            for name, member in sorted(self._members.items())
            if name != self.node_id
        }

    def member(self, node_id: NodeId) -> Member | None:
        """One member; None where the configuration does not name it."""
        return self._members.get(node_id)

    def announced(self, node_id: NodeId) -> Announced | None:
        """What that member has told of itself; None where it was not heard since the start."""
        if node_id == self.node_id:
            return self.own
        member, heard = self._members.get(node_id), self._announced.get(node_id)
        # What an earlier bearer of the name said does not count.
        if member is None or heard is None or heard.peer_uuid != member.peer_uuid:
            return None
        return heard

    def client_address(self, node_id: str) -> str:
        """Where clients reach a member; empty where it is not known."""
        name = NodeId(node_id)
        heard = self.announced(name)
        if heard is not None and heard.client_address:
            return heard.client_address
        member = self._members.get(name)
        return "" if member is None else member.client_address

    def common_feature_level(self) -> int:
        """The highest level that every member announces; 0 where one was not heard yet."""
        levels = [self.announced(name) for name in self._members]
        return min((0 if each is None else each.feature_level for each in levels), default=0)

    # --- introductions ---

    def hello(self, to_node: NodeId, standing: Standing) -> Hello:
        """How this peer introduces itself; to a stranger without naming its data directory."""
        other = self._members.get(to_node)
        return Hello(
            cluster_id=self.cluster_id,
            from_node=self.node_id,
            from_peer_uuid=self.peer_uuid,
            to_node=to_node,
            to_peer_uuid="" if other is None else other.peer_uuid,
            client_address=self.own.client_address,
            feature_level=self.feature_level,
            software_version=self.own.software_version,
            configuration_index=standing.index,
            configuration_term=standing.term,
        )

    def accepts(
        self, hello: Hello, cluster_level: int, standing: Standing, *, is_settled_leader: bool
    ) -> str | None:
        """None if the speaker may be who it says it is and means this peer; else why not.

        `is_settled_leader`: this peer leads, and its configuration is committed. Then whom it does
        not name is no member, unless the speaker knows a newer one. Anybody else's log may lag
        behind, or hold a removal that is taken back, and who waits to join knows nobody at all.

        So may somebody be a member whose name means other data here, where the speaker knows a
        newer configuration: it may be the leader that brings it, on a machine that was replaced.
        That only lets it ask: whose answers count is settled by `to_peer_uuid` in the question
        (faults B26). It may ask for a vote, which is kept under its name: machine A may have got
        one in the same term under that name, machine B gets another. B stands for election in a
        term above that of every entry of its log, among them the one that gave it its vote, before
        which its addition was committed, and before that the removal of A. So in B's term no log
        without the addition can win (5.4.3), and who has it, behind the removal of A, does not
        stand as A (`Core.may_campaign`): the vote for A elects nobody.
        """
        if hello.cluster_id != self.cluster_id:
            return f"{hello.from_node} is of cluster {hello.cluster_id}, not {self.cluster_id}"
        if hello.to_node != self.node_id or hello.to_peer_uuid not in ("", self.peer_uuid):
            return (
                f"{hello.from_node} means {hello.to_node} with the data of {hello.to_peer_uuid}, "
                f"this is {self.node_id} with {self.peer_uuid}"
            )
        refusal = self._doubt(hello, standing, is_settled_leader)
        if refusal is not None:
            return refusal
        level = max(1, hello.feature_level)
        if level < cluster_level:
            return (
                f"{hello.from_node} understands feature level {level}, "
                f"cluster {self.cluster_id} has {cluster_level}: start a newer version there"
            )
        return None

    def _doubt(self, hello: Hello, standing: Standing, is_settled_leader: bool) -> str | None:
        """What speaks against the speaker's name."""
        claimed = _claimed(hello)
        member = self._members.get(hello.from_node)
        peer_uuid = "" if member is None else member.peer_uuid
        successor = self._successors.get(hello.from_node)
        if successor is not None and successor[0] > standing:
            standing, peer_uuid = successor
        if peer_uuid not in ("", hello.from_peer_uuid) and claimed <= standing:
            return (
                f"{hello.from_node} comes with other data than it joined with; "
                "remove it from the cluster and add it again"
            )
        if member is None:
            for other in self._members.values():
                if other.peer_uuid == hello.from_peer_uuid:
                    return f"{hello.from_node} comes with the data of {other.node_id}"
            if is_settled_leader and claimed <= standing:
                return f"{hello.from_node} is no member of cluster {self.cluster_id}"
        return None

    def note(self, hello: Hello) -> bool:
        """Keeps what a peer has told of itself; True where that is news.

        Where it has taken a name over, who had it before is not heard any more: its streams would
        take the place of those of the new one.
        """
        member = self._members.get(hello.from_node)
        if member is not None and member.peer_uuid != hello.from_peer_uuid:
            self._successors[hello.from_node] = (_claimed(hello), hello.from_peer_uuid)
        heard = Announced(
            hello.from_peer_uuid,
            hello.client_address,
            max(1, hello.feature_level),
            hello.software_version,
        )
        if self._announced.get(hello.from_node) == heard:
            return False
        self._announced[hello.from_node] = heard
        return True


def _claimed(hello: Hello) -> Standing:
    return Standing(hello.configuration_term, hello.configuration_index)
