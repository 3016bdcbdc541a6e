"""Below feature level 3 alerts are what they were, byte for byte: results are in the chain hash."""

from __future__ import annotations

import pytest

from tests.state.scenario import run

PINNED = {
    0: "736bd6948e01433419b18147b588ccfa2c6a803ae4dade1fc3ec9ae9fd5e7e2b",
    1: "8cdcfd8faa9c5348997c8842292b189465fd1139e221983329961ba02a41c6cc",
    2: "734eae7185fb73840062612c3f8d7040bd70169f6f8646c07027b7028f7bf81f",
}
"""Made by the version before the life of alerts; never to be renewed."""


@pytest.mark.parametrize("seed", sorted(PINNED))
def test_a_log_of_the_first_level_hashes_as_it_did(seed: int) -> None:
    lesson = run(seed, 400, level=0)
    found = lesson.machine.state_hash()
    assert found is not None
    assert found[1].hex() == PINNED[seed]
    assert len(lesson.changes()) > 50
    assert not any(event.pushed for event in lesson.events(limit=1_000).events)
