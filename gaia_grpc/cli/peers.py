"""`gaia peers`: the members of the cluster, and changes of them while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, JsonOption
from gaia_grpc.cli.output import ListByDefault, print_json, print_table
from gaia_grpc.errors import ConfigError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from gaia.cluster.v1 import cluster_pb2 as cluster_messages

CHANGE_TIMEOUT_S = 60.0
NO_LEADER = "no leader with a majority of the peers"

app = typer.Typer(help="The members.", cls=ListByDefault, rich_markup_mode=None)


@app.command("list")
def list_peers(cluster: ClusterOption = DEFAULT_CLUSTER, json_output: JsonOption = False) -> None:
    """Show the members as the leader knows them."""
    status = _leader_status(cluster)
    if json_output:
        print_json(status)
    else:
        _print_members(status)
    if not _leads(status):
        raise UnavailableError(f"{NO_LEADER}; this is what {status.node_id or 'a peer'} knows")


@app.command("add")
def add_peer(
    peer: Annotated[str, typer.Argument(metavar="ID=HOST:PORT", help="Its peer address.")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Add a peer that waits with `gaia serve --join`: first as a learner, with a vote once it has
    caught up."""
    from gaia.cluster.v1 import cluster_pb2

    from gaia_grpc.cli.ask import ask

    node_id, _, address = peer.partition("=")
    if not node_id or not address:
        raise ConfigError(f"{peer!r} is not ID=HOST:PORT")
    _require_leader(_leader_status(cluster))
    request = cluster_pb2.AddPeerRequest(node_id=node_id, peer_address=address)
    answer = ask(cluster, lambda each: each.cluster.AddPeer, request, CHANGE_TIMEOUT_S)
    if json_output:
        print_json(answer)
        return
    print(f"{node_id} is a member with a vote")
    _print_members(_leader_status(cluster))


@app.command("remove")
def remove_peer(
    node_id: Annotated[str, typer.Argument(metavar="ID")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also where it leaves fewer than three peers.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Remove a peer; a leader that is removed hands over. Its data stays where it is."""
    from gaia.cluster.v1 import cluster_pb2

    from gaia_grpc.cli.ask import ask

    status = _leader_status(cluster)
    _require_leader(status)
    members = {member.node_id: member for member in status.peers}
    if node_id not in members:
        raise NotFoundError(f"no peer {node_id}; the members are {', '.join(members)}")
    voters = sum(member.voter for member in members.values())
    left = voters - members[node_id].voter
    if left < 3 and not yes:
        raise ConfigError(
            f"{left} peers with a vote would be left, which survive no failure; add another peer "
            f"first, or say --yes, which is right where {node_id} is lost already"
        )
    request = cluster_pb2.RemovePeerRequest(node_id=node_id)
    answer = ask(cluster, lambda each: each.cluster.RemovePeer, request, CHANGE_TIMEOUT_S)
    if json_output:
        print_json(answer)
        return
    print(f"{node_id} is no member any more")
    _print_members(_leader_status(cluster))


def _leader_status(cluster: str) -> cluster_messages.GetStatusResponse:
    """What the leader says; without one, a peer that knows members (one that waits has none)."""
    from gaia_grpc.cli.options import parse_cluster
    from gaia_grpc.cli.rpc import peer_statuses, require_peer

    addresses = parse_cluster(cluster)
    answers = peer_statuses(addresses, 2.0)
    found = [answer for answer in answers.values() if answer is not None]
    if not found:
        require_peer(addresses)
    leaders = {answer.leader_address for answer in found if answer.leader_address}
    known = {answer.node_id for answer in found}
    if any(answer.leader_id and answer.leader_id not in known for answer in found):
        # The cluster has grown since somebody wrote the list of its addresses.
        more = peer_statuses(sorted(leaders), 2.0)
        found += [answer for answer in more.values() if answer is not None]
    return next(filter(_leads, found), max(found, key=lambda answer: len(answer.peers)))


def _leads(status: cluster_messages.GetStatusResponse) -> bool:
    return bool(status.leader_id) and status.leader_id == status.node_id and status.writable


def _require_leader(status: cluster_messages.GetStatusResponse) -> None:
    """Members are changed by a leader alone: without one nobody waits for it in silence."""
    if not _leads(status):
        raise UnavailableError(f"{NO_LEADER}; nothing was changed; `gaia status` shows the peers")


def _print_members(status: cluster_messages.GetStatusResponse) -> None:
    print_table(
        ("PEER", "VOTE", "PEERS", "CLIENTS", "REACHABLE", "MATCH", "LEVEL", "VERSION", "DATA"),
        (
            (
                member.node_id + (" (leader)" if member.node_id == status.leader_id else ""),
                "yes" if member.voter else "learner",
                member.peer_address,
                member.client_address or "-",
                "yes" if member.reachable else "no",
                member.match_index or "-",
                member.feature_level or "-",
                member.software_version or "-",
                member.peer_uuid,
            )
            for member in status.peers
        ),
        "no members",
    )
