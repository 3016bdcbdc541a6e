"""What keeps a peer from starting: one line on stderr and a non-zero exit, never a hang."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gaia_grpc.testing import free_ports, peer_environment
from gaia_grpc.testing.plugin import MakeCluster


class Serve:
    """`gaia serve` for one peer of a cluster of one, with flags that a test may change."""

    def __init__(self, directory: Path) -> None:
        client_port, peer_port = free_ports(2)
        self.client_address = f"127.0.0.1:{client_port}"
        self.peer_address = f"127.0.0.1:{peer_port}"
        self.node_id = "n1"
        self.peers = [f"n1={self.peer_address}"]
        self.data_dir = directory / "n1"
        self.more: list[str] = ["--bootstrap"]

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "gaia_grpc", "serve", "--node-id", self.node_id]
        command += ["--listen", self.client_address, "--peer-listen", self.peer_address]
        for peer in self.peers:
            command += ["--peer", peer]
        return [*command, "--data-dir", str(self.data_dir), *self.more]

    def run_to_its_end(self, timeout: float = 20) -> tuple[int, str]:
        """(exit code, last line of stderr)."""
        done = subprocess.run(
            self.command(),
            env=peer_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        assert lines[-1] == errors[0]
        return done.returncode, errors[0]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    return Serve(tmp_path)


@pytest.mark.parametrize("which", ["client", "peer"])
def test_a_used_port(serve: Serve, which: str) -> None:
    address = serve.client_address if which == "client" else serve.peer_address
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        taken.listen()
        code, line = serve.run_to_its_end()
    assert code == 1
    assert address in line


def test_a_data_directory_that_can_not_be_written(serve: Serve, tmp_path: Path) -> None:
    # Under a file: root may write anywhere else.
    (tmp_path / "file").write_text("")
    serve.data_dir = tmp_path / "file" / "n1"
    code, line = serve.run_to_its_end()
    assert code == 1
    assert str(serve.data_dir) in line


def test_a_data_directory_in_use(gaia_cluster: MakeCluster, serve: Serve) -> None:
    cluster = gaia_cluster(1)
    serve.data_dir = cluster.peer("n1").data_dir
    code, line = serve.run_to_its_end()
    assert code == 1
    assert "in use" in line


def test_a_damaged_log(gaia_cluster: MakeCluster) -> None:
    cluster = gaia_cluster(1)
    cluster.terminate("n1")
    with sqlite3.connect(cluster.peer("n1").data_dir / "raft.db") as database:
        database.execute("UPDATE entries SET data = x'00' WHERE log_index = 1")
    database.close()
    cluster.respawn("n1")
    assert cluster.peer("n1").wait(15) == 1
    lines = cluster.log("n1").strip().splitlines()
    assert "Traceback" not in cluster.log("n1")
    assert lines[-1].startswith("error: ")
    assert "raft.db" in lines[-1]


def test_a_node_id_that_is_not_in_the_list(serve: Serve) -> None:
    serve.node_id = "n9"
    code, line = serve.run_to_its_end()
    assert code == 2
    assert "n9" in line


def test_an_unknown_setting(serve: Serve) -> None:
    serve.more += ["--set", "no.such=1"]
    code, line = serve.run_to_its_end()
    assert code != 0
    assert "no.such" in line


def test_neither_bootstrap_nor_data(serve: Serve) -> None:
    serve.more = []
    code, line = serve.run_to_its_end()
    assert code != 0
    assert "--bootstrap" in line


def test_the_directory_of_another_peer(gaia_cluster: MakeCluster, serve: Serve) -> None:
    cluster = gaia_cluster(1)
    cluster.terminate("n1")
    serve.node_id = "n2"
    serve.peers = [f"n1={free_address()}", f"n2={serve.peer_address}"]
    serve.data_dir = cluster.peer("n1").data_dir
    code, line = serve.run_to_its_end()
    assert code == 1
    assert "n1" in line


def free_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def test_peers_with_different_lists_found_nothing(tmp_path: Path) -> None:
    first, second = Serve(tmp_path / "a"), Serve(tmp_path / "b")
    second.node_id = "n2"
    both = [f"n1={first.peer_address}", f"n2={second.peer_address}"]
    first.peers = both
    second.peers = [*both, f"n3={free_address()}"]
    second.data_dir = tmp_path / "b" / "n2"
    running = [
        subprocess.Popen(
            peer.command(),
            env=peer_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for peer in (first, second)
    ]
    try:
        ended = [process.communicate(timeout=20)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, output in zip(running, ended, strict=True):
        assert process.returncode not in (0, None)
        assert output.strip().splitlines()[-1].startswith("error: ")
        assert "Traceback" not in output


def test_a_peer_of_another_cluster_is_refused(gaia_cluster: MakeCluster) -> None:
    """Its directory was founded elsewhere: both sides refuse, and neither counts the other in."""
    cluster, other = gaia_cluster(3), gaia_cluster(3)
    victim = cluster.follower()
    cluster.kill(victim)
    other.kill(victim)
    cluster.wipe(victim)
    other.peer(victim).data_dir.rename(cluster.peer(victim).data_dir)
    cluster.respawn(victim)
    leader = cluster.leader()
    cluster.wait_until(
        lambda: "of cluster" in cluster.log(leader) and "of cluster" in cluster.log(victim),
        "both sides say why",
    )
    # With the stranger as its only company the old leader is no quorum.
    cluster.kill(next(node for node in cluster.answering if node not in (leader, victim)))
    cluster.wait_until(lambda: not cluster.status(leader).writable, "the leader steps down")
    assert not cluster.status(victim).writable
    assert cluster.status(victim).cluster_id != cluster.status(leader).cluster_id
