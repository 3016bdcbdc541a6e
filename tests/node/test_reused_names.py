"""A name whose machine was replaced, seen by a peer that has not heard of it (faults B26)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from gaia_grpc.config import StorageConfig
from gaia_grpc.errors import GaiaError, UnavailableError
from gaia_grpc.node.members import Membership, encode_configuration, standing_of
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NodeId
from gaia_grpc.transport.api import ForwardedCall, Member
from tests.support.local_cluster import (
    LocalCluster,
    engine_of,
    enqueue,
    running,
    until,
    writing,
)

NAMES = ("n1", "n2", "n3", "n4")


async def lead(cluster: LocalCluster, name: str, others: tuple[str, ...]) -> None:
    """Makes a peer the leader. A transfer is given up after one election timeout (thesis 3.10), so
    it is asked for until it comes about."""
    async with asyncio.timeout(20):
        while cluster.drivers[name].status().role is not RoleName.LEADER:
            for other in others:
                with suppress(GaiaError):
                    await cluster.drivers[other].transfer_leadership(name, timeout_s=2.0)
            await asyncio.sleep(0)


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
        await lead(cluster, reused, others=(leader,))
        await writer.more(5)
        wanted = cluster.drivers[reused].status().applied_index
        await cluster.start(late)
        await until(lambda: cluster.drivers[late].status().applied_index >= wanted)
        assert cluster.drivers[late].status().leader_id == reused


async def test_b26_five_peers_lagging_one_follows_a_replaced_leader_while_the_old_machine_lives(
    tmp_path: Path,
) -> None:
    """The old machine's process goes on, and knows nothing of its removal."""
    cluster = LocalCluster(tmp_path, ("n1", "n2", "n3", "n4", "n5"))
    cluster.storage = StorageConfig(snapshot_every_entries=30, snapshot_keep_entries=5)
    async with running(cluster), writing(cluster) as writer:
        leader = await cluster.leader()
        reused, late = [name for name in cluster.names if name != leader][:2]
        await writer.more(5)
        await cluster.crash(late)
        removed = cluster.drivers[reused].inbound
        await cluster.drivers[leader].remove_peer(reused, timeout_s=10)
        await cluster.crash(reused)
        cluster.wipe(reused)
        starting = await cluster.wait_to_join(reused)
        await cluster.add(reused, via=leader)
        await starting
        await lead(cluster, reused, others=(leader,))
        await writer.more(100)  # the late one needs a snapshot
        await cluster.start(late)
        await until(
            lambda: (
                cluster.drivers[late].status().applied_index > 0
                and cluster.drivers[late].status().leader_id == reused
            )
        )
        await cluster.agree()
        assert not cluster.drivers[late].failed.done()
        hello = replace(
            removed.hello(NodeId(late)),
            to_peer_uuid=cluster.drivers[late].status().peer_uuid,
        )
        assert cluster.drivers[late].inbound.accepts(hello) is not None


async def test_b26_peer_with_an_entry_that_is_taken_back_hears_a_replaced_leader(
    tmp_path: Path,
) -> None:
    """Its own configuration has the higher index, and was never committed: the term decides."""
    async with running(LocalCluster(tmp_path, NAMES)) as cluster:
        late = await cluster.leader()
        core = engine_of(cluster.drivers[late]).core
        reused, other, gone = [name for name in NAMES if name != late]
        cluster.isolate(late)
        for _ in range(50):
            engine_of(cluster.drivers[late]).propose(enqueue(0))
        before = core.last_index
        await until(lambda: core.last_index >= before + 50)
        with pytest.raises(GaiaError):
            await cluster.drivers[late].remove_peer(gone, timeout_s=0.2)
        await until(lambda: cluster.drivers[other].status().leader_id not in ("", late))
        await until(
            lambda: any(
                cluster.drivers[name].status().role is RoleName.LEADER
                and cluster.drivers[name].status().writable
                for name in (reused, other, gone)
            )
        )
        await cluster.drivers[other].remove_peer(reused, timeout_s=10)
        await cluster.crash(reused)
        cluster.wipe(reused)
        starting = await cluster.wait_to_join(reused)
        cluster.isolate(late)
        await cluster.add(reused, via=other)
        await starting
        await lead(cluster, reused, others=(other, gone))
        standing = standing_of(engine_of(cluster.drivers[reused]).core)
        assert standing.index < core.configuration_index
        cluster.network.heal()
        await until(lambda: cluster.drivers[late].status().leader_id == reused)
        await cluster.agree()


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
        term = hello.configuration_term
        assert term > 0
        stranger = replace(hello, from_peer_uuid="f" * 32)
        for index, older_term in ((0, 0), (known - 1, term), (known, term), (known + 1, term - 1)):
            other = replace(stranger, configuration_index=index, configuration_term=older_term)
            assert "other data" in (listener.accepts(other) or "")
        newer = replace(stranger, configuration_index=known + 1)
        assert listener.accepts(newer) is None
        # Whose answers count is another matter: a question names the data that is meant.
        assert listener.accepts(replace(newer, to_peer_uuid="e" * 32)) is not None
        # Once it was heard, the machine before it is not: its streams would take the other's place.
        listener.on_hello(newer)
        assert "other data" in (listener.accepts(hello) or "")
        assert listener.accepts(newer) is None


async def test_removed_peer_that_does_not_know_it_is_refused_by_the_leader(tmp_path: Path) -> None:
    """Nobody tells it, since it gets no log any more; what clients asked it went on to the leader
    all the same."""
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        removed, other = [name for name in cluster.names if name != leader]
        driver = cluster.drivers[removed]
        await driver.propose(enqueue(0), timeout_s=5)
        await cluster.drivers[leader].remove_peer(removed, timeout_s=10)
        call = ForwardedCall(enqueue(0), 1000)
        with pytest.raises(UnavailableError, match="does not want"):
            await driver._transport.forward(NodeId(leader), call, 1.0)
        refusal = cluster.drivers[leader].inbound.accepts(driver.inbound.hello(NodeId(leader)))
        assert refusal is not None
        assert "no member" in refusal
        # Who does not lead can't tell a removed peer from one that it has not heard of yet.
        assert cluster.drivers[other].inbound.accepts(driver.inbound.hello(NodeId(other))) is None
        # With the same data, if it comes back.
        uuid = driver.status().peer_uuid
        await cluster.drivers[leader].add_peer(
            removed, uuid, cluster.config(removed).peer_listen, timeout_s=10
        )
        await driver.propose(enqueue(0), timeout_s=5)
        await cluster.agree()


def membership(*members: Member, listed: dict[NodeId, str]) -> Membership:
    return Membership(
        "c",
        members,
        node_id=NodeId("n1"),
        peer_uuid="u1",
        peer_addresses=listed,
        client_address="",
        feature_level=1,
        software_version="",
    )


def test_listed_address_wins_also_for_who_comes_later_until_the_machine_moves() -> None:
    """As it would after a restart: behind a proxy the address that was added is of no use here."""
    first = Member(NodeId("n1"), "u1", "127.0.0.1:1", "")
    added = Member(NodeId("n2"), "u2", "127.0.0.1:2", "")
    listed = {NodeId("n2"): "proxy:2"}
    here = membership(first, listed=listed)
    here.follow(encode_configuration("c", [first, added]))
    assert here.other_addresses() == {"n2": "proxy:2"}
    assert membership(first, added, listed=listed).other_addresses() == {"n2": "proxy:2"}
    # Replaced at the same address, it is behind the same proxy; elsewhere it is not.
    here.follow(encode_configuration("c", [first]))
    here.follow(encode_configuration("c", [first, replace(added, peer_uuid="u3")]))
    assert here.other_addresses() == {"n2": "proxy:2"}
    moved = replace(added, peer_uuid="u4", peer_address="127.0.0.1:4")
    here.follow(encode_configuration("c", [first, moved]))
    assert here.other_addresses() == {"n2": "127.0.0.1:4"}
