"""What a benchmark case reports, and how processes are weighed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number beside its targets."""

    name: str
    value: float
    unit: str
    how: str
    """Replicas, clients, batch: how it was measured."""
    guide: float | None = None
    """What the guide asks for, in `unit`."""
    first: float | None = None
    """What the design wants to reach first, in `unit`."""
    higher_is_better: bool = False
    samples: int = 0
    operations: int = 0
    """Operations that the costs below are divided by."""
    p50: float | None = None
    peer_cpu_us: float | None = None
    """CPU time of all peers together for one operation, in microseconds."""
    client_cpu_us: float | None = None
    """CPU time of the measuring process for one operation, in microseconds."""
    log_bytes: float | None = None
    """Bytes of log entries (one replica) for one operation."""
    peak_peer_mb: float | None = None
    """Largest resident set that any peer had so far, in megabytes."""

    def meets(self, target: float | None) -> bool | None:
        """Whether the value is at least as good as `target`; None where there is none."""
        if target is None:
            return None
        return self.value >= target if self.higher_is_better else self.value <= target


@dataclass(slots=True)
class Report:
    """All figures of one run and what they were measured on."""

    machine: str
    started: str
    figures: list[Figure] = field(default_factory=list)
    profile: list[tuple[str, float]] = field(default_factory=list)
    """(part of the program, share of the leader's busy time), largest first."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Weight:
    """What processes have used so far."""

    peer_cpu_s: float
    client_cpu_s: float


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    # The name in parentheses may hold anything; the fields after it are numbers.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def resident_bytes(pid: int) -> int:
    """Resident set of a process, in bytes; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split()[1]) * PAGE_BYTES


def peak_resident_mb(pids: Sequence[int]) -> float:
    """Largest resident set that any of the processes ever had, in megabytes."""
    peak_kb = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("VmHWM:"):
                peak_kb = max(peak_kb, int(line.split()[1]))
    return peak_kb / 1_024.0


def quantile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank quantile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = max(0, -int(-percent * len(ordered) // 100) - 1)
    return ordered[min(place, len(ordered) - 1)]
