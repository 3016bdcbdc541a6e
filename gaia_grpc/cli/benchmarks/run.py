"""Runs the cases and writes the report."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from gaia_grpc.cli.benchmarks import (
    alerts,
    coordination,
    depth,
    failover,
    ingest,
    queue,
    snapshots,
    stream,
    windows,
    workers,
)
from gaia_grpc.cli.benchmarks.bed import Bed, make_bed
from gaia_grpc.cli.benchmarks.echo import measure_echo
from gaia_grpc.cli.benchmarks.figures import Figure, Report, quantile
from gaia_grpc.cli.benchmarks.profile import HOW, profile_leader
from gaia_grpc.errors import ConfigError

Case = Callable[[Bed], Awaitable[list[Figure]]]

CASES: Mapping[str, Case] = {
    "register": coordination.register,
    "replicate": coordination.replicate,
    "queue": queue.idle,
    "cycles": queue.single,
    "in-flight": queue.in_flight,
    "batched": queue.batched,
    "workers": workers.workers,
    "locks": workers.locks,
    "metrics": stream.publish,
    "shapes": ingest.shapes,
    "students": ingest.students,
    "reading": ingest.reading,
    "watch": stream.watch,
    "lesson": ingest.lesson,
    "alerts": alerts.alert,
    "stalled": alerts.stalled,
    "deliveries": alerts.deliver,
    "detect": alerts.detect,
    "recover": alerts.recover,
}
FRESH_CASES: Mapping[str, Case] = {
    "failover": failover.kill,
    "handover": failover.terminate,
    "pause": failover.pause,
    "snapshot": snapshots.snapshot,
    "pending": depth.pending,
    "million": depth.million,
    "keys": windows.keys,
    "school": windows.school,
}
"""On clusters of their own: they end peers, or fill them."""
ONLY_WHEN_NAMED = ("million",)
"""Takes minutes."""
ECHO = "echo"
PROFILE = "profile"


async def run_benchmarks(
    only: Sequence[str], *, quick: bool, tell: Callable[[str], None]
) -> Report:
    """Runs the cases named in `only`, or all. Raises `ConfigError` for an unknown name."""
    known = [*CASES, *FRESH_CASES, PROFILE, ECHO]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(f"--only: no case {unknown[0]}; there are {', '.join(known)}")
    report = Report(_machine(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    begin_s = time.perf_counter()
    chosen = [name for name in known if (name in only if only else name not in ONLY_WHEN_NAMED)]
    shared = [name for name in chosen if name in CASES or name == PROFILE]
    if shared:
        async with make_bed(quick=quick) as bed:
            await _warm_up(bed)
            for name in shared:
                tell(name)
                if name == PROFILE:
                    report.profile = await profile_leader(bed)
                else:
                    report.figures += await CASES[name](bed)
    for name in chosen:
        if name in FRESH_CASES:
            tell(name)
            async with make_bed(quick=quick) as bed:
                await _warm_up(bed)
                report.figures += await FRESH_CASES[name](bed)
    if ECHO in chosen:
        tell(ECHO)
        report.figures += await _ceilings(quick)
    report.seconds = time.perf_counter() - begin_s
    return report


async def _warm_up(bed: Bed) -> None:
    for _ in range(bed.scaled(200)):
        await bed.client.tasks.enqueue("bench.warm-up")


async def _ceilings(quick: bool) -> list[Figure]:
    """What this machine can do at all, in the same run."""
    seconds = 0.2 if quick else 2.0
    _, alone = await measure_echo(seconds, 1)
    rate, calls = await measure_echo(seconds, 64)
    syncs = await asyncio.to_thread(measure_sync, 20 if quick else 200)
    how = "1 process, 1 client, 100 bytes, no log and no disk"
    return [
        Figure(
            "ceiling: bare grpc.aio echo, one call at a time, p99",
            quantile(alone, 99) * 1e3,
            "ms",
            how,
            samples=len(alone),
            p50=quantile(alone, 50) * 1e3,
        ),
        Figure(
            "ceiling: bare grpc.aio echo, 64 in flight",
            rate,
            "/s",
            how,
            higher_is_better=True,
            samples=len(calls),
        ),
        Figure(
            "ceiling: append of 200 bytes and fdatasync, p99",
            quantile(syncs, 99) * 1e3,
            "ms",
            "a plain file where the peers keep their data, nothing else running",
            samples=len(syncs),
            p50=quantile(syncs, 50) * 1e3,
        ),
    ]


def measure_sync(rounds: int) -> list[float]:
    """Seconds of each append with fdatasync, in the directory of temporary files."""
    durations: list[float] = []
    with tempfile.TemporaryFile(buffering=0) as file:
        for _ in range(rounds):
            begin_s = time.perf_counter()
            file.write(b"x" * 200)
            os.fdatasync(file.fileno())
            durations.append(time.perf_counter() - begin_s)
    return durations


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, grpcio {version('grpcio')}; "
        f"load average before the run {os.getloadavg()[0]:.1f}"
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
    if report.profile:
        lines += ["", "## Where the leader's time goes", "", f"py-spy: {HOW}.", ""]
        lines += ["| part | share |", "| --- | --- |"]
        lines += [f"| {part} | {share:.0%} |" for part, share in report.profile]
    lines.append("")
    return "\n".join(lines)


def write_report(report: Report, directory: Path) -> tuple[Path, Path]:
    """Writes bench.md and bench.json; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    page, data = directory / "bench.md", directory / "bench.json"
    page.write_text(markdown(report), encoding="utf-8")
    data.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return page, data
