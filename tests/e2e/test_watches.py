"""A watcher that roams over peers that are killed sees every task reach its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client, StateWatch
from gaia_grpc.errors import GaiaError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import live_session

Result = TypeVar("Result")
TaskWatch = StateWatch[task_pb2.WatchTasksRequest, task_pb2.WatchTasksResponse]
TASK_TYPE = "roam"


class Watcher:
    """Follows the tasks; `held` is what it knows of them."""

    def __init__(self, watch: TaskWatch) -> None:
        self.watch = watch
        self.held: dict[str, task_pb2.Task] = {}
        self.changes = 0
        self.resyncs = 0
        self._told: set[tuple[str, int]] = set()
        self._news = asyncio.Event()
        self._complete = False

    async def run(self) -> None:
        async for message in self.watch:
            self._take(message)
            self._news.set()

    def _take(self, message: task_pb2.WatchTasksResponse) -> None:
        match message.kind:
            case task_pb2.WATCH_KIND_EXISTING:
                self.held.update({task.task_id: task for task in message.tasks})
            case task_pb2.WATCH_KIND_COMPLETE:
                self._complete = True
            case task_pb2.WATCH_KIND_RESYNC:
                self._complete = False
                self.held.clear()
                self.resyncs += 1
            case task_pb2.WATCH_KIND_CHANGED:
                change = (message.task.task_id, message.applied_index)
                assert change not in self._told, "a change came twice"
                self._told.add(change)
                before = self.held.get(message.task.task_id)
                if self._complete and before is not None:
                    assert message.task.claim_token >= before.claim_token, "time went backwards"
                self.held[message.task.task_id] = message.task
                self.changes += 1

    async def until_completed(self, count: int, timeout: float = 30.0) -> None:
        """Waits until it has seen so many tasks completed."""
        async with asyncio.timeout(timeout):
            while self._completed() < count:
                self._news.clear()
                await self._news.wait()

    def _completed(self) -> int:
        done = task_pb2.TASK_STATE_COMPLETED
        return sum(task.state == done for task in self.held.values())


async def persist(call: Awaitable[Result]) -> Result | None:
    """What it returns, or None where the cluster could not say."""
    try:
        return await call
    except GaiaError:
        return None


class Queue:
    """Enqueues tasks and completes them for as long as it runs."""

    def __init__(self, client: Client, session: session_pb2.Session) -> None:
        self.completed: set[str] = set()
        self._client = client
        self._session = session
        self._stopping = False

    async def fill(self) -> None:
        number = 0
        while not self._stopping:
            number += 1
            await persist(self._client.tasks.enqueue(TASK_TYPE, idempotency_key=f"roam-{number}"))

    async def work(self) -> None:
        tasks = self._client.tasks
        while not self._stopping:
            claimed = await persist(
                tasks.claim(self._session.session_id, max_tasks=4, wait=0.5, task_types=[TASK_TYPE])
            )
            for task in claimed.tasks if claimed is not None else ():
                # By its token: repeating it is safe.
                while await persist(tasks.complete(task)) is None:
                    continue
                self.completed.add(task.task_id)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        workers = [asyncio.create_task(work) for work in (self.fill(), self.work(), self.work())]
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*workers)


async def kill_and_restart(cluster: Cluster, node_id: str, watcher: Watcher) -> None:
    """The peer is gone until the watcher has seen 20 more completions without it."""
    before = watcher._completed()
    await cluster.aio.kill(node_id)
    await watcher.until_completed(before + 20)
    await cluster.aio.restart(node_id)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("snapshot_every_entries", ["50000", "60"])
async def test_a_roaming_watcher_sees_each_task_reach_its_end(
    gaia_cluster: MakeCluster, snapshot_every_entries: str
) -> None:
    """With snapshots all the time a peer may have lost what the watcher needs: it starts again."""
    environment = {
        "GAIA_STORAGE_SNAPSHOT_EVERY_ENTRIES": snapshot_every_entries,
        "GAIA_STORAGE_SNAPSHOT_KEEP_ENTRIES": "20" if snapshot_every_entries == "60" else "5000",
    }
    cluster = await asyncio.to_thread(lambda: gaia_cluster(3, environment=environment))
    async with (
        cluster.client() as client,
        cluster.client() as watching,
        live_session(client, "worker", capacity=50, every=2.0) as session,
        watching.tasks.watch(task_type=TASK_TYPE, interval=0.5) as watch,
    ):
        watcher = Watcher(watch)
        following = asyncio.create_task(watcher.run())
        queue = Queue(client, session)
        async with queue.running():
            await watcher.until_completed(20)
            for round_number in range(3):
                node_id = await cluster.aio.leader()
                if round_number % 2:
                    addresses = dict(zip(cluster.addresses, cluster.node_ids, strict=True))
                    node_id = addresses[watch.address or ""]
                await kill_and_restart(cluster, node_id, watcher)
        await watcher.until_completed(len(queue.completed))
        listed = {task.task_id: task async for task in client.tasks.list(task_type=TASK_TYPE)}
        async with asyncio.timeout(20):
            while watcher.held != listed:
                watcher._news.clear()
                await watcher._news.wait()
        assert all(
            watcher.held[task_id].state == task_pb2.TASK_STATE_COMPLETED
            for task_id in queue.completed
        )
        assert watch.reconnects >= 1
        assert len(queue.completed) >= 80
        assert watcher.changes >= len(queue.completed)
        if snapshot_every_entries != "60":
            assert watcher.resyncs == 0
        following.cancel()
        await asyncio.wait({following})
        assert following.cancelled()


async def test_a_watch_of_sessions_shows_one_fade(gaia_cluster: MakeCluster) -> None:
    """On another peer than the one that took the registration."""
    settings = {"session.degraded_after": "1s", "session.failed_after": "2s"}
    cluster = await asyncio.to_thread(lambda: gaia_cluster(3, settings=settings))
    async with cluster.client() as client:
        other = cluster.addresses[-1]
        seen: list[int] = []
        async with client.sessions.watch(provider="fading", address=other) as watch:
            assert (await anext(watch)).kind == session_pb2.WATCH_KIND_COMPLETE
            await client.sessions.register("fading", provider="fading")
            async with asyncio.timeout(10):
                async for message in watch:
                    seen.append(message.session.health)
                    if message.session.health == session_pb2.HEALTH_FAILED:
                        break
        assert seen == [
            session_pb2.HEALTH_HEALTHY,
            session_pb2.HEALTH_DEGRADED,
            session_pb2.HEALTH_FAILED,
        ]
