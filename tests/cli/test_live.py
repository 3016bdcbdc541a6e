"""What a running class shows: a panel on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest

from gaia_grpc.classroom.observe import Progress
from gaia_grpc.cli.live import LiveView


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress() -> Progress:
    return Progress(
        length_ms=300_000,
        metrics_planned=6_000,
        tasks_planned=100,
        phase="class",
        class_ms=90_000,
        metrics_acknowledged=1_500,
        tasks_completed=30,
        leader="n2",
        term=7,
        peers_up=2,
        peers=3,
        failovers=1,
    )


async def show(shown: Progress) -> None:
    task = asyncio.create_task(LiveView(shown).run())
    for _ in range(3):
        await asyncio.sleep(0)
    shown.tell("n2 leads now, term 7")
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_terminal_gets_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    await show(progress())
    text = terminal.getvalue()
    for part in (
        "GAIA class: class",
        "1:30 of 5:00",
        "1,500 of 6,000",
        "30 of 100 graded",
        "leader n2, term 7, 2 of 3 peers, 1 failovers",
        "1:30  n2 leads now, term 7",
    ):
        assert part in text


@pytest.mark.parametrize("columns", [50, 80])
async def test_a_narrow_terminal_gets_a_panel_of_the_same_height(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = progress()
    for _ in range(10):
        shown.tell("alert opened: student-05 in reading, excessive_errors (critical) " * 3)
    await show(shown)
    last = terminal.getvalue().split("GAIA class")[-1]
    assert last.count("\n") <= 20
    assert all(len(line) <= columns for line in last.splitlines()[1:-1])


async def test_a_file_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    await show(progress())
    assert capsys.readouterr().out.splitlines() == [
        "1:30  metrics 1,500 of 6,000 acknowledged  papers 30 of 100 graded  "
        "leader n2 term 7  2 of 3 peers",
        "1:30  n2 leads now, term 7",
    ]
