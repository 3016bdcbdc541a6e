"""The loop of one peer: log time and limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import (
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
)
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.raft.types import NodeId, WriteBatch
from tests.node.test_parts import HandClock
from tests.support.local_cluster import (
    FAST,
    LocalCluster,
    change_setting,
    engine_of,
    enqueue,
    read_setting,
    result_of,
    running,
    until,
)

HOUR_MS = 3_600_000


async def let_time_pass(driver: NodeDriver, clock: HandClock, duration_ms: int) -> None:
    """Moves the clock by 100 ms at a time, each seen by a tick."""
    stats = engine_of(driver).stats
    for _ in range(duration_ms // 100):
        clock.ns += 100_000_000
        seen = stats.ticks
        await until(lambda seen=seen: stats.ticks >= seen + 2)  # type: ignore[misc]


def with_hand_clock(tmp_path: Path) -> tuple[LocalCluster, HandClock]:
    clock = HandClock()
    cluster = LocalCluster(tmp_path, ("n1",))
    cluster.clocks["n1"] = clock
    return cluster, clock


# --- log time -----------------------------------------------------------------------------------


async def test_log_time_goes_on_while_nothing_is_due(tmp_path: Path) -> None:
    """An idle hour is an hour: windows age and request ids expire by it."""
    cluster, clock = with_hand_clock(tmp_path)
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        before_ms = await driver.inbound.running().router.confirm_read(5)
        await let_time_pass(driver, clock, 3_000)
        assert await driver.inbound.running().router.confirm_read(5) - before_ms == 3_000


async def test_b17_log_time_is_in_the_log_while_something_waits_for_it(tmp_path: Path) -> None:
    """A new leader goes on from the last entry, so only what is written survives a change. Without
    this a task that waits an hour would wait for ever in a quiet cluster that changes its leader
    every half hour (faults B17)."""
    cluster, clock = with_hand_clock(tmp_path)
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        await driver.propose(enqueue(HOUR_MS), timeout_s=5)
        before_ms = driver.status().elapsed_ms
        await let_time_pass(driver, clock, 6_000)
        assert driver.status().elapsed_ms - before_ms >= 5_000
        assert driver.status().last_log_index <= 6


async def test_idle_cluster_writes_once_a_minute(tmp_path: Path) -> None:
    """A change of leader must not bring back windows that aged out an hour ago."""
    cluster, clock = with_hand_clock(tmp_path)
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        before = driver.status()
        await let_time_pass(driver, clock, 55_000)
        assert driver.status().last_log_index == before.last_log_index
        await let_time_pass(driver, clock, 6_000)
        assert driver.status().last_log_index == before.last_log_index + 1
        assert driver.status().elapsed_ms - before.elapsed_ms >= 55_000


async def test_what_falls_due_is_applied_by_whoever_leads(tmp_path: Path) -> None:
    """AdvanceTime goes on after each change of leader: none is waited for that was lost."""
    cluster = LocalCluster(tmp_path)
    async with running(cluster):
        for _ in range(3):
            name = await cluster.leader()
            await cluster.drivers[name].propose(enqueue(300), timeout_s=5)
            await cluster.crash(name)
            survivor = cluster.drivers[await cluster.leader()]
            machine = engine_of(survivor).applier.machine
            await until(lambda machine=machine: machine.next_due_ms() is None)  # type: ignore[misc]
            await cluster.start(name)


async def test_b17_log_time_never_goes_back_and_never_jumps_across_leaders(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    async with running(cluster):
        seen_ms = 0
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        for number in range(3):
            name = await cluster.leader()
            await cluster.drivers[name].propose(
                change_setting("task.max_retries", str(number + 1), f"r{number}"), timeout_s=5
            )
            now_ms = cluster.drivers[name].status().elapsed_ms
            first_ms = seen_ms or now_ms
            assert seen_ms <= now_ms
            seen_ms = now_ms
            await cluster.crash(name)
            await cluster.leader()
            await cluster.start(name)
        assert seen_ms - first_ms <= (loop.time() - started_s) * 1000 + 1


# --- limits -------------------------------------------------------------------------------------


async def test_bytes_that_wait_in_the_log_count(tmp_path: Path) -> None:
    """They are held until they are applied, not only until they are admitted."""
    command = change_setting("task.max_retries", "4", "r" * 100)
    cluster = LocalCluster(tmp_path)
    cluster.consensus = replace(
        FAST,
        election_timeout_min_ms=1_000,
        election_timeout_max_ms=2_000,
        max_pending_size_bytes=2 * len(command),
    )
    async with running(cluster):
        name = await cluster.leader()
        await cluster.agree()
        cluster.network.isolate(NodeId(name), [NodeId(other) for other in cluster.names])
        engine = engine_of(cluster.drivers[name])
        admitted = engine.stats.admitted
        waiting = [engine.propose(command) for _ in range(2)]
        await until(lambda: engine.stats.admitted == admitted + 2)
        with pytest.raises(OverloadedError) as refused:
            engine.propose(command)
        assert refused.value.retry_after_ms
        cluster.network.heal()
        await asyncio.wait([proposal.future for proposal in waiting])
        await engine.propose(command).future


async def test_slow_disk_of_a_leader_bounds_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its followers commit without it; what it has not written itself must not grow for ever."""
    cluster = LocalCluster(tmp_path)
    cluster.consensus = replace(FAST, max_pending_proposals=10)
    async with running(cluster):
        name = await cluster.leader()
        await cluster.agree()
        storage = cluster.directories[name].log
        write, has_time = storage.write, threading.Event()

        def slow_write(batches: Sequence[WriteBatch]) -> None:
            has_time.wait(30)
            write(batches)

        monkeypatch.setattr(storage, "write", slow_write)
        driver = cluster.drivers[name]
        try:
            for _ in range(10):
                await driver.propose(enqueue(0), timeout_s=5)
            with pytest.raises(OverloadedError):
                await driver.propose(enqueue(0), timeout_s=5)
            assert await read_setting(driver, "task.max_retries") == "3"
        finally:
            has_time.set()
        core = engine_of(driver).core
        await until(lambda: core.durable_index == core.last_index)
        await driver.propose(enqueue(0), timeout_s=5)
        await cluster.agree()


async def test_reads_that_wait_for_a_quorum_are_bounded(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.consensus = replace(
        FAST, election_timeout_min_ms=1_000, election_timeout_max_ms=2_000, max_pending_reads=5
    )
    async with running(cluster):
        name = await cluster.leader()
        cluster.network.isolate(NodeId(name), [NodeId(other) for other in cluster.names])
        reads = []
        for _ in range(5):
            reads.append(
                asyncio.create_task(read_setting(cluster.drivers[name], "task.max_retries"))
            )
            turns = engine_of(cluster.drivers[name]).stats.turns
            await until(lambda t=turns: engine_of(cluster.drivers[name]).stats.turns > t + 1)  # type: ignore[misc]
        with pytest.raises(OverloadedError):
            await read_setting(cluster.drivers[name], "task.max_retries")
        cluster.network.heal()
        assert await asyncio.gather(*reads) == ["3"] * 5
        assert await read_setting(cluster.drivers[name], "task.max_retries") == "3"


async def test_reads_that_gave_up_are_forgotten(tmp_path: Path) -> None:
    """A follower that is cut off from the leader's appends alone must not collect its readers."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        applier = engine_of(cluster.drivers["n1"]).applier
        index = applier.machine.applied_index + 1_000
        for _ in range(20):
            readers = [asyncio.create_task(applier.wait_applied(index)) for _ in range(50)]
            await asyncio.sleep(0)
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
        assert applier.waiting_reads == 0
        assert len(applier._reads) <= 200


async def test_command_that_no_frame_can_hold_is_refused(tmp_path: Path) -> None:
    """In the log it would break the append stream of every follower, for ever."""
    cluster = LocalCluster(tmp_path)
    limit = 1 << 20
    cluster.limits = replace(cluster.limits, peer_max_message_size_bytes=limit)
    async with running(cluster):
        await cluster.leader()
        too_large = change_setting("task.max_retries", "4", "r" * limit)
        for name in cluster.names:
            with pytest.raises(InvalidArgumentError) as refused:
                await cluster.drivers[name].propose(too_large, timeout_s=5)
            assert refused.value.instance_reason == "COMMAND_TOO_LARGE"
        applied = await cluster.drivers["n1"].propose(
            change_setting("task.max_retries", "4", "r"), timeout_s=5
        )
        assert result_of(applied).WhichOneof("body") == "settings"


async def test_command_larger_than_any_client_can_send_is_refused(tmp_path: Path) -> None:
    """60 MB hold the peers up for longer than an election timeout."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        with pytest.raises(InvalidArgumentError):
            await cluster.drivers["n1"].propose(b"c" * (33 << 20), timeout_s=5)
        assert not cluster.drivers["n1"].failed.done()


async def test_command_larger_than_an_append_is_replicated(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    # Peers share one loop here: 20 MB on a busy machine hold it up for longer than FAST allows.
    cluster.consensus = ConsensusConfig()
    async with running(cluster):
        leader = cluster.drivers[await cluster.leader()]
        large = change_setting("task.max_retries", "4", "r" * (20 << 20))
        term = leader.status().term
        await leader.propose(large, timeout_s=20)
        await cluster.agree()
        assert leader.status().term == term


async def test_each_caller_that_is_refused_gets_an_error_of_its_own(tmp_path: Path) -> None:
    """A shared exception would collect the traceback of every caller that raises it."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        engine = engine_of(cluster.drivers["n1"])
        futures = [engine.propose(enqueue(0)).future for _ in range(3)]
        await engine.stop()
        errors = await asyncio.gather(*futures, return_exceptions=True)
        assert len({id(error) for error in errors}) == 3
        assert all(isinstance(error, UnavailableError) for error in errors)
