"""Leaders, quorums and what every peer tells of them, on real peers."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import grpc
import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import LOCAL, Client
from gaia_grpc.client.rpc_errors import to_gaia_error
from gaia_grpc.errors import FailedPreconditionError, InvalidArgumentError
from gaia_grpc.testing import Cluster
from tests.e2e.support import eventually
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs


@pytest.mark.embedded_only
async def test_leader_killed_is_replaced_and_writes_go_on(
    cluster3: Cluster, client3: Client
) -> None:
    await client3.tasks.enqueue("before")
    old = await cluster3.aio.leader()
    term = cluster3.status(old).term
    began = time.monotonic()
    await cluster3.aio.kill(old)
    await client3.tasks.enqueue("after")
    seconds = time.monotonic() - began
    new = await cluster3.aio.leader()
    assert new != old
    assert cluster3.status(new).term > term
    assert seconds < 10
    await cluster3.aio.restart(old)
    await cluster3.aio.assert_equal_logs_and_hashes()


@pytest.mark.embedded_only
async def test_leader_paused_and_resumed_steps_down(cluster3: Cluster, client3: Client) -> None:
    old = await cluster3.aio.leader()
    cluster3.pause(old)
    task_id = (await client3.tasks.enqueue("while-it-slept")).task.task_id
    new = await cluster3.aio.leader()
    assert new != old
    cluster3.resume(old)
    await cluster3.aio.heal()
    await cluster3.aio.assert_equal_logs_and_hashes()
    async with Client.connect(cluster3.address(old)) as one:
        assert (await one.tasks.get(task_id)).task.task_type == "while-it-slept"


@pytest.mark.embedded_only
async def test_without_a_quorum_a_write_is_unavailable_within_its_deadline(
    cluster3: Cluster, client3: Client
) -> None:
    survivor = await cluster3.aio.leader()
    await cluster3.aio.kill(*(node for node in cluster3.node_ids if node != survivor))
    stub = client3.peer(cluster3.address(survivor)).tasks

    async def attempt() -> tuple[Exception, float]:
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.EnqueueTask(task_pb2.EnqueueTaskRequest(task_type="x"), timeout=2)
        return caught.value, time.monotonic() - began

    async def has_stepped_down() -> bool:
        return not cluster3.status(survivor).writable

    await eventually(has_stepped_down, "the survivor knows that it has no quorum")
    error, seconds = await attempt()
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    translated = to_gaia_error(error)
    assert translated.instance_reason == "NO_QUORUM"
    assert translated.retry_after_ms
    assert seconds < 2.5
    local = await stub.GetQueueStats(task_pb2.GetQueueStatsRequest(consistency=LOCAL), timeout=2)
    assert local.enqueued_total >= 0
    await cluster3.aio.heal()
    await client3.tasks.enqueue("healed")


async def test_every_peer_takes_writes_and_names_the_leader(
    cluster3: Served, client3: Client
) -> None:
    leader = cluster3.address(await cluster3.aio.leader())
    for address in cluster3.addresses:
        rpc = client3.peer(address).tasks.EnqueueTask(
            task_pb2.EnqueueTaskRequest(task_type="any"), timeout=5
        )
        assert (await rpc).task.task_id
        trailers = dict(await rpc.trailing_metadata())
        assert trailers.get("gaia-leader", leader) == leader
        if address != leader:
            assert trailers["gaia-leader"] == leader


async def test_a_write_is_read_at_once_on_every_other_peer(
    cluster3: Served, client3: Client
) -> None:
    for round_number in range(5):
        task_id = (await client3.tasks.enqueue(f"round-{round_number}")).task.task_id
        found = await asyncio.gather(
            *(
                client3.peer(address).tasks.GetTask(
                    task_pb2.GetTaskRequest(task_id=task_id), timeout=5
                )
                for address in cluster3.addresses
            )
        )
        assert [answer.task.task_id for answer in found] == [task_id] * 3


@pytest.mark.embedded_only
async def test_a_terminated_peer_drains_and_exits_with_zero(
    cluster3: Cluster, client3: Client
) -> None:
    node_id = await cluster3.aio.leader()
    assert await cluster3.aio.terminate(node_id) == 0
    await client3.tasks.enqueue("after-the-drain")
    assert "Traceback" not in cluster3.log(node_id)


async def test_settings_change_through_the_log_on_every_peer(
    cluster3: Served, client3: Client
) -> None:
    before = (await client3.cluster.settings()).settings
    changed = (
        await client3.cluster.update_settings(
            {"task.max_retries": "5"}, expected_version=before.version
        )
    ).settings
    assert changed.version > before.version
    await cluster3.aio.wait_applied_equal()
    for address in cluster3.addresses:
        async with Client.connect(address) as one:
            found = (await one.cluster.settings(consistency=LOCAL)).settings
            values = {setting.name: setting.value for setting in found.settings}
            assert values["task.max_retries"] == "5"
    with pytest.raises(InvalidArgumentError):
        await client3.cluster.update_settings({"no.such": "1"})
    with pytest.raises(FailedPreconditionError):
        await client3.cluster.update_settings(
            {"task.max_retries": "3"}, expected_version=before.version
        )
    await client3.cluster.update_settings({"task.max_retries": "3"})


async def test_status_and_log_are_told_by_every_peer(cluster3: Served, client3: Client) -> None:
    answer = await client3.tasks.enqueue("logged")
    await cluster3.aio.wait_applied_equal()
    statuses = await client3.cluster.statuses()
    assert set(statuses) == set(cluster3.addresses)
    for address, status in statuses.items():
        assert not isinstance(status, Exception)
        assert [member.node_id for member in status.peers] == list(cluster3.node_ids)
        entries = await client3.cluster.log_entries(address=address)
        assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
        assert entries[answer.applied_index - 1].term == answer.term


@pytest.mark.embedded_only
async def test_status_watch_tells_of_the_next_leader(cluster3: Cluster, client3: Client) -> None:
    leader = await cluster3.aio.leader()
    follower = await cluster3.aio.follower()
    async with (
        asyncio.timeout(15),
        aclosing(client3.cluster.watch_status(address=cluster3.address(follower))) as watch,
    ):
        assert (await anext(watch)).status.leader_id == leader
        await cluster3.aio.kill(leader)
        async for update in watch:
            if update.status.leader_id not in ("", leader):
                break
