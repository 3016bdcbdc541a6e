"""One peer and three of them with real disks, ports and consensus, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from gaia.alert.v1 import alert_pb2, alert_pb2_grpc
from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gaia.session.v1 import session_pb2, session_pb2_grpc
from gaia.task.v1 import task_pb2, task_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gaia_grpc import server
from gaia_grpc.config import ConsensusConfig, LimitsConfig, PeerConfig
from gaia_grpc.errors import (
    ConfigError,
    GaiaError,
    StartupError,
    StorageDamagedError,
    StorageFailedError,
)
from gaia_grpc.node.clock import Clock
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.server import PeerServer
from tests.support.served_peer import eventually, failure_of

TIMEOUT_S = 10.0
CONSENSUS = ConsensusConfig(
    heartbeat_interval_ms=40, election_timeout_min_ms=150, election_timeout_max_ms=300
)
LIMITS = LimitsConfig(drain_timeout_ms=1_000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_configs(root: Path, count: int = 1) -> list[PeerConfig]:
    peers = tuple((f"n{number + 1}", f"127.0.0.1:{free_port()}") for number in range(count))
    return [
        PeerConfig(
            node_id=node_id,
            listen="127.0.0.1:0",
            peer_listen=address,
            peers=peers,
            data_dir=str(root / node_id),
            bootstrap=True,
            consensus=CONSENSUS,
            limits=LIMITS,
        )
        for node_id, address in peers
    ]


class Running:
    """A peer that runs as a task."""

    def __init__(self, config: PeerConfig) -> None:
        self.server = PeerServer(config)
        self.stop = asyncio.Event()
        self.task = asyncio.ensure_future(self.server.run(self.stop))
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(self.server.config.listen, options=options)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self.channel)
        self.tasks = task_pb2_grpc.TaskServiceStub(self.channel)

    async def ready(self) -> None:
        """Returns when the peer takes writes."""
        async with asyncio.timeout(TIMEOUT_S):
            waiting = asyncio.ensure_future(self.server.ready.wait())
            await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if self.task.done():
                self.task.result()
            while not (await self.status()).writable:  # noqa: ASYNC110  # asked over the wire
                await asyncio.sleep(0.01)

    async def status(self) -> cluster_pb2.GetStatusResponse:
        request = cluster_pb2.GetStatusRequest()
        return await self.cluster.GetStatus(request, timeout=TIMEOUT_S, wait_for_ready=True)

    async def enqueue(self, key: str) -> task_pb2.EnqueueTaskResponse:
        request = task_pb2.EnqueueTaskRequest(task_type="t", idempotency_key=key)
        return await self.tasks.EnqueueTask(request, timeout=TIMEOUT_S)

    async def end(self) -> None:
        """Stops the peer and waits for its end."""
        self.stop.set()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.wait((self.task,))
        await self.channel.close(None)


@asynccontextmanager
async def running(*configs: PeerConfig) -> AsyncIterator[list[Running]]:
    peers = [Running(config) for config in configs]
    try:
        await asyncio.gather(*(peer.ready() for peer in peers))
        yield peers
    finally:
        await asyncio.gather(*(peer.end() for peer in peers))


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    async with running(config) as (peer,):
        written = await peer.enqueue("k-1")
        before = await peer.status()
    assert peer.task.result() is None
    async with running(config) as (peer,):
        again = await peer.enqueue("k-1")
        after = await peer.status()
    assert (again.existing, again.task.task_id) == (True, written.task.task_id)
    assert after.cluster_id == before.cluster_id
    assert after.peers[0].client_address == peer.server.config.listen


async def test_three_peers_serve_any_call_and_hand_over(tmp_path: Path) -> None:
    configs = make_configs(tmp_path, 3)
    async with running(*configs) as peers:
        for number, peer in enumerate(peers):
            response = await peer.enqueue(f"k-{number}")
            assert not response.existing
        statuses = [await peer.status() for peer in peers]
        (leader_id,) = {status.leader_id for status in statuses}
        leader = peers[int(leader_id[1:]) - 1]
        others = [peer for peer in peers if peer is not leader]
        stream: Any = alert_pb2_grpc.AlertServiceStub(leader.channel).SubscribeAlerts(
            alert_pb2.SubscribeAlertsRequest(from_now=True)
        )
        await stream.read()
        health: Any = health_pb2_grpc.HealthStub(leader.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        leader.stop.set()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        failure = await failure_of(stream)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert failure.metadata["through_sequence"] == "0"
        await leader.task
        response = await others[0].enqueue("after")
        assert response.task.task_id
        now = await others[1].status()
        assert now.leader_id not in ("", leader_id)


@pytest.mark.parametrize("owns_process", [False, True])
async def test_peer_that_takes_part_is_not_held_up_by_a_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owns_process: bool
) -> None:
    """One over everything took as long as votes may, just when the peers elected their leader."""
    collected: list[object] = []
    frozen = gc.get_freeze_count()
    monkeypatch.setattr(gc, "collect", lambda *arguments: collected.append(arguments))
    (config,) = make_configs(tmp_path)
    peer = PeerServer(config, owns_process=owns_process)
    stop = asyncio.Event()
    task = asyncio.ensure_future(peer.run(stop))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await peer.ready.wait()
        assert not collected
        assert (gc.get_freeze_count() > frozen) == owns_process
    finally:
        stop.set()
        await task
        gc.unfreeze()


async def test_both_ports_have_health_and_reflection(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    async with (
        running(config) as (peer,),
        grpc.aio.insecure_channel(config.peer_listen) as peer_channel,
    ):
        for channel, name in (
            (peer.channel, "gaia.task.v1.TaskService"),
            (peer_channel, "gaia.raft.v1.RaftService"),
        ):
            health: Any = health_pb2_grpc.HealthStub(channel)
            for service in ("", name):
                request = health_pb2.HealthCheckRequest(service=service)
                answer = await health.Check(request, timeout=TIMEOUT_S)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            raw: Any = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            )
            # list_services: field 7, an empty string
            (listed,) = [answer async for answer in raw(iter([b"\x3a\x00"]), timeout=TIMEOUT_S)]
            assert name.encode() in listed


async def test_the_client_port_answers_before_the_cluster_is_founded(tmp_path: Path) -> None:
    config = make_configs(tmp_path, 2)[0]
    peer = Running(config)
    status = await peer.status()
    assert (status.node_id, status.leader_id, status.writable) == ("n1", "", False)
    failure = await failure_of(
        session_pb2_grpc.SessionServiceStub(peer.channel).RegisterSession(
            session_pb2.RegisterSessionRequest(name="early"), timeout=TIMEOUT_S
        )
    )
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    await peer.end()
    assert peer.task.result() is None
    assert not peer.server.ready.is_set()


# --- what a peer does not start with -------------------------------------------------------------


async def refused(config: PeerConfig) -> GaiaError:
    """The error that a peer does not start with."""
    with pytest.raises(GaiaError) as caught:
        async with asyncio.timeout(TIMEOUT_S):
            await PeerServer(config).run(asyncio.Event())
    assert "\n" not in caught.value.message
    return caught.value


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


async def test_a_used_client_port(tmp_path: Path, taken_port: int) -> None:
    (config,) = make_configs(tmp_path)
    error = await refused(replace(config, listen=f"127.0.0.1:{taken_port}"))
    assert isinstance(error, StartupError)
    assert error.message == f"the client address 127.0.0.1:{taken_port} is in use or can't be bound"


async def test_a_used_peer_port(tmp_path: Path, taken_port: int) -> None:
    (config,) = make_configs(tmp_path)
    address = f"127.0.0.1:{taken_port}"
    error = await refused(replace(config, peer_listen=address, peers=(("n1", address),)))
    assert isinstance(error, StartupError)
    assert "peer address" in error.message


async def test_a_data_directory_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (config,) = make_configs(tmp_path)
    error = await refused(replace(config, data_dir=str(tmp_path / "file" / "n1")))
    assert isinstance(error, StartupError)


async def test_a_data_directory_in_use(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    async with running(config):
        other = replace(config, peer_listen=f"127.0.0.1:{free_port()}")
        error = await refused(other)
    assert isinstance(error, StartupError)
    assert "in use by another process" in error.message


async def test_a_damaged_log(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    async with running(config) as (peer,):
        await peer.enqueue("k")
    with contextlib.closing(sqlite3.connect(tmp_path / "n1" / "raft.db")) as database:
        database.execute("UPDATE entries SET data = x'00' WHERE log_index = 2")
        database.commit()
    assert isinstance(await refused(config), StorageDamagedError)


async def test_an_empty_directory_without_bootstrap(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    error = await refused(replace(config, bootstrap=False))
    assert isinstance(error, StartupError)
    assert "--bootstrap" in error.message


async def test_peers_with_different_lists_do_not_found(tmp_path: Path) -> None:
    first, second = make_configs(tmp_path, 2)
    third = ("n3", f"127.0.0.1:{free_port()}")
    outcomes = await asyncio.gather(
        refused(first), refused(replace(second, peers=(*second.peers, third)))
    )
    for error in outcomes:
        assert isinstance(error, StartupError)
        assert "founding refused" in error.message


def test_settings_that_no_peer_would_accept(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    for settings in ((("no.such", "1"),), (("task.max_retries", "many"),)):
        with pytest.raises(ConfigError) as caught:
            PeerServer(replace(config, settings=settings))
        assert caught.value.message.startswith("--set ")


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    with pytest.raises(StartupError, match="can't be bound"):
        PeerServer(replace(config, listen="192.0.2.1:0"))


async def test_a_peer_that_can_not_go_on_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers: list[NodeDriver] = []
    start = NodeDriver.start

    async def remember(driver: NodeDriver) -> None:
        drivers.append(driver)
        await start(driver)

    monkeypatch.setattr(NodeDriver, "start", remember)
    (config,) = make_configs(tmp_path)
    peer = Running(config)
    await peer.ready()
    drivers[0].failed.set_result(StorageFailedError("the disk is gone"))
    with pytest.raises(StorageFailedError, match="the disk is gone"):
        await peer.task
    await peer.end()


async def test_a_peer_that_fails_while_it_stops_ends_with_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(driver: NodeDriver) -> None:
        if not driver.failed.done():
            driver.failed.set_result(StorageFailedError("the disk is gone"))

    monkeypatch.setattr(NodeDriver, "hand_over", fail)
    (config,) = make_configs(tmp_path)
    peer = Running(config)
    await peer.ready()
    peer.stop.set()
    with pytest.raises(StorageFailedError, match="the disk is gone"):
        await peer.task
    await peer.end()


# --- serve and run ------------------------------------------------------------------------------


async def test_a_signal_ends_a_peer_in_order(tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path)
    serving = asyncio.ensure_future(server.serve(config))
    await eventually(lambda: (tmp_path / "n1" / "raft.db").exists())
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(TIMEOUT_S):
        assert await serving == 0


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (ConfigError("--set is wrong"), 2, "error: --set is wrong\n"),
        (StartupError("in use\x1b[2J\nforged"), 1, "error: in use [2J forged\n"),
        (KeyError("secret"), 1, "error: internal error (KeyError), see the log\n"),
    ],
)
async def test_a_peer_that_fails_says_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    exit_code: int,
    line: str,
) -> None:
    async def fail(peer: PeerServer, stop: asyncio.Event) -> None:
        raise error

    monkeypatch.setattr(PeerServer, "run", fail)
    (config,) = make_configs(tmp_path)
    assert await server.serve(config) == exit_code
    assert capsys.readouterr().err.endswith(line)


def test_run_brings_its_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def serve(config: PeerConfig, clock: Clock | None) -> int:
        seen.append(type(asyncio.get_running_loop()).__module__)
        return 7

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(server, "configure_logs", lambda level, log_format: None)
    (config,) = make_configs(tmp_path)
    assert server.run(config) == 7
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    assert server.run(config) == 7
    assert seen[-1].startswith("asyncio")


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """Peers in this process do not configure logging."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()
