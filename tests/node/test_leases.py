"""A change of leader does nothing to a claim (faults B16, B17); a vote and an answer are worth what
is on the disks (B1, B2). Real drivers and directories, clocks and disks in the hand of the test."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from gaia.command.v1 import command_pb2, query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NodeId
from gaia_grpc.storage.directory import DataDirectory
from tests.node.test_stalled_disk import Gate
from tests.support.embedded_node import HandClock
from tests.support.local_cluster import (
    LocalCluster,
    engine_of,
    enqueue,
    result_of,
    running,
    until,
)

LEASE_MS = 2_000
STEP_MS = 100
HOUR_MS = 3_600_000


class SleepyClock(HandClock):
    """Goes on by itself, and jumps where `now_ms` is moved: what a machine that slept shows."""

    def monotonic_ns(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns() + super().monotonic_ns()


class Lease:
    """A task that a session holds for a while, in a cluster whose clocks are in the test's hand."""

    def __init__(self, root: Path, clock: type[HandClock], lease_ms: int) -> None:
        self.cluster = cluster = LocalCluster(root)
        self.clocks = {name: clock() for name in cluster.names}
        cluster.clocks.update(self.clocks)
        cluster.settings = (("task.claim_timeout", f"{lease_ms}ms"),)
        self.session_id = ""
        self.claim = task_pb2.Task()

    async def propose(self, command: command_pb2.Command) -> command_pb2.CommandResult:
        driver = self.cluster.drivers[await self.cluster.leader()]
        return result_of(await driver.propose(command.SerializeToString(), timeout_s=10))

    async def take(self) -> None:
        register = command_pb2.RegisterSession(
            name="worker", specialty="general", max_concurrent_tasks=1
        )
        registered = await self.propose(command_pb2.Command(register_session=register))
        self.session_id = registered.session.session.session_id
        specs = [command_pb2.TaskSpec(task_type="t", affinity="general")]
        await self.propose(command_pb2.Command(enqueue_tasks=command_pb2.EnqueueTasks(tasks=specs)))
        claim = command_pb2.ClaimTasks(session_id=self.session_id, max_tasks=1)
        result = await self.propose(command_pb2.Command(claim_tasks=claim))
        [self.claim] = result.claim.tasks

    async def beat(self) -> None:
        """The session lives, and the log goes on."""
        beats = [command_pb2.SessionHeartbeat(session_id=self.session_id)]
        await self.propose(
            command_pb2.Command(record_heartbeats=command_pb2.RecordHeartbeats(heartbeats=beats))
        )

    async def task(self, name: str) -> task_pb2.Task:
        """The task as the peer `name` has it."""
        query = query_pb2.Query(get_task=task_pb2.GetTaskRequest(task_id=self.claim.task_id))
        answer = await self.cluster.drivers[name].read(
            query.SerializeToString(), consistency=ReadConsistency.LOCAL, timeout_s=5
        )
        return query_pb2.QueryResult.FromString(answer).get_task.task

    @property
    def claim_end_ms(self) -> int:
        return self.claim.claim_expire_time.ToMilliseconds()

    async def is_held(self) -> bool:
        await self.beat()
        await self.cluster.agree()
        found = [await self.task(name) for name in sorted(self.cluster.drivers)]
        held = [
            task.state == task_pb2.TASK_STATE_CLAIMED and task.claim_token == self.claim.claim_token
            for task in found
        ]
        assert len(set(held)) == 1
        return held[0]

    async def let_pass(self, milliseconds: int, *names: str) -> None:
        """Moves clocks at once and lets every peer look at its own."""
        for name in names or self.cluster.names:
            self.clocks[name].now_ms += milliseconds
        for driver in self.cluster.drivers.values():
            await looked_at_clock(driver)


async def looked_at_clock(driver: NodeDriver) -> None:
    stats = engine_of(driver).stats
    seen = stats.ticks
    await until(lambda: stats.ticks >= seen + 2)


async def test_b16_a_leader_that_slept_takes_no_claim_away(tmp_path: Path) -> None:
    """It wakes up an hour later by its own clock, still thinking that it leads."""
    lease = Lease(tmp_path, SleepyClock, 10 * LEASE_MS)
    async with running(lease.cluster) as cluster:
        await lease.take()
        old = await cluster.leader()
        cluster.isolate(old)
        await until(
            lambda: any(
                driver.status().role is RoleName.LEADER
                for name, driver in cluster.drivers.items()
                if name != old
            )
        )
        await lease.let_pass(HOUR_MS, old)
        cluster.network.heal()
        await until(lambda: cluster.drivers[old].status().leader_id not in ("", old))
        assert await lease.is_held()


async def test_b16_a_suspended_machine_takes_no_claim_away(tmp_path: Path) -> None:
    """All peers sleep for an hour and go on under the same leader."""
    lease = Lease(tmp_path, SleepyClock, 10 * LEASE_MS)
    async with running(lease.cluster):
        await lease.take()
        await lease.let_pass(HOUR_MS)
        assert await lease.is_held()


async def test_b17_three_changes_of_leader_inside_one_lease(tmp_path: Path) -> None:
    """It neither starts anew nor ends early: each change costs at most what the log had not got."""
    lease = Lease(tmp_path, HandClock, LEASE_MS)
    async with running(lease.cluster) as cluster:
        await lease.take()
        passed_ms = 0
        while passed_ms < LEASE_MS - STEP_MS:
            await lease.let_pass(STEP_MS)
            passed_ms += STEP_MS
            await lease.beat()
            if passed_ms in (500, 1_000, 1_500):
                old = await cluster.leader()
                target = next(name for name in cluster.names if name != old)
                await cluster.drivers[old].transfer_leadership(target, timeout_s=10)
                await cluster.leader()
        assert await lease.is_held()
        for _ in range(4):  # the last step, and one that may be lost at each change
            await lease.let_pass(STEP_MS)
        driver = cluster.drivers[await cluster.leader()]
        await until(lambda: driver.status().elapsed_ms >= lease.claim_end_ms)
        assert not await lease.is_held()


async def test_b01_a_vote_and_its_term_are_on_the_disks_that_gave_it(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        term = cluster.drivers[leader].status().term
        for name in cluster.names:
            await cluster.crash(name)
        votes = 0
        for name in cluster.names:
            directory = DataDirectory.open(tmp_path / name, NodeId(name))
            stored = directory.log.load().hard_state
            directory.close()
            votes += (stored.term, stored.voted_for) == (term, leader)
        assert votes >= 2


async def test_b02_an_answer_waits_for_a_majority_of_disks(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        await cluster.drivers[leader].propose(enqueue(0), timeout_s=10)
        await cluster.agree()
        gates = [Gate() for name in cluster.names if name != leader]
        for gate, name in zip(gates, (n for n in cluster.names if n != leader), strict=True):
            gate.install(cluster, name)
            gate.hang()
        try:
            answer = asyncio.ensure_future(
                cluster.drivers[leader].propose(enqueue(0), timeout_s=30)
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(answer), 0.3)
            gates[0].go_on()
            await asyncio.wait_for(answer, 10)
        finally:
            for gate in gates:
                gate.go_on()
