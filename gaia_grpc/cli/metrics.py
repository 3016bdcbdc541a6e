"""`gaia metrics`: what student apps measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.options import (
    DEFAULT_CLUSTER,
    ClusterOption,
    JsonOption,
    LimitOption,
    parse_cluster,
    run_async,
)
from gaia_grpc.cli.output import ListByDefault, print_cut_off, print_json, print_table

if TYPE_CHECKING:
    from gaia.metrics.v1 import metrics_pb2 as metric_messages

app = typer.Typer(help="5-minute windows of student metrics.", rich_markup_mode=None,
                  cls=ListByDefault)  # fmt: skip

TimelineOption = Annotated[
    str, typer.Option("--timeline", help="Timeline of a demo or replay; empty is live.")
]
ClassroomArgument = Annotated[str, typer.Argument(metavar="CLASSROOM_ID")]
StudentArgument = Annotated[str, typer.Argument(metavar="STUDENT_ID")]
AppArgument = Annotated[str, typer.Argument(metavar="APP_NAME")]


@app.command("list")
def list_aggregates(
    classroom_id: ClassroomArgument,
    timeline: TimelineOption = "",
    limit: LimitOption = 1_000,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show the windows of a classroom."""
    from gaia.metrics.v1 import metrics_pb2

    from gaia_grpc.cli.ask import ask_all

    request = metrics_pb2.ListAggregatesRequest(classroom_id=classroom_id, timeline_id=timeline)
    found = ask_all(cluster, lambda peer: peer.metrics.ListAggregates, request, "aggregates", limit)
    if json_output:
        print_json(found)
    else:
        _show(found.aggregates, f"no metrics of classroom {classroom_id} in the last 5 minutes")
        print_cut_off(found, len(found.aggregates), "")


@app.command("get")
def get_aggregate(
    student_id: StudentArgument,
    app_name: AppArgument,
    timeline: TimelineOption = "",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show the window of one student in one app."""
    from gaia.metrics.v1 import metrics_pb2

    from gaia_grpc.cli.ask import ask

    request = metrics_pb2.GetAggregateRequest(
        student_id=student_id, app_name=app_name, timeline_id=timeline
    )
    found = ask(cluster, lambda peer: peer.metrics.GetAggregate, request)
    if json_output:
        print_json(found)
    else:
        _show([found.aggregate], "no metrics in the last 5 minutes")


@app.command("watch")
def watch_classroom(
    classroom_id: ClassroomArgument,
    timeline: TimelineOption = "",
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="End after so many updates.")
    ] = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show the windows of a classroom as they change, until Ctrl-C."""
    from gaia_grpc.cli.rpc import require_peer
    from gaia_grpc.client import Client

    require_peer(parse_cluster(cluster))

    async def follow() -> None:
        async with Client.connect(cluster) as client:
            seen = 0
            async for update in client.metrics.watch_classroom(classroom_id, timeline_id=timeline):
                if json_output:
                    print_json(update)
                elif update.aggregates:
                    _show(update.aggregates, "")
                seen += 1
                if seen == count:
                    return

    run_async(follow())


def _show(aggregates: Iterable[metric_messages.Aggregate], empty: str) -> None:
    print_table(
        ("STUDENT", "APP", "METRIC", "COUNT", "SUM", "MEAN", "MIN", "MAX", "P50", "P95"),
        (
            (
                aggregate.student_id,
                aggregate.app_name,
                metric.metric_type,
                metric.count,
                f"{metric.sum:.6g}",
                f"{metric.mean:.6g}",
                f"{metric.min:.6g}",
                f"{metric.max:.6g}",
                f"{metric.p50:.6g}",
                f"{metric.p95:.6g}",
            )
            for aggregate in aggregates
            for metric in aggregate.metrics
        ),
        empty,
    )
