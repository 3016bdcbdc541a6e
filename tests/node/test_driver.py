"""The driver: one log, seen from any peer, through lost leaders, cut links and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gaia_grpc.config import ConsensusConfig
from gaia_grpc.errors import (
    OutcomeUnknownError,
    OutOfRangeError,
    OverloadedError,
    UnavailableError,
)
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NodeId, Term
from tests.support.local_cluster import (
    FAST,
    LocalCluster,
    change_setting,
    engine_of,
    read_setting,
    result_of,
    running,
    until,
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    async with running(LocalCluster(tmp_path)) as cluster:
        yield cluster


async def test_any_peer_takes_a_command_and_all_apply_it(cluster: LocalCluster) -> None:
    for number, name in enumerate(cluster.names):
        applied = await cluster.drivers[name].propose(
            change_setting("task.max_retries", str(number + 5), f"r{number}"), timeout_s=5
        )
        assert result_of(applied).WhichOneof("body") == "settings"
        for reader in cluster.names:
            assert await read_setting(cluster.drivers[reader], "task.max_retries") == str(
                number + 5
            )
    await cluster.agree()


async def test_many_commands_at_once_share_writes(cluster: LocalCluster) -> None:
    leader = cluster.drivers[await cluster.leader()]
    before = engine_of(leader).writer.stats.transactions
    answers = await asyncio.gather(
        *(
            leader.propose(change_setting("task.max_retries", "4", f"r{n}"), timeout_s=5)
            for n in range(300)
        )
    )
    assert len({answer.index for answer in answers}) == 300
    assert engine_of(leader).writer.stats.transactions - before < 100
    await cluster.agree()


async def test_lost_leader_is_replaced_and_nothing_acknowledged_is_lost(
    cluster: LocalCluster,
) -> None:
    for number in range(5):
        name = await cluster.leader()
        await cluster.drivers[name].propose(
            change_setting("task.max_retries", str(number + 4), f"r{number}"), timeout_s=5
        )
        await cluster.crash(name)
        await cluster.leader()
        survivor = next(iter(sorted(cluster.drivers)))
        assert await read_setting(cluster.drivers[survivor], "task.max_retries") == str(number + 4)
        await cluster.start(name)
    await cluster.agree()


async def test_command_survives_the_loss_of_its_leader(cluster: LocalCluster) -> None:
    """The entry sits on a leader that is cut off; the router repeats it on the next one."""
    old = await cluster.leader()
    follower = next(name for name in cluster.names if name != old)
    cluster.network.isolate(NodeId(old), [NodeId(name) for name in cluster.names])
    applied = await cluster.drivers[follower].propose(
        change_setting("task.max_retries", "7", "r1"), timeout_s=10
    )
    assert result_of(applied).WhichOneof("body") == "settings"
    cluster.network.heal()
    await cluster.agree()
    assert await read_setting(cluster.drivers[old], "task.max_retries") == "7"


async def test_cut_off_leader_neither_acknowledges_nor_reads(cluster: LocalCluster) -> None:
    old = await cluster.leader()
    cluster.network.isolate(NodeId(old), [NodeId(name) for name in cluster.names])
    with pytest.raises((OutcomeUnknownError, UnavailableError)):
        await cluster.drivers[old].propose(
            change_setting("task.max_retries", "9", "r1"), timeout_s=0.5
        )
    with pytest.raises(UnavailableError):
        await read_setting(cluster.drivers[old], "task.max_retries", timeout_s=0.3)
    assert (
        await read_setting(
            cluster.drivers[old], "task.max_retries", consistency=ReadConsistency.LOCAL
        )
        == "3"
    )
    await until(lambda: not cluster.drivers[old].status().writable)


async def test_without_a_quorum_a_write_is_refused_in_time(cluster: LocalCluster) -> None:
    leader = await cluster.leader()
    for name in cluster.names:
        if name != leader:
            await cluster.crash(name)
    driver = cluster.drivers[leader]
    status = driver.status()
    while status.writable:
        status = await driver.wait_status(status, timeout_s=1)
    with pytest.raises(UnavailableError) as refused:
        await driver.propose(change_setting("task.max_retries", "9", "r1"), timeout_s=0.3)
    assert refused.value.retry_after_ms


async def test_all_crash_and_come_back_with_everything(cluster: LocalCluster) -> None:
    name = await cluster.leader()
    for number in range(20):
        await cluster.drivers[name].propose(
            change_setting("task.max_retries", str(number), f"r{number}"), timeout_s=5
        )
    before = await cluster.agree()
    index = cluster.drivers[name].status().applied_index
    for each in cluster.names:
        await cluster.crash(each)
    await cluster.start()
    await cluster.leader()
    for each in cluster.names:
        assert await read_setting(cluster.drivers[each], "task.max_retries") == "19"
        assert cluster.drivers[each].status(at_index=index).state_hash == before


async def test_stopping_leader_hands_over(cluster: LocalCluster) -> None:
    old = await cluster.leader()
    term = cluster.drivers[old].status().term
    await cluster.stop(old)
    statuses = [driver.status() for driver in cluster.drivers.values()]
    assert any(status.role is RoleName.LEADER for status in statuses)
    assert max(status.term for status in statuses) > term


async def test_follower_campaigns_at_once_when_the_leaders_process_is_gone(tmp_path: Path) -> None:
    """With election timeouts of a minute only the loss itself can bring a new leader."""
    cluster = LocalCluster(tmp_path)
    async with running(cluster):
        old = await cluster.leader()
        cluster.consensus = ConsensusConfig(
            tick_ms=2,
            heartbeat_interval_ms=20,
            election_timeout_min_ms=60_000,
            election_timeout_max_ms=61_000,
        )
        for name in cluster.names:
            if name != old:
                await cluster.crash(name)
                await cluster.start(name)
        await cluster.leader()
        await cluster.agree()
        status = cluster.drivers[old].status()
        await cluster.crash(old)
        for name in sorted(cluster.drivers):
            cluster.drivers[name].inbound.on_leader_gone(NodeId(old), Term(status.term))
        new = await cluster.leader(timeout_s=5)
        assert cluster.drivers[new].status().term > status.term


async def test_overload_is_declared(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.consensus = ConsensusConfig(
        tick_ms=FAST.tick_ms,
        heartbeat_interval_ms=FAST.heartbeat_interval_ms,
        election_timeout_min_ms=FAST.election_timeout_min_ms,
        election_timeout_max_ms=FAST.election_timeout_max_ms,
        max_pending_proposals=10,
    )
    async with running(cluster):
        leader = cluster.drivers[await cluster.leader()]
        answers = await asyncio.gather(
            *(
                leader.propose(change_setting("task.max_retries", "4", f"r{n}"), timeout_s=5)
                for n in range(40)
            ),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
        assert len(refused) == 30
        assert all(error.retry_after_ms for error in refused)


async def test_topics_wake_on_every_peer(cluster: LocalCluster) -> None:
    name = await cluster.leader()
    versions = {each: cluster.drivers[each].topic_version("settings") for each in cluster.names}
    waits = [
        asyncio.create_task(
            cluster.drivers[each].wait_topic("settings", versions[each], timeout_s=5)
        )
        for each in cluster.names
    ]
    await cluster.drivers[name].propose(change_setting("task.max_retries", "8", "r1"), timeout_s=5)
    for each, version in zip(cluster.names, await asyncio.gather(*waits), strict=True):
        assert version != versions[each]


async def test_log_and_hashes_are_listed_alike(cluster: LocalCluster) -> None:
    name = await cluster.leader()
    for number in range(3):
        await cluster.drivers[name].propose(
            change_setting("task.max_retries", str(number), f"r{number}"), timeout_s=5
        )
    await cluster.agree()
    logs = [await cluster.drivers[each].log_entries(0, 1000) for each in cluster.names]
    assert logs[0] == logs[1] == logs[2]
    assert [entry.index for entry in logs[0]] == list(range(1, len(logs[0]) + 1))
    assert len({entry.checksum for entry in logs[0]}) == len(logs[0])
    assert await cluster.drivers[name].log_entries(len(logs[0]) + 1, 10) == ()
    with pytest.raises(OutOfRangeError):
        cluster.drivers[name].status(at_index=10_000)
