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


async def test_a_file_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    await show(progress())
    assert capsys.readouterr().out.splitlines() == [
        "1:30  metrics 1,500 of 6,000 acknowledged  papers 30 of 100 graded  "
        "leader n2 term 7  2 of 3 peers",
        "1:30  n2 leads now, term 7",
    ]
