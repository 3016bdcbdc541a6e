"""What ends a peer: a full or failed disk, a bug, a stop; and what those who wait are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gaia_grpc.errors import (
    GaiaError,
    InvariantError,
    OutcomeUnknownError,
    ResourceExhaustedError,
    StorageFailedError,
    StorageFullError,
    UnavailableError,
)
from gaia_grpc.node import writer
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.messages import Envelope, TimeoutNow
from gaia_grpc.raft.types import EntryKind, NodeId, Term, WriteBatch
from gaia_grpc.state.machine import StateMachine
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


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_failed_disk_ends_one_peer_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        name = next(each for each in cluster.names if (each == leader) == (role == "leader"))

        def fail(batches: Sequence[WriteBatch]) -> None:
            raise StorageFailedError("fsync: EIO")

        monkeypatch.setattr(cluster.directories[name].log, "write", fail)
        survivor = next(each for each in cluster.names if each not in (name, leader))
        applied = await cluster.drivers[survivor].propose(
            change_setting("task.max_retries", "7", "r"), timeout_s=10
        )
        assert result_of(applied).settings.version
        await until(cluster.drivers[name].failed.done)
        assert isinstance(cluster.drivers[name].failed.result(), StorageFailedError)
        assert not cluster.drivers[name].status().writable
        assert await read_setting(cluster.drivers[survivor], "task.max_retries") == "7"


async def test_full_disk_of_the_leader_is_told_on_every_peer_until_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FULL_RETRY_S", 0.01)
    async with running(LocalCluster(tmp_path)) as cluster:
        name = await cluster.leader()
        storage = cluster.directories[name].log
        write = storage.write
        full = True

        def write_if_space(batches: Sequence[WriteBatch]) -> None:
            if full:
                raise StorageFullError("no space left")
            write(batches)

        monkeypatch.setattr(storage, "write", write_if_space)
        # The followers have space, so what was under way is committed all the same.
        await cluster.drivers[name].propose(enqueue(0), timeout_s=5)
        await until(lambda: engine_of(cluster.drivers[name]).disk_full)
        for each in cluster.names:
            with pytest.raises(ResourceExhaustedError) as refused:
                await cluster.drivers[each].propose(enqueue(0), timeout_s=5)
            assert refused.value.instance_reason == "STORAGE_FULL"
            assert await read_setting(cluster.drivers[each], "task.max_retries") == "3"
        full = False
        await until(lambda: cluster.drivers[name].status().writable)
        for each in cluster.names:
            await cluster.drivers[each].propose(enqueue(0), timeout_s=5)
        await cluster.agree()


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
            driver.inbound.on_message(Envelope(NodeId("n2"), NodeId("n1"), Term(9), TimeoutNow()))
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
    driver.inbound.on_message(Envelope(NodeId("n2"), NodeId("n1"), Term(1), TimeoutNow()))
    driver.inbound.on_stream_broken(NodeId("n2"))
    driver.inbound.on_leader_gone(NodeId("n2"), Term(1))
    status = driver.status()
    assert (status.role, status.writable, status.cluster_id) == (RoleName.FOLLOWER, False, "")
    assert await driver.wait_status(status, timeout_s=0.01) == status
    with pytest.raises(UnavailableError):
        await driver.propose(enqueue(0), timeout_s=5)
    with pytest.raises(UnavailableError):
        await driver.read(b"", consistency=ReadConsistency.LOCAL, timeout_s=5)
    with pytest.raises(UnavailableError):
        driver.inbound.hello(NodeId("n2"))
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
