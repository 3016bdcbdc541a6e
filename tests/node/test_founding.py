"""Founding: one cluster or none, and never a voter that forgot (design section 4, faults B26)."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from gaia_grpc.config import StorageConfig
from gaia_grpc.errors import InvariantError, StartupError, UnavailableError
from gaia_grpc.node import founding
from gaia_grpc.node.members import (
    Membership,
    decode_configuration,
    encode_configuration,
    latest_configuration,
)
from gaia_grpc.raft.types import Index, NodeId
from gaia_grpc.transport.api import Hello, IdentifyRequest, IdentifyResponse
from gaia_grpc.transport.memory import MemoryTransport
from tests.support.local_cluster import (
    LocalCluster,
    change_setting,
    read_setting,
    running,
    until,
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    cluster = LocalCluster(tmp_path)
    yield cluster
    await cluster.close()


async def test_peers_found_one_cluster_with_their_settings(cluster: LocalCluster) -> None:
    cluster.settings = (("task.max_retries", "5"),)
    await cluster.start()
    await cluster.leader()
    assert len({driver.status().cluster_id for driver in cluster.drivers.values()}) == 1
    for driver in cluster.drivers.values():
        assert await read_setting(driver, "task.max_retries") == "5"
    await cluster.agree()


async def test_founder_that_was_stalled_does_not_stand_for_election_in_a_burst(
    tmp_path: Path,
) -> None:
    """Votes that were asked for all at once ran out of time while the others answered them."""
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        campaigns: list[float] = []
        engine: Any = SimpleNamespace(
            campaign=lambda: campaigns.append(time.monotonic()), stopped=False
        )
        cluster.drivers["n1"]._lead_at_once(engine)
        stall(0.2)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(campaigns) <= 2
        await until(lambda: len(campaigns) >= 4)
        engine.stopped = True


def stall(seconds: float) -> None:
    """The loop does nothing else meanwhile."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        time.sleep(0.01)


async def test_single_peer_founds_alone(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path, ("n1",))) as cluster:
        assert await cluster.leader() == "n1"
        await cluster.drivers["n1"].propose(
            change_setting("task.max_retries", "6", "r"), timeout_s=5
        )


async def test_late_peer_takes_the_founding_over(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n3 answers the founder, and asks again only when the cluster has long been founded."""
    deaf = asyncio.Event()
    ask = MemoryTransport.identify

    async def identify(
        self: MemoryTransport, peer: NodeId, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        if request.node_id == "n3" and not deaf.is_set():
            raise UnavailableError("not yet")
        return await ask(self, peer, request, timeout_s)

    monkeypatch.setattr(MemoryTransport, "identify", identify)
    late = asyncio.create_task(cluster.start("n3"))
    await cluster.start("n1", "n2")
    leader = await cluster.leader()
    await cluster.drivers[leader].propose(change_setting("task.max_retries", "6", "r"), timeout_s=5)
    assert not late.done()
    deaf.set()
    await late
    assert await read_setting(cluster.drivers["n3"], "task.max_retries") == "6"


async def test_b26_wiped_peer_neither_founds_nor_votes(cluster: LocalCluster) -> None:
    await cluster.start()
    await cluster.leader()
    await cluster.crash("n1")
    shutil.rmtree(cluster.root / "n1")
    with pytest.raises(StartupError, match="founding refused"):
        await cluster.start("n1")
    # Even with the right cluster id and name its messages are refused: the uuid is another one.
    stranger = cluster.directories["n1"].identity()
    status = cluster.drivers["n2"].status()
    refusal = cluster.drivers["n2"].inbound.accepts(
        Hello(
            cluster_id=status.cluster_id,
            from_node=NodeId("n1"),
            from_peer_uuid=stranger.peer_uuid,
            to_node=NodeId("n2"),
            to_peer_uuid=status.peer_uuid,
        )
    )
    assert refusal is not None
    assert "other data" in refusal


async def test_different_peer_lists_refuse_each_other(cluster: LocalCluster) -> None:
    other = LocalCluster(cluster.root, ("n1", "n2", "n4"))
    other.hub, other.network = cluster.hub, cluster.network
    results = await asyncio.gather(
        cluster.start("n1"),
        other.start("n2"),
        return_exceptions=True,
    )
    await other.close()
    assert all(isinstance(result, StartupError) for result in results), results
    assert "another --peer list" in str(results[0])


async def test_different_settings_refuse_each_other(cluster: LocalCluster) -> None:
    special = replace(cluster.config("n2"), settings=(("task.max_retries", "9"),))
    results = await asyncio.gather(
        cluster.start("n1"), cluster.start("n2", config=special), return_exceptions=True
    )
    assert all(isinstance(result, StartupError) for result in results), results


async def test_empty_directory_without_bootstrap_does_not_start(cluster: LocalCluster) -> None:
    with pytest.raises(StartupError, match="--bootstrap"):
        await cluster.start("n1", config=cluster.config("n1", bootstrap=False))


async def test_restart_ignores_bootstrap_and_the_peer_list_only_has_addresses(
    cluster: LocalCluster,
) -> None:
    """The log tells who the members are; what an old command line says changes nothing."""
    await cluster.start()
    await cluster.crash("n1")
    listed = (*cluster.config("n1").peers[:2], ("n9", "127.0.0.1:9"))
    await cluster.start("n1", config=replace(cluster.config("n1"), peers=listed))
    await cluster.leader()
    members = cluster.drivers["n1"].status().members
    assert [member.node_id for member in members] == ["n1", "n2", "n3"]


async def test_message_of_another_cluster_is_refused(cluster: LocalCluster) -> None:
    await cluster.start()
    hello = cluster.drivers["n1"].inbound.hello(NodeId("n2"))
    assert cluster.drivers["n2"].inbound.accepts(hello) is None
    for wrong in (
        replace(hello, cluster_id="0" * 32),
        replace(hello, from_node=NodeId("n9")),
        replace(hello, to_peer_uuid="someone else"),
        replace(hello, to_node=NodeId("n3")),
    ):
        assert cluster.drivers["n2"].inbound.accepts(wrong) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_id": NodeId("n3")}, "the address of n2 answers as n3"),
        ({"listed_peers": ()}, "another --peer list"),
        ({"settings": (("task.max_retries", "9"),)}, "other --set values"),
        ({"bootstrapping": False}, "without --bootstrap"),
        ({"empty": False}, "already holds data of a cluster"),
    ],
)
async def test_founding_is_refused_by_each_wrong_answer(
    cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    ask = MemoryTransport.identify

    async def identify(
        self: MemoryTransport, peer: NodeId, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        answer = await ask(self, peer, request, timeout_s)
        return replace(answer, **change) if peer == "n2" and request.node_id == "n1" else answer

    monkeypatch.setattr(MemoryTransport, "identify", identify)
    others = [asyncio.create_task(cluster.start(name)) for name in ("n2", "n3")]
    with pytest.raises(StartupError, match=message):
        await asyncio.wait_for(cluster.start("n1"), 5)
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    assert all(directory.is_empty for directory in cluster.directories.values())


async def test_founding_that_waits_says_for_whom(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(founding, "_REPORT_EVERY_S", 0.01)
    with structlog.testing.capture_logs() as logs:
        waiting = asyncio.create_task(cluster.start("n1"))
        async with asyncio.timeout(5):
            while not logs:  # noqa: ASYNC110  # the log has no event
                await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert (logs[0]["event"], logs[0]["missing"]) == ("founding_waits", "n2, n3")


async def test_bug_in_the_transport_is_not_taken_for_a_missing_peer(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def identify(*_: object) -> IdentifyResponse:
        raise KeyError("a bug")

    monkeypatch.setattr(MemoryTransport, "identify", identify)
    with pytest.raises(KeyError):
        await asyncio.wait_for(cluster.start("n1"), 5)


async def test_log_of_another_cluster_is_refused(cluster: LocalCluster) -> None:
    """Neither the identity of the directory nor its log alone decides."""
    await cluster.start()
    entries = cluster.directories["n1"].log.read_entries(Index(1), 1)
    cluster_id, members = decode_configuration(entries[0].data)
    membership = Membership(
        cluster_id,
        members,
        node_id=NodeId("n1"),
        peer_uuid="wiped",
        peer_addresses={},
        client_address="",
        feature_level=1,
        software_version="",
    )
    assert not membership.is_member
    with pytest.raises(InvariantError, match="names cluster another"):
        membership.follow(encode_configuration("another", members))
    assert latest_configuration(()) is None
    assert latest_configuration(entries) == (cluster_id, members)


async def test_restarted_peer_is_found_at_its_new_client_address(cluster: LocalCluster) -> None:
    await cluster.start()
    driver = cluster.drivers["n2"]
    hello = replace(cluster.drivers["n1"].inbound.hello(NodeId("n2")), client_address="127.0.0.1:9")
    assert driver.inbound.accepts(hello) is None
    driver.inbound.on_hello(hello)
    addresses = {member.node_id: member.client_address for member in driver.status().members}
    assert addresses["n1"] == "127.0.0.1:9"
    assert driver.inbound.hello(NodeId("n9")).to_peer_uuid == ""


async def test_founding_peer_that_comes_when_the_founding_is_compacted_joins(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never promised anything, and the configuration names its very data directory."""
    cluster.storage = StorageConfig(snapshot_every_entries=20, snapshot_keep_entries=0)
    deaf = asyncio.Event()
    ask = MemoryTransport.identify

    async def identify(
        self: MemoryTransport, peer: NodeId, request: IdentifyRequest, timeout_s: float
    ) -> IdentifyResponse:
        if request.node_id == "n3" and not deaf.is_set():
            raise UnavailableError("not yet")
        return await ask(self, peer, request, timeout_s)

    monkeypatch.setattr(MemoryTransport, "identify", identify)
    late = asyncio.create_task(cluster.start("n3"))
    await cluster.start("n1", "n2")
    leader = await cluster.leader()
    for number in range(50):
        await cluster.drivers[leader].propose(
            change_setting("task.max_retries", str(1 + number % 9), f"r{number}"), timeout_s=5
        )
    for name in ("n1", "n2"):
        await until(lambda name=name: cluster.drivers[name].status().first_log_index > 2)  # type: ignore[misc]  # bound
    deaf.set()
    await late
    await cluster.agree()
    assert cluster.drivers["n3"].status().snapshot_index > 2
    assert await read_setting(cluster.drivers["n3"], "task.max_retries") == "5"
