"""`gaia demo`: the guide's classroom, live, with a summary that reconciles every number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.options import JsonOption, OwnClusterOption, parse_cluster, run_async
from gaia_grpc.errors import ConfigError

if TYPE_CHECKING:
    from gaia_grpc.classroom.school import ClassOptions, ClassReport
    from gaia_grpc.testing.cluster import Cluster


def demo(
    students: Annotated[int, typer.Option("--students", min=1, help="Students in class.")] = 30,
    minutes: Annotated[int, typer.Option("--minutes", min=1, help="Length of class.")] = 5,
    speed: Annotated[
        float, typer.Option("--speed", min=0.1, help="Class seconds in a second.")
    ] = 60.0,
    seed: Annotated[int, typer.Option("--seed", help="Chooses what the students do.")] = 1,
    cluster: OwnClusterOption = "",
    json_output: JsonOption = False,
) -> int:
    """Hold a class on three real peers and reconcile every number. Exits with 1 on a mismatch.

    The peers are started for it and thrown away, unless --cluster or GAIA_CLUSTER names others.
    """
    from gaia_grpc.classroom.school import ClassOptions
    from gaia_grpc.cli.rpc import require_cluster

    options = ClassOptions(
        students=students,
        minutes=minutes,
        speed=speed,
        bursts=min(5, students),
        seed=seed,
    )
    if cluster:
        require_cluster(cluster, quiet=json_output)
    report = run_async(_hold(options, cluster, quiet=json_output))
    if json_output:
        _print_report_json(report)
    else:
        _print_report(report, lasting=bool(cluster))
    return 0 if report.reconciled else 1


async def _hold(options: ClassOptions, cluster: str, *, quiet: bool) -> ClassReport:
    from gaia_grpc.classroom.school import School
    from gaia_grpc.cli.live import LiveView
    from gaia_grpc.testing.cluster import Cluster

    async with AsyncExitStack() as stack:
        started: Cluster | None = None
        if cluster:
            addresses: Sequence[str] = parse_cluster(cluster)
        else:
            if not quiet:
                print("starting three peers ...", flush=True)
            started = await stack.enter_async_context(Cluster(3))
            addresses = started.addresses
            if not quiet:
                _print_peers(started)
        try:
            school = School(addresses, options)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        view = None if quiet else asyncio.create_task(LiveView(school.progress).run())
        try:
            return await school.run(lambda: _revive(started, school.progress.tell))
        finally:
            if view is not None:
                view.cancel()
                await asyncio.wait({view})


def _print_peers(cluster: Cluster) -> None:
    leader = cluster.leader()
    for node_id in cluster.node_ids:
        peer = cluster.peer(node_id)
        role = "leader" if node_id == leader else "follower"
        print(f"  {node_id}  clients {peer.address}  pid {peer.pid}  {role}")
    print(f"export GAIA_CLUSTER={','.join(cluster.addresses)}")
    print("`kill -9` one of the pids while class is on: the numbers must still add up", flush=True)


async def _revive(cluster: Cluster | None, tell: Callable[[str], None]) -> None:
    """Starts the peers again that were killed, so that the audit sees all of them."""
    if cluster is None:
        return
    killed = [node_id for node_id in cluster.node_ids if not cluster.peer(node_id).running]
    for node_id in killed:
        tell(f"{node_id} was killed; started again for the audit")
    if killed:
        await cluster.aio.heal()


# --- the summary ----------------------------------------------------------------------------------


def _figures(report: ClassReport) -> list[tuple[str, str]]:
    return [
        ("class took", f"{report.wall_s:.1f} s"),
        ("metrics acknowledged", f"{report.metrics_per_s:,.0f} a second"),
        ("papers graded", f"{report.tasks_per_s:,.1f} a second"),
        ("urgent metric recorded to acknowledged", report.publish.text()),
        ("paper handed in to stored", report.enqueue.text()),
        ("paper handed in to graded", report.task_cycle.text()),
        ("error recorded to alert received", report.alert.text()),
        ("failovers seen", str(report.failovers)),
        ("class time spent waiting for answers", f"{report.held_ms / 1_000:.1f} s of class"),
    ]


def _print_report(report: ClassReport, *, lasting: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from gaia_grpc.cli.output import console

    table = Table(title="Reconciliation", title_justify="left")
    for column in ("", "what", "expected", "found", "note"):
        table.add_column(column, overflow="fold")
    for row in report.rows:
        mark = Text("ok", style="green") if row.ok else Text("MISMATCH", style="bold red")
        table.add_row(mark, row.what, row.expected, row.found, row.note)
    figures = Table(title="Figures", title_justify="left", show_header=False)
    for name, value in _figures(report):
        figures.add_row(name, value)
    out = console()
    out.print(table)
    out.print(figures)
    wrong = sum(not row.ok for row in report.rows)
    if wrong:
        out.print(f"{wrong} of {len(report.rows)} rows do not reconcile", style="bold red")
    else:
        out.print(f"every number reconciles ({len(report.rows)} rows)", style="green")
    if lasting:
        # Not through rich: it would wrap a line that is meant to be copied.
        print(f"look again: gaia alerts list --timeline {report.timeline_id}")


def _print_report_json(report: ClassReport) -> None:
    import dataclasses

    from gaia_grpc.cli.output import print_plain_json

    print_plain_json(dataclasses.asdict(report) | {"reconciled": report.reconciled})
