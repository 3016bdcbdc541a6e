"""Peers without processes: real drivers and data directories in one loop, a network in memory.

For what needs a hand inside (a cut link, a failing disk). Whatever can be shown from outside is
shown on real processes in tests/e2e.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2, query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.config import ConsensusConfig, LimitsConfig, PeerConfig, StorageConfig
from gaia_grpc.errors import GaiaError
from gaia_grpc.node.api import Applied, ConfigurationChange, ReadConsistency
from gaia_grpc.node.clock import Clock
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.node.engine import Engine
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NodeId
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.memory import MemoryHub, MemoryNetwork

FAST = ConsensusConfig(
    tick_ms=5,
    heartbeat_interval_ms=40,
    election_timeout_min_ms=200,
    election_timeout_max_ms=400,
)


class LocalCluster:
    """A few peers on one loop."""

    def __init__(self, root: Path, names: tuple[str, ...] = ("n1", "n2", "n3")) -> None:
        self.root = root
        self.names = names
        self.network = MemoryNetwork(Random(7))
        self.hub = MemoryHub(self.network)
        self._starting: set[asyncio.Task[None]] = set()
        self.drivers: dict[str, NodeDriver] = {}
        self.directories: dict[str, DataDirectory] = {}
        self.consensus = FAST
        self.limits = LimitsConfig()
        self.storage = StorageConfig()
        self.settings: tuple[tuple[str, str], ...] = ()
        self.clocks: dict[str, Clock] = {}
        self.on_state_loaded: Callable[[], None] = lambda: None
        self.wrap_directory: Callable[[DataDirectory], DataDirectory] = lambda directory: directory

    def config(self, name: str, *, bootstrap: bool = True) -> PeerConfig:
        """The configuration of one peer; addresses are names only here."""
        return PeerConfig(
            node_id=name,
            listen=f"127.0.0.1:5005{name[1:]}",
            peer_listen=f"127.0.0.1:5015{name[1:]}",
            peers=tuple((other, f"127.0.0.1:5015{other[1:]}") for other in self.names),
            data_dir=str(self.root / name),
            bootstrap=bootstrap,
            settings=self.settings,
            consensus=self.consensus,
            limits=self.limits,
            storage=self.storage,
        )

    async def start(self, *names: str, config: PeerConfig | None = None) -> None:
        """Starts peers side by side; returns when all have founded or restored."""
        await asyncio.gather(*(self._start(name, config) for name in names or self.names))

    async def _start(self, name: str, config: PeerConfig | None) -> None:
        directory = self.wrap_directory(DataDirectory.open(self.root / name, NodeId(name)))
        self.directories[name] = directory
        driver = NodeDriver(
            config or self.config(name),
            directory,
            self.hub.transport(NodeId(name), (config or self.config(name)).peer_listen),
            clock=self.clocks.get(name),
            draw_timeout=Random(f"{name}").randint,
            on_state_loaded=self.on_state_loaded,
        )
        self.drivers[name] = driver
        await driver.start()

    def joining(self, name: str) -> PeerConfig:
        """The configuration of a peer that waits to be added."""
        return replace(
            self.config(name),
            bootstrap=False,
            join=True,
            peers=((name, f"127.0.0.1:5015{name[1:]}"),),
        )

    async def wait_to_join(self, name: str) -> asyncio.Task[None]:
        """Starts a peer on an empty directory; the task ends when it belongs to the cluster."""
        starting = asyncio.create_task(self._start(name, self.joining(name)))
        self._starting.add(starting)
        await until(lambda: name in self.drivers and self.drivers[name].inbound.joiner is not None)
        return starting

    async def add(self, name: str, *, via: str, timeout_s: float = 10.0) -> ConfigurationChange:
        """Adds a peer that waits, by a call at another one."""
        return await self.drivers[via].add_peer(
            name, "", self.joining(name).peer_listen, timeout_s=timeout_s
        )

    def isolate(self, name: str) -> None:
        """Cuts one peer off from all others, those that come later not included."""
        self.network.isolate(NodeId(name), [NodeId(other) for other in sorted(self.drivers)])

    def wipe(self, name: str) -> None:
        """The machine is lost; the peer must be down."""
        shutil.rmtree(self.root / name)

    async def stop(self, name: str) -> None:
        """Ends one peer in good order."""
        driver = self.drivers.pop(name)
        await driver.stop()
        self.directories.pop(name).close()

    async def crash(self, name: str) -> None:
        """Ends one peer without a word to the others."""
        driver = self.drivers.pop(name)
        if driver.inbound.peer is not None:
            await driver.inbound.peer.stop(1.0)
        await driver._transport.close()
        await driver._disk.close(1.0)
        self.directories.pop(name).close()

    async def close(self) -> None:
        """Ends all."""
        for starting in self._starting:
            starting.cancel()
        if self._starting:
            await asyncio.wait(self._starting)
        for name in sorted(self.drivers):
            await self.crash(name)

    async def leader(self, timeout_s: float = 10.0) -> str:
        """The peer that leads and accepts writes, as the others see it too."""
        async with asyncio.timeout(timeout_s):
            while True:
                for name, driver in sorted(self.drivers.items()):
                    status = driver.status()
                    if status.role is RoleName.LEADER and status.writable:
                        return name
                await asyncio.sleep(0.005)

    async def agree(self, timeout_s: float = 10.0) -> bytes:
        """Waits until all living peers have applied the same; returns the state hash."""
        async with asyncio.timeout(timeout_s):
            while True:
                statuses = [driver.status() for _, driver in sorted(self.drivers.items())]
                if (
                    len({status.applied_index for status in statuses}) == 1
                    and len({status.commit_index for status in statuses}) == 1
                ):
                    assert len({status.state_hash for status in statuses}) == 1
                    return statuses[0].state_hash
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(cluster: LocalCluster) -> AsyncIterator[LocalCluster]:
    """Starts all peers and ends them."""
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.close()


def change_setting(name: str, value: str, request_id: str) -> bytes:
    """A command that changes one setting."""
    return command_pb2.Command(
        request_id=request_id,
        request_digest=f"{name}={value}".encode(),
        update_settings=command_pb2.UpdateSettings(
            changes=[cluster_pb2.SettingChange(name=name, value=value)]
        ),
    ).SerializeToString()


async def read_setting(
    driver: NodeDriver,
    name: str,
    *,
    consistency: ReadConsistency = ReadConsistency.LINEARIZABLE,
    timeout_s: float = 5.0,
) -> str:
    """The value of one setting as `driver` reads it."""
    query = query_pb2.Query(get_settings=cluster_pb2.GetSettingsRequest()).SerializeToString()
    answer = await driver.read(query, consistency=consistency, timeout_s=timeout_s)
    settings = query_pb2.QueryResult.FromString(answer).get_settings.settings
    return next(setting.value for setting in settings.settings if setting.name == name)


def result_of(applied: Applied) -> command_pb2.CommandResult:
    """The decoded result."""
    return command_pb2.CommandResult.FromString(applied.result)


def engine_of(driver: NodeDriver) -> Engine:
    """The loop of a driver that has started."""
    return driver.inbound.running().engine


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits for what has no event; fails after the timeout."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.002)


def enqueue(delay_ms: int) -> bytes:
    """A command that enqueues one task."""
    return command_pb2.Command(
        enqueue_tasks=command_pb2.EnqueueTasks(
            tasks=[command_pb2.TaskSpec(task_type="t", delay_ms=delay_ms)]
        )
    ).SerializeToString()


class Writer:
    """Enqueues tasks one after the other at whoever answers, until it is told to stop."""

    def __init__(self, cluster: LocalCluster, *, payload: bytes = b"") -> None:
        self.acknowledged = 0
        self.longest_gap_s = 0.0
        self._cluster = cluster
        self._payload = payload
        self._stop = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        last_s = loop.time()
        attempts = 0
        while not self._stop:
            names = sorted(
                name
                for name, driver in self._cluster.drivers.items()
                if driver.inbound.peer is not None
            )
            attempts += 1
            driver = self._cluster.drivers[names[attempts % len(names)]]
            command = command_pb2.Command(
                request_id=f"w{self.acknowledged}",
                request_digest=b"same",
                enqueue_tasks=command_pb2.EnqueueTasks(
                    tasks=[command_pb2.TaskSpec(task_type="t", payload=self._payload)]
                ),
            ).SerializeToString()
            with suppress(GaiaError):
                await driver.propose(command, timeout_s=1.0)
                self.acknowledged += 1
                self.longest_gap_s = max(self.longest_gap_s, loop.time() - last_s)
                last_s = loop.time()

    async def more(self, count: int, timeout_s: float = 20.0) -> None:
        """Returns when that many more were acknowledged."""
        target = self.acknowledged + count
        await until(lambda: self.acknowledged >= target or self._task.done(), timeout_s)
        if self._task.done():
            self._task.result()

    async def stop(self) -> int:
        """Ends it; returns how many tasks are there."""
        self._stop = True
        await self._task
        return self.acknowledged


@asynccontextmanager
async def writing(cluster: LocalCluster) -> AsyncIterator[Writer]:
    """Writes while the block runs; the tasks must all be there then, once each."""
    writer = Writer(cluster)
    try:
        yield writer
    finally:
        count = await writer.stop()
    await cluster.agree()
    for driver in cluster.drivers.values():
        assert await count_tasks(driver) == count


async def count_tasks(driver: NodeDriver) -> int:
    """How many tasks the state of this peer holds."""
    query = query_pb2.Query(get_queue_stats=task_pb2.GetQueueStatsRequest()).SerializeToString()
    answer = await driver.read(query, consistency=ReadConsistency.LOCAL, timeout_s=5)
    stats = query_pb2.QueryResult.FromString(answer).get_queue_stats
    return int(stats.enqueued_total)
