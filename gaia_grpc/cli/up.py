"""`gaia up`: a local cluster in one terminal."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.options import parse_pairs

if TYPE_CHECKING:
    from gaia_grpc.cli.local_cluster import LocalCluster

READY_TIMEOUT_S = 30.0
WATCH_INTERVAL_S = 0.25
RESTART_DELAY_S = 1.0
HOW_IT_COMES_BACK = "Ctrl-C and `gaia up` bring it back (`gaia up --restart` does so by itself)"


def up(
    peers: Annotated[
        int, typer.Option("--peers", help="How many peers: 1, 3, 5 or any odd number.")
    ] = 3,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Kept: a second run goes on with it.")
    ] = Path(".gaia"),
    base_port: Annotated[
        int, typer.Option("--base-port", help="First client port; peer ports are 100 higher.")
    ] = 50_051,
    no_web: Annotated[
        bool, typer.Option("--no-web", help="Without the web pages (which are not there yet).")
    ] = False,
    web_port: Annotated[int, typer.Option("--web-port", help="Port of the web pages.")] = 8_080,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="First value of a cluster setting."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start a peer again whose process ended.")
    ] = False,
) -> int:
    """Run a local cluster in this terminal: one process a peer. Ctrl-C ends it, the data stays."""
    from gaia_grpc.cli.local_cluster import plan_cluster

    parse_pairs("--set", settings or ())
    cluster = plan_cluster(data_dir, peers, base_port, settings or ())
    stopping = threading.Event()

    def stop(signal_number: int, frame: FrameType | None) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    code = 0
    try:
        cluster.claim()
        print(f"starting {len(cluster.peers)} peers ...", flush=True)
        cluster.start()
        leader = cluster.wait_ready(READY_TIMEOUT_S, stopping.is_set)
        if leader:
            _print_started(cluster, leader, data_dir)
            code = _watch(cluster, stopping, restart)
        print("stopping ...", flush=True)
    finally:
        cluster.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    print("stopped; `gaia up` goes on with the same data", flush=True)
    return code


def _print_started(cluster: LocalCluster, leader: str, data_dir: Path) -> None:
    for peer in cluster.peers:
        role = "leader" if peer.node_id == leader else "follower"
        print(
            f"{peer.node_id}  clients {peer.address}  peers {peer.peer_address}  "
            f"pid {peer.pid}  {role}"
        )
    print(f"data and logs in {data_dir}/")
    print(f"export GAIA_CLUSTER={','.join(cluster.addresses)}")
    print("ready; Ctrl-C stops the cluster", flush=True)


def _watch(cluster: LocalCluster, stopping: threading.Event, restart: bool) -> int:
    """Until stopped: tells which peers ended. 1 where all of them ended by themselves."""
    from gaia_grpc.cli.local_cluster import last_line

    told = False
    while not stopping.wait(WATCH_INTERVAL_S):
        for peer in cluster.ended():
            code = peer.exit_code or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            said = f": {last_line(peer)}" if code > 0 else ""
            back = "" if restart else f"; {HOW_IT_COMES_BACK}"
            print(f"{peer.node_id} ended ({how}){said}{back}", flush=True)
            if restart and not stopping.wait(RESTART_DELAY_S):
                cluster.start_peer(peer)
                print(f"{peer.node_id} started again, pid {peer.pid}", flush=True)
        living = sum(peer.running for peer in cluster.peers)
        if living < cluster.majority and not told:
            print(
                f"{living} of {len(cluster.peers)} peers left, {cluster.majority} are needed: "
                "reads and writes have stopped, unless peers run elsewhere too; nothing is lost",
                flush=True,
            )
        told = living < cluster.majority
        if not living:
            return 1
    return 0
