"""Members come and go while the cluster works (thesis 4; faults B25, B26)."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path

import pytest

from gaia_grpc.config import StorageConfig
from gaia_grpc.errors import (
    ConfigurationRefusedError,
    GaiaError,
    NotFoundError,
    StartupError,
    UnavailableError,
)
from gaia_grpc.node.members import decode_members_for, encode_configuration
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NodeId, SnapshotMeta
from gaia_grpc.storage.api import IncomingSnapshot
from gaia_grpc.transport.api import Member
from tests.support.local_cluster import (
    FAST,
    LocalCluster,
    engine_of,
    enqueue,
    running,
    until,
    writing,
)

SMALL = StorageConfig(snapshot_every_entries=30, snapshot_keep_entries=5)

LOOK_TICKS = 10
"""A leader looks for learners that are ready as often."""


def voters(cluster: LocalCluster, name: str) -> list[str]:
    return [member.node_id for member in cluster.drivers[name].status().members if member.voter]


def follows_another(cluster: LocalCluster, name: str, than: str) -> bool:
    return cluster.drivers[name].status().leader_id not in ("", than)


def others(cluster: LocalCluster, *names: str) -> list[str]:
    return [name for name in sorted(cluster.drivers) if name not in names]


async def test_peer_is_added_by_a_follower_and_promoted_under_load(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.storage = SMALL
    async with running(cluster), writing(cluster) as writer:
        leader = await cluster.leader()
        await writer.more(80)  # its beginning is compacted: the new peer needs a snapshot
        starting = await cluster.wait_to_join("n4")
        assert cluster.drivers["n4"].status().role is RoleName.FOLLOWER
        change = await cluster.add("n4", via=others(cluster, leader, "n4")[0])
        await starting
        assert [member.node_id for member in change.members] == ["n1", "n2", "n3", "n4"]
        assert all(member.voter for member in change.members)
        await writer.more(20)
        await until(lambda: voters(cluster, "n4") == ["n1", "n2", "n3", "n4"])
        # The new member counts: with it and two others there is a quorum.
        status = cluster.drivers["n4"].status()
        assert status.writable
        assert status.members[3].client_address == cluster.config("n4").listen


async def test_added_peer_votes_and_a_removed_one_is_not_missed(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster, writing(cluster) as writer:
        await writer.more(5)
        leader = await cluster.leader()
        starting = await cluster.wait_to_join("n4")
        await cluster.add("n4", via=leader)
        await starting
        gone = others(cluster, leader, "n4")[0]
        change = await cluster.drivers["n4"].remove_peer(gone, timeout_s=10)
        assert gone not in [member.node_id for member in change.members]
        await cluster.stop(gone)
        await cluster.crash(others(cluster, leader, "n4")[0])  # two of three are left
        await writer.more(20)


async def test_removed_leader_hands_over_and_ends_as_no_member(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        via = others(cluster, leader)[0]
        async with writing(cluster) as writer:
            await writer.more(10)
            change = await cluster.drivers[via].remove_peer(leader, timeout_s=10)
            assert leader not in [member.node_id for member in change.members]
            await until(lambda: cluster.drivers[leader].status().role is RoleName.LEARNER)
            await cluster.stop(leader)
            await writer.more(20)


async def test_wiped_peer_is_refused_with_bootstrap_and_replaced_with_join(tmp_path: Path) -> None:
    """B26: its name comes back with new data, as a learner first; meanwhile writes go on."""
    async with running(LocalCluster(tmp_path)) as cluster, writing(cluster) as writer:
        leader = await cluster.leader()
        lost, other = others(cluster, leader)
        await writer.more(5)
        await cluster.crash(lost)
        cluster.wipe(lost)
        with pytest.raises(StartupError, match="founding refused"):
            await cluster.start(lost)
        await cluster.crash(lost)
        cluster.wipe(lost)
        starting = await cluster.wait_to_join(lost)
        with pytest.raises(ConfigurationRefusedError, match="remove it first"):
            await cluster.add(lost, via=other)
        assert not starting.done()
        await cluster.drivers[other].remove_peer(lost, timeout_s=10)
        await writer.more(5)
        change = await cluster.add(lost, via=other)
        await starting
        assert [member.node_id for member in change.members] == ["n1", "n2", "n3"]
        assert all(member.voter for member in change.members)
        await cluster.crash(other)  # the replaced one is needed, and is there
        await writer.more(10)


async def test_two_changes_at_once_one_is_refused(tmp_path: Path) -> None:
    """B25: each of the two alone keeps quorums overlapping, both together need not."""
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        starting = [await cluster.wait_to_join(name) for name in ("n4", "n5")]
        results = await asyncio.gather(
            cluster.add("n4", via=leader),
            cluster.add("n5", via=others(cluster, leader)[0]),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, ConfigurationRefusedError)]
        assert len(refused) == 1, results
        name = "n5" if isinstance(results[1], GaiaError) else "n4"
        await cluster.add(name, via=leader)
        await asyncio.gather(*starting)
        assert voters(cluster, leader) == ["n1", "n2", "n3", "n4", "n5"]
        await cluster.agree()


async def test_b25_no_change_before_the_leader_has_committed_in_its_term(tmp_path: Path) -> None:
    """The bug of the thesis's first edition (raft-dev, 2015)."""
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        core = engine_of(cluster.drivers[leader]).core
        cluster.isolate(leader)
        before = core.configuration_index
        removing = asyncio.create_task(
            cluster.drivers[leader].remove_peer(others(cluster, leader)[0], timeout_s=1)
        )
        await until(lambda: core.configuration_index > before)
        second = others(cluster, leader)[1]
        with pytest.raises(ConfigurationRefusedError):
            await cluster.drivers[leader].remove_peer(second, timeout_s=1)
        with pytest.raises(GaiaError):
            await removing
        # The others chose a new leader, who never heard of it; the old one takes it back.
        cluster.network.heal()
        await cluster.leader()
        await cluster.agree()
        assert core.configuration_index == before
        for name in cluster.names:
            assert voters(cluster, name) == ["n1", "n2", "n3"]


async def test_b25_partition_kill_and_removal_in_quick_succession(tmp_path: Path) -> None:
    """RethinkDB 2.2.3 and NATS #7545: whatever comes first, nothing acknowledged is lost."""
    async with running(LocalCluster(tmp_path)) as cluster, writing(cluster) as writer:
        await writer.more(5)
        starting = [await cluster.wait_to_join(name) for name in ("n4", "n5")]
        for name in ("n4", "n5"):
            await cluster.add(name, via=await cluster.leader())
        await asyncio.gather(*starting)
        for _ in range(3):
            leader = await cluster.leader()
            gone = others(cluster, leader)[-1]
            cluster.isolate(leader)
            via = next(name for name in others(cluster, leader) if name != gone)
            removing = asyncio.create_task(cluster.drivers[via].remove_peer(gone, timeout_s=10))
            await until(partial(follows_another, cluster, via, leader))
            cluster.network.heal()
            await removing
            await cluster.crash(gone)
            await writer.more(5)
            if len(cluster.drivers) == 2:
                break
        await cluster.agree()


async def test_joiner_that_is_killed_in_mid_install_goes_on_after_its_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.storage = SMALL
    async with running(cluster), writing(cluster) as writer:
        await writer.more(60)
        leader = await cluster.leader()
        arrived = asyncio.Event()
        starting = await cluster.wait_to_join("n4")
        loop = asyncio.get_running_loop()
        store = cluster.directories["n4"].snapshots
        begin = store.incoming

        def begin_and_tell(meta: SnapshotMeta, size_bytes: int, sha256: bytes) -> IncomingSnapshot:
            loop.call_soon_threadsafe(arrived.set)
            return begin(meta, size_bytes, sha256)

        monkeypatch.setattr(store, "incoming", begin_and_tell)
        adding = asyncio.create_task(cluster.add("n4", via=leader, timeout_s=20))
        await asyncio.wait_for(arrived.wait(), 10)
        await starting
        await cluster.crash("n4")
        await writer.more(10)
        await cluster.start("n4", config=cluster.joining("n4"))
        change = await adding
        assert [member.node_id for member in change.members if member.voter][-1] == "n4"


async def test_b25_learner_that_answers_but_lags_is_given_no_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vote would cost the quorum a member that can acknowledge nothing (thesis 4.2.1)."""
    cluster = LocalCluster(tmp_path)
    cluster.storage = SMALL
    async with running(cluster), writing(cluster) as writer:
        await writer.more(60)
        leader = await cluster.leader()
        starting = await cluster.wait_to_join("n4")
        store = cluster.directories["n4"].snapshots
        begin = store.incoming
        arrived, gate = threading.Event(), threading.Event()

        def held(meta: SnapshotMeta, size_bytes: int, sha256: bytes) -> IncomingSnapshot:
            arrived.set()
            gate.wait(20)
            return begin(meta, size_bytes, sha256)

        monkeypatch.setattr(store, "incoming", held)
        adding = asyncio.create_task(cluster.add("n4", via=leader, timeout_s=20))
        await until(arrived.is_set, 10)
        try:
            engine = engine_of(cluster.drivers[leader])
            until_ticks = engine.stats.ticks + 10 * LOOK_TICKS
            await until(lambda: engine.stats.ticks >= until_ticks)
            progress = engine.core.progress(NodeId("n4"))
            assert progress is not None
            assert progress.heard_ticks_ago * FAST.tick_ms < FAST.election_timeout_max_ms, "silent"
            assert NodeId("n4") in engine.core.members.learners
        finally:
            gate.set()
        await starting
        change = await adding
        assert [member.node_id for member in change.members if member.voter][-1] == "n4"


async def test_b25_add_that_was_taken_back_can_be_asked_for_again(tmp_path: Path) -> None:
    """The leader that spoke to the new peer lost its office before the change was committed: the
    directory belongs to the cluster by then, and nobody's log names it."""
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        cluster.isolate(leader)
        starting = await cluster.wait_to_join("n4")
        with pytest.raises(GaiaError):
            await cluster.add("n4", via=leader, timeout_s=0.3)
        await starting
        await until(partial(follows_another, cluster, others(cluster, leader, "n4")[0], leader))
        cluster.network.heal()
        await until(lambda: "n4" not in names_of_members(cluster, leader))
        change = await cluster.add("n4", via=await cluster.leader())
        assert [member.node_id for member in change.members] == ["n1", "n2", "n3", "n4"]
        await cluster.agree()


async def test_peer_with_data_of_another_cluster_is_not_added(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        other = LocalCluster(tmp_path / "other", ("n4",))
        other.hub = cluster.hub
        async with running(other):
            with pytest.raises(ConfigurationRefusedError, match="holds data"):
                await cluster.add("n4", via=await cluster.leader())


def names_of_members(cluster: LocalCluster, name: str) -> list[str]:
    return [member.node_id for member in cluster.drivers[name].status().members]


async def test_learner_that_does_not_come_up_stays_one_and_costs_no_quorum(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster, writing(cluster) as writer:
        leader = await cluster.leader()
        starting = await cluster.wait_to_join("n4")
        cluster.network.cut(NodeId(leader), NodeId("n4"))
        cluster.network.cut(NodeId("n4"), NodeId(leader))
        with pytest.raises(UnavailableError):
            await cluster.add("n4", via=leader, timeout_s=1)
        cluster.network.heal()
        with pytest.raises(UnavailableError) as late:
            await add_while_cut(cluster, leader)
        assert late.value.instance_reason == "NOT_CAUGHT_UP"
        assert "n4" not in voters(cluster, leader)
        await cluster.crash(others(cluster, leader, "n4")[0])
        await writer.more(5)
        cluster.network.heal()
        await until(lambda: "n4" in voters(cluster, leader), 20)
        await starting


async def add_while_cut(cluster: LocalCluster, leader: str) -> None:
    """The learner answers who it is, and then falls silent."""
    via = next(name for name in cluster.names if name != leader)
    adding = asyncio.create_task(cluster.add("n4", via=via, timeout_s=2))
    core = engine_of(cluster.drivers[leader]).core
    await until(lambda: NodeId("n4") in core.members.learners)
    cluster.isolate("n4")
    await adding


async def test_senseless_changes_are_refused_by_name(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        for via in cluster.names:
            with pytest.raises(NotFoundError):
                await cluster.drivers[via].remove_peer("n9", timeout_s=5)
        with pytest.raises(UnavailableError):
            await cluster.add("n9", via=leader, timeout_s=1)
        starting = await cluster.wait_to_join("n4")
        with pytest.raises(ConfigurationRefusedError, match="answers as n4"):
            await cluster.drivers[leader].add_peer(
                "n5", "", cluster.joining("n4").peer_listen, timeout_s=5
            )
        with pytest.raises(ConfigurationRefusedError, match="has the data of"):
            await cluster.drivers[leader].add_peer(
                "n4", "another", cluster.joining("n4").peer_listen, timeout_s=5
            )
        # A member once more, by its uuid: nothing changes.
        member = cluster.drivers[leader].status().members[1]
        change = await cluster.drivers[leader].add_peer(
            member.node_id, member.peer_uuid, member.peer_address, timeout_s=5
        )
        assert len(change.members) == 3
        starting.cancel()


async def test_last_voter_can_not_be_removed(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        with pytest.raises(ConfigurationRefusedError):
            await cluster.drivers["n1"].remove_peer("n1", timeout_s=5)
        await cluster.drivers["n1"].propose(enqueue(0), timeout_s=5)


async def test_b26_machine_after_machine_down_to_one_and_back(tmp_path: Path) -> None:
    """The only voter of the first configuration comes back under its name with empty hands: in the
    log it reads of a voter of its name, and must not take that for itself."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        await cluster.leader()
        await cluster.drivers["n1"].propose(enqueue(0), timeout_s=5)
        starting = await cluster.wait_to_join("n2")
        await cluster.add("n2", via="n1")
        await starting
        await cluster.drivers["n2"].remove_peer("n1", timeout_s=10)
        await cluster.crash("n1")
        cluster.wipe("n1")
        starting = await cluster.wait_to_join("n1")
        assert await cluster.leader() == "n2"
        cut = asyncio.create_task(cluster.add("n1", via="n2", timeout_s=20))
        await starting
        await cut
        assert voters(cluster, "n1") == ["n1", "n2"]
        await cluster.agree()


def test_b26_name_in_an_old_configuration_is_not_the_new_machine() -> None:
    data = encode_configuration(
        "c",
        [
            Member(NodeId("n1"), "lost", "127.0.0.1:1", ""),
            Member(NodeId("n2"), "u2", "127.0.0.1:2", ""),
        ],
    )
    assert decode_members_for(NodeId("n1"), "lost", data).voters == ("n1", "n2")
    assert decode_members_for(NodeId("n2"), "u2", data).voters == ("n1", "n2")
    assert "n1" not in decode_members_for(NodeId("n1"), "new", data).voters
    assert len(decode_members_for(NodeId("n1"), "new", data).voters) == 2
