"""The loop of one peer at its edges: log time, limits, failures, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gaia.command.v1 import command_pb2

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import (
    GaiaError,
    InvalidArgumentError,
    InvariantError,
    OutcomeUnknownError,
    OverloadedError,
    ResourceExhaustedError,
    UnavailableError,
)
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.node.engine import Engine
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.messages import Envelope, TimeoutNow
from gaia_grpc.raft.types import EntryKind, NodeId, Term
from gaia_grpc.state.machine import StateMachine
from tests.node.test_parts import HandClock
from tests.support.local_cluster import (
    FAST,
    LocalCluster,
    change_setting,
    read_setting,
    result_of,
    running,
)

HOUR_MS = 3_600_000


def engine_of(driver: NodeDriver) -> Engine:
    assert driver._engine is not None
    return driver._engine


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.002)


async def let_time_pass(driver: NodeDriver, clock: HandClock, duration_ms: int) -> None:
    """Moves the clock by 100 ms at a time, each seen by a tick."""
    stats = engine_of(driver).stats
    for _ in range(duration_ms // 100):
        clock.ns += 100_000_000
        seen = stats.ticks
        await until(lambda seen=seen: stats.ticks >= seen + 2)  # type: ignore[misc]


def enqueue(delay_ms: int) -> bytes:
    return command_pb2.Command(
        enqueue_tasks=command_pb2.EnqueueTasks(
            tasks=[command_pb2.TaskSpec(task_type="t", delay_ms=delay_ms)]
        )
    ).SerializeToString()


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
        assert driver._router is not None
        before_ms = await driver._router.confirm_read(5)
        await let_time_pass(driver, clock, 3_000)
        assert await driver._router.confirm_read(5) - before_ms == 3_000


async def test_log_time_is_in_the_log_while_something_waits_for_it(tmp_path: Path) -> None:
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


async def test_idle_cluster_with_nothing_due_writes_nothing(tmp_path: Path) -> None:
    cluster, clock = with_hand_clock(tmp_path)
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        before = driver.status().last_log_index
        await let_time_pass(driver, clock, 6_000)
        assert driver.status().last_log_index == before


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


async def test_log_time_never_goes_back_and_never_jumps_across_leaders(tmp_path: Path) -> None:
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


# --- failures -----------------------------------------------------------------------------------


async def test_acknowledgement_that_the_core_refuses_ends_the_peer(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        driver = cluster.drivers["n1"]
        engine_of(driver)._on_persisted(1_000_000)
        assert isinstance(driver.failed.result(), InvariantError)
        with pytest.raises(UnavailableError):
            await driver.propose(enqueue(0), timeout_s=5)


@pytest.mark.parametrize("call", ["peer_lost", "report_unreachable", "tick"])
async def test_bug_in_the_core_ends_the_peer_wherever_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        driver = cluster.drivers["n1"]
        engine = engine_of(driver)

        def broken(*_: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(type(engine.core), call, broken)
        if call == "peer_lost":
            engine.peer_lost(NodeId("n2"), Term(1))
        elif call == "report_unreachable":
            engine.report_unreachable(NodeId("n2"))
        await until(driver.failed.done)
        assert "KeyError" in driver.failed.result().message


async def test_entry_that_can_not_be_applied_ends_the_peer(tmp_path: Path) -> None:
    """One line, and nobody is told that it was applied, or that it was not."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        driver = cluster.drivers["n1"]
        with pytest.raises(OutcomeUnknownError):
            await driver.propose(b"", timeout_s=5)
        error = driver.failed.result()
        assert isinstance(error, InvariantError)
        assert "no command that this version knows" in error.message
        assert "\n" not in error.message
        assert not driver.status().writable


async def test_full_disk_refuses_writes_and_serves_again_when_there_is_space(
    tmp_path: Path,
) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        driver = cluster.drivers["n1"]
        engine = engine_of(driver)
        engine._on_full(True)
        assert not driver.status().writable
        with pytest.raises(ResourceExhaustedError) as refused:
            await driver.propose(enqueue(0), timeout_s=5)
        assert refused.value.instance_reason == "STORAGE_FULL"
        assert await read_setting(driver, "task.max_retries") == "3"
        engine._on_full(False)
        await driver.propose(enqueue(0), timeout_s=5)


async def test_started_peer_has_applied_what_it_had(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        driver = cluster.drivers["n1"]
        await asyncio.gather(*(driver.propose(enqueue(0), timeout_s=5) for _ in range(50)))
        await driver.propose(enqueue(0), timeout_s=5)
        await cluster.stop("n1")
        await cluster.start("n1")
        assert cluster.drivers["n1"].status().applied_index >= 50


async def test_peer_that_can_not_apply_its_log_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        await cluster.stop("n1")

        def refuse(self: StateMachine, index: int, kind: int, data: bytes) -> bytes:
            raise InvariantError(f"entry {index} can't be applied")

        monkeypatch.setattr(StateMachine, "apply", refuse)
        with pytest.raises(InvariantError, match="entry 1 can't be applied"):
            await cluster.start("n1")


# --- the end ------------------------------------------------------------------------------------


async def test_outcome_stays_unknown_when_the_peer_stops(tmp_path: Path) -> None:
    """The entry is in this peer's log, and the next leader may commit it (faults B29)."""
    cluster = LocalCluster(tmp_path)
    cluster.consensus = replace(FAST, election_timeout_min_ms=1_000, election_timeout_max_ms=2_000)
    async with running(cluster):
        name = await cluster.leader()
        cluster.network.isolate(NodeId(name), [NodeId(other) for other in cluster.names])
        driver = cluster.drivers[name]
        engine = engine_of(driver)
        admitted = engine.stats.admitted
        writing = asyncio.create_task(driver.propose(enqueue(0), timeout_s=20))
        await until(lambda: engine.stats.admitted > admitted)
        await engine.stop()
        with pytest.raises(OutcomeUnknownError):
            await asyncio.wait_for(writing, 5)


@pytest.mark.parametrize("stop", ["before", "meanwhile"])
async def test_read_of_a_stopping_peer_ends_at_once(tmp_path: Path, stop: str) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.consensus = replace(FAST, election_timeout_min_ms=1_000, election_timeout_max_ms=2_000)
    async with running(cluster):
        name = await cluster.leader()
        cluster.network.isolate(NodeId(name), [NodeId(other) for other in cluster.names])
        driver = cluster.drivers[name]
        if stop == "before":
            await engine_of(driver).stop()
        reading = asyncio.create_task(read_setting(driver, "task.max_retries", timeout_s=60))
        await asyncio.sleep(0.02)
        await engine_of(driver).stop()
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(reading, 5)


async def test_wait_for_an_index_ends_with_the_peer(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        engine = engine_of(cluster.drivers["n1"])
        waiting = asyncio.create_task(engine.applier.wait_applied(1_000))
        await asyncio.sleep(0)
        await engine.stop()
        for wait in (waiting, engine.applier.wait_applied(1_000)):
            with pytest.raises(GaiaError):
                await asyncio.wait_for(wait, 5)


async def test_message_to_a_stopped_peer_is_dropped(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        driver = cluster.drivers["n1"]
        engine = engine_of(driver)
        await engine.stop()
        for _ in range(3):
            driver.on_message(Envelope(NodeId("n2"), NodeId("n1"), Term(9), TimeoutNow()))
        assert len(engine._inbox) == 0


async def test_stopped_peer_hands_nothing_over(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        name = await cluster.leader()
        other = next(each for each in cluster.names if each != name)
        await engine_of(cluster.drivers[name]).stop()
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(
                cluster.drivers[name].transfer_leadership(other, timeout_s=60), 5
            )


async def test_status_tells_the_end_and_the_start(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, ("n1",))
    async with running(cluster):
        await cluster.leader()
        driver = cluster.drivers["n1"]
        seen = driver.status()
        watching = asyncio.create_task(driver.wait_status(seen, timeout_s=60))
        await asyncio.sleep(0)
        await driver.stop()
        assert not (await asyncio.wait_for(watching, 5)).writable


async def test_peer_that_is_stopped_twice_ends_once(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        name = await cluster.leader()
        driver = cluster.drivers[name]
        await asyncio.gather(driver.stop(), driver.stop())
        await driver.stop()
        assert not driver.failed.done()


async def test_peer_without_a_cluster_answers_and_stops(tmp_path: Path) -> None:
    """Nothing of the handler or of the log may fail in a way that is not told."""
    cluster = LocalCluster(tmp_path)
    starting = asyncio.create_task(cluster.start("n1"))
    await until(lambda: "n1" in cluster.drivers)
    driver = cluster.drivers["n1"]
    driver.on_message(Envelope(NodeId("n2"), NodeId("n1"), Term(1), TimeoutNow()))
    driver.on_stream_broken(NodeId("n2"))
    driver.on_leader_gone(NodeId("n2"), Term(1))
    status = driver.status()
    assert (status.role, status.writable, status.cluster_id) == (RoleName.FOLLOWER, False, "")
    assert await driver.wait_status(status, timeout_s=0.01) == status
    with pytest.raises(UnavailableError):
        await driver.propose(enqueue(0), timeout_s=5)
    with pytest.raises(UnavailableError):
        await driver.read(b"", consistency=ReadConsistency.LOCAL, timeout_s=5)
    with pytest.raises(UnavailableError):
        driver.hello(NodeId("n2"))
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    await driver.stop()
    await cluster.close()


async def test_founding_that_is_stopped_leaves_the_directory_empty(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    starting = asyncio.create_task(cluster.start("n1"))
    await asyncio.sleep(0.05)
    starting.cancel()
    await asyncio.wait([starting])
    assert cluster.directories["n1"].is_empty
    await cluster.crash("n1")
    await cluster.start()
    assert await cluster.leader()
    entries = await cluster.drivers["n1"].log_entries(1, 1)
    assert entries[0].kind == int(EntryKind.CONFIGURATION)
    await cluster.close()
