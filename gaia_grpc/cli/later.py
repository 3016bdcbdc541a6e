"""Nouns that are part of the command line and not served yet: they say so and fail."""

from __future__ import annotations

from typing import Annotated

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption
from gaia_grpc.errors import UnimplementedError


def web(
    cluster: ClusterOption = DEFAULT_CLUSTER,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:8080",
) -> None:
    """Teacher and operator pages (not there yet)."""
    raise UnimplementedError("the web pages are not there yet; they come with a later version")
