"""Who is who: a member is a name and the data directory behind it, `n4.2` the second one of n4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gaia_grpc.raft.messages import AppendResponse, Envelope, Payload, PreVoteResponse, VoteResponse
from gaia_grpc.raft.types import Members, NodeId

ANSWERS = (AppendResponse, PreVoteResponse, VoteResponse)


@dataclass(frozen=True, slots=True)
class Membership:
    """A configuration with identities."""

    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()

    def identity_of(self, name: str) -> str:
        """The member of that name; empty where there is none."""
        return _identities(self).get(name, "")

    def encode(self) -> bytes:
        """The content of a CONFIGURATION entry."""
        return ",".join(self.voters).encode() + b"+" + ",".join(self.learners).encode()


def name_of(identity: str) -> str:
    return identity.partition(".")[0]


@lru_cache(maxsize=1 << 12)
def _identities(members: Membership) -> dict[str, str]:
    return {name_of(each): each for each in members.voters + members.learners}


@lru_cache(maxsize=1 << 12)
def membership(data: bytes) -> Membership:
    """The inverse of `Membership.encode`; nobody where `data` is empty."""
    voters, _, learners = data.decode().partition("+")
    return Membership(*(tuple(filter(None, part.split(","))) for part in (voters, learners)))


def decoder_for(identity: str) -> Callable[[bytes], Members]:
    """As `gaia_grpc.node.members.decode_members_for`: who has the name of a peer and other data is
    a stranger to that peer (faults B26)."""

    def names(identities: Sequence[str]) -> tuple[NodeId, ...]:
        own = name_of(identity)
        return tuple(
            sorted(
                NodeId(each if name_of(each) == own and each != identity else name_of(each))
                for each in identities
            )
        )

    def decode(data: bytes) -> Members:
        found = membership(data)
        return Members(names(found.voters), names(found.learners))

    return decode


@dataclass(frozen=True, slots=True)
class Packet:
    """An envelope on its way, with whom its sender means."""

    envelope: Envelope
    from_identity: str
    to_identity: str

    @property
    def from_node(self) -> NodeId:
        return self.envelope.from_node

    @property
    def to_node(self) -> NodeId:
        return self.envelope.to_node

    @property
    def payload(self) -> Payload:
        return self.envelope.payload


def accepts(own: str, members: Membership, packet: Packet) -> bool:
    """As the drivers do it (faults B26): what counts as a member's answer comes from that very
    machine. A question may come from a machine that took the name since, in a configuration that a
    peer which lags behind has not heard of yet: it may be the leader that will tell."""
    if packet.to_identity != own:
        return False
    known = members.identity_of(packet.from_node)
    return known in ("", packet.from_identity) or not isinstance(packet.payload, ANSWERS)
