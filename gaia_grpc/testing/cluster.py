"""A cluster of real peer processes on loopback, for tests.

    with Cluster(peers=3) as cluster:                 # or: async with Cluster(3) as cluster
        leader = cluster.leader()
        cluster.kill(leader)
        cluster.leader()                              # another one
        cluster.restart(leader)
        cluster.assert_equal_logs_and_hashes()

Every method blocks and is bounded in time. In a coroutine, use the same methods on `cluster.aio`,
which run in a thread, so that clients on the loop go on meanwhile.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.client import Client
from gaia_grpc.errors import ConfigError, StartupError
from gaia_grpc.testing.aio import AsyncCluster
from gaia_grpc.testing.guard import GUARD
from gaia_grpc.testing.probe import Probe
from gaia_grpc.testing.process import PROGRAM, PeerProcess, free_ports, peer_environment

START_TIMEOUT_S = 20.0
START_ATTEMPTS = 5
POLL_S = 0.02
STOP_TIMEOUT_S = 15.0

LIVE: set[Cluster] = set()
"""Clusters that are up: their logs are shown where a test fails, and the guard knows them."""


class Cluster:
    """Peers n1, n2, ... in a temporary directory, gone with everything at `stop`."""

    def __init__(
        self,
        peers: int = 3,
        *,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        environment_of: Mapping[str, Mapping[str, str]] | None = None,
        program: Sequence[str] = PROGRAM,
        arguments: Iterable[str] = (),
        log_level: str = "info",
    ) -> None:
        """Starts nothing yet.

        Args:
            peers: how many.
            settings: first values of replicated settings, as in `{"task.retry_base": "100ms"}`.
            environment: variables on top of this process's own.
            environment_of: further ones of single peers, by node id.
            program: what Python is to run for a peer, before `serve ...`.
            arguments: further arguments of `gaia serve`.
            log_level: level of the peers' logs.
        """
        self._count = peers
        self._settings = dict(settings or {})
        self._environment = peer_environment(environment)
        self._environment_of = dict(environment_of or {})
        self._program = tuple(program)
        self._arguments = (*arguments, "--log-level", log_level)
        self._root: Path | None = None
        self._peers: dict[str, PeerProcess] = {}
        self._probe = Probe()
        self.start_seconds = 0.0
        """How long the latest `start` took until a leader accepted writes."""
        self.aio = AsyncCluster(self)

    # --- life ----------------------------------------------------------------------------------

    def start(self, timeout: float = START_TIMEOUT_S) -> Self:
        """Founds the cluster and waits until it accepts writes on every peer.

        A port may be taken by somebody else between the look and the use: then all of it is done
        again on other ports.

        Raises:
            StartupError: a peer ended, with the last line that it wrote, or time is up.
        """
        if self._root is not None:
            raise ConfigError("the cluster was started already")
        for attempt in range(1, START_ATTEMPTS + 1):
            began = time.monotonic()
            self._prepare()
            for node_id in self._peers:
                self._spawn(node_id)
            try:
                self.wait_ready(timeout)
            except StartupError:
                clash = any("in use" in peer.log() for peer in self._peers.values())
                if clash and attempt < START_ATTEMPTS:
                    self._remove()
                    continue
                text = self.logs()
                self._remove()
                raise StartupError(f"the cluster did not start\n{text}") from None
            except BaseException:  # a test's time limit, Ctrl-C: nothing may stay behind
                self._remove()
                raise
            self.start_seconds = time.monotonic() - began
            return self
        raise StartupError("no free ports were found")

    def _prepare(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="gaia-test-"))
        GUARD.watch(self._root)
        ports = free_ports(2 * self._count)
        self._peers = {
            f"n{number}": PeerProcess(
                f"n{number}", self._root, (ports[2 * number - 2], ports[2 * number - 1])
            )
            for number in range(1, self._count + 1)
        }
        LIVE.add(self)

    def _spawn(self, node_id: str, arguments: Iterable[str] = ()) -> None:
        founding = ["--bootstrap"]
        for name, address in self.peer_addresses(node_id).items():
            founding += ["--peer", f"{name}={address}"]
        for name, value in self._settings.items():
            founding += ["--set", f"{name}={value}"]
        self._peers[node_id].spawn(
            [*founding, *self._arguments, *arguments],
            {**self._environment, **self._environment_of.get(node_id, {})},
            self._program,
        )

    def peer_addresses(self, node_id: str) -> dict[str, str]:
        """Node id to peer address, as `node_id` is told; peers may be told different ones once
        the cluster is founded."""
        return {peer.node_id: peer.peer_address for peer in self._peers.values()}

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to who stays, and removes every file; idempotent."""
        for peer in self._peers.values():
            peer.send(signal.SIGCONT)
            peer.send(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for peer in self._peers.values():
            try:
                if peer.running:
                    peer.wait(max(deadline - time.monotonic(), 0.1))
            except TimeoutError:
                peer.kill()
        self._remove()

    def _remove(self) -> None:
        for peer in self._peers.values():
            peer.kill()
        self._probe.close()
        LIVE.discard(self)
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            GUARD.forget(self._root)
        self._root = None
        self._peers = {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.aio.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aio.stop()

    # --- what there is ---------------------------------------------------------------------------

    @property
    def node_ids(self) -> tuple[str, ...]:
        """All node ids, sorted as founded."""
        return tuple(self._peers)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Client addresses in the order of `node_ids`."""
        return tuple(peer.address for peer in self._peers.values())

    @property
    def answering(self) -> tuple[str, ...]:
        """Node ids of the peers that run and are not paused."""
        return tuple(node_id for node_id, peer in self._peers.items() if peer.answering)

    def peer(self, node_id: str) -> PeerProcess:
        """Process, addresses and files of one peer."""
        if node_id not in self._peers:
            raise ConfigError(f"no such peer: {node_id}")
        return self._peers[node_id]

    def address(self, node_id: str) -> str:
        """Client address of one peer."""
        return self.peer(node_id).address

    def log(self, node_id: str) -> str:
        """Everything that one peer wrote."""
        return self.peer(node_id).log()

    def logs(self) -> str:
        """The end of every peer's log, for people."""
        return "\n".join(
            f"--- {peer.node_id} (exit code {peer.exit_code}) ---\n{peer.log_tail()}"
            for peer in self._peers.values()
        )

    def client(self, **options: Any) -> Client:
        """A client that knows every peer; connect it with `async with`."""
        return Client.connect(self.addresses, **options)

    def status(self, node_id: str, *, at_index: int = 0) -> cluster_pb2.GetStatusResponse:
        """What one peer says of itself; `grpc.RpcError` where it does not answer."""
        return self._probe.status(self.address(node_id), at_index)

    def statuses(self) -> dict[str, cluster_pb2.GetStatusResponse]:
        """What each peer that answers says of itself."""
        found: dict[str, cluster_pb2.GetStatusResponse] = {}
        for node_id in self.answering:
            try:
                found[node_id] = self.status(node_id)
            except grpc.RpcError:
                continue
        return found

    # --- faults ----------------------------------------------------------------------------------

    def kill(self, *node_ids: str) -> None:
        """SIGKILL: all at once, then waits until they are gone."""
        for node_id in node_ids:
            self.peer(node_id).send(signal.SIGKILL)
        for node_id in node_ids:
            self.peer(node_id).wait(10)

    def terminate(self, node_id: str, timeout: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM; returns the exit code."""
        self.peer(node_id).send(signal.SIGTERM)
        return self.peer(node_id).wait(timeout)

    def pause(self, node_id: str) -> None:
        """SIGSTOP: the process keeps its connections and answers nothing."""
        self.peer(node_id).send(signal.SIGSTOP)

    def resume(self, node_id: str) -> None:
        """SIGCONT."""
        self.peer(node_id).send(signal.SIGCONT)

    def restart(self, *node_ids: str, timeout: float = START_TIMEOUT_S) -> None:
        """Starts peers again on their directories (killing those that run) and waits for them."""
        for node_id in node_ids:
            self.peer(node_id).kill()
        for node_id in node_ids:
            self._spawn(node_id)
        self.wait_ready(timeout)

    def respawn(self, node_id: str, *arguments: str) -> None:
        """Starts a peer that has ended, without waiting for anything."""
        self._spawn(node_id, arguments)

    def wipe(self, node_id: str) -> None:
        """Removes the data directory of a peer that does not run."""
        peer = self.peer(node_id)
        if peer.running:
            raise ConfigError(f"{node_id} runs: kill it first")
        shutil.rmtree(peer.data_dir, ignore_errors=True)

    def heal(self, timeout: float = START_TIMEOUT_S) -> None:
        """Resumes the paused, starts the ended, waits until all is well."""
        for peer in self._peers.values():
            if peer.paused:
                peer.send(signal.SIGCONT)
            if not peer.running:
                self._spawn(peer.node_id)
        self.wait_ready(timeout)

    # --- waiting and checking --------------------------------------------------------------------

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT_S
    ) -> None:
        """Polls until `condition` holds; `TimeoutError` with all logs where it does not."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"not within {timeout:g} s: {what}\n{self.logs()}")
            time.sleep(POLL_S)

    def wait_ready(self, timeout: float = START_TIMEOUT_S) -> str:
        """Waits until every peer that runs accepts writes under one leader; returns its node id.

        Raises:
            StartupError: a peer that should run has ended, or time is up.
        """
        deadline = time.monotonic() + timeout
        expected = [node_id for node_id, peer in self._peers.items() if peer.answering]
        while time.monotonic() < deadline:
            for node_id in expected:
                peer = self._peers[node_id]
                if not peer.running:
                    raise StartupError(f"{node_id} ended: {peer.log_tail().strip()[-500:]}")
            statuses = self.statuses()
            leaders = {status.leader_id for status in statuses.values()}
            ready = len(statuses) == len(expected) and all(
                status.writable for status in statuses.values()
            )
            if ready and len(leaders) == 1 and leaders & set(expected):
                return leaders.pop()
            time.sleep(POLL_S)
        raise StartupError(f"no leader that all peers follow within {timeout:g} s")

    def leader(self, timeout: float = 10.0) -> str:
        """Node id of the peer that leads in the highest term and accepts writes."""
        deadline = time.monotonic() + timeout
        while True:
            leading = [
                (status.term, node_id)
                for node_id, status in self.statuses().items()
                if status.role == cluster_pb2.PEER_ROLE_LEADER and status.writable
            ]
            if leading:
                return max(leading)[1]
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no leader within {timeout:g} s\n{self.logs()}")
            time.sleep(POLL_S)

    def follower(self, timeout: float = 10.0) -> str:
        """Node id of some answering peer that does not lead."""
        leader = self.leader(timeout)
        return next(node_id for node_id in self.answering if node_id != leader)

    def wait_applied_equal(self, timeout: float = 10.0) -> int:
        """Waits until every answering peer applied all that was committed when it was called.

        Returns:
            That index.
        """
        self.leader(timeout)
        target = max(status.commit_index for status in self.statuses().values())

        def caught_up() -> bool:
            statuses = self.statuses()
            return len(statuses) == len(self.answering) and all(
                status.applied_index >= target for status in statuses.values()
            )

        self.wait_until(caught_up, f"all peers applied index {target}", timeout)
        return target

    def assert_equal_logs_and_hashes(self, timeout: float = 10.0) -> int:
        """All answering peers have the same log and the same state hash.

        Returns:
            The index up to which they were compared.

        Raises:
            AssertionError: they differ, with the first difference.
        """
        index = self.wait_applied_equal(timeout)
        hashes = {
            node_id: self.status(node_id, at_index=index).state_hash.hex()
            for node_id in self.answering
        }
        if len(set(hashes.values())) != 1 or not all(hashes.values()):
            raise AssertionError(f"state hashes differ at index {index}: {hashes}")
        entries = {
            node_id: self._probe.entries(self.address(node_id), index) for node_id in self.answering
        }
        first = next(iter(entries))
        for node_id, log in entries.items():
            for place in range(max(len(log), len(entries[first]))):
                ours, theirs = entries[first][place : place + 1], log[place : place + 1]
                if ours != theirs:
                    raise AssertionError(f"logs differ: {first} {ours}, {node_id} {theirs}")
        return index
