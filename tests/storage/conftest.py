"""A data directory in memory-backed files where the machine has them: fsync is then free."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory() -> Iterator[Path]:
    """A fresh directory for files whose fsync need not be real."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="gaia-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)
