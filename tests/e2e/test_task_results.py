"""Callers that wait for results, on real peers: over failures, deadlines and dependencies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import JSON, Job, Retry, Worker, new_task
from gaia_grpc.errors import TaskCancelledError, TaskFailedError
from gaia_grpc.testing import Cluster

pytestmark = pytest.mark.embedded_only

Make = Callable[[], Cluster]


async def test_a_result_is_waited_for_while_the_leader_dies(make_short_cluster: Make) -> None:
    cluster = await asyncio.to_thread(make_short_cluster)
    begun, may_end = asyncio.Event(), asyncio.Event()
    async with cluster.client(timeout=20) as client:
        worker = Worker(client, name="survivor", concurrency=2)

        @worker.task("results.slow", codec=JSON)
        async def slow(job: Job) -> object:
            begun.set()
            await may_end.wait()
            return {"essay": job.data["essay"], "grade": "A"}

        async with worker:
            waiting = asyncio.create_task(
                client.tasks.run("results.slow", {"essay": 7}, codec=JSON, timeout=40)
            )
            async with asyncio.timeout(10):
                await begun.wait()
            leader = await asyncio.to_thread(cluster.leader)
            await asyncio.to_thread(cluster.kill, leader)
            may_end.set()
            assert await waiting == {"essay": 7, "grade": "A"}
    await asyncio.to_thread(cluster.heal)


async def test_a_deadline_cancels_the_handler_and_the_caller_is_told(
    make_short_cluster: Make,
) -> None:
    cluster = await asyncio.to_thread(make_short_cluster)
    cancelled: list[float | None] = []
    async with cluster.client(timeout=20) as client:
        worker = Worker(client, name="late")

        @worker.task("results.late")
        async def late(job: Job) -> bytes:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(job.seconds_left)
            return b""

        async with worker:
            with pytest.raises(TaskFailedError, match="deadline") as caught:
                await client.tasks.run("results.late", deadline=0.5, timeout=20)
        task = (await client.tasks.get(caught.value.task_id)).task
    [left_s] = cancelled
    assert left_s is not None
    assert left_s < 0.1
    assert worker.counters.lost == 1
    kinds = [event.kind for event in task.history]
    assert kinds[-2:] == [
        task_pb2.TASK_EVENT_KIND_DEADLINE_PASSED,
        task_pb2.TASK_EVENT_KIND_DEAD_LETTERED,
    ]


async def test_the_wait_that_a_handler_names_and_the_errors_that_are_final(
    make_short_cluster: Make,
) -> None:
    cluster = await asyncio.to_thread(make_short_cluster)
    async with cluster.client(timeout=20) as client:
        await client.tasks.put_policy("results.final", final_error_types=["ValueError"])
        worker = Worker(client, name="picky", concurrency=2)

        @worker.task("results.after")
        async def after(job: Job) -> bytes:
            if job.attempt == 1:
                raise Retry("busy", after=0.75, error_type="RateLimited")
            return f"{job.attempt} {job.previous_error_type}".encode()

        @worker.task("results.final")
        async def final(job: Job) -> bytes:
            raise ValueError("no answer key")

        async with worker:
            first = await client.tasks.enqueue("results.after")
            assert await client.tasks.result(first, timeout=20) == b"2 RateLimited"
            with pytest.raises(TaskFailedError) as caught:
                await client.tasks.run("results.final", timeout=20)
        assert (caught.value.error_type, caught.value.retry_count) == ("ValueError", 1)
        history = (await client.tasks.get(first.task.task_id)).task.history
        times = {event.kind: event.time.ToMilliseconds() for event in history}
        failed_ms = times[task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED]
        assert times[task_pb2.TASK_EVENT_KIND_AVAILABLE] - failed_ms >= 750
        await client.tasks.delete_policy("results.final")
        assert [policy async for policy in client.tasks.policies()] == []


async def test_a_chain_of_tasks_runs_in_its_order_and_ends_with_the_first_that_cannot(
    make_short_cluster: Make,
) -> None:
    cluster = await asyncio.to_thread(make_short_cluster)
    order: list[bytes] = []
    async with cluster.client(timeout=20) as client:
        worker = Worker(client, name="chain", concurrency=3)

        @worker.task("results.chain")
        async def link(job: Job) -> bytes:
            order.append(job.payload)
            return job.payload

        batch = await client.tasks.enqueue_batch(
            [
                new_task("results.chain", b"0"),
                new_task("results.chain", b"1", depends_on=["#0"]),
                new_task("results.chain", b"2", depends_on=["#0", "#1"]),
                new_task("results.nobody", b"3", depends_on=["#2"]),
                new_task("results.chain", b"4", depends_on=["#3"]),
            ]
        )
        async with worker:
            assert await client.tasks.result(batch.tasks[2], timeout=20) == b"2"
            await client.tasks.cancel(batch.tasks[3].task_id, "nobody knows how")
            with pytest.raises(TaskCancelledError, match="nobody knows how"):
                await client.tasks.result(batch.tasks[3], timeout=20)
            with pytest.raises(TaskFailedError, match=batch.tasks[3].task_id):
                await client.tasks.result(batch.tasks[4], timeout=20)
    assert order == [b"0", b"1", b"2"]
