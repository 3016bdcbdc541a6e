"""Tables on a terminal of any width, and in a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from gaia_grpc.cli.output import print_table

COLUMNS = ("TASK", "STATE", "WHAT IT DOES")
ROWS = [("t-1", "pending", "grades the essays of a whole class"), ("t-2", "failed", "-")]


def table(monkeypatch: pytest.MonkeyPatch, width: int, *, terminal: bool = True) -> list[str]:
    """The lines of the table on a terminal of this width, or in a pipe."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS, "none")
    return out.getvalue().splitlines()


def test_a_pipe_gets_one_line_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, 20, terminal=False) == [
        "TASK  STATE    WHAT IT DOES",
        "t-1   pending  grades the essays of a whole class",
        "t-2   failed   -",
    ]


def test_a_wide_terminal_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, 80) == table(monkeypatch, 80, terminal=False)


def test_a_narrower_terminal_gets_the_last_column_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, 35) == [
        "TASK  STATE    WHAT IT DOES",
        "t-1   pending  grades the essays of",
        "               a whole class",
        "t-2   failed   -",
    ]


def test_a_narrow_terminal_gets_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, 28) == [
        "TASK          t-1",
        "STATE         pending",
        "WHAT IT DOES  grades the",
        "              essays of a",
        "              whole class",
        "",
        "TASK          t-2",
        "STATE         failed",
        "WHAT IT DOES  -",
    ]
