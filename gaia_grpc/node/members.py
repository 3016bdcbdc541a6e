"""Who belongs to the cluster, and whether a speaker is who it should be (design section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gaia.raft.v1 import raft_pb2

from gaia_grpc.errors import IdentityRefusedError, StartupError
from gaia_grpc.raft.types import Entry, EntryKind, Members, NodeId
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


class Membership:
    """The members as this peer knows them, with the addresses that they announced since."""

    def __init__(
        self,
        cluster_id: str,
        members: Iterable[Member],
        *,
        node_id: NodeId,
        peer_uuid: str,
        peer_addresses: dict[NodeId, str],
        client_address: str,
    ) -> None:
        """`peer_addresses` are this peer's own `--peer` list: addresses are local knowledge, and
        may change between starts; names and uuids may not."""
        self.cluster_id = cluster_id
        self.node_id = node_id
        self.peer_uuid = peer_uuid
        self._members = {
            member.node_id: replace(
                member, peer_address=peer_addresses.get(member.node_id, member.peer_address)
            )
            for member in members
        }
        own = self._members.get(node_id)
        if own is None or own.peer_uuid != peer_uuid:
            raise StartupError(
                f"{node_id} with the data of {peer_uuid} is no member of cluster {cluster_id}; "
                "remove it from the cluster and add it again"
            )
        self._members[node_id] = replace(own, client_address=client_address)

    def check_peer_list(self, listed: Iterable[NodeId]) -> None:
        """Raises `StartupError` where the `--peer` list names other peers than the cluster has."""
        members, names = sorted(self._members), sorted(listed)
        if members != names:
            raise StartupError(
                f"--peer lists {', '.join(names)}, but the members of cluster {self.cluster_id} "
                f"are {', '.join(members)}"
            )

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, sorted by node id."""
        return tuple(self._members[node_id] for node_id in sorted(self._members))

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """Node ids of the members that have a vote, sorted."""
        return tuple(member.node_id for member in self.members if not member.learner)

    def client_address(self, node_id: str) -> str:
        """Where clients reach a member; empty where it is not known."""
        member = self._members.get(NodeId(node_id))
        return "" if member is None else member.client_address

    def hello(self, to_node: NodeId, software_version: str, feature_level: int) -> Hello:
        """How this peer introduces itself; raises `IdentityRefusedError` for a stranger."""
        other = self._members.get(to_node)
        if other is None:
            raise IdentityRefusedError(f"{to_node} is no member of cluster {self.cluster_id}")
        own = self._members[self.node_id]
        return Hello(
            cluster_id=self.cluster_id,
            from_node=self.node_id,
            from_peer_uuid=self.peer_uuid,
            to_node=to_node,
            to_peer_uuid=other.peer_uuid,
            client_address=own.client_address,
            feature_level=feature_level,
            software_version=software_version,
        )

    def accepts(self, hello: Hello) -> str | None:
        """None if the speaker is the member it says it is and means this peer; else why not."""
        if hello.cluster_id != self.cluster_id:
            return f"{hello.from_node} is of cluster {hello.cluster_id}, not {self.cluster_id}"
        if hello.to_node != self.node_id or hello.to_peer_uuid != self.peer_uuid:
            return (
                f"{hello.from_node} means {hello.to_node} with the data of {hello.to_peer_uuid}, "
                f"this is {self.node_id} with {self.peer_uuid}"
            )
        member = self._members.get(hello.from_node)
        if member is None:
            return f"{hello.from_node} is no member of cluster {self.cluster_id}"
        if member.peer_uuid != hello.from_peer_uuid:
            return (
                f"{hello.from_node} comes with other data than it joined with; "
                "remove it from the cluster and add it again"
            )
        if hello.client_address and hello.client_address != member.client_address:
            self._members[hello.from_node] = replace(member, client_address=hello.client_address)
        return None
