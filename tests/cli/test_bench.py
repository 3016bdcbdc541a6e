"""The benchmark's own code: what it adds up and how it reports. Figures come from `make bench`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gaia_grpc.cli.benchmarks.figures import Figure, Report, quantile
from gaia_grpc.cli.benchmarks.profile import shares
from gaia_grpc.cli.benchmarks.run import markdown, number, verdict, write_report
from gaia_grpc.cli.main import main


def test_quantiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert quantile(values, 50) == 50.0
    assert quantile(values, 99) == 99.0
    assert quantile(values, 100) == 100.0
    assert quantile([7.0], 99) == 7.0
    assert quantile([], 99) == 0.0


@pytest.mark.parametrize(
    ("value", "higher_is_better", "expected"),
    [
        (9.0, False, "guide met, first met"),
        (15.0, False, "guide met, first missed"),
        (25.0, False, "guide missed, first missed"),
        (9.0, True, "guide missed, first missed"),
        (20.0, True, "guide met, first met"),
    ],
)
def test_a_figure_is_judged_in_its_direction(
    value: float, higher_is_better: bool, expected: str
) -> None:
    figure = Figure("x", value, "ms", "how", 20.0, 10.0, higher_is_better)
    assert verdict(figure) == expected


def test_a_figure_without_a_target_has_no_verdict() -> None:
    assert verdict(Figure("x", 1.0, "ms", "how")) == "-"


def test_numbers_have_three_figures() -> None:
    assert [number(value, "ms") for value in (0.01234, 12.34, 1_234.5, None)] == [
        "0.0123 ms",
        "12.3 ms",
        "1,234 ms",
        "-",
    ]


def test_samples_belong_to_the_innermost_part_of_our_own() -> None:
    found = shares(
        [
            "run (asyncio/runners.py:1);apply (gaia_grpc/state/machine.py:2);len (x.py:3) 6",
            "run (asyncio/runners.py:1);commit (gaia_grpc/storage/database.py:2) 3",
            "run (asyncio/runners.py:1) 1",
            "run (asyncio/runners.py:1);LogWriter._run (gaia_grpc/node/writer.py:84) 90",
        ]
    )
    assert found == [
        ("state machine", 0.6),
        ("SQLite: commit with fsync", 0.3),
        ("loop and gRPC's C core, on the loop's thread", 0.1),
    ]
    assert shares([]) == []


def test_the_report_is_a_page_and_data(tmp_path: Path) -> None:
    report = Report("2 cores", "now", seconds=3.0, profile=[("driver", 0.25)])
    report.figures = [
        Figure("writes", 1_500.0, "/s", "3 peers", 1_000.0, 2_000.0, True, operations=10,
               peer_cpu_us=12.0),
    ]  # fmt: skip
    page, data = write_report(report, tmp_path / "report")
    text = page.read_text()
    assert "| writes | 1,500 /s | - | 1,000 /s | 2,000 /s | guide met, first missed |" in text
    assert "| writes | 12 µs | - | - | - |" in text
    assert "| driver | 25% |" in text
    assert json.loads(data.read_text())["figures"][0]["value"] == 1_500.0
    assert "## What one operation costs" not in markdown(Report("m", "s"))


@pytest.mark.benchmark
@pytest.mark.timeout(120)
def test_every_case_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    names = [figure["name"] for figure in report["figures"]]
    assert len(names) == len(set(names)) == 57
    assert all(
        figure["value"] > 0 for figure in report["figures"] if "memory" not in figure["name"]
    )
    assert "publish to alert received" in capsys.readouterr().out
    # MB1 to MB3: a rate of metrics says replicas, fsync and the size of batches.
    rates = [
        f"{figure['name']}: {figure['how']}"
        for figure in report["figures"]
        if figure["name"].startswith(("metrics acknowledged", "aggregates returned"))
    ]
    size = re.compile(r"(batch|batches|buffers|pages) of [\d,]+")
    assert len(rates) >= 9
    assert [rate for rate in rates if "3 peers, fsync" not in rate or not size.search(rate)] == []
