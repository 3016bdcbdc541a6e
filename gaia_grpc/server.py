"""One peer: puts directory, transport, driver and both ports together, and takes them down again.

Start: directory, ports (a used one is found before anything is founded), driver; then one line
READY. The client port answers from the first moment on, UNAVAILABLE until the log runs.

End by SIGTERM or SIGINT: health says NOT_SERVING, leadership is handed over, streams end with their
cursors, calls in flight finish, the log is closed; exit code 0. What a peer can't go on after ends
it with one line on stderr: exit code 2 for a wrong configuration, 1 for everything else.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import structlog
from gaia.raft.v1 import raft_pb2
from grpc_health.v1 import health_pb2_grpc

from gaia_grpc import __version__
from gaia_grpc.config import PeerConfig, split_address
from gaia_grpc.errors import ConfigError, GaiaError, InvalidArgumentError, StartupError
from gaia_grpc.logs import configure_logs
from gaia_grpc.node.clock import Clock
from gaia_grpc.node.collecting import ShortCollections
from gaia_grpc.node.disk_thread import DISK_THREADS
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.raft.types import NodeId
from gaia_grpc.services.client_port import HEALTH_NAME, ClientPort, bind
from gaia_grpc.services.drain import Drain
from gaia_grpc.services.health import HealthService
from gaia_grpc.services.interceptor import CallInterceptor
from gaia_grpc.services.leader_hint import LeaderHint
from gaia_grpc.services.reflection import add_reflection
from gaia_grpc.state.settings import Settings
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.grpc_transport import GrpcTransport
from gaia_grpc.transport.options import TransportOptions, server_arguments

EXIT_FAILURE = 1
EXIT_USAGE = 2
PEER_PORT_GRACE_S = 0.2
NOTICE_S = 0.05
"""Who watches the health hears NOT_SERVING before its stream ends, and sends no new calls here."""
RAFT_NAME = raft_pb2.DESCRIPTOR.services_by_name["RaftService"].full_name

log = structlog.get_logger("server")


def run(config: PeerConfig, clock: Clock | None = None) -> int:
    """Runs one peer until it is told to stop; returns the exit code of the process.

    `clock` stands in for that of the machine.
    """
    configure_logs(config.log_level, config.log_format)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        exit_code = runner.run(serve(config, clock))
    if any(thread.name in DISK_THREADS for thread in threading.enumerate()):
        # Left behind on a disk that hangs: the interpreter would wait for what it holds.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code or EXIT_FAILURE)
    return exit_code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def serve(config: PeerConfig, clock: Clock | None = None) -> int:
    """Runs one peer on the running loop; SIGTERM and SIGINT end it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    keep_what_is_loaded()
    collections = ShortCollections()
    collections.install()
    try:
        await PeerServer(config, clock, owns_process=True).run(stop)
    except ConfigError as error:
        return _complain(error.message, EXIT_USAGE)
    except GaiaError as error:
        return _complain(error.message, EXIT_FAILURE)
    except Exception as error:
        log.error("peer failed", exc_info=error)
        return _complain(f"internal error ({type(error).__name__}), see the log", EXIT_FAILURE)
    finally:
        collections.remove()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0


def _complain(message: str, exit_code: int) -> int:
    """One line on stderr, whatever is in the message."""
    line = "".join(character if character.isprintable() else " " for character in message)
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
    return exit_code


class PeerServer:
    """One peer from its start to its end; see the module."""

    def __init__(
        self, config: PeerConfig, clock: Clock | None = None, *, owns_process: bool = False
    ) -> None:
        """`owns_process`: nothing else runs in it, so its garbage collector is ours to set."""
        check_settings(config)
        self._clock = clock
        self._owns_process = owns_process
        # Others are told this address, so it must be known before anyone asks.
        self.config = replace(config, listen=with_port(config.listen))
        self.ready = asyncio.Event()
        self._driver: NodeDriver | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; raises where the peer can't start or go on."""
        config = self.config
        async with AsyncExitStack() as stack:
            directory = DataDirectory.open(Path(config.data_dir), NodeId(config.node_id))
            stack.callback(self._close, directory)
            transport = make_transport(config)
            driver = NodeDriver(
                config,
                directory,
                transport,
                clock=self._clock,
                on_state_loaded=self._on_state_loaded,
            )
            self._driver = driver
            peer_port = PeerPort(driver, transport, config)
            stack.push_async_callback(peer_port.stop)
            stack.push_async_callback(driver.stop)
            client_port = ClientPort(driver, config, control=driver)
            peer_port.bind()
            client_port.bind()
            await peer_port.start()
            await client_port.start()
            stack.push_async_callback(client_port.stop)
            await self._run_driver(driver, stop)
            client_port.health.drain()
            peer_port.health.drain()
            await asyncio.sleep(NOTICE_S)
            await driver.hand_over()
        if driver.failed.done():  # meanwhile: what was not written must not end as a success
            raise driver.failed.result()
        log.info("stopped", node=config.node_id)

    async def _run_driver(self, driver: NodeDriver, stop: asyncio.Event) -> None:
        """Returns when the peer is to stop; raises what it can't start or go on with."""
        stopping = asyncio.ensure_future(stop.wait())
        starting = asyncio.ensure_future(driver.start())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return
            starting.result()
            self._report_ready(driver)
            await asyncio.wait((driver.failed, stopping), return_when=asyncio.FIRST_COMPLETED)
            if driver.failed.done():
                raise driver.failed.result()
        finally:
            for task in (stopping, starting):
                task.cancel()
            await asyncio.wait((stopping, starting))

    def _report_ready(self, driver: NodeDriver) -> None:
        status = driver.status()
        log.info(
            "READY",
            node=status.node_id,
            client=self.config.listen,
            peer=self.config.peer_listen,
            cluster=status.cluster_id,
            applied_index=status.applied_index,
            version=__version__,
        )
        if self._owns_process:
            # Without a collection: this peer takes part by now, and one over a large state would
            # hold it up for longer than the others wait for a vote or a heartbeat.
            gc.freeze()
        self.ready.set()

    def _on_state_loaded(self) -> None:
        if self._owns_process:
            gc.freeze()  # what the new state has replaced is taken apart, not collected

    def _close(self, directory: DataDirectory) -> None:
        # Where the disk hangs, a thread holds the database: closing it would hang as well.
        if self._driver is None or not self._driver.disk_hangs:
            directory.close()


def keep_what_is_loaded() -> None:
    """What was loaded stays: later full collections over it would hold up the loop.

    What went meanwhile is collected once more, so it is for the time before there is a state.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class PeerPort:
    """The port for other peers: RaftService, health and reflection."""

    def __init__(self, driver: NodeDriver, transport: GrpcTransport, config: PeerConfig) -> None:
        self.health = HealthService(driver, (RAFT_NAME, HEALTH_NAME))
        self._drain = Drain()
        self._config = config
        interceptor = CallInterceptor(
            leader_address=LeaderHint(driver),
            drain=self._drain,
            limits=config.limits,
            consensus=config.consensus,
            # Its servicer has its own errors and deadlines, and every microsecond counts.
            bypass_prefix=f"/{RAFT_NAME}/",
        )
        self._server = grpc.aio.server(
            interceptors=(interceptor,), options=server_arguments(transport_options(config))
        )
        transport.add_to_server(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        add_reflection(self._server, (RAFT_NAME, HEALTH_NAME))

    def bind(self) -> None:
        """Takes the port."""
        bind(self._server, self._config.peer_listen, "peer address")

    async def start(self) -> None:
        """Begins to serve."""
        self.health.start()
        await self._server.start()

    async def stop(self) -> None:
        """Ends what is left."""
        self._drain.begin()
        await self.health.close()
        await self._server.stop(PEER_PORT_GRACE_S)


def transport_options(config: PeerConfig) -> TransportOptions:
    """The transport's parameters as far as the configuration names them."""
    return TransportOptions(
        vote_timeout_ms=config.consensus.election_timeout_min_ms,
        max_message_size_bytes=config.limits.peer_max_message_size_bytes,
        max_queue_frames=config.limits.peer_queue_frames,
        max_forwards_in_flight=config.consensus.max_pending_proposals,
    )


def make_transport(config: PeerConfig) -> GrpcTransport:
    """The way to the other peers."""
    addresses = {NodeId(node_id): address for node_id, address in config.peers}
    return GrpcTransport(NodeId(config.node_id), addresses, transport_options(config))


def check_settings(config: PeerConfig) -> None:
    """Raises `ConfigError` for a `--set` that no peer would accept."""
    try:
        Settings().changed(config.settings, version=0)
    except InvalidArgumentError as error:
        raise ConfigError(f"--set {error.message}") from error


def with_port(address: str) -> str:
    """The address with a free port in the place of port 0. Raises `StartupError`."""
    host, port = split_address(address)
    if port != 0:
        return address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    except OSError as error:
        raise StartupError(f"{address} can't be bound: {error.strerror}") from error
    return f"{address.rpartition(':')[0]}:{port}"
