"""The peers that `gaia up` runs: one `gaia serve` child process each, on loopback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gaia_grpc.errors import ConfigError, StartupError

PEER_PORT_OFFSET = 100
STOP_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.05
LOG_TAIL_BYTES = 4_096


@dataclass(slots=True)
class LocalPeer:
    """One child process and where it listens."""

    node_id: str
    client_address: str
    peer_address: str
    data_dir: Path
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    reported: bool = False
    """Its end was told to the user."""

    @property
    def pid(self) -> int:
        """Process id; 0 while it was never started."""
        return self.process.pid if self.process else 0

    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.poll() if self.process else None

    def last_log_line(self) -> str:
        """The last line that the peer wrote, without a leading `error: `."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(0, 2)
                log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return ""
        written = [line.strip() for line in lines if line.strip()]
        return written[-1].removeprefix("error: ") if written else ""


@dataclass(slots=True)
class LocalCluster:
    """All peers of `gaia up`, kept in one data directory."""

    peers: list[LocalPeer]
    settings: Sequence[str] = ()
    log_files: list[IO[bytes]] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        """Client addresses of all peers."""
        return [peer.client_address for peer in self.peers]

    def start(self) -> None:
        """Starts every peer; `StartupError` where a port is taken."""
        for peer in self.peers:
            for address in (peer.client_address, peer.peer_address):
                _require_free(peer.node_id, address)
        for peer in self.peers:
            self.start_peer(peer)

    def start_peer(self, peer: LocalPeer) -> None:
        """Starts one peer; its output goes to the end of its log file."""
        peer.data_dir.mkdir(parents=True, exist_ok=True)
        log = peer.log_path.open("ab")
        self.log_files.append(log)
        command = [sys.executable, "-m", "gaia_grpc", "serve", "--node-id", peer.node_id]
        command += ["--listen", peer.client_address, "--peer-listen", peer.peer_address]
        for other in self.peers:
            command += ["--peer", f"{other.node_id}={other.peer_address}"]
        command += ["--data-dir", str(peer.data_dir), "--bootstrap"]
        for setting in self.settings:
            command += ["--set", setting]
        # A session of its own: Ctrl-C in the terminal reaches only `gaia up`, which stops in order.
        peer.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peer.reported = False

    def ended(self) -> list[LocalPeer]:
        """Peers whose process has ended and was not reported before."""
        found = [peer for peer in self.peers if peer.exit_code() is not None and not peer.reported]
        for peer in found:
            peer.reported = True
        return found

    def stop(self) -> None:
        """Stops the peers one after another with SIGTERM, so that leadership is handed over."""
        for peer in self.peers:
            if peer.process is None or peer.process.poll() is not None:
                continue
            peer.process.send_signal(signal.SIGTERM)
            try:
                peer.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                peer.process.kill()
                peer.process.wait(KILL_TIMEOUT_S)
        for log in self.log_files:
            log.close()
        self.log_files.clear()


def plan_cluster(
    data_dir: Path, peer_count: int, base_port: int, settings: Sequence[str]
) -> LocalCluster:
    """The peers on `base_port`; `ConfigError` where the directory holds another cluster."""
    if not 1 <= peer_count <= PEER_PORT_OFFSET:
        raise ConfigError(f"--peers must be 1 to {PEER_PORT_OFFSET}")
    if not 1_024 <= base_port <= 65_535 - 2 * PEER_PORT_OFFSET:
        raise ConfigError(f"--base-port must be 1024 to {65_535 - 2 * PEER_PORT_OFFSET}")
    found = len([path for path in data_dir.glob("n*") if path.is_dir()]) if data_dir.exists() else 0
    if found not in (0, peer_count):
        raise ConfigError(
            f"{data_dir} holds a cluster of {found} peers: use --peers {found}, "
            "or another --data-dir"
        )
    peers = [
        LocalPeer(
            node_id=f"n{number + 1}",
            client_address=f"127.0.0.1:{base_port + number}",
            peer_address=f"127.0.0.1:{base_port + PEER_PORT_OFFSET + number}",
            data_dir=data_dir / f"n{number + 1}",
            log_path=data_dir / f"n{number + 1}.log",
        )
        for number in range(peer_count)
    ]
    return LocalCluster(peers, settings)


def wait_ready(cluster: LocalCluster, timeout_s: float) -> str:
    """Node id of the leader, once one leads; `StartupError` where a peer ends or time is up."""
    from gaia_grpc.cli.rpc import leader_of

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for peer in cluster.ended():
            reason = peer.last_log_line() or f"exit code {peer.exit_code()}"
            raise StartupError(f"peer {peer.node_id} did not start: {reason}")
        leader = leader_of(cluster.addresses, timeout_s=0.5)
        if leader:
            return leader
        time.sleep(POLL_INTERVAL_S)
    logs = ", ".join(str(peer.log_path) for peer in cluster.peers)
    raise StartupError(f"no leader after {timeout_s:.0f} s; the peers' logs: {logs}")


def _require_free(node_id: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        # As the peers bind: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise StartupError(
                f"{address} of peer {node_id} is in use: is a cluster running already? "
                "(--base-port chooses other ports)"
            ) from error
