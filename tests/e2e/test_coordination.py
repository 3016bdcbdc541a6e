"""Sessions and leadership on real peers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import LOCAL, Client, Worker
from gaia_grpc.client.rpc_errors import to_gaia_error
from gaia_grpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from gaia_grpc.testing import Cluster
from tests.e2e.support import eventually, live_session
from tests.support.twin_cluster import Served

pytestmark = pytest.mark.both_logs


@pytest.fixture
async def short(short_cluster: Served) -> AsyncIterator[Client]:
    async with short_cluster.client() as client:
        yield client


async def health(client: Client, session_id: str) -> session_pb2.Health.ValueType:
    return (await client.sessions.get(session_id)).session.health


async def test_session_registration_is_on_every_peer(cluster3: Served, client3: Client) -> None:
    names = [f"manager-{number}" for number in range(2)] + [f"worker-{n}" for n in range(3)]
    answers = [
        await client3.sessions.register(
            name,
            tier=session_pb2.TIER_MANAGER if "manager" in name else session_pb2.TIER_WORKER,
            provider="claude",
        )
        for name in names
    ]
    ids = [answer.session.session_id for answer in answers]
    assert len(set(ids)) == 5
    index = await cluster3.aio.assert_equal_logs_and_hashes()
    assert index >= max(answer.applied_index for answer in answers)
    for node_id in cluster3.node_ids:
        async with Client.connect(cluster3.address(node_id)) as one:
            peer = one.peer(cluster3.address(node_id))
            page = await peer.sessions.ListSessions(
                session_pb2.ListSessionsRequest(consistency=LOCAL), timeout=5
            )
            assert {session.name for session in page.sessions} >= set(names)


async def test_session_name_of_a_live_one_is_refused(client3: Client) -> None:
    await client3.sessions.register("unique")
    with pytest.raises(AlreadyExistsError):
        await client3.sessions.register("unique")


async def test_session_registration_repeated_with_its_request_id_is_one_session(
    client3: Client,
) -> None:
    first, second = [
        await client3.sessions.register("once", request_id="register-once") for _ in range(2)
    ]
    assert first.session.session_id == second.session.session_id
    assert first.applied_index <= second.applied_index


async def test_session_health_degrades_fails_and_heals(short: Client) -> None:
    session = (await short.sessions.register("fading")).session
    assert session.health == session_pb2.HEALTH_HEALTHY

    async def is_in(expected: session_pb2.Health.ValueType) -> bool:
        return await health(short, session.session_id) == expected

    await eventually(lambda: is_in(session_pb2.HEALTH_DEGRADED), "degraded", 3)
    await short.sessions.heartbeat(session.session_id, incarnation=session.incarnation)
    assert await is_in(session_pb2.HEALTH_HEALTHY)
    await eventually(lambda: is_in(session_pb2.HEALTH_FAILED), "failed", 4)
    with pytest.raises(FailedPreconditionError):
        await short.sessions.heartbeat(session.session_id, incarnation=session.incarnation)
    again = (await short.sessions.register("fading")).session
    assert again.session_id == session.session_id
    assert again.incarnation > session.incarnation
    with pytest.raises(FailedPreconditionError):
        await short.sessions.heartbeat(session.session_id, incarnation=session.incarnation)


async def test_session_that_fails_loses_its_claim_to_another(short: Client) -> None:
    lost = (await short.sessions.register("lost")).session
    task_id = (await short.tasks.enqueue("inherit")).task.task_id
    [claimed] = (await short.tasks.claim(lost.session_id, task_types=["inherit"])).tasks
    assert claimed.task_id == task_id
    async with live_session(short, "heir") as heir:
        [inherited] = (
            await short.tasks.claim(heir.session_id, wait=5, task_types=["inherit"])
        ).tasks
        assert inherited.task_id == task_id
        assert inherited.claim_token > claimed.claim_token
        with pytest.raises(FailedPreconditionError):
            await short.tasks.complete(claimed, b"too late")
        await short.tasks.complete(inherited, b"in time")
    found = (await short.tasks.get(task_id)).task
    assert found.result == b"in time"


async def test_unknown_session_is_not_found(client3: Client) -> None:
    with pytest.raises(NotFoundError):
        await client3.sessions.heartbeat("nobody")
    with pytest.raises(NotFoundError):
        await client3.sessions.get("nobody")


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


async def test_session_is_listed_with_its_labels_until_it_deregisters(client3: Client) -> None:
    registered = (
        await client3.sessions.register(
            "scored",
            specialty="geometry",
            max_concurrent_tasks=2,
            provider="listed",
            labels={"room": "7", "age": "new"},
        )
    ).session
    [listed] = [session async for session in client3.sessions.list(provider="listed", page_size=1)]
    assert listed.session_id == registered.session_id
    assert [label.key for label in listed.labels] == ["age", "room"]
    await client3.sessions.deregister(registered.session_id, incarnation=registered.incarnation)
    with pytest.raises(NotFoundError):
        await client3.sessions.get(registered.session_id)


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


@pytest.mark.embedded_only
async def test_five_peers_go_on_without_two_of_them(cluster5: Cluster) -> None:
    """20 sessions, 100 tasks, two peers killed in the middle: each task is completed once."""
    async with cluster5.client() as client:
        runs: Counter[str] = Counter()

        async def handler(task: task_pb2.Task) -> bytes:
            runs[task.task_id] += 1
            return b"done"

        workers = [
            Worker(client, name=f"five-{number}", handler=handler, claim_wait=1)
            for number in range(20)
        ]
        await asyncio.gather(*(worker.start() for worker in workers))
        first = [str(number) for number in range(50)]
        await client.tasks.enqueue_batch(f"five-{name}" for name in first)
        leader = await cluster5.aio.leader()
        other = await cluster5.aio.follower()
        await cluster5.aio.kill(leader, other)
        await client.tasks.enqueue_batch(f"five-{number}" for number in range(50, 100))

        async def all_done() -> bool:
            return (await client.tasks.stats()).completed >= 100

        await eventually(all_done, "100 tasks are completed", 30)
        await asyncio.gather(*(worker.stop() for worker in workers))
        stats = await client.tasks.stats()
        assert (stats.completed_total, stats.enqueued_total) == (100, 100)
        assert len(runs) == 100
        assert len(cluster5.statuses()) == 3
        await cluster5.aio.assert_equal_logs_and_hashes()
