"""Shows a running class: a live panel on a terminal, plain lines anywhere else."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gaia_grpc.classroom.observe import Progress

REFRESH_S = 0.12
PLAIN_INTERVAL_S = 1.0
EVENT_LINES = 10
BAR_WIDTH = 40
FACTS_WIDTH = 58


class LiveView:
    """Follows a `Progress` until it is cancelled."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told = 0
        self._rate_from = (time.monotonic(), 0)
        self._rate = 0.0

    async def run(self) -> None:
        """Shows the class until cancelled; leaves the last picture on the screen."""
        if sys.stdout.isatty():
            await self._run_panel()
        else:
            await self._run_plain()

    async def _run_panel(self) -> None:
        from rich.console import Console
        from rich.live import Live

        with Live(self._panel(), console=Console(), auto_refresh=False) as live:
            try:
                while True:
                    live.update(self._panel(), refresh=True)
                    await asyncio.sleep(REFRESH_S)
            finally:
                live.update(self._panel(), refresh=True)

    async def _run_plain(self) -> None:
        next_line_s = 0.0
        try:
            while True:
                self._tell_new_events()
                if time.monotonic() >= next_line_s and self._progress.phase == "class":
                    next_line_s = time.monotonic() + PLAIN_INTERVAL_S
                    print(self._line(), flush=True)
                await asyncio.sleep(REFRESH_S)
        finally:
            self._tell_new_events()

    def _tell_new_events(self) -> None:
        events = self._progress.events
        for text in events[self._told :]:
            print(text, flush=True)
        self._told = len(events)

    def _line(self) -> str:
        progress = self._progress
        return (
            f"{_clock(progress.class_ms)}  metrics {progress.metrics_acknowledged:,} of "
            f"{progress.metrics_planned:,} acknowledged  papers {progress.tasks_completed} of "
            f"{progress.tasks_planned} graded  leader {progress.leader or '-'} "
            f"term {progress.term}  {progress.peers_up} of {progress.peers} peers"
        )

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        progress = self._progress
        self._measure_rate()
        facts = Table.grid(padding=(0, 2))
        facts.add_row("class", _bar(progress.class_ms, progress.length_ms),
                      f"{_clock(progress.class_ms)} of {_clock(progress.length_ms)}")  # fmt: skip
        facts.add_row("metrics", _bar(progress.metrics_acknowledged, progress.metrics_planned),
                      f"{progress.metrics_acknowledged:,} of {progress.metrics_planned:,} "
                      f"acknowledged, {self._rate:,.0f}/s")  # fmt: skip
        facts.add_row("papers", _bar(progress.tasks_completed, progress.tasks_planned),
                      f"{progress.tasks_completed} of {progress.tasks_planned} graded")  # fmt: skip
        leader = progress.leader or "none"
        facts.add_row("cluster", "", Text(
            f"leader {leader}, term {progress.term}, {progress.peers_up} of {progress.peers} "
            f"peers, {progress.failovers} failovers",
            style="" if progress.leader else "bold red",
        ))  # fmt: skip
        lines = progress.events[-EVENT_LINES:]
        # A folded line would push the panel beyond the screen.
        events = Text(
            "\n".join(lines + [""] * (EVENT_LINES - len(lines))), no_wrap=True, overflow="ellipsis"
        )
        return Panel(Group(facts, Text(""), events), title=f"GAIA class: {progress.phase}")

    def _measure_rate(self) -> None:
        now_s, done = time.monotonic(), self._progress.metrics_acknowledged
        since_s, before = self._rate_from
        if now_s - since_s >= 1.0:
            self._rate = (done - before) / (now_s - since_s)
            self._rate_from = (now_s, done)


def _bar(done: int, of: int) -> str:
    # The facts beside the bar need the rest of a narrow terminal.
    width = max(8, min(BAR_WIDTH, shutil.get_terminal_size().columns - FACTS_WIDTH))
    filled = min(width, width * done // max(of, 1))
    return "█" * filled + "░" * (width - filled)


def _clock(milliseconds: int) -> str:
    seconds = milliseconds // 1_000
    return f"{seconds // 60}:{seconds % 60:02d}"
