"""Defects 8-10, 12, 13 and 24 of the system that the guide was written for, on real peers.

Those that one state machine can show are in tests/state/test_original_defects.py.
"""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import LOCAL, Client
from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from gaia_grpc.testing.process import peer_environment
from tests.e2e.support import eventually, live_session

SNAPSHOTS = {
    "GAIA_STORAGE_SNAPSHOT_EVERY_ENTRIES": "50",
    "GAIA_STORAGE_SNAPSHOT_KEEP_ENTRIES": "10",
}
UNDECODABLE = (b'{"task_id": 7}', b"\xff\xff\xff", b"\x0a\x05abc", b"null")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
AREAS = ("session", "task", "lock", "metrics", "alert", "cluster", "classroom")


async def test_defect_8_snapshots_bound_the_log_and_hold_everything(
    gaia_cluster: MakeCluster,
) -> None:
    """The original could not encode its snapshots, and its log grew for ever."""
    cluster: Cluster = await asyncio.to_thread(gaia_cluster, 3, environment=SNAPSHOTS)
    async with cluster.client() as client:
        await client.tasks.enqueue_batch(["kept"] * 3)
        session = (await client.sessions.register("kept", labels={"room": "7"})).session
        [held] = (await client.tasks.claim(session.session_id)).tasks
        for number in range(200):
            await client.tasks.enqueue(f"filler-{number}", b"x" * 100)
        index = await cluster.aio.wait_applied_equal()

        def is_compacted() -> bool:
            found = cluster.statuses().values()
            return len(found) == 3 and all(s.snapshot_index >= index - 60 for s in found)

        await asyncio.to_thread(cluster.wait_until, is_compacted, "every peer has made one")
        for status in cluster.statuses().values():
            assert status.first_log_index > 100
            assert status.last_log_index - status.first_log_index < 150
        await cluster.aio.kill(*cluster.node_ids)
        await cluster.aio.restart(*cluster.node_ids)
        again = (await client.sessions.get(session.session_id)).session
        assert (again.name, [label.value for label in again.labels]) == ("kept", ["7"])
        assert again.claimed_tasks == 1
        assert (await client.tasks.complete(held, b"done")).task.claim_token == held.claim_token
        assert (await client.tasks.stats()).enqueued_total == 203
    await cluster.aio.assert_equal_logs_and_hashes()


def test_defect_9_the_times_fit_and_those_that_do_not_are_named(tmp_path: Path) -> None:
    """The original's own defaults were refused by its library, without saying what to change."""
    times = ConsensusConfig()
    assert times.heartbeat_interval_ms < times.election_timeout_min_ms
    command = [sys.executable, "-m", "gaia_grpc", "serve", "--node-id", "n1", "--bootstrap"]
    command += ["--listen", "127.0.0.1:1", "--peer-listen", "127.0.0.1:2"]
    command += ["--peer", "n1=127.0.0.1:2", "--data-dir", str(tmp_path / "data")]
    wrong = {"GAIA_CONSENSUS_HEARTBEAT_INTERVAL_MS": "500"}
    done = subprocess.run(
        command,
        env=peer_environment(wrong),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "heartbeat_interval_ms < election_timeout_min_ms" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists(), "nothing was founded"


async def test_defect_10_every_peer_is_founded_under_its_own_name_and_address(
    cluster3: Cluster,
) -> None:
    """The original gave every peer the local address, under a name that no peer had."""
    expected = {
        node_id: (cluster3.peer(node_id).peer_address, cluster3.address(node_id), True)
        for node_id in cluster3.node_ids
    }
    assert len({addresses[:2] for addresses in expected.values()}) == 3
    for node_id in cluster3.node_ids:

        def knows_all(node_id: str = node_id) -> bool:
            status = cluster3.status(node_id)
            found = {
                member.node_id: (member.peer_address, member.client_address, member.voter)
                for member in status.peers
            }
            return status.node_id == node_id and found == expected

        await asyncio.to_thread(cluster3.wait_until, knows_all, f"{node_id} knows all three")
    assert len({cluster3.status(node_id).peer_uuid for node_id in expected}) == 3
    assert len({cluster3.status(node_id).cluster_id for node_id in expected}) == 1
    assert await cluster3.aio.leader() in expected


async def test_defect_12_a_refusal_reaches_the_caller_through_every_peer(
    cluster3: Cluster, client3: Client
) -> None:
    """The original answered success for what its state machine had refused."""
    await client3.sessions.register("taken")
    task = (await client3.tasks.enqueue("refused")).task
    foreign = task_pb2.Task(task_id=task.task_id, claim_token=99, claimed_by="s-1")
    for address in cluster3.addresses:
        async with Client.connect(address) as one:
            one.connection.peers.follow(address, 0)
            with pytest.raises(AlreadyExistsError):
                await one.sessions.register("taken")
            with pytest.raises(NotFoundError):
                await one.tasks.cancel("t-000000999999")
            with pytest.raises(FailedPreconditionError):
                await one.tasks.complete(foreign)
            with pytest.raises(NotFoundError):
                await one.tasks.claim("s-000000999999")
    assert (await client3.tasks.get(task.task_id)).task.state == task_pb2.TASK_STATE_PENDING
    await client3.tasks.cancel(task.task_id)


async def test_defect_13_all_peers_have_one_opinion_of_a_sessions_health(
    short_cluster: Cluster,
) -> None:
    """The original kept heartbeats where they arrived, so each of its nodes had its own."""
    async with short_cluster.client() as client:
        silent = (await client.sessions.register("silent")).session
        follower = await short_cluster.aio.follower()
        async with live_session(client, "elsewhere") as beating:

            async def opinions() -> list[dict[str, Any]]:
                found = []
                for address in short_cluster.addresses:
                    request = session_pb2.ListSessionsRequest(consistency=LOCAL)
                    page = await client.peer(address).sessions.ListSessions(request, timeout=5)
                    found.append({session.name: session.health for session in page.sessions})
                return found

            async def beat_at_a_follower() -> None:
                request = session_pb2.HeartbeatRequest(session_id=beating.session_id)
                stub = client.peer(short_cluster.address(follower)).sessions
                await stub.Heartbeat(request, timeout=5)

            expected = {
                silent.name: session_pb2.HEALTH_FAILED,
                beating.name: session_pb2.HEALTH_HEALTHY,
            }

            async def all_agree() -> bool:
                await beat_at_a_follower()
                return all(one.items() >= expected.items() for one in await opinions())

            await eventually(all_agree, "every peer says the same", 8)
    await short_cluster.aio.assert_equal_logs_and_hashes()


def unary_methods() -> Iterator[str]:
    """Every unary method of every service."""
    for area in AREAS:
        module = importlib.import_module(f"gaia.{area}.v1.{area}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if not method.client_streaming and not method.server_streaming:
                    yield f"/{service.full_name}/{method.name}"


async def test_defect_24_no_bytes_stop_a_peer(cluster3: Cluster, client3: Client) -> None:
    """In the original one malformed command was in every log, and stopped every node, for good."""
    methods = list(unary_methods())
    assert len(methods) > 30
    for address in cluster3.addresses:
        channel = client3.peer(address).channel
        for method in methods:
            call: Any = channel.unary_unary(
                method, request_serializer=None, response_deserializer=None
            )
            for body in UNDECODABLE:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(body, timeout=5)
                # UNIMPLEMENTED: known by its contract only
                assert caught.value.code() in (INVALID, UNIMPLEMENTED), (method, body)
            with suppress(grpc.aio.AioRpcError):  # text that is none, where a field is text
                await call(b"\x0a\x02\xff\xfe", timeout=5)
    odd = task_pb2.CompleteTaskRequest(task_id="7", claim_token=-(2**63), session_id="{}")
    for address in cluster3.addresses:
        with pytest.raises(grpc.aio.AioRpcError):
            await client3.peer(address).tasks.CompleteTask(odd, timeout=5)
    await client3.tasks.enqueue("after-all-that")
    assert len(cluster3.statuses()) == 3
    await cluster3.aio.assert_equal_logs_and_hashes()
