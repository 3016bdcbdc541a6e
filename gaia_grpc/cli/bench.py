"""`gaia bench`."""

from __future__ import annotations

from gaia_grpc.errors import UnimplementedError


def bench() -> int:
    """Not there yet."""
    raise UnimplementedError("bench comes next")
