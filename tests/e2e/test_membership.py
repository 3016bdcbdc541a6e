"""Members come and go under load, on real processes."""

from __future__ import annotations

import asyncio

import pytest

from gaia_grpc.cli.main import main
from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster


class Load:
    """Enqueues one task after the other; every call must succeed, and must be there at the end."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.acknowledged: list[str] = []
        self._stopping = False
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopping:
            answer = await self.client.tasks.enqueue(f"load-{len(self.acknowledged)}", timeout=30)
            self.acknowledged.append(answer.task.task_id)
            self._more.set()

    async def reach(self, count: int) -> None:
        """Waits until so many are acknowledged."""
        async with asyncio.timeout(30):
            while len(self.acknowledged) < count:
                self._more.clear()
                await self._more.wait()

    async def stop(self) -> None:
        self._stopping = True
        await self._task
        stored = {task.task_id async for task in self.client.tasks.list()}
        assert set(self.acknowledged) <= stored
        assert len(self.acknowledged) > 10


async def test_a_machine_is_replaced_under_load(gaia_cluster: MakeCluster) -> None:
    """Its disk is gone, so it is removed and joins again under its name, as a learner first."""
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        load = Load(client)
        name = cluster.follower()
        old_uuid = cluster.status(name).peer_uuid
        await cluster.aio.kill(name)
        await asyncio.to_thread(cluster.remove, name)
        await asyncio.to_thread(cluster.join, name)
        await load.stop()
        await cluster.aio.assert_equal_logs_and_hashes()
    status = cluster.status(name)
    assert status.peer_uuid != old_uuid
    assert [member.voter for member in status.peers] == [True] * 3


async def test_a_cluster_grows_to_five_and_survives_two_deaths(gaia_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        load = Load(client)
        for name in ("n4", "n5"):
            await asyncio.to_thread(cluster.join, name)
        await cluster.aio.kill(cluster.leader())
        await cluster.aio.kill(cluster.leader())
        await client.tasks.enqueue("with-three-of-five", timeout=30)
        await cluster.aio.heal()
        await load.stop()
        await cluster.aio.assert_equal_logs_and_hashes()


async def test_a_removed_leader_hands_over_and_disturbs_nobody(gaia_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 5)
    async with cluster.client() as client:
        load = Load(client)
        leader = cluster.leader()
        await asyncio.to_thread(main, ["peers", "remove", leader, "--cluster", _list(cluster)])
        others = [name for name in cluster.node_ids if name != leader]
        await asyncio.to_thread(
            cluster.wait_until,
            lambda: cluster.status(others[0]).leader_id in others,
            "another one leads",
        )
        term = cluster.status(others[0]).term
        count = len(load.acknowledged)
        await load.reach(count + 50)
        # Its process is still there, and knows that it has no vote.
        assert cluster.status(others[0]).term == term
        await asyncio.to_thread(cluster.remove_process, leader)
        await load.stop()
        await cluster.aio.assert_equal_logs_and_hashes()


async def test_changes_that_make_no_sense_are_refused(
    gaia_cluster: MakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = await asyncio.to_thread(gaia_cluster, 3)

    async def refused(*arguments: str) -> str:
        capsys.readouterr()
        assert await asyncio.to_thread(main, ["peers", *arguments, "--cluster", _list(cluster)])
        return capsys.readouterr().err

    assert "--yes" in await refused("remove", "n1")
    assert "no peer n9" in await refused("remove", "n9")
    taken = cluster.peer("n2").peer_address
    assert await refused("add", f"n4={taken}")
    assert await refused("add", "n4=127.0.0.1:1")


def _list(cluster: Cluster) -> str:
    return ",".join(cluster.addresses)
