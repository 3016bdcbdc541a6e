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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gaia_grpc.errors import ConfigError, StartupError
from gaia_grpc.testing.aio import AsyncCluster
from gaia_grpc.testing.guard import GUARD
from gaia_grpc.testing.observed import START_TIMEOUT_S, ObservedCluster
from gaia_grpc.testing.process import PROGRAM, PeerProcess, free_ports, peer_environment

START_ATTEMPTS = 5
STOP_TIMEOUT_S = 15.0

LIVE: set[Cluster] = set()
"""Clusters that are up: their logs are shown where a test fails, and the guard knows them."""


class Cluster(ObservedCluster):
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
        backup: Path | None = None,
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
            backup: a file of `gaia backup`: n1 begins with it, and the other peers join n1.
        """
        super().__init__()
        self._count = peers
        self._settings = dict(settings or {})
        self._environment = peer_environment(environment)
        self._environment_of = dict(environment_of or {})
        self._program = tuple(program)
        self._arguments = (*arguments, "--log-level", log_level)
        self._backup = backup
        self._root: Path | None = None
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
            try:
                if self._backup is not None:
                    self._restore(self._backup)
                for node_id in self._peers:
                    self._spawn(node_id)
                self.wait_ready(timeout)
                while len(self._peers) < self._count:
                    self.join(f"n{len(self._peers) + 1}", timeout)
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
        count = self._count if self._backup is None else 1
        ports = free_ports(2 * count)
        self._peers = {
            f"n{number}": PeerProcess(
                f"n{number}", self._root, (ports[2 * number - 2], ports[2 * number - 1])
            )
            for number in range(1, count + 1)
        }
        LIVE.add(self)

    def _restore(self, backup: Path) -> None:
        """As a person does it: `gaia restore` makes the directory of the first peer."""
        first = self._peers["n1"]
        command = [sys.executable, *PROGRAM, "restore", str(backup), "--node-id", "n1"]
        command += ["--data-dir", str(first.data_dir), "--peer-listen", first.peer_address]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise StartupError(f"gaia restore failed: {done.stderr.strip()}")

    def _spawn(self, node_id: str, arguments: Iterable[str] = (), how: str = "--bootstrap") -> None:
        founding = [how]
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

    def set_environment(self, node_id: str, environment: Mapping[str, str]) -> None:
        """Further variables of one peer from its next start on."""
        self._environment_of[node_id] = dict(environment)

    def respawn(self, node_id: str, *arguments: str) -> None:
        """Starts a peer that has ended, without waiting for anything."""
        self._spawn(node_id, arguments)

    def join(self, node_id: str, timeout: float = START_TIMEOUT_S) -> None:
        """Adds a peer to the running cluster and waits until it has a vote and the whole log.

        A new name is a further machine; the name of a removed peer a replaced one.
        """
        if self._root is None:
            raise ConfigError("the cluster is not started")
        if node_id not in self._peers:
            first, second = free_ports(2)
            self._peers[node_id] = PeerProcess(node_id, self._root, (first, second))
            self.wipe(node_id)
        self._spawn(node_id, how="--join")
        self.wait_until(
            lambda: "waiting_to_be_added" in self.log(node_id), f"{node_id} waits", timeout
        )
        address = self.peer(node_id).peer_address
        members = self._probe.add_peer(self.address(self.leader()), node_id, address, timeout)
        if not any(member.node_id == node_id and member.voter for member in members):
            raise StartupError(f"{node_id} has no vote: {members}")
        self.wait_ready(timeout)

    def remove(self, node_id: str, timeout: float = START_TIMEOUT_S) -> None:
        """Removes a peer from the cluster, and its process where it runs."""
        others = [name for name in self.answering if name != node_id]
        self._probe.remove_peer(self.address(others[0]), node_id, timeout)
        self.remove_process(node_id)

    def remove_process(self, node_id: str) -> None:
        """Ends the process of a peer that is no member any more, and forgets it."""
        self.peer(node_id).kill()
        del self._peers[node_id]

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
