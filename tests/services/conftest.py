"""Fixtures of the service tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.served_peer import ServedPeer, serve_peer


@pytest.fixture
async def peer() -> AsyncIterator[ServedPeer]:
    """A served peer with the default limits."""
    async with serve_peer() as served:
        yield served
