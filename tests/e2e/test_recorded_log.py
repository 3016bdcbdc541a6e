"""A recorded log of real students, replayed at two speeds at once: it reconciles to the last row.

What the windows must hold is counted from the file by hand here, not by the product's reader.
`GAIA_LONG=1` replays the whole log: an hour at speed 60.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import report

DATA = Path(os.environ.get("GAIA_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
LOG = DATA / "cognitive_tutor_algebra_2006_07_sample.tsv.gz"
needs_log = pytest.mark.skipif(
    not LOG.exists(), reason="the recorded log of real students is not on this machine (GAIA_DATA)"
)
IS_LONG = bool(os.environ.get("GAIA_LONG"))
EXCERPTS = {60: (8, 1), 600: (11, 8)}
"""Students, and rows of each: some five seconds at either speed."""
TYPES = ("correct", "error", "hint", "response_time")
SETTINGS = {"metrics.type_retention": " ".join(f"{name}=365d" for name in TYPES)}
LONGEST_RESPONSE_MS = 600_000
WINDOW_MS = 300_000
TIMEOUT_S = 7_200 if IS_LONG else 60

Totals = dict[tuple[str, str], tuple[int, float]]
"""(student, type) -> (measurements, sum)."""


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        yield from csv.DictReader(text, delimiter="\t")


def write_excerpt(path: Path, students: int, rows_of_each: int) -> None:
    """The first rows of each of the first students."""
    taken: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows_of(LOG):
        if len(taken[row["Anon Student Id"]]) < rows_of_each:
            taken[row["Anon Student Id"]].append(row)
    rows = [row for student in list(taken.values())[:students] for row in student]
    with gzip.open(path, "wt", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def milliseconds(text: str) -> int:
    moment = datetime.strptime(text.split(".")[0], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    _, _, fraction = text.partition(".")
    return int(moment.timestamp()) * 1_000 + round(float(f"0.{fraction or 0}") * 1_000)


def totals_of_file(path: Path) -> tuple[int, Totals]:
    """Rows, and what they hold."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    rows = 0
    for row in rows_of(path):
        rows += 1
        student = row["Anon Student Id"]
        found[student, "error"] += [1.0] * int(row["Incorrects"])
        found[student, "hint"] += [1.0] * int(row["Hints"])
        found[student, "correct"] += [1.0] * (int(row["Corrects"]) > 0)
        if row["Step Start Time"]:
            took_ms = milliseconds(row["First Transaction Time"])
            took_ms -= milliseconds(row["Step Start Time"])
            if 0 <= took_ms <= LONGEST_RESPONSE_MS:
                found[student, "response_time"].append(float(took_ms))
    return rows, {key: (len(values), sum(values)) for key, values in found.items() if values}


def replay(path: Path, speed: int, addresses: tuple[str, ...]) -> dict[str, Any]:
    """`gaia replay`; its report."""
    command = [sys.executable, "-m", "gaia_grpc", "replay", str(path), "--json"]
    command += ["--format", "cognitive-tutor", "--speed", str(speed)]
    command += ["--cluster", ",".join(addresses)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=0.9 * TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def totals_of_history(client: Client, timeline_id: str, students: set[str]) -> Totals:
    """All windows of the past, once the timeline has gone on far enough to end the last."""
    [window, *_] = [
        w async for w in client.metrics.aggregates(timeline_id, timeline_id=timeline_id)
    ]
    ending = metrics_pb2.MetricBatch(
        source_id=f"{timeline_id}-end",
        source_epoch=1,
        sequence=1,
        timeline_id=timeline_id,
        sent_at_ms=window.window_end_ms + 2 * WINDOW_MS,
        student_id="nobody",
        app_name="math",
        metrics=[metrics_pb2.Metric(metric_type="end", value=1)],
    )
    await client.metrics.publish([ending])
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for student in sorted(students):
        async for past in client.metrics.history(student, "math", timeline_id=timeline_id):
            for part in past.aggregate.metrics:
                count, total = found.get((student, part.metric_type), (0, 0.0))
                found[student, part.metric_type] = count + part.count, total + part.sum
    return found


async def reconcile(client: Client, path: Path, told: dict[str, Any], speed: int) -> None:
    rows, expected = totals_of_file(path)
    assert told["reconciled"] is True
    assert told["rowsRead"] == rows
    assert told["rowsSkipped"] == {}
    counts = told["counts"]
    metrics = sum(count for count, _ in expected.values())
    assert counts["sent"] == metrics
    assert (counts["rejected"], counts["refused"], counts["late"]) == (0, 0, 0)
    assert counts["accepted"] == metrics
    students = {student for student, _ in expected}
    found = await totals_of_history(client, told["timelineId"], students)
    assert found == expected
    held = sum(count for count, _ in found.values())
    assert held == counts["accepted"] + counts["late"]
    report(
        f"speed {speed}: {rows} rows of {len(students)} students, {held} metrics acknowledged and "
        f"in windows, alerts {told['alertsByPattern']}, {told['wallSeconds']:.1f} s"
    )


@needs_log
@pytest.mark.timeout(TIMEOUT_S)
async def test_metrics_of_real_students_reconcile_to_the_last_row_at_speed_60_and_600(
    gaia_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster: Cluster = await asyncio.to_thread(gaia_cluster, 3, settings=SETTINGS)
    logs = dict.fromkeys(EXCERPTS, LOG)
    if not IS_LONG:
        for speed, (students, rows) in EXCERPTS.items():
            logs[speed] = tmp_path / f"log-{speed}.tsv.gz"
            write_excerpt(logs[speed], students, rows)
    async with cluster.client() as client, asyncio.TaskGroup() as group:

        async def run(speed: int) -> None:
            told = await asyncio.to_thread(replay, logs[speed], speed, cluster.addresses)
            await reconcile(client, logs[speed], told, speed)

        for speed in logs:
            group.create_task(run(speed))
    await cluster.aio.assert_equal_logs_and_hashes()
