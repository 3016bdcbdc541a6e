"""A thousand completions at one instant on real peers: none is lost, also where a leader dies."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster
from tests.e2e.support import live_session, report

BURST = 1_000
COMPLETED = task_pb2.TASK_STATE_COMPLETED


@pytest.mark.parametrize("is_killed", [False, True], ids=["calm", "leader-killed"])
async def test_burst_of_a_thousand_completions_loses_nothing(
    cluster3: Cluster, is_killed: bool
) -> None:
    """Each is a call of its own, a third of them through each peer."""
    task_type = f"burst-{is_killed}"
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client.connect(address, timeout=30))
            for address in cluster3.addresses
        ]
        client = clients[0]
        before = await client.tasks.stats()
        await client.tasks.enqueue_batch([task_type] * BURST)
        session = await stack.enter_async_context(
            live_session(client, task_type, capacity=BURST, every=5)
        )
        tasks = (
            await client.tasks.claim(session.session_id, max_tasks=BURST, task_types=[task_type])
        ).tasks
        assert len(tasks) == BURST
        answered = 0
        some_are_answered = asyncio.Event()

        async def complete(number: int, task: task_pb2.Task) -> None:
            nonlocal answered
            await clients[number % 3].tasks.complete(task, b"%d" % number)
            answered += 1
            if answered == BURST // 5:
                some_are_answered.set()

        async def kill_the_leader() -> None:
            leader = await cluster3.aio.leader()
            await some_are_answered.wait()
            cluster3.kill(leader)  # here and now: nothing else runs meanwhile
            report(f"killed after {answered} of {BURST} answers")
            assert answered < BURST

        async with asyncio.timeout(50), asyncio.TaskGroup() as group:
            if is_killed:
                group.create_task(kill_the_leader())
                await asyncio.sleep(0.1)  # it knows the leader by then
            for number, task in enumerate(tasks):
                group.create_task(complete(number, task))

        after = await client.tasks.stats()
        assert after.completed_total - before.completed_total == BURST
        found = await asyncio.gather(*(client.tasks.get(task.task_id) for task in tasks))
        assert [int(one.task.result) for one in found] == list(range(BURST))
        assert {one.task.state for one in found} == {COMPLETED}
        kinds = [event.kind for one in found for event in one.task.history]
        assert kinds.count(task_pb2.TASK_EVENT_KIND_COMPLETED) == BURST
        assert (await client.sessions.get(session.session_id)).session.claimed_tasks == 0
    await cluster3.aio.heal()
    await cluster3.aio.assert_equal_logs_and_hashes()
