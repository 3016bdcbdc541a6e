"""All of these run real peer processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lives in this folder."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
async def client3(cluster3: Cluster) -> AsyncIterator[Client]:
    """A client of the module's three peers."""
    async with cluster3.client() as client:
        yield client
