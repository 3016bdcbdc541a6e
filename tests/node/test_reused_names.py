"""A name whose machine was replaced, seen by a peer that has not heard of it (faults B26)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NodeId
from tests.support.local_cluster import LocalCluster, engine_of, running, until, writing

NAMES = ("n1", "n2", "n3", "n4")


async def test_b26_peer_that_lags_hears_a_leader_whose_machine_was_replaced(
    tmp_path: Path,
) -> None:
    """Its own configuration still names the data of the machine before; only the leader can tell
    it. Found by the simulation: it was refused, and stayed behind for as long as that one led."""
    async with running(LocalCluster(tmp_path, NAMES)) as cluster, writing(cluster) as writer:
        leader = await cluster.leader()
        reused, late = [name for name in NAMES if name != leader][:2]
        await writer.more(5)
        await cluster.crash(late)
        await cluster.drivers[leader].remove_peer(reused, timeout_s=10)
        await cluster.crash(reused)
        cluster.wipe(reused)
        starting = await cluster.wait_to_join(reused)
        await cluster.add(reused, via=leader)
        await starting
        engine_of(cluster.drivers[leader]).transfer(NodeId(reused))
        await until(lambda: cluster.drivers[reused].status().role is RoleName.LEADER)
        await writer.more(5)
        wanted = cluster.drivers[reused].status().applied_index
        await cluster.start(late)
        await until(lambda: cluster.drivers[late].status().applied_index >= wanted)
        assert cluster.drivers[late].status().leader_id == reused


async def test_b26_speaker_with_other_data_is_refused_unless_it_knows_a_newer_configuration(
    tmp_path: Path,
) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        await cluster.leader()
        listener = cluster.drivers["n2"].inbound
        hello = cluster.drivers["n1"].inbound.hello(NodeId("n2"))
        assert listener.accepts(hello) is None
        known = hello.configuration_index
        assert known == engine_of(cluster.drivers["n2"]).core.configuration_index > 0
        for index in (0, known - 1, known):
            other = replace(hello, from_peer_uuid="f" * 32, configuration_index=index)
            assert "other data" in (listener.accepts(other) or "")
        newer = replace(hello, from_peer_uuid="f" * 32, configuration_index=known + 1)
        assert listener.accepts(newer) is None
        # Whose answers count is another matter: a question names the data that is meant.
        assert listener.accepts(replace(newer, to_peer_uuid="e" * 32)) is not None
