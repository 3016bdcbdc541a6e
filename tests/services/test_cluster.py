"""ClusterService over the real state machine."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc import __version__
from gaia_grpc.errors import UnavailableError
from gaia_grpc.raft.effects import RoleName
from tests.support.served_peer import TIMEOUT_S, ServedPeer, failure_of


async def get_status(peer: ServedPeer, at_index: int = 0) -> cluster_pb2.GetStatusResponse:
    request = cluster_pb2.GetStatusRequest(at_index=at_index)
    return await peer.cluster.GetStatus(request, timeout=TIMEOUT_S)


@pytest.mark.twin_only  # every figure of it is known
async def test_the_status_is_that_of_the_peer(peer: ServedPeer) -> None:
    await peer.register()
    status = await get_status(peer)
    assert (status.node_id, status.role, status.term) == (
        "n1",
        cluster_pb2.PEER_ROLE_LEADER,
        3,
    )
    assert (status.leader_id, status.leader_address) == ("n1", "127.0.0.1:5001")
    assert status.commit_index == status.applied_index == status.hash_index == 3
    assert len(status.state_hash) == 32
    assert (status.cluster_id, status.peer_uuid) == ("c-test", "uuid-1")
    assert status.software_version == __version__
    assert status.writable
    assert [(known.node_id, known.client_address) for known in status.peers] == [
        (f"n{number}", f"127.0.0.1:{5000 + number}") for number in (1, 2, 3)
    ]
    earlier = await get_status(peer, at_index=2)
    assert earlier.hash_index == 2
    assert earlier.state_hash != status.state_hash


async def test_a_hash_that_is_not_kept_is_out_of_range(peer: ServedPeer) -> None:
    failure = await failure_of(get_status(peer, at_index=99))
    assert failure.code is grpc.StatusCode.OUT_OF_RANGE


async def test_the_status_is_answered_without_a_leader(peer: ServedPeer) -> None:
    peer.node.error = UnavailableError("no quorum")
    peer.node.set_status(role=RoleName.CANDIDATE, leader="", writable=False)
    status = await get_status(peer)
    assert (status.role, status.leader_id) == (cluster_pb2.PEER_ROLE_CANDIDATE, "")
    assert not status.writable


async def test_a_watch_sends_each_change_of_role_and_leader(peer: ServedPeer) -> None:
    watch: Any = peer.cluster.WatchStatus(cluster_pb2.WatchStatusRequest(interval_ms=60_000))
    assert (await watch.read()).status.leader_id == "n1"
    peer.node.set_status()
    peer.node.set_status(role=RoleName.FOLLOWER, leader="n2")
    status = (await watch.read()).status
    assert (status.role, status.leader_id) == (cluster_pb2.PEER_ROLE_FOLLOWER, "n2")
    watch.cancel()


async def test_a_watch_says_something_after_each_interval(peer: ServedPeer) -> None:
    watch: Any = peer.cluster.WatchStatus(cluster_pb2.WatchStatusRequest(interval_ms=100))
    first, second = await watch.read(), await watch.read()
    assert first.status.leader_id == second.status.leader_id == "n1"
    watch.cancel()


async def test_log_entries_are_listed_a_page_at_a_time(peer: ServedPeer) -> None:
    for number in range(3):
        await peer.register(f"s{number}")
    last = peer.node.status().commit_index
    request = cluster_pb2.ListLogEntriesRequest(page_size=last - 2)
    first = await peer.cluster.ListLogEntries(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    second = await peer.cluster.ListLogEntries(request, timeout=TIMEOUT_S)
    entries = [*first.entries, *second.entries]
    assert [entry.index for entry in entries] == list(range(1, last + 1))
    assert entries[0].kind == cluster_pb2.LOG_ENTRY_KIND_CONFIGURATION
    assert entries[-1].kind == cluster_pb2.LOG_ENTRY_KIND_COMMAND
    assert {len(entry.checksum) for entry in entries} == {32}
    assert (second.next_page_token, second.commit_index) == ("", last)
    beyond = cluster_pb2.ListLogEntriesRequest(start_index=100)
    assert not (await peer.cluster.ListLogEntries(beyond, timeout=TIMEOUT_S)).entries


@pytest.mark.parametrize("token", ["x", "-1", "²"])
async def test_a_token_of_another_list_is_refused(peer: ServedPeer, token: str) -> None:
    request = cluster_pb2.ListLogEntriesRequest(page_token=token)
    failure = await failure_of(peer.cluster.ListLogEntries(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == ["page_token"]


async def test_settings_are_changed_through_the_log(peer: ServedPeer) -> None:
    changes = [
        cluster_pb2.SettingChange(name="task.max_retries", value="5"),
        cluster_pb2.SettingChange(name="session.failed_after", value="1m"),
    ]
    request = cluster_pb2.UpdateSettingsRequest(changes=changes, expected_version=0)
    response = await peer.cluster.UpdateSettings(request, timeout=TIMEOUT_S)
    values = {setting.name: setting.value for setting in response.settings.settings}
    assert (values["task.max_retries"], values["session.failed_after"]) == ("5", "1m")
    assert response.settings.version == 1
    names = [change.name for change in peer.node.commands[-1].update_settings.changes]
    assert names == sorted(names)
    read = await peer.cluster.GetSettings(cluster_pb2.GetSettingsRequest(), timeout=TIMEOUT_S)
    assert read.settings == response.settings
    failure = await failure_of(peer.cluster.UpdateSettings(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_unknown_setting_is_refused(peer: ServedPeer) -> None:
    change = cluster_pb2.SettingChange(name="no.such", value="1")
    request = cluster_pb2.UpdateSettingsRequest(changes=[change])
    failure = await failure_of(peer.cluster.UpdateSettings(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.violations
