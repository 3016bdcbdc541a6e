"""The composition root of one peer: puts the parts together, and takes them apart in order.

Start: data directory, both ports bound (a used one is found before anything is founded), peer port
served, client port served (NOT_SERVING), driver. Stop: NOT_SERVING, leadership handed over, streams
ended with their cursor, calls in flight finished, driver, peer port, log closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import structlog
from gaia.raft.v1 import raft_pb2
from grpc_health.v1 import health_pb2_grpc

from gaia_grpc import __version__
from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import GaiaError
from gaia_grpc.logs import configure_logs
from gaia_grpc.node.driver import NodeDriver
from gaia_grpc.raft.types import NodeId
from gaia_grpc.services.client_port import HEALTH_NAME, ClientPort, bind
from gaia_grpc.services.health import HealthService
from gaia_grpc.services.reflection import add_reflection
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.transport.grpc_transport import GrpcTransport
from gaia_grpc.transport.options import TransportOptions
from gaia_grpc.transport.options import server_arguments as peer_server_arguments

RAFT_SERVICE = raft_pb2.DESCRIPTOR.services_by_name["RaftService"].full_name
PEER_PORT_GRACE_S = 0.5

log = structlog.get_logger("gaia.server")


class PeerServer:
    """One peer from `start` to `stop`. Its parts are public for tests only."""

    def __init__(self, config: PeerConfig, directory: DataDirectory) -> None:
        self.config = config
        self.directory = directory
        options = TransportOptions(
            vote_timeout_ms=config.consensus.election_timeout_min_ms,
            max_message_size_bytes=config.limits.peer_max_message_size_bytes,
            max_queue_frames=config.limits.peer_queue_frames,
        )
        self.transport = GrpcTransport(
            NodeId(config.node_id),
            {NodeId(name): address for name, address in config.peers},
            options,
        )
        self.driver = NodeDriver(config, directory, self.transport)
        self.client_port = ClientPort(self.driver, config)
        self._peer_health = HealthService(self.driver, (RAFT_SERVICE, HEALTH_NAME))
        self._peer_server = grpc.aio.server(options=peer_server_arguments(options))
        self.transport.add_to_server(self._peer_server)
        health_pb2_grpc.add_HealthServicer_to_server(self._peer_health, self._peer_server)
        add_reflection(self._peer_server, (RAFT_SERVICE, HEALTH_NAME))

    async def start(self) -> None:
        """Returns when the peer takes part; founding waits for the other peers.

        Raises `StartupError` or `StorageError`.
        """
        bind(self._peer_server, self.config.peer_listen, "peer address")
        self.client_port.bind()
        await self._peer_server.start()
        self._peer_health.start()
        await self.client_port.start()
        await self.driver.start()
        log.info(
            "READY",
            node=self.config.node_id,
            clients=self.config.listen,
            peers=self.config.peer_listen,
            version=__version__,
        )

    async def stop(self) -> None:
        """Drains and closes everything; also after a start that failed half way."""
        self.client_port.health.drain()
        self._peer_health.drain()
        await self.driver.hand_over()
        await self.client_port.stop()
        await self.driver.stop()
        await self._peer_health.close()
        await self._peer_server.stop(PEER_PORT_GRACE_S)
        self.directory.close()


async def serve(config: PeerConfig) -> int:
    """Runs a peer until SIGTERM or SIGINT (0) or until it can't go on (1)."""
    directory = DataDirectory.open(Path(config.data_dir), NodeId(config.node_id))
    server = PeerServer(config, directory)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    signalled = asyncio.ensure_future(stopping.wait())
    starting = asyncio.ensure_future(server.start())
    failed = server.driver.failed
    try:
        await asyncio.wait((signalled, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            waiting: tuple[asyncio.Future[Any], ...] = (signalled, failed)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise failed.result()
        log.info("STOPPING", node=config.node_id)
    finally:
        for task in (signalled, starting):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, GaiaError):
                await task
        await server.stop()
    log.info("STOPPED", node=config.node_id)
    return 0


def run(config: PeerConfig) -> int:
    """Runs a peer in this process; the exit code. Errors are one line on stderr."""
    configure_logs(config.log_level, config.log_format)
    try:
        import uvloop
    except ImportError:  # an optional extra: the standard loop does the same, more slowly
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        with runner:
            return runner.run(serve(config))
    except GaiaError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)  # noqa: T201 - the one line
        return 1
