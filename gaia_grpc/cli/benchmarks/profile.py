"""Where a write's time goes: samples of the leader under load, added up by part of the program."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from gaia_grpc.cli.benchmarks.bed import Bed

SECONDS = 5
IN_FLIGHT = 64
SAMPLES_PER_S = 200
HOW = f"samples of the leader's busy threads, 1 client with {IN_FLIGHT} enqueues in flight"

# The first pattern that fits the innermost frames decides; a frame of our own counts before the
# library that it called, but for the libraries named here.
PARTS: tuple[tuple[str, str], ...] = (
    ("SQLite: commit with fsync", r"storage/"),
    ("consensus core", r"gaia_grpc/raft/"),
    ("state machine", r"gaia_grpc/state/"),
    ("driver", r"gaia_grpc/node/"),
    ("messages between peers", r"gaia_grpc/transport/"),
    ("services: validation, command, answer", r"gaia_grpc/services/"),
    ("gRPC for Python", r"grpc/|cygrpc|grpc_"),
    ("loop and gRPC's C core, on the loop's thread", r"asyncio/|uvloop|selectors"),
    ("gRPC's C core, on its own thread", r"Thread\.run \(threading"),
)
OTHER = "other"
WAITING = re.compile(r"LogWriter\._run ")
"""Innermost frames of threads that wait for work inside a C call, which py-spy takes for busy."""


def find_profiler() -> str | None:
    """Path of py-spy; None where it is not installed."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


async def profile_leader(bed: Bed) -> list[tuple[str, float]]:
    """(part, share of the samples), largest first; empty where py-spy is missing or not allowed."""
    profiler = find_profiler()
    if profiler is None:
        return []
    leader = bed.cluster.peer(await bed.cluster.aio.leader())
    with tempfile.TemporaryDirectory() as directory:
        samples = Path(directory) / "samples"
        process = await asyncio.create_subprocess_exec(
            profiler,
            *("record", "--pid", str(leader.pid), "--format", "raw", "--output", str(samples)),
            *("--duration", str(1 if bed.quick else SECONDS), "--rate", str(SAMPLES_PER_S)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await _load_until(bed, process)
        if process.returncode or not samples.exists():
            return []
        return shares(samples.read_text(encoding="utf-8").splitlines())


async def _load_until(bed: Bed, process: asyncio.subprocess.Process) -> None:
    """Enqueues with IN_FLIGHT calls until the process ends."""
    ended = asyncio.create_task(process.wait())

    async def enqueue() -> None:
        while not ended.done():
            await bed.client.tasks.enqueue("bench.profile", b"x" * 100)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(enqueue())
    await ended


def shares(lines: Iterable[str]) -> list[tuple[str, float]]:
    """Adds up `frame;frame;frame count` lines by the part that the innermost frames belong to."""
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not WAITING.match(frames[-1]):
            counts[_part_of(frames)] += int(count)
    total = sum(counts.values())
    return [(part, count / total) for part, count in counts.most_common()] if total else []


def _part_of(frames: list[str]) -> str:
    for frame in reversed(frames):
        for part, pattern in PARTS:
            if re.search(pattern, frame):
                return part
    return OTHER
