"""Says at the end of `make sim` what the seeds met."""

from __future__ import annotations

import os

import pytest

from tests.sim.runner import TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.seeds and (os.environ.get("GAIA_SIM_SEEDS") or os.environ.get("GAIA_SIM_SEED")):
        terminalreporter.section(f"{TALLY.seeds} simulated clusters")
        terminalreporter.write_line(TALLY.last if TALLY.seeds == 1 else TALLY.text())
