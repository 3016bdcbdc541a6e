"""The half of ClusterService that steers the embedded log itself."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.errors import ConfigurationRefusedError, UnavailableError
from gaia_grpc.raft.effects import RoleName
from tests.support.served_peer import TIMEOUT_S, ServedPeer, failure_of, serve_peer

pytestmark = pytest.mark.twin_only


@pytest.mark.parametrize(("asked", "chosen"), [("n2", "n2"), ("", "n3")])
async def test_leadership_is_handed_over(peer: ServedPeer, asked: str, chosen: str) -> None:
    request = cluster_pb2.TransferLeadershipRequest(node_id=asked)
    response = await peer.cluster.TransferLeadership(request, timeout=TIMEOUT_S)
    assert (response.leader_id, response.term) == (chosen, 4)
    assert peer.control.transferred_to == chosen


async def test_the_leader_keeps_its_seat_when_it_is_asked_for(peer: ServedPeer) -> None:
    request = cluster_pb2.TransferLeadershipRequest(node_id="n1")
    response = await peer.cluster.TransferLeadership(request, timeout=TIMEOUT_S)
    assert (response.leader_id, peer.control.transferred_to) == ("n1", "")


async def test_only_the_leader_hands_over_to_a_known_peer(peer: ServedPeer) -> None:
    unknown = cluster_pb2.TransferLeadershipRequest(node_id="n9")
    failure = await failure_of(peer.cluster.TransferLeadership(unknown, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    peer.node.set_status(role=RoleName.FOLLOWER, leader="n2")
    request = cluster_pb2.TransferLeadershipRequest(node_id="n3")
    failure = await failure_of(peer.cluster.TransferLeadership(request, timeout=TIMEOUT_S))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_LEADER")
    assert failure.metadata["leader_id"] == "n2"


async def test_a_handover_that_fails_says_so(peer: ServedPeer) -> None:
    peer.control.error = UnavailableError("the transfer was given up")
    request = cluster_pb2.TransferLeadershipRequest(node_id="n2")
    failure = await failure_of(peer.cluster.TransferLeadership(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_is_added_and_removed(peer: ServedPeer) -> None:
    added = await peer.cluster.AddPeer(
        cluster_pb2.AddPeerRequest(node_id="n4", peer_address="127.0.0.1:6004"), timeout=TIMEOUT_S
    )
    assert [(known.node_id, known.voter) for known in added.peers] == [
        (f"n{number}", True) for number in (1, 2, 3, 4)
    ]
    assert (added.peers[3].peer_uuid, added.peers[3].peer_address) == (
        "uuid-of-n4",
        "127.0.0.1:6004",
    )
    removed = await peer.cluster.RemovePeer(
        cluster_pb2.RemovePeerRequest(node_id="n2"), timeout=TIMEOUT_S
    )
    assert [known.node_id for known in removed.peers] == ["n1", "n3", "n4"]
    assert removed.term == peer.node.status().term


async def test_a_change_of_the_members_that_is_refused_says_why(peer: ServedPeer) -> None:
    peer.control.error = ConfigurationRefusedError("another change is under way")
    request = cluster_pb2.RemovePeerRequest(node_id="n2")
    failure = await failure_of(peer.cluster.RemovePeer(request, timeout=TIMEOUT_S))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CONFIGURATION_REFUSED",
    )


@pytest.mark.parametrize("address", ["", "n4", "127.0.0.1", "127.0.0.1:70000", "a b:1"])
async def test_the_address_of_a_new_peer_is_checked(peer: ServedPeer, address: str) -> None:
    request = cluster_pb2.AddPeerRequest(node_id="n4", peer_address=address)
    failure = await failure_of(peer.cluster.AddPeer(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == ["peer_address"]


async def test_a_snapshot_is_taken_and_downloaded_whole(peer: ServedPeer) -> None:
    nothing: Any = peer.cluster.DownloadSnapshot(
        cluster_pb2.DownloadSnapshotRequest(), timeout=TIMEOUT_S
    )
    assert (await failure_of(nothing.read())).code is grpc.StatusCode.NOT_FOUND
    await peer.register()
    taken = await peer.cluster.TakeSnapshot(cluster_pb2.TakeSnapshotRequest(), timeout=TIMEOUT_S)
    peer.control.snapshot *= 50_000
    stream: Any = peer.cluster.DownloadSnapshot(
        cluster_pb2.DownloadSnapshotRequest(), timeout=TIMEOUT_S
    )
    first, *rest = [message async for message in stream]
    assert (first.file.index, first.file.term) == (taken.index, taken.term) == (3, 3)
    assert (first.file.sha256, first.file.state_hash) == (taken.sha256, taken.state_hash)
    assert first.file.cluster_id == "c-test"
    assert b"".join(message.data for message in rest) == peer.control.snapshot
    assert len(rest) > 1


CONTROL_CALLS = [
    ("TransferLeadership", cluster_pb2.TransferLeadershipRequest(node_id="n2")),
    ("AddPeer", cluster_pb2.AddPeerRequest(node_id="n4", peer_address="127.0.0.1:6004")),
    ("RemovePeer", cluster_pb2.RemovePeerRequest(node_id="n2")),
    ("TakeSnapshot", cluster_pb2.TakeSnapshotRequest()),
    ("DownloadSnapshot", cluster_pb2.DownloadSnapshotRequest()),
]


@pytest.mark.parametrize(("method", "request_"), CONTROL_CALLS)
async def test_a_log_with_tools_of_its_own_says_so(method: str, request_: Any) -> None:
    async with serve_peer(controlled=False) as peer:
        call = getattr(peer.cluster, method)(request_, timeout=TIMEOUT_S)
        failure = await failure_of(call.read() if method == "DownloadSnapshot" else call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")
