"""Fixtures of the service tests: everything runs over two logs.

What is served must not depend on the log underneath (design section 3), so `peer` and `serve` come
over the twin in memory and over the embedded Raft, with its disk and a clock set by hand. Tests
that put something into the twin itself are marked `twin_only`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded_node import embedded_node
from tests.support.fake_node import FakeNode
from tests.support.served_peer import Serve, ServedPeer, serve_peer

LOGS = ("twin", "raft")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs what is served over both logs."""
    if "log_name" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("twin_only")
        metafunc.parametrize("log_name", LOGS[:1] if only else LOGS)


@pytest.fixture
def serve(log_name: str, tmp_path: Path) -> Serve:
    """Serves peers, each with a log of its own."""

    @asynccontextmanager
    async def serve_over(
        settings: Mapping[str, str] | None = None, **limits: Any
    ) -> AsyncIterator[ServedPeer]:
        if log_name == "twin":
            async with serve_peer(FakeNode(dict(settings or {})), **limits) as served:
                yield served
        else:
            async with (
                embedded_node(tmp_path, settings) as node,
                serve_peer(node, **limits) as served,
            ):
                yield served

    return serve_over


@pytest.fixture
async def peer(serve: Serve) -> AsyncIterator[ServedPeer]:
    """A served peer with the default limits."""
    async with serve() as served:
        yield served
