"""`gaia replay`."""

from __future__ import annotations

from gaia_grpc.errors import UnimplementedError


def replay() -> int:
    """Not there yet."""
    raise UnimplementedError("replay comes next")
