"""A class on three real peers reconciles, also when the leader dies in the middle of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from gaia_grpc.classroom.school import ClassOptions, ClassReport, School
from gaia_grpc.cli.main import main
from gaia_grpc.testing import Cluster

pytestmark = pytest.mark.e2e

SMALL = ClassOptions(students=9, minutes=2, speed=40.0, papers=40, bursts=5, seed=3)


def wrong(report: ClassReport) -> list[tuple[str, str, str]]:
    return [(row.what, row.expected, row.found) for row in report.rows if not row.ok]


async def hold(
    cluster: Cluster, options: ClassOptions, disturb: Callable[[School], object] | None = None
) -> tuple[School, ClassReport]:
    school = School(cluster.addresses, options)
    async with asyncio.TaskGroup() as group:
        watcher = None
        if disturb is not None:
            watcher = group.create_task(at_class_time(school, 30_000, disturb))
        report = await school.run(cluster.aio.heal)
        if watcher is not None:
            assert watcher.done()
    return school, report


async def at_class_time(school: School, at_ms: int, act: Callable[[School], object]) -> None:
    reached = asyncio.Event()

    def look() -> None:
        if school.progress.class_ms >= at_ms:
            reached.set()
        else:
            loop.call_later(0.02, look)

    loop = asyncio.get_running_loop()
    look()
    await reached.wait()
    await asyncio.to_thread(act, school)


async def test_a_quiet_class_reconciles(cluster3: Cluster) -> None:
    school, report = await hold(cluster3, SMALL)
    assert wrong(report) == []
    assert report.reconciled
    assert len(report.rows) == 19
    assert school.progress.metrics_recorded == 9 * 2 * 40
    assert report.alert.count == 20
    assert report.failovers == 0


async def test_killing_the_leader_in_class_changes_no_number(cluster3: Cluster) -> None:
    def kill_leader(school: School) -> None:
        cluster3.kill(cluster3.leader())

    school, report = await hold(cluster3, SMALL, kill_leader)
    assert wrong(report) == []
    assert report.failovers >= 1
    assert any("is down" in event for event in school.progress.events)
    assert report.rows[-1].found == "3"


async def test_a_class_of_many_minutes_is_audited_by_its_last_window(cluster3: Cluster) -> None:
    options = ClassOptions(students=3, minutes=7, speed=300.0, papers=6, bursts=1, seed=2)
    _, report = await hold(cluster3, options)
    assert wrong(report) == []
    window = next(row for row in report.rows if "aggregated" in row.what)
    assert 0 < int(window.found) < 3 * 7 * 40


def test_the_demo_command_starts_its_own_peers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--students", "6", "--minutes", "1", "--speed", "30", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["reconciled"] is True
    assert {row["ok"] for row in report["rows"]} == {True}


def test_the_demo_command_tells_what_it_does(
    cluster3: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--students", "6", "--minutes", "1", "--speed", "60"]
    assert main(["demo", *arguments, "--cluster", ",".join(cluster3.addresses)]) == 0
    printed = capsys.readouterr().out
    assert "every number reconciles (19 rows)" in printed
    assert "alert opened: student-" in printed
    assert "metrics 240 of 240 acknowledged" in printed or "240" in printed
