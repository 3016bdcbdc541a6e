"""The peers that `gaia up` runs: one `gaia serve` child process each, on loopback, kept on disk."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from gaia_grpc.cli.rpc import leader_of
from gaia_grpc.errors import ConfigError, StartupError
from gaia_grpc.testing.process import PeerProcess, peer_environment

PEER_PORT_OFFSET = 100
STOP_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.05


@dataclass(slots=True)
class LocalCluster:
    """All peers of `gaia up`."""

    data_dir: Path
    peers: list[PeerProcess]
    settings: Sequence[str] = ()
    reported: set[int] = field(default_factory=set)
    """Ids of the processes whose end was told to the user."""
    lock: BinaryIO | None = None
    """Held as long as this cluster runs in its directory."""

    @property
    def addresses(self) -> list[str]:
        """Client addresses of all peers."""
        return [peer.address for peer in self.peers]

    @property
    def majority(self) -> int:
        """How many peers must run, so that the cluster answers."""
        return len(self.peers) // 2 + 1

    def claim(self) -> None:
        """Takes the directory; writes nothing where something is in the way.

        Raises:
            StartupError: a cluster runs in the directory, or a port is taken.
        """
        exists = self.data_dir.is_dir()
        if exists:
            self._lock_directory()
        for peer in self.peers:
            for address in (peer.address, peer.peer_address):
                _require_free(peer.node_id, address)
        if not exists:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self._lock_directory()

    def _lock_directory(self) -> None:
        lock = (self.data_dir / "up.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise StartupError(
                f"a cluster runs in {self.data_dir}/ already: `gaia status` shows it; "
                "another one needs its own --data-dir and --base-port"
            ) from error
        self.lock = lock

    def start(self) -> None:
        """Starts every peer."""
        for peer in self.peers:
            self.start_peer(peer)

    def start_peer(self, peer: PeerProcess) -> None:
        """Starts one peer; its output goes to the end of its log file."""
        peer.data_dir.mkdir(parents=True, exist_ok=True)
        arguments: list[str] = []
        for other in self.peers:
            arguments += ["--peer", f"{other.node_id}={other.peer_address}"]
        # Ignored where the directory holds data: so a second run goes on with the cluster.
        arguments.append("--bootstrap")
        for setting in self.settings:
            arguments += ["--set", setting]
        kept = {key: value for key, value in os.environ.items() if key.startswith("GAIA_")}
        peer.spawn(arguments, peer_environment(kept))

    def ended(self) -> list[PeerProcess]:
        """Peers whose process has ended and was not reported before."""
        found = [
            peer
            for peer in self.peers
            if peer.exit_code is not None and peer.pid not in self.reported
        ]
        self.reported.update(peer.pid for peer in found)
        return found

    def stop(self) -> None:
        """Stops the peers one after another with SIGTERM, so that leadership is handed over."""
        for peer in self.peers:
            if not peer.running:
                continue
            peer.send(signal.SIGTERM)
            try:
                peer.wait(STOP_TIMEOUT_S)
            except TimeoutError:
                peer.kill()
        if self.lock is not None:
            self.lock.close()

    def wait_ready(self, timeout_s: float, stopping: Callable[[], bool]) -> str:
        """Node id of the leader, once one leads; empty where `stopping` came first.

        Raises:
            StartupError: a peer ended, with its last line, or time is up.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if stopping():
                return ""
            for peer in self.ended():
                reason = last_line(peer) or f"exit code {peer.exit_code}"
                raise StartupError(f"peer {peer.node_id} did not start: {reason}")
            leader = leader_of(self.addresses, timeout_s=0.5)
            if leader:
                return leader
            time.sleep(POLL_INTERVAL_S)
        logs = ", ".join(str(peer.log_path) for peer in self.peers)
        raise StartupError(f"no leader after {timeout_s:.0f} s; the peers' logs: {logs}")


def last_line(peer: PeerProcess) -> str:
    """The last line that a peer wrote, without a leading `error: `."""
    lines = [line.strip() for line in peer.log_tail().splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""


def plan_cluster(
    data_dir: Path, peer_count: int, base_port: int, settings: Sequence[str]
) -> LocalCluster:
    """The peers on `base_port`; `ConfigError` where the directory holds another cluster."""
    if not (1 <= peer_count < PEER_PORT_OFFSET and peer_count % 2):
        raise ConfigError(
            f"--peers must be odd, 1 to {PEER_PORT_OFFSET - 1}: "
            "one peer more than an odd number survives no failure more"
        )
    if not 1_024 <= base_port <= 65_535 - 2 * PEER_PORT_OFFSET:
        raise ConfigError(f"--base-port must be 1024 to {65_535 - 2 * PEER_PORT_OFFSET}")
    found = len([path for path in data_dir.glob("n*") if path.is_dir()])
    if found and found % 2 == 0:
        raise ConfigError(
            f"{data_dir} holds {found} peers, which is no whole cluster: choose another "
            "--data-dir; where a peer's directory was lost, start the others with `gaia serve` and "
            "replace it (`gaia peers remove`, `add`)"
        )
    if found not in (0, peer_count):
        raise ConfigError(
            f"{data_dir} holds a cluster of {found} peers: use --peers {found}, "
            "or another --data-dir"
        )
    ports = [(base_port + place, base_port + PEER_PORT_OFFSET + place)
             for place in range(peer_count)]  # fmt: skip
    peers = [PeerProcess(f"n{place}", data_dir, pair) for place, pair in enumerate(ports, start=1)]
    return LocalCluster(data_dir, peers, settings)


def _require_free(node_id: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        # As the peers bind: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise StartupError(
                f"{address} of peer {node_id} is in use: is a cluster running already "
                "(`gaia status`)? --base-port chooses other ports"
            ) from error
