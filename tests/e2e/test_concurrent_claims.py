"""T3: ten processes race for fifty tasks while their leader is killed and answers come late."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.testing.injured import CLIENTS, InjuredCluster
from gaia_grpc.testing.process import peer_environment
from tests.chaos.history import Call, History, Outcome
from tests.chaos.linearizability import Operation, State, Verdict, check
from tests.chaos.queue_checks import check_intervals, check_tokens
from tests.e2e.support import eventually, report

ROOT = Path(__file__).parents[2]
TASKS = 50
CLAIMERS = 10
LATE_S = 0.1
"""By which every answer is late."""
TOO_LATE_S = 3.0
"""Longer than a caller waits: it hears nothing, and asks somebody else."""


@asynccontextmanager
async def claimer(name: str, file: Path, addresses: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.claim_process", name, str(file), addresses),
        cwd=ROOT,
        env=peer_environment(),
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def is_ready(process: Process) -> None:
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"


def queue_model(state: Any, operation: Operation) -> State | None:
    """A queue that is filled: each claim takes the next, under a higher token, or finds it empty.

    State: (how many are taken, highest token). The answer of a claim is (which task, token).
    """
    taken, highest = state
    if operation.is_pending:
        raise AssertionError("every claimer ended knowing what it got")
    answer: Any = operation.answer
    if answer is None:
        return state if taken == TASKS else None
    number, token = answer
    return (taken + 1, token) if number == taken and token > highest else None


def claim_operations(history: History, numbers: dict[str, int]) -> list[Operation]:
    """One operation a request: from its first attempt to the answer."""
    attempts: dict[str, list[Call]] = {}
    for call in history.of("claim_tasks"):
        attempts.setdefault(call.request_id, []).append(call)
    operations = []
    for calls in attempts.values():
        last = calls[-1]
        assert last.is_ok, last
        [*tasks] = last.answer["tasks"]
        answer = (numbers[tasks[0][0]], tasks[0][1]) if tasks else None
        operations.append(Operation(calls[0].called_at, last.returned_at, "claim", answer))
    return operations


@pytest.mark.timeout(120)
async def test_task_concurrent_claims_are_linearizable_over_a_killed_leader(
    tmp_path: Path,
) -> None:
    async with (
        InjuredCluster(3) as cluster,
        cluster.client() as client,
        AsyncExitStack() as stack,
    ):
        addresses = json.dumps(cluster.client_addresses)
        tasks = (await client.tasks.enqueue_batch(["race"] * TASKS)).tasks
        numbers = {task.task_id: number for number, task in enumerate(tasks)}
        files = [tmp_path / f"claimer-{number}.jsonl" for number in range(CLAIMERS)]
        processes = [
            await stack.enter_async_context(claimer(file.stem, file, addresses)) for file in files
        ]
        await asyncio.gather(*(is_ready(process) for process in processes))
        leader = await cluster.aio.leader()
        slow = await cluster.aio.follower()
        for node_id in cluster.node_ids:
            cluster.network.delay(node_id, CLIENTS, TOO_LATE_S if node_id == slow else LATE_S)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")

        async def claims_reach(count: int) -> bool:
            return (await client.tasks.stats()).claims_total >= count

        await eventually(lambda: claims_reach(TASKS // 5), "a fifth is claimed")
        await cluster.aio.kill(leader)
        assert (await client.tasks.stats()).claims_total < TASKS, "it was killed in the middle"
        cluster.network.delay(slow, CLIENTS, LATE_S)
        async with asyncio.timeout(60):
            codes = [await process.wait() for process in processes]
        assert codes == [0] * CLAIMERS

        loaded = [History.load(file).calls for file in files]
        history = History(sorted((c for calls in loaded for c in calls), key=lambda c: c.called_at))
        operations = claim_operations(history, numbers)
        unknown = len([c for c in history if c.outcome is Outcome.UNKNOWN])
        report(f"{len(operations)} claims in {len(history.of('claim_tasks'))} calls")
        assert unknown, "no answer was lost: the test proves too little"
        answers: list[Any] = [operation.answer for operation in operations]
        claimed = Counter(answer[0] for answer in answers if answer is not None)
        assert claimed == Counter(range(TASKS)), "each task is claimed by one, once"
        assert check(operations, queue_model, (0, 0)) is Verdict.LINEARIZABLE

        found = [(await client.tasks.get(task.task_id)).task for task in tasks]
        for one in (check_tokens(history), check_intervals(found)):
            assert one.passed, one
        owners = {call.key: call for call in history.of("complete_task", outcome=Outcome.OK)}
        for task in found:
            assert task.state == task_pb2.TASK_STATE_COMPLETED
            assert task.result.decode() == owners[task.task_id].argument["result"]
            assert task.claim_token == owners[task.task_id].argument["claim_token"]
        await cluster.aio.heal()
        await cluster.aio.assert_equal_logs_and_hashes()
