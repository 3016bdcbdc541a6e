"""Peers come and go on real ports, and what they need comes as a snapshot over gRPC."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.config import PeerConfig, StorageConfig
from gaia_grpc.errors import StartupError, UnavailableError
from gaia_grpc.raft.types import NodeId
from gaia_grpc.transport.api import ForwardedCall
from tests.server.test_process import process, serve_arguments
from tests.server.test_server import TIMEOUT_S, Running, free_port, make_configs, running
from tests.support.served_peer import eventually

SMALL = StorageConfig(snapshot_every_entries=30, snapshot_keep_entries=5)


def configs_of(root: Path, count: int) -> list[PeerConfig]:
    return [replace(config, storage=SMALL) for config in make_configs(root, count)]


def joining(root: Path, node_id: str) -> PeerConfig:
    address = f"127.0.0.1:{free_port()}"
    return replace(
        configs_of(root, 1)[0],
        node_id=node_id,
        peer_listen=address,
        peers=((node_id, address),),
        data_dir=str(root / node_id),
        bootstrap=False,
        join=True,
    )


async def add(via: Running, config: PeerConfig) -> cluster_pb2.AddPeerResponse:
    request = cluster_pb2.AddPeerRequest(node_id=config.node_id, peer_address=config.peer_listen)
    return await via.cluster.AddPeer(request, timeout=20)


async def remove(via: Running, node_id: str) -> cluster_pb2.RemovePeerResponse:
    request = cluster_pb2.RemovePeerRequest(node_id=node_id)
    return await via.cluster.RemovePeer(request, timeout=TIMEOUT_S)


async def agree(peers: list[Running]) -> None:
    """All have applied the same, and their states are the same."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            statuses = [await peer.status() for peer in peers]
            if len({status.applied_index for status in statuses}) == 1:
                assert len({status.state_hash for status in statuses}) == 1
                return
            await asyncio.sleep(0.02)


async def follower_of(peers: list[Running]) -> Running:
    leader_id = (await peers[0].status()).leader_id
    return next(peer for peer in peers if peer.server.config.node_id != leader_id)


async def test_every_machine_of_a_cluster_is_replaced_while_it_serves(tmp_path: Path) -> None:
    """Three new ones come, three old ones go, the leader among them: nothing is lost."""
    stop = asyncio.Event()
    keys: list[str] = []
    async with AsyncExitStack() as stack:
        peers = await stack.enter_async_context(running(*configs_of(tmp_path, 3)))
        old, serving = list(peers), list(peers)

        async def write() -> None:
            failures = 0
            while not stop.is_set():
                key = f"k-{len(keys)}"
                peer = serving[(len(keys) + failures) % len(serving)]
                try:
                    await peer.enqueue(key)
                    keys.append(key)
                except grpc.aio.AioRpcError:
                    failures += 1
                    await asyncio.sleep(0.05)

        writing = asyncio.create_task(write())
        await eventually(lambda: len(keys) >= 60)
        for number, leaving in enumerate(old):
            config = joining(tmp_path, f"m{number}")
            new = Running(config)
            stack.push_async_callback(new.end)
            assert (await new.status()).peers[:] == []
            via = await follower_of(serving)
            added = await add(via, config)
            assert [each.node_id for each in added.peers if each.voter][-1] <= f"n{3}"
            await new.ready()
            serving.append(new)
            serving.remove(leaving)
            left = await remove(serving[-1], leaving.server.config.node_id)
            assert len(left.peers) == 3
            await leaving.end()
        stop.set()
        await writing
        await agree(serving)
        assert sorted(each.node_id for each in (await serving[0].status()).peers) == [
            "m0",
            "m1",
            "m2",
        ]
        for key in keys:
            assert (await serving[0].enqueue(key)).existing
        assert (await serving[0].status()).snapshot_index > 30


async def test_lagging_peer_gets_a_snapshot_over_its_port(tmp_path: Path) -> None:
    configs = configs_of(tmp_path, 3)
    async with running(*configs) as peers:
        lagging = await follower_of(peers)
        others = [peer for peer in peers if peer is not lagging]
        await lagging.end()
        for number in range(100):
            await others[number % 2].enqueue(f"k-{number}")
        back = Running(replace(lagging.server.config, listen="127.0.0.1:0"))
        try:
            await back.ready()
            await agree([*others, back])
            assert (await back.status()).snapshot_index > 50
            assert (await back.status()).first_log_index > 50
        finally:
            await back.end()


async def test_removed_peer_that_does_not_know_it_reaches_the_leader_no_more(
    tmp_path: Path,
) -> None:
    """Its stream to the leader was open when it was removed, and carried calls on."""
    async with running(*configs_of(tmp_path, 3)) as peers:
        removed = await follower_of(peers)
        await removed.enqueue("before")
        driver = removed.server._driver
        assert driver is not None
        leader = NodeId(driver.status().leader_id)
        via = next(peer for peer in peers if peer is not removed)
        await remove(via, removed.server.config.node_id)
        call = ForwardedCall(None, 1000)

        async def call_on() -> None:
            async with asyncio.timeout(TIMEOUT_S):
                while True:  # the leader ends the stream at its next tick
                    await driver._transport.forward(leader, call, 1.0)

        with pytest.raises(UnavailableError):
            await call_on()
        with pytest.raises(UnavailableError, match="is no member"):
            await driver._transport.forward(leader, call, 1.0)
        await via.enqueue("others go on")


async def test_wiped_peer_is_refused_with_bootstrap(tmp_path: Path) -> None:
    configs = configs_of(tmp_path, 3)
    async with running(*configs) as peers:
        lost = await follower_of(peers)
        await lost.end()
        wiped = replace(lost.server.config, data_dir=str(tmp_path / "wiped"))
        again = Running(wiped)
        with pytest.raises(StartupError, match="remove this peer"):
            await again.ready()
        await again.end()


_HUNG = """
import os, sys, time
from gaia_grpc.storage.sqlite_log import SqliteLog
write = SqliteLog.write
def hang(self, batches):
    while os.path.exists(os.environ["HANG"]):
        time.sleep(0.05)
    write(self, batches)
SqliteLog.write = hang
from gaia_grpc.cli.main import main
sys.exit(main())
"""


@pytest.mark.e2e
def test_sigterm_with_a_hung_disk_ends_the_process_in_time_and_as_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = tmp_path / "hang"
    monkeypatch.setenv("HANG", str(hang))
    monkeypatch.setenv("GAIA_LIMITS_DRAIN_TIMEOUT_MS", "500")
    monkeypatch.setenv("GAIA_STORAGE_DISK_STALL_MS", "500")
    arguments = serve_arguments(tmp_path, free_port())
    with process([sys.executable, "-c", _HUNG, *arguments[3:]]) as peer:
        assert peer.stderr is not None
        for line in peer.stderr:
            if "role=leader" in line:
                break
        hang.touch()
        command = [
            sys.executable,
            "-m",
            "gaia_grpc",
            "call",
            "gaia.task.v1.TaskService/EnqueueTask",
        ]
        listen = arguments[arguments.index("--listen") + 1]
        calling = subprocess.Popen(
            [*command, '{"task_type": "t"}', "--cluster", listen],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for line in peer.stderr:
                if "disk_stalled" in line:
                    break
            started_s = time.monotonic()
            peer.send_signal(signal.SIGTERM)
            _, rest = peer.communicate(timeout=TIMEOUT_S)
        finally:
            calling.kill()
            calling.wait()
        assert time.monotonic() - started_s < 8
        assert peer.returncode == 1
        assert "the disk does not answer" in rest
