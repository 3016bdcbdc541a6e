"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Annotated, Any, TypeVar

import typer

from gaia_grpc.errors import ConfigError

Result = TypeVar("Result")

DEFAULT_CLUSTER = "127.0.0.1:50051,127.0.0.1:50052,127.0.0.1:50053"

ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster",
        envvar="GAIA_CLUSTER",
        metavar="HOST:PORT,...",
        help="Client addresses of the peers.",
    ),
]
OwnClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster",
        envvar="GAIA_CLUSTER",
        metavar="HOST:PORT,...",
        help="Use this cluster; without it three peers are started and thrown away at the end.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="Most items to print.")]
CountOption = Annotated[int | None, typer.Option("--count", min=1, help="End after so many.")]


def parse_cluster(text: str) -> list[str]:
    """Client addresses out of a comma-separated list; `ConfigError` where one is malformed."""
    addresses = [part.strip() for part in text.split(",") if part.strip()]
    if not addresses:
        raise ConfigError("--cluster needs at least one HOST:PORT")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"--cluster: {address!r} is not HOST:PORT")
        if not 0 < int(port) < 65_536:
            raise ConfigError(f"--cluster: port {port} of {address!r} is not 1 to 65535")
    return addresses


def parse_pairs(option: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """(key, value) of each KEY=VALUE; `ConfigError` where there is no `=` or a key comes twice."""
    pairs: dict[str, str] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ConfigError(f"{option}: {text!r} is not KEY=VALUE")
        if key.strip() in pairs:
            raise ConfigError(f"{option}: {key.strip()} is given twice")
        pairs[key.strip()] = value.strip()
    return list(pairs.items())


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """Runs `main` on a fresh loop (uvloop where it is installed)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
