"""`gaia status`: every peer, who leads, and whether their states are equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gaia_grpc.cli.options import (
    DEFAULT_CLUSTER,
    ClusterOption,
    JsonOption,
    TimeoutOption,
    parse_cluster,
)
from gaia_grpc.cli.output import enum_word, print_plain_json, print_table
from gaia_grpc.errors import UnavailableError

if TYPE_CHECKING:
    from gaia.cluster.v1 import cluster_pb2 as cluster_messages

    Answers = Mapping[str, cluster_messages.GetStatusResponse | None]


def status(
    cluster: ClusterOption = DEFAULT_CLUSTER,
    timeout: TimeoutOption = 2.0,
    json_output: JsonOption = False,
) -> int:
    """Show every peer. Exits with 1 where no leader can take writes."""
    from gaia_grpc.cli.rpc import peer_statuses, require_peer

    addresses = parse_cluster(cluster)
    answers = peer_statuses(addresses, timeout)
    living = [answer for answer in answers.values() if answer]
    if not living:
        require_peer(addresses, timeout)
        raise UnavailableError("no peer answered in time; one does now, so ask again")
    leader = next((answer.node_id for answer in living if answer.writable and answer.leader_id
                   and answer.leader_id == answer.node_id), "")  # fmt: skip
    if json_output:
        _print_json(answers, leader)
    else:
        _print_table(answers)
        _print_refused(living)
        led = f"leader {leader}" if leader else "no leader"
        print(f"{len(living)} of {len(addresses)} peers answer; {led}")
    return 0 if leader else 1


def _print_table(answers: Answers) -> None:
    from gaia.cluster.v1 import cluster_pb2

    print_table(
        ("PEER", "CLIENTS", "ROLE", "TERM", "LEADER", "COMMIT", "APPLIED", "STATE HASH"),
        (
            ("-", address, "down", "-", "-", "-", "-", "-")
            if answer is None
            else (
                answer.node_id,
                address,
                enum_word(cluster_pb2.PeerRole.Name, answer.role, "PEER_ROLE"),
                answer.term,
                answer.leader_id or "-",
                answer.commit_index,
                answer.applied_index,
                f"{answer.state_hash.hex()[:16]} at {answer.hash_index}",
            )
            for address, answer in answers.items()
        ),
        "",
    )


def _print_refused(living: Sequence[cluster_messages.GetStatusResponse]) -> None:
    """A line for each peer that had no room for metrics, or left some out."""
    for answer in living:
        metrics = answer.metrics
        if metrics.refused_total or metrics.sampled_total:
            print(
                f"{answer.node_id}: of the metrics since its start {metrics.accepted_total:,} were "
                f"accepted, {metrics.refused_total:,} refused (their senders keep them) and "
                f"{metrics.sampled_total:,} sampled"
            )


def _print_json(answers: Answers, leader: str) -> None:
    from google.protobuf import json_format

    print_plain_json(
        {
            "leaderId": leader,
            "peers": [
                {"address": address, "reachable": answer is not None}
                | (json_format.MessageToDict(answer) if answer else {})
                for address, answer in answers.items()
            ],
        }
    )
