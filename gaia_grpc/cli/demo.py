"""`gaia demo`."""

from __future__ import annotations

from gaia_grpc.errors import UnimplementedError


def demo() -> int:
    """Not there yet."""
    raise UnimplementedError("demo comes next")
