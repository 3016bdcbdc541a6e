"""All of these run real peer processes; what only needs its ports also runs over another log.

A module is marked `both_logs` for that, and what puts its hands on a process `embedded_only`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import SHORT_TIMES
from tests.support.twin_cluster import Served, TwinCluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lives in this folder."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs what needs no hand on a process over another log too (`both_logs`)."""
    if "log_name" in metafunc.fixturenames:
        definition = metafunc.definition
        both = definition.get_closest_marker("both_logs")
        only = definition.get_closest_marker("embedded_only")
        metafunc.parametrize("log_name", ("raft", "twin") if both and not only else ("raft",))


@pytest.fixture
async def cluster3(
    log_name: str, _shared_clusters: Callable[[int], Cluster]
) -> AsyncIterator[Served]:
    """Three peers, shared by the module; or three ports over the twin, fresh for each test."""
    if log_name == "raft":
        yield await asyncio.to_thread(_shared_clusters, 3)
    else:
        async with TwinCluster() as twin:
            yield twin


@pytest.fixture(scope="module")
def make_short_cluster(gaia_module_cluster: MakeCluster) -> Callable[[], Cluster]:
    """The module's three peers with timers a tenth as long, all well."""
    made: list[Cluster] = []

    def make() -> Cluster:
        if not made:
            made.append(gaia_module_cluster(3, settings=SHORT_TIMES))
        made[0].heal()
        return made[0]

    return make


@pytest.fixture
async def short_cluster(
    log_name: str, make_short_cluster: Callable[[], Cluster]
) -> AsyncIterator[Served]:
    """As `cluster3`, with timers a tenth as long."""
    if log_name == "raft":
        yield await asyncio.to_thread(make_short_cluster)
    else:
        async with TwinCluster(SHORT_TIMES) as twin:
            yield twin


@pytest.fixture
async def client3(cluster3: Served) -> AsyncIterator[Client]:
    """A client of the three peers."""
    async with cluster3.client() as client:
        yield client
