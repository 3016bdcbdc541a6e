"""`pytest --rewrite-traces` writes what the traces print; review the change like code."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-traces",
        action="store_true",
        help="write the output of tests/raft/traces/*.txt anew instead of comparing it",
    )
