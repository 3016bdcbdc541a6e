"""Runs the cases and writes the report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from gaia_grpc.cli.benchmarks import coordination, queue, stream
from gaia_grpc.cli.benchmarks.bed import Bed, make_bed
from gaia_grpc.cli.benchmarks.echo import measure_echo
from gaia_grpc.cli.benchmarks.figures import Figure, Report, quantile
from gaia_grpc.errors import ConfigError

Case = Callable[[Bed], Awaitable[list[Figure]]]

CASES: Mapping[str, Case] = {
    "register": coordination.register,
    "replicate": coordination.replicate,
    "queue": queue.idle,
    "cycles": queue.single,
    "in-flight": queue.in_flight,
    "batched": queue.batched,
    "metrics": stream.publish,
    "watch": stream.watch,
    "alerts": stream.alert,
    "recover": stream.recover,
    "memory": queue.memory,
}
"""In this order: what fills the peers comes last."""
FRESH_CASES: Mapping[str, Case] = {"failover": coordination.failover}
"""On a cluster of their own, since they kill its peers."""
ECHO = "echo"


async def run_benchmarks(
    only: Sequence[str], *, quick: bool, tell: Callable[[str], None]
) -> Report:
    """Runs the cases named in `only`, or all. Raises `ConfigError` for an unknown name."""
    known = [ECHO, *FRESH_CASES, *CASES]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(f"--only: no case {unknown[0]}; there are {', '.join(known)}")
    report = Report(_machine(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    begin_s = time.perf_counter()
    for name, case in FRESH_CASES.items():
        if not only or name in only:
            tell(name)
            async with make_bed(quick=quick) as bed:
                await _warm_up(bed)
                report.figures += await case(bed)
    chosen = [name for name in CASES if not only or name in only]
    if not only or ECHO in only:
        tell("echo")
        report.figures += await _echo(quick)
    if chosen:
        async with make_bed(quick=quick) as bed:
            await _warm_up(bed)
            for name in chosen:
                tell(name)
                report.figures += await CASES[name](bed)
    report.seconds = time.perf_counter() - begin_s
    return report


async def _warm_up(bed: Bed) -> None:
    for _ in range(bed.scaled(200)):
        await bed.client.tasks.enqueue("bench.warm-up")


async def _echo(quick: bool) -> list[Figure]:
    seconds = 0.2 if quick else 2.0
    _, alone = await measure_echo(seconds, 1)
    rate, _ = await measure_echo(seconds, 64)
    return [
        Figure(
            "ceiling: bare grpc.aio echo, one call at a time, p50",
            quantile(alone, 50) * 1e3,
            "ms",
            "1 process, 1 client, 100 bytes, no log and no disk",
            samples=len(alone),
        ),
        Figure(
            "ceiling: bare grpc.aio echo, 64 in flight",
            rate,
            "/s",
            "1 process, 1 client, 100 bytes, no log and no disk",
            higher_is_better=True,
        ),
    ]


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, grpcio {version('grpcio')}"
    )


# --- the report -----------------------------------------------------------------------------------


def number(value: float | None, unit: str = "") -> str:
    """Three figures are as many as a run repeats."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def verdict(figure: Figure) -> str:
    """Which targets the figure meets."""
    words = []
    for name, target in (("guide", figure.guide), ("first", figure.first)):
        met = figure.meets(target)
        if met is not None:
            words.append(f"{name} {'met' if met else 'missed'}")
    return ", ".join(words) or "-"


def markdown(report: Report) -> str:
    """The report as a page."""
    lines = [
        "# Benchmark report",
        "",
        f"{report.started}; {report.machine}; took {report.seconds:.0f} s. Peers and client share "
        "the machine. Made by `make bench`.",
        "",
        "| what | measured | p50 | guide | to reach first | | how |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in report.figures:
        lines.append(
            f"| {each.name} | {number(each.value, each.unit)} | {number(each.p50)} | "
            f"{number(each.guide, each.unit)} | {number(each.first, each.unit)} | "
            f"{verdict(each)} | {each.how}; n = {each.samples:,} |"
        )
    weighed = [each for each in report.figures if each.operations]
    if weighed:
        lines += [
            "",
            "## What one operation costs",
            "",
            "| what | CPU of the 3 peers | CPU of the client | log bytes | peak memory of a peer |",
            "| --- | --- | --- | --- | --- |",
        ]
        for each in weighed:
            lines.append(
                f"| {each.name} | {number(each.peer_cpu_us, 'µs')} | "
                f"{number(each.client_cpu_us, 'µs')} | {number(each.log_bytes, 'B')} | "
                f"{number(each.peak_peer_mb, 'MB')} |"
            )
    lines += ["", *report.notes, ""]
    return "\n".join(lines)


def write_report(report: Report, directory: Path) -> tuple[Path, Path]:
    """Writes bench.md and bench.json; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    page, data = directory / "bench.md", directory / "bench.json"
    page.write_text(markdown(report), encoding="utf-8")
    data.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return page, data
