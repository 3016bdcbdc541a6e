"""Nothing acknowledged is ever lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter

from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client
from gaia_grpc.errors import GaiaError, OutcomeUnknownError
from gaia_grpc.testing.plugin import MakeCluster


class Writers:
    """Tasks that enqueue under names of their own, and what the cluster acknowledged."""

    def __init__(self, client: Client, count: int) -> None:
        self.acknowledged: dict[str, str] = {}
        """Task type (unique) -> task id."""
        self.unknown: set[str] = set()
        self._client = client
        self._count = count
        self._stopping = False
        self._more = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self._count)]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def reach(self, writes: int, timeout: float = 20) -> None:
        """Waits until so many writes are acknowledged in all."""
        async with asyncio.timeout(timeout):
            while len(self.acknowledged) < writes:
                self._more.clear()
                await self._more.wait()

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            name = f"w{writer}-{number}"
            try:
                task = (await self._client.tasks.enqueue(name, timeout=20)).task
            except OutcomeUnknownError:
                self.unknown.add(name)
            except GaiaError:
                continue
            else:
                self.acknowledged[name] = task.task_id
                self._more.set()


async def stored_tasks(client: Client) -> list[task_pb2.Task]:
    return [task async for task in client.tasks.list()]


async def check(client: Client, writers: Writers) -> None:
    """Every acknowledged write is there, once, under its id; nothing else is there."""
    stored = await stored_tasks(client)
    by_name = Counter(task.task_type for task in stored)
    ids = {task.task_type: task.task_id for task in stored}
    missing = [name for name in writers.acknowledged if name not in by_name]
    assert not missing, f"{len(missing)} acknowledged writes are lost: {missing[:5]}"
    doubled = [name for name, count in by_name.items() if count > 1]
    assert not doubled, f"written twice: {doubled[:5]}"
    assert all(ids[name] == task_id for name, task_id in writers.acknowledged.items())
    assert set(by_name) <= set(writers.acknowledged) | writers.unknown


async def test_leader_killed_under_load_loses_and_doubles_nothing(
    gaia_cluster: MakeCluster,
) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        writers = Writers(client, 16)
        writers.start()
        await writers.reach(200)
        for _ in range(2):
            leader = await cluster.aio.leader()
            await cluster.aio.kill(leader)
            await writers.reach(len(writers.acknowledged) + 200)
            await cluster.aio.restart(leader)
            await writers.reach(len(writers.acknowledged) + 100)
        await writers.stop()
        assert not writers.unknown
        await check(client, writers)
    await cluster.aio.assert_equal_logs_and_hashes()


async def test_three_peers_killed_at_once_hold_every_acknowledged_write(
    gaia_cluster: MakeCluster,
) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        writers = Writers(client, 16)
        writers.start()
        await writers.reach(300)
        await cluster.aio.kill(*cluster.node_ids)
        await cluster.aio.restart(*cluster.node_ids)
        await writers.reach(len(writers.acknowledged) + 100)
        await writers.stop()
        await check(client, writers)
    await cluster.aio.assert_equal_logs_and_hashes()


async def test_one_peer_alone_holds_its_writes_over_a_kill(gaia_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 1)
    async with cluster.client() as client:
        writers = Writers(client, 4)
        writers.start()
        await writers.reach(50)
        await cluster.aio.kill("n1")
        await cluster.aio.restart("n1")
        await writers.reach(len(writers.acknowledged) + 20)
        await writers.stop()
        await check(client, writers)


async def test_state_is_the_same_after_an_orderly_restart(gaia_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        for number in range(20):
            await client.tasks.enqueue(f"t{number}", idempotency_key=f"k{number}")
        index = await cluster.aio.wait_applied_equal()
        before = cluster.status("n1", at_index=index).state_hash
        for node_id in cluster.node_ids:
            assert await cluster.aio.terminate(node_id) == 0
        await cluster.aio.restart(*cluster.node_ids)
        assert cluster.status("n1", at_index=index).state_hash == before
        again = await client.tasks.enqueue("t3", idempotency_key="k3")
        assert again.existing
    await cluster.aio.assert_equal_logs_and_hashes()


async def test_a_wiped_peer_refuses_to_found_or_vote(gaia_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        task_id = (await client.tasks.enqueue("kept")).task.task_id
        wiped = await cluster.aio.follower()
        others = [node_id for node_id in cluster.node_ids if node_id != wiped]
        await cluster.aio.kill(wiped)
        cluster.wipe(wiped)
        cluster.respawn(wiped)  # with --bootstrap, as at the founding
        code = await asyncio.to_thread(cluster.peer(wiped).wait, 15)
        assert code not in (0, None)
        lines = cluster.log(wiped).strip().splitlines()
        assert "Traceback" not in cluster.log(wiped)
        assert lines[-1].startswith("error: ")
        # It does not vote either: with it as the only company, one old peer is no quorum.
        leader = await cluster.aio.leader()
        await cluster.aio.kill(next(node for node in others if node != leader))
        cluster.respawn(wiped)
        with_quorum = True
        try:
            await client.tasks.enqueue("no-quorum", timeout=3)
        except GaiaError:
            with_quorum = False
        assert not with_quorum
        await asyncio.to_thread(cluster.peer(wiped).kill)
        cluster.respawn(next(node for node in others if node != leader))
        await asyncio.to_thread(
            cluster.wait_until, lambda: cluster.status(leader).writable, "the two old peers agree"
        )
        assert (await client.tasks.get(task_id)).task.task_type == "kept"
