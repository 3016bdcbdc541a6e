"""The test cluster itself: it comes up, injures what it is told to, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gaia_grpc.errors import ConfigError, StartupError
from gaia_grpc.testing import Cluster, free_ports, peer_environment
from gaia_grpc.testing import cluster as cluster_module

pytestmark = pytest.mark.e2e


def is_alive(pid: int) -> bool:
    """Whether the process is there and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_cluster_goes_away_with_everything() -> None:
    with Cluster(1) as cluster:
        process = cluster.peer("n1")
        pid, directory = process.pid, process.data_dir
        assert directory.is_dir()
        assert is_alive(pid)
    assert not is_alive(pid)
    assert not directory.parent.exists()
    cluster.stop()


def test_a_cluster_starts_on_other_ports_where_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        clash = taken.getsockname()[1]
        answers = [[clash, free_ports(1)[0]], free_ports(2)]
        monkeypatch.setattr(cluster_module, "free_ports", lambda count: answers.pop(0))
        with Cluster(1) as cluster:
            assert cluster.leader() == "n1"
            assert str(clash) not in cluster.address("n1")
    assert not answers


def test_a_cluster_that_can_not_start_says_why_and_leaves_nothing() -> None:
    cluster = Cluster(1, settings={"no.such": "1"})
    with pytest.raises(StartupError, match=r"no\.such"):
        cluster.start()
    assert cluster.node_ids == ()


async def test_faults_do_what_they_say(cluster3: Cluster) -> None:
    leader = await cluster3.aio.leader()
    follower = await cluster3.aio.follower()
    cluster3.pause(follower)
    assert follower not in cluster3.answering
    assert cluster3.peer(follower).running
    cluster3.kill(leader)
    assert cluster3.peer(leader).exit_code == -signal.SIGKILL
    assert len(cluster3.statuses()) == 1
    with pytest.raises(TimeoutError, match="no leader"):
        cluster3.leader(timeout=1)
    with pytest.raises(ConfigError, match="runs"):
        cluster3.wipe(follower)
    await cluster3.aio.heal()
    assert len(cluster3.statuses()) == 3
    await cluster3.aio.assert_equal_logs_and_hashes()


def test_logs_and_hashes_that_differ_are_found(
    cluster3: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster3.assert_equal_logs_and_hashes()
    entries = cluster3._probe.entries

    def forged(address: str, through_index: int) -> list[tuple[int, int, int, bytes]]:
        log = entries(address, through_index)
        if address == cluster3.addresses[2]:
            index, term, kind, _ = log[1]
            log[1] = (index, term, kind, b"other")
        return log

    monkeypatch.setattr(cluster3._probe, "entries", forged)
    with pytest.raises(AssertionError, match=r"logs differ: n1 .*n3"):
        cluster3.assert_equal_logs_and_hashes()


def test_peers_do_not_outlive_a_killed_test_run(tmp_path: Path) -> None:
    """The owner gets SIGKILL, so nothing of its own can clean up."""
    directory = tmp_path / "data"
    directory.mkdir()
    program = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from gaia_grpc.testing.guard import GUARD\n"
        "GUARD.watch(Path(sys.argv[1]))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "GUARD.watch(child.pid)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env=peer_environment(),
    )
    assert owner.stdout is not None
    with owner.stdout:
        child = int(owner.stdout.readline())
    assert is_alive(child)
    owner.kill()
    owner.wait()
    cluster_module.Cluster(1).wait_until(lambda: not is_alive(child), "the child is gone", 10)
    cluster_module.Cluster(1).wait_until(lambda: not directory.exists(), "its data is gone", 10)


def test_peers_do_not_see_the_variables_of_the_test_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAIA_CLUSTER", "elsewhere:1")
    environment = peer_environment({"EXTRA": "1"})
    assert "GAIA_CLUSTER" not in environment
    assert environment["EXTRA"] == "1"
    assert any(Path(part, "gaia").is_dir() for part in environment["PYTHONPATH"].split(os.pathsep))


def test_free_ports_are_apart() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20


FAILING = """
from gaia_grpc.testing.cluster import LIVE

class Fake:
    def logs(self):
        return "what n1 said"

KEPT = Fake()

def test_that_fails():
    LIVE.add(KEPT)
    assert False
"""


def test_a_failed_test_shows_the_peers_logs(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "gaia_grpc.testing.plugin", str(tmp_path)],
        cwd=tmp_path,
        env=peer_environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert "gaia peers" in done.stdout
    assert "what n1 said" in done.stdout
