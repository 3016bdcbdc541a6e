"""A recorded log through three real peers: everything counted, the same alerts at any speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gaia_grpc.cli.main import main
from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster

pytestmark = pytest.mark.e2e

SAMPLE = (
    Path(__file__).resolve().parents[3]
    / "shared/data/cognitive_tutor_algebra_2006_07_sample.tsv.gz"
)
needs_sample = pytest.mark.skipif(
    not SAMPLE.exists(), reason="the recorded log of real students is not on this machine"
)
BEGIN_MS = 1_600_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two students, two days: ana has two bursts of errors, ben none."""
    rows = ["student_id,app_name,metric_type,value,event_time_ms"]
    for day in (0, 1):
        for step in range(6):
            at_ms = BEGIN_MS + day * 86_400_000 + step * 5_000
            rows.append(f"ana,math,error,1,{at_ms}")
            rows.append(f"ben,math,correct,1,{at_ms + 100}")
    rows.append("ana,math,error,much,0")
    path = tmp_path / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def replay(capsys: pytest.CaptureFixture[str], cluster: Cluster, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    code = main(["replay", *arguments, "--cluster", ",".join(cluster.addresses), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err or captured.out
    report: dict[str, Any] = json.loads(captured.out)
    return report


async def alerts_of(cluster: Cluster, timeline_id: str) -> list[tuple[object, ...]]:
    async with Client.connect(cluster.addresses) as client:
        return [
            (alert.student_id, alert.pattern, alert.severity, alert.detected_at_ms)
            async for alert in client.alerts.list(timeline_id=timeline_id)
        ]


def test_a_log_is_counted_to_the_last_metric(
    cluster3: Cluster, capsys: pytest.CaptureFixture[str], log: Path
) -> None:
    report = replay(capsys, cluster3, str(log), "--format", "csv", "--speed", "0")
    assert report["reconciled"] is True
    assert (report["rowsRead"], report["students"]) == (25, 2)
    assert report["rowsSkipped"] == {"value is no number": 1}
    counts = report["counts"]
    assert (counts["sent"], counts["accepted"], counts["late"]) == (24, 24, 0)
    assert report["alertsByPattern"] == {"excessive_errors": 2}


async def test_the_speed_changes_no_alert(
    cluster3: Cluster, capsys: pytest.CaptureFixture[str], log: Path
) -> None:
    import asyncio

    reports = [
        await asyncio.to_thread(
            replay, capsys, cluster3, str(log), "--format", "csv", "--speed", speed
        )
        for speed in ("0", "50")
    ]
    first, second = [await alerts_of(cluster3, report["timelineId"]) for report in reports]
    assert first == second
    assert len(first) == 2
    assert reports[0]["counts"]["calls"] < reports[1]["counts"]["calls"]


def test_the_summary_is_for_people_too(
    cluster3: Cluster, capsys: pytest.CaptureFixture[str], log: Path
) -> None:
    cluster = ",".join(cluster3.addresses)
    code = main(["replay", str(log), "--format", "csv", "--speed", "0", "--cluster", cluster])
    printed = capsys.readouterr().out
    assert code == 0
    assert "alert opened: ana in math, " in printed
    assert "1 rows skipped: value is no number" in printed
    assert "MISMATCH" not in printed


@needs_sample
def test_real_students_are_replayed(cluster3: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    report = replay(
        capsys, cluster3, str(SAMPLE), "--format", "cognitive-tutor", "--speed", "0",
        "--limit", "2000",
    )  # fmt: skip
    assert report["rowsRead"] == 2_000
    assert report["counts"]["sent"] == report["counts"]["accepted"] > 4_000
    assert report["alertsByPattern"]
