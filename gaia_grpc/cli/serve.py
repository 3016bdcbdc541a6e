"""`gaia serve`: one peer in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gaia_grpc.cli.options import parse_pairs


def serve(
    node_id: Annotated[
        str | None, typer.Option("--node-id", help="Name of this peer, one of --peer.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Address for clients.")
    ] = None,
    peer_listen: Annotated[
        str | None,
        typer.Option("--peer-listen", metavar="HOST:PORT", help="Address for other peers."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="ID=HOST:PORT", help="Every peer, this one included."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Log and snapshots.")
    ] = None,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Found the cluster; ignored where data exists.")
    ] = False,
    join: Annotated[bool, typer.Option("--join", help="Wait to be added to a cluster.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="First value of a cluster setting."),
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file with these options.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error.")
    ] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="text or json.")] = None,
) -> int:
    """Run one peer in this process until SIGTERM or Ctrl-C."""
    from gaia_grpc.config import load_peer_config
    from gaia_grpc.server import run

    config = load_peer_config(
        {
            "node_id": node_id,
            "listen": listen,
            "peer_listen": peer_listen,
            "peers": parse_pairs("--peer", peer) if peer else None,
            "data_dir": None if data_dir is None else str(data_dir),
            "bootstrap": bootstrap or None,
            "join": join or None,
            "settings": parse_pairs("--set", settings) if settings else None,
            "log_level": log_level,
            "log_format": log_format,
        },
        config_file=config_file,
    )
    return run(config)
