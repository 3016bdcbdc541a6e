"""A cluster is upgraded peer by peer while everybody works: no request fails, nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gaia_grpc.client import Client
from gaia_grpc.errors import UnimplementedError
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.testing import Cluster

WRITERS = 6
PACE_S = 0.02
"""The log is compared entry by entry in the end: as many as it takes, and not as many as go."""


class Load:
    """Writers with a request each under way, a worker, and a listener; no error is forgiven."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.enqueued: list[str] = []
        self.completed: list[str] = []
        self._stopping = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]
        self._tasks.append(asyncio.create_task(self._work()))

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            answer = await self.client.tasks.enqueue(
                "load", idempotency_key=f"{writer}-{number}", timeout=30
            )
            self.enqueued.append(answer.task.task_id)
            await asyncio.sleep(PACE_S)

    async def _work(self) -> None:
        session = await self.client.sessions.register(
            "worker", provider="test", max_concurrent_tasks=10
        )
        session_id = session.session.session_id
        while not self._stopping.is_set():
            await self.client.sessions.heartbeat(session_id)
            for task in (await self.client.tasks.claim(session_id, max_tasks=10)).tasks:
                await self.client.tasks.complete(task, b"done")
                self.completed.append(task.task_id)

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize("level", range(1, FEATURE_LEVEL))
async def test_a_rolling_upgrade_fails_no_request_and_raises_the_feature_level(level: int) -> None:
    # As an older version announces itself.
    held_back = {"GAIA_CONSENSUS_MAX_FEATURE_LEVEL": str(level)}
    cluster = Cluster(3, environment_of=dict.fromkeys(("n1", "n2", "n3"), held_back), settings={})
    async with cluster, cluster.client() as client:
        assert {status.feature_level for status in cluster.statuses().values()} == {level}
        with pytest.raises(UnimplementedError):
            await client.tasks.enqueue("load", deadline=60)
        load = Load(client)
        for name in cluster.node_ids:
            assert await cluster.aio.terminate(name) == 0
            cluster.set_environment(name, {})
            await cluster.aio.restart(name)
            if name != "n3":
                # One member of the old version is enough to hold the new kinds of commands back.
                assert cluster.status(name).feature_level == level
        await asyncio.to_thread(
            cluster.wait_until,
            lambda: (
                {status.feature_level for status in cluster.statuses().values()} == {FEATURE_LEVEL}
            ),
            f"level {FEATURE_LEVEL}",
        )
        # What the new level brings is there at once.
        answer = await client.tasks.enqueue("load", deadline=60, depends_on=load.enqueued[:1])
        load.enqueued.append(answer.task.task_id)
        await load.stop()
        stored = {task.task_id: task async for task in client.tasks.list()}
        assert Counter(load.enqueued) == Counter(set(stored))
        assert len(load.completed) == len(set(load.completed)) > 0
        await cluster.aio.assert_equal_logs_and_hashes()
        # There is no way back: an older version would not understand what may be in the log now.
        follower = cluster.follower()
        await cluster.aio.terminate(follower)
        cluster.set_environment(follower, held_back)
        cluster.respawn(follower)
        assert await asyncio.to_thread(cluster.peer(follower).wait, 15) == 1
        assert "start a newer version here" in cluster.log(follower)
