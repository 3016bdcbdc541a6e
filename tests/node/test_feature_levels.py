"""A rolling upgrade: the cluster gets a level once everybody understands it, and never before."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from gaia.command.v1 import command_pb2

from gaia_grpc.errors import (
    ConfigurationRefusedError,
    FailedPreconditionError,
    StartupError,
)
from gaia_grpc.raft.types import NodeId
from gaia_grpc.state import feature_levels
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from tests.support.local_cluster import FAST, LocalCluster, enqueue, running, until, writing

OLD = replace(FAST, max_feature_level=1)


def levels(cluster: LocalCluster) -> list[int]:
    return [driver.status().feature_level for _, driver in sorted(cluster.drivers.items())]


async def test_cluster_of_this_version_is_founded_at_its_level(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        await cluster.leader()
        await cluster.agree()
        assert levels(cluster) == [FEATURE_LEVEL] * 3
        assert cluster.drivers["n1"].status().last_log_index <= 3


async def test_rolling_upgrade_under_load_raises_the_level_with_the_last_peer(
    tmp_path: Path,
) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.consensus = OLD
    async with running(cluster), writing(cluster) as writer:
        await writer.more(5)
        cluster.consensus = FAST
        for name in cluster.names:
            assert levels(cluster) == [1, 1, 1]
            await cluster.stop(name)
            await cluster.start(name)
            await writer.more(5)
        await until(lambda: levels(cluster) == [FEATURE_LEVEL] * 3, 10)
        leader = cluster.drivers[await cluster.leader()].status()
        assert {member.feature_level for member in leader.members} == {FEATURE_LEVEL}
        assert all(member.software_version for member in leader.members)


async def test_peer_below_the_level_of_the_cluster_does_not_start(tmp_path: Path) -> None:
    """It could not apply what the others will propose."""
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        name = next(name for name in cluster.names if name != leader)
        await cluster.crash(name)
        old = replace(cluster.config(name), consensus=OLD)
        with suppress(StartupError):
            await cluster.start(name, config=old)
        async with asyncio.timeout(10):
            error = await cluster.drivers[name].failed
        assert isinstance(error, StartupError)
        assert "start a newer version here" in error.message


async def test_peer_below_the_level_is_refused_at_its_hello(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        await cluster.leader()
        await cluster.agree()
        hello = cluster.drivers["n1"].inbound.hello(NodeId("n2"))
        inbound = cluster.drivers["n2"].inbound
        assert inbound.accepts(hello) is None
        for level in (0, 1):  # 0: a peer of the first release says nothing about it
            refusal = inbound.accepts(replace(hello, feature_level=level))
            assert "feature level 1" in str(refusal)


async def test_peer_below_the_level_is_not_added(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        cluster.consensus = OLD
        starting = await cluster.wait_to_join("n4")
        with pytest.raises(ConfigurationRefusedError, match="feature level 1"):
            await cluster.add("n4", via=leader)
        assert not starting.done()


async def test_leader_proposes_nothing_that_a_member_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingress looks too; what comes from a peer of another version must not get past it."""
    kinds = {**feature_levels.LEVELS, "snooze_alert": 2}
    monkeypatch.setattr(feature_levels, "LEVELS", kinds)
    cluster = LocalCluster(tmp_path)
    cluster.consensus = OLD
    async with running(cluster):
        await cluster.leader()
        command = command_pb2.Command(snooze_alert=command_pb2.SnoozeAlert())
        for driver in cluster.drivers.values():
            with pytest.raises(FailedPreconditionError) as refused:
                await driver.propose(command.SerializeToString(), timeout_s=5)
            assert refused.value.instance_reason == "FEATURE_LEVEL"
            await driver.propose(enqueue(0), timeout_s=5)
        await cluster.agree()
