"""Bugs that other systems had, looked for from outside (the numbers are those of tests/mutants).

B19 jetcd 0.8.2 and Temporal 11733: replies are lost, not requests. B28 etcd 15271, 17529, 18089,
20221: what a subscriber sees over reconnects. B29 Jepsen's Redis-Raft report: what was refused
appears later, or is seen before it is committed. B30 NATS 8519: wedged while it reports healthy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from gaia.alert.v1 import alert_pb2
from gaia.task.v1 import task_pb2, task_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gaia_grpc.client import LOCAL, AlertListener, Client
from gaia_grpc.client.rpc_errors import to_gaia_error
from gaia_grpc.errors import GaiaError
from gaia_grpc.testing import Cluster
from tests.e2e.support import eventually

SERVING = health_pb2.HealthCheckResponse.SERVING
DEFINITE = "NO_QUORUM"
"""The reason of a write that was refused and will never be applied."""


class ReplyLoss:
    """A way to one peer on which requests arrive and, while `losing`, replies do not."""

    def __init__(self) -> None:
        self.losing = False
        self.lost_bytes = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def to(self, address: str) -> AsyncIterator[str]:
        """The address of the way to `address`."""
        host, _, port = address.rpartition(":")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
            self._writers |= {writer, upstream_writer}
            for source, target, replies in (
                (reader, upstream_writer, False),
                (upstream_reader, writer, True),
            ):
                pump = asyncio.create_task(self._pump(source, target, replies))
                self._pumps.add(pump)

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            if self._pumps:
                await asyncio.wait(self._pumps)
            for writer in self._writers:
                writer.close()
            await asyncio.gather(
                *(writer.wait_closed() for writer in self._writers), return_exceptions=True
            )

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, replies: bool
    ) -> None:
        while data := await source.read(65_536):
            if replies and self.losing:
                self.lost_bytes += len(data)
            else:
                target.write(data)
                await target.drain()
        target.close()


async def test_b19_a_change_whose_reply_was_lost_is_made_once_and_told_again(
    cluster3: Cluster, client3: Client
) -> None:
    leader = await cluster3.aio.leader()
    session = (await client3.sessions.register("b19", max_concurrent_tasks=5)).session
    enqueue = task_pb2.EnqueueTaskRequest(task_type="b19", request_id="b19-enqueue")
    claim = task_pb2.ClaimTasksRequest(
        session_id=session.session_id, task_types=["b19"], max_tasks=1, request_id="b19-claim"
    )
    loss = ReplyLoss()
    identity = (("gaia-client", "b19"),)
    async with (
        loss.to(cluster3.address(leader)) as address,
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        lossy = task_pb2_grpc.TaskServiceStub(channel)
        await lossy.GetQueueStats(task_pb2.GetQueueStatsRequest(), timeout=5)
        before = await client3.tasks.stats()
        loss.losing = True
        for attempt in range(2):  # the same change twice, and nobody hears of either
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await lossy.EnqueueTask(enqueue, timeout=0.5, metadata=identity)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, attempt

        async def applied() -> bool:
            return (await client3.tasks.stats()).enqueued_total > before.enqueued_total

        await eventually(applied, "the change was made though nobody was told")
        with pytest.raises(grpc.aio.AioRpcError):
            await lossy.ClaimTasks(claim, timeout=0.5, metadata=identity)
        assert loss.lost_bytes
    other = client3.peer(cluster3.address(await cluster3.aio.follower())).tasks
    told = await other.EnqueueTask(enqueue, timeout=5, metadata=identity)
    [claimed] = (await other.ClaimTasks(claim, timeout=5, metadata=identity)).tasks
    assert claimed.task_id == told.task.task_id
    await cluster3.aio.kill(leader)  # the next leader tells the same
    survivor = client3.peer(cluster3.address(await cluster3.aio.leader())).tasks
    [again] = (await survivor.ClaimTasks(claim, timeout=5, metadata=identity)).tasks
    assert (again.task_id, again.claim_token) == (claimed.task_id, claimed.claim_token)
    after = await client3.tasks.stats()
    assert after.enqueued_total == before.enqueued_total + 1
    assert after.claims_total == before.claims_total + 1


async def read_events(listener: AlertListener, into: list[alert_pb2.AlertEvent]) -> None:
    async for event in listener:
        into.append(event)


async def test_b28_subscribers_of_every_peer_see_the_one_sequence(
    cluster3: Cluster, client3: Client
) -> None:
    seen: dict[str, list[alert_pb2.AlertEvent]] = {node_id: [] for node_id in cluster3.node_ids}
    listeners = {
        node_id: client3.alerts.listen(
            after_sequence=0, address=cluster3.address(node_id), progress_interval=1
        )
        for node_id in cluster3.node_ids
    }
    readers = [
        asyncio.create_task(read_events(listeners[node_id], seen[node_id])) for node_id in seen
    ]
    raised = 0

    async def frustrate(count: int) -> None:
        nonlocal raised
        for _ in range(count):
            raised += 1
            buffer = client3.metrics.buffer(
                student_id=f"b28-{raised}", app_name="math", classroom_id="b28"
            )
            for _ in range(5):
                buffer.record("error")
            await buffer.close()

    await frustrate(5)
    for victim in (await cluster3.aio.leader(), await cluster3.aio.follower()):
        await cluster3.aio.kill(victim)
        await frustrate(5)
        await cluster3.aio.restart(victim)
        await frustrate(5)
    async with client3.alerts.listen(after_sequence=0) as fresh:
        log: list[alert_pb2.AlertEvent] = []
        opened = 0
        while opened < raised:
            event = await fresh.next(timeout=5)
            assert event is not None
            log.append(event)
            opened += event.change == alert_pb2.ALERT_CHANGE_OPENED

    async def all_read() -> bool:
        return all(len(events) >= len(log) for events in seen.values())

    await eventually(all_read, "every subscriber has read what there is")
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    for node_id, events in seen.items():
        assert events[: len(log)] == log, node_id
        later = [event.sequence for event in events[len(log) :]]
        assert later == list(range(len(log) + 1, len(log) + 1 + len(later)))
    assert sum(listener.reconnects for listener in listeners.values()) >= 2


async def task_types(address: str) -> set[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = task_pb2_grpc.TaskServiceStub(channel)
        request = task_pb2.ListTasksRequest(page_size=1_000, consistency=LOCAL)
        return {task.task_type for task in (await stub.ListTasks(request, timeout=5)).tasks}


async def test_b29_what_was_refused_is_never_seen(cluster3: Cluster, client3: Client) -> None:
    """The leader cannot reach anybody: what it is asked stays invisible, and what it refuses for
    sure stays away for ever."""
    leader = await cluster3.aio.leader()
    followers = [node_id for node_id in cluster3.node_ids if node_id != leader]
    address = cluster3.address(leader)
    stub = client3.peer(address).tasks
    for node_id in followers:
        cluster3.pause(node_id)
    reasons: dict[str, str] = {}

    async def write(name: str) -> None:
        try:
            await stub.EnqueueTask(task_pb2.EnqueueTaskRequest(task_type=name), timeout=1)
            reasons[name] = "OK"
        except grpc.aio.AioRpcError as error:
            failure: GaiaError = to_gaia_error(error)
            reasons[name] = failure.instance_reason

    await asyncio.gather(*(write(f"b29-first-{number}") for number in range(5)))

    async def stepped_down() -> bool:
        return not cluster3.status(leader).writable

    await eventually(stepped_down, "the leader knows that it reaches nobody", 3)
    await asyncio.gather(*(write(f"b29-later-{number}") for number in range(5)))
    assert "OK" not in reasons.values()
    assert DEFINITE in reasons.values()
    assert not {name for name in await task_types(address) if name.startswith("b29")}
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ListTasks(task_pb2.ListTasksRequest(), timeout=1)
    for node_id in followers:
        cluster3.resume(node_id)
    await cluster3.aio.heal()
    await client3.tasks.enqueue("b29-after")
    await cluster3.aio.assert_equal_logs_and_hashes()
    refused = {name for name, reason in reasons.items() if reason == DEFINITE}
    for node_id in cluster3.node_ids:
        assert not await task_types(cluster3.address(node_id)) & refused


async def test_b30_health_tells_when_nothing_moves_and_all_move_on_when_healed(
    cluster3: Cluster, client3: Client
) -> None:
    leader = await cluster3.aio.leader()
    followers = [node_id for node_id in cluster3.node_ids if node_id != leader]

    async def health(node_id: str) -> bool:
        async with grpc.aio.insecure_channel(cluster3.address(node_id)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stub has no methods
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            return bool(answer.status == SERVING)

    for _ in range(2):  # stuck, moving, stuck, moving
        assert await health(leader)
        for node_id in followers:
            cluster3.pause(node_id)

        async def stuck(node_id: str = leader) -> bool:
            return not await health(node_id)

        await eventually(stuck, "the leader knows that nothing can succeed", 3)
        for node_id in followers:
            cluster3.resume(node_id)
        await client3.tasks.enqueue("b30", timeout=10)
        await cluster3.aio.wait_applied_equal(5)
        for node_id in cluster3.node_ids:
            assert await health(node_id)
        leader = await cluster3.aio.leader()
        followers = [node_id for node_id in cluster3.node_ids if node_id != leader]
