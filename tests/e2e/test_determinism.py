"""B27: peers that differ in everything the machine gives them have equal states at equal indexes.

Each has a hash seed, time zone, locale and protobuf runtime of its own, and clocks that are wrong
in another way. Whatever apply took from any of these would end up in the chain hash, which is
compared every 1,000 entries and at the end, over a change of leader (so of the clock that makes
log time) and a restart that replays the whole log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client, Worker
from gaia_grpc.errors import FailedPreconditionError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import SHORT_TIMES, eventually

ENTRIES = 3_000
EVERY = 1_000
DAY_S = 86_400
MACHINES = {
    "n1": {
        "PYTHONHASHSEED": "1",
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PEER_WALL_SHIFT_S": str(-3 * DAY_S),
    },
    "n2": {
        "PYTHONHASHSEED": "2",
        "TZ": "America/St_Johns",
        "LC_ALL": "tr_TR.UTF-8",
        "PYTHONOPTIMIZE": "1",
        "PEER_WALL_SHIFT_S": str(400 * DAY_S),
        "PEER_CLOCK_RATE": "1.2",
        "PEER_MONOTONIC_START_S": "1e6",
    },
    "n3": {
        "PYTHONHASHSEED": "4294967295",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C.UTF-8",
        "PYTHONMALLOC": "debug",
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
        "PEER_WALL_SHIFT_S": "-1.5e9",
        "PEER_CLOCK_RATE": "0.8",
    },
}


@pytest.fixture
async def cluster(gaia_cluster: MakeCluster) -> Cluster:
    return await asyncio.to_thread(
        gaia_cluster,
        3,
        settings=SHORT_TIMES,
        environment_of=MACHINES,
        program=("-m", "tests.support.shifted_peer"),
    )


class Load:
    """Everything at once, until it is told to stop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.index = 0
        """Index of the latest write that was acknowledged."""
        self.alerts = 0

    async def start(self) -> None:
        jobs: list[Callable[[int], AsyncIterator[int]]] = [self._sessions, self._learn]
        jobs += [self._enqueue] * 6
        self._tasks = [asyncio.create_task(self._go(job, n)) for n, job in enumerate(jobs)]
        self._workers = [
            Worker(self._client, name=f"worker-{n}", handler=self._handle, claim_wait=1)
            for n in range(3)
        ]
        await asyncio.gather(*(worker.start() for worker in self._workers))

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def _go(self, job: Callable[[int], AsyncIterator[int]], number: int) -> None:
        async for index in job(number):
            self.index = max(self.index, index)
            if self._stopping:
                return

    async def _enqueue(self, number: int) -> AsyncIterator[int]:
        for count in range(1_000_000):
            key = f"{number}-{count}" if count % 2 else ""
            answer = await self._client.tasks.enqueue(
                "work" if count % 4 == 0 else "left",
                f"çöğüş-{count}".encode(),
                priority=count % 7,
                affinity=("math", "", "reading")[count % 3],
                idempotency_key=key,
                delay=0.05 if count % 5 == 0 else 0,
            )
            if count % 3 == 1:
                with suppress(FailedPreconditionError):  # a worker was quicker
                    await self._client.tasks.cancel(answer.task.task_id, "enough")
            yield answer.applied_index

    async def _sessions(self, number: int) -> AsyncIterator[int]:
        for count in range(1_000_000):
            answer = await self._client.sessions.register(
                f"Öğrenci-{count}", labels={"b": "2", "a": "1", "c.3": "ç"}, specialty="math"
            )
            yield answer.applied_index  # and is left to degrade, to fail and to be forgotten

    async def _learn(self, number: int) -> AsyncIterator[int]:
        for count in range(1_000_000):
            buffer = self._client.metrics.buffer(
                student_id=f"student-{count % 20}", app_name="math", classroom_id="room"
            )
            for value in range(5):
                buffer.record("error" if count % 2 else "response_time", 0.1 * value + count)
            await buffer.close()
            yield 0

    async def _handle(self, task: task_pb2.Task) -> bytes:
        if task.priority == 3:
            raise ValueError("some attempts fail")
        return task.payload[::-1]


async def test_b27_peers_on_different_machines_have_equal_hashes(cluster: Cluster) -> None:
    compared: list[int] = []
    down: set[str] = set()

    async def compare(index: int) -> None:
        def reached() -> bool:
            found = cluster.statuses().values()
            return all(status.applied_index >= index for status in found)

        await asyncio.to_thread(cluster.wait_until, reached, f"index {index} is applied")
        hashes = {
            node_id: cluster.status(node_id, at_index=index).state_hash.hex()
            for node_id in cluster.answering
        }
        assert len(set(hashes.values())) == 1, f"at index {index}: {hashes}"
        compared.append(index)

    async with cluster.client() as client:
        load = Load(client)
        await load.start()

        async def load_to(index: int) -> None:
            async def reached() -> bool:
                stopped = [
                    cluster.peer(node_id).exit_code
                    for node_id in cluster.node_ids
                    if not cluster.peer(node_id).running and node_id not in down
                ]
                assert not stopped, "a peer saw that its state differs"
                return load.index >= index

            await eventually(reached, f"the load has made {index} entries", 40)
            await asyncio.gather(
                *(compare(at) for at in range(EVERY, index + 1, EVERY) if at not in compared)
            )

        await load_to(EVERY)
        leader = await cluster.aio.leader()
        down.add(leader)
        await cluster.aio.kill(leader)
        await load_to(2 * EVERY)
        await cluster.aio.restart(leader)
        down.clear()
        await load_to(ENTRIES)
        await load.stop()
        assert (await client.tasks.stats()).completed > 0
        opened = [alert async for alert in client.alerts.list(classroom_id="room")]
        assert opened, "no alert was ever raised"
    end = await cluster.aio.assert_equal_logs_and_hashes()
    assert end > ENTRIES
    assert {EVERY, 2 * EVERY, ENTRIES} <= set(compared)
    clocks = {cluster.status(node_id).elapsed_ms // (DAY_S * 1_000) for node_id in MACHINES}
    assert len(clocks) == 1  # log time, in spite of all
