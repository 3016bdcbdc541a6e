"""Fixtures for tests on real clusters: `pytest_plugins = ["gaia_grpc.testing.plugin"]`.

`cluster1`, `cluster3` and `cluster5` are shared by the tests of a module and healed before each one
(what a test killed or paused runs again); `gaia_cluster` makes clusters with settings of their own
for one test, `gaia_module_cluster` for one module. Where a test fails, the report shows the end of
every peer's log.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gaia_grpc.testing.cluster import LIVE, Cluster

MakeCluster = Callable[..., Cluster]


def _maker(stack: ExitStack) -> MakeCluster:
    def make(peers: int = 3, **options: Any) -> Cluster:
        return stack.enter_context(Cluster(peers, **options))

    return make


@pytest.fixture
def gaia_cluster() -> Iterator[MakeCluster]:
    """Starts clusters that end with the test: `gaia_cluster(3, settings={...})`."""
    with ExitStack() as stack:
        yield _maker(stack)


@pytest.fixture(scope="module")
def gaia_module_cluster() -> Iterator[MakeCluster]:
    """Starts clusters that end with the module."""
    with ExitStack() as stack:
        yield _maker(stack)


@pytest.fixture(scope="module")
def _shared_clusters(gaia_module_cluster: MakeCluster) -> Callable[[int], Cluster]:
    made: dict[int, Cluster] = {}

    def get(peers: int) -> Cluster:
        if peers not in made:
            made[peers] = gaia_module_cluster(peers)
        made[peers].heal()
        return made[peers]

    return get


@pytest.fixture
def cluster1(_shared_clusters: Callable[[int], Cluster]) -> Cluster:
    """One peer, shared by the module."""
    return _shared_clusters(1)


@pytest.fixture
def cluster3(_shared_clusters: Callable[[int], Cluster]) -> Cluster:
    """Three peers, shared by the module."""
    return _shared_clusters(3)


@pytest.fixture
def cluster5(_shared_clusters: Callable[[int], Cluster]) -> Cluster:
    """Five peers, shared by the module."""
    return _shared_clusters(5)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the peers' logs to the report of a failed test."""
    report = yield
    if report.failed:
        for cluster in list(LIVE):
            report.sections.append(("gaia peers", cluster.logs()))
    return report
