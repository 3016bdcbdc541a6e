"""`gaia bench`: the figures of this machine beside the targets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gaia_grpc.cli.options import JsonOption, run_async


def bench(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Run only this case; may be repeated.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where bench.md and bench.json go.")
    ] = Path("report"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A trial run; its figures mean nothing.")
    ] = False,
    json_output: JsonOption = False,
) -> int:
    """Measure a fresh three-peer cluster and write a report."""
    from gaia_grpc.cli.benchmarks.run import number, run_benchmarks, verdict, write_report
    from gaia_grpc.cli.output import print_table

    def tell(name: str) -> None:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)

    report = run_async(run_benchmarks(only or [], quick=quick, tell=tell))
    page, data = write_report(report, out)
    if json_output:
        print(data.read_text(encoding="utf-8"), end="")
        return 0
    print_table(
        ("WHAT", "MEASURED", "P50", "GUIDE", "FIRST", ""),
        (
            (
                each.name,
                number(each.value, each.unit),
                number(each.p50),
                number(each.guide),
                number(each.first),
                verdict(each),
            )
            for each in report.figures
        ),
        "no figures",
    )
    if report.profile:
        print()
        print_table(
            ("WHERE THE LEADER'S TIME GOES", "SHARE"),
            ((part, f"{share:.0%}") for part, share in report.profile),
            "",
        )
    print(f"report: {page}, {data}")
    return 0
