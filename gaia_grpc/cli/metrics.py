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
from gaia_grpc.cli.output import (
    ListByDefault,
    moment_text,
    print_cut_off,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from gaia.metrics.v1 import metrics_pb2 as metric_messages

app = typer.Typer(help="5-minute windows of student metrics.", rich_markup_mode=None,
                  cls=ListByDefault)  # fmt: skip

TimelineOption = Annotated[
    str, typer.Option("--timeline", help="Timeline of a demo or replay; empty is live.")
]
ClassroomArgument = Annotated[str, typer.Argument(metavar="CLASSROOM_ID")]
FIGURES = ("METRIC", "COUNT", "SUM", "MEAN", "MIN", "MAX", "P50", "P95")
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


@app.command("history")
def get_history(
    student_id: StudentArgument,
    app_name: AppArgument,
    timeline: TimelineOption = "",
    limit: LimitOption = 1_000,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show the past 5-minute windows of one student in one app, oldest first.

    A window stands here from its end on. Its revision counts the batches with late data.
    """
    from gaia.metrics.v1 import metrics_pb2

    from gaia_grpc.cli.ask import ask_all

    request = metrics_pb2.GetHistoryRequest(
        student_id=student_id, app_name=app_name, timeline_id=timeline
    )
    found = ask_all(cluster, lambda peer: peer.metrics.GetHistory, request, "windows", limit)
    if json_output:
        print_json(found)
        return
    _print_figures(
        ("END (log time, UTC)", "REVISION"),
        (
            ((moment_text(window.aggregate.window_end_ms), window.revision), metric)
            for window in found.windows
            for metric in window.aggregate.metrics
        ),
        f"no past windows of {student_id} in {app_name}",
    )
    print_cut_off(found, len(found.windows), "")


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
    _print_figures(
        ("STUDENT", "APP"),
        (
            ((aggregate.student_id, aggregate.app_name), metric)
            for aggregate in aggregates
            for metric in aggregate.metrics
        ),
        empty,
    )


def _print_figures(
    columns: tuple[str, ...],
    rows: Iterable[tuple[tuple[object, ...], metric_messages.MetricAggregate]],
    empty: str,
) -> None:
    """A line a metric; what is known to be missing gets a column where there is such."""
    found = list(rows)
    gaps = any(metric.omitted_count for _, metric in found)
    print_table(
        (*columns, *FIGURES, *(("MISSING",) if gaps else ())),
        (
            (*head, *_figures(metric), *((metric.omitted_count,) if gaps else ()))
            for head, metric in found
        ),
        empty,
    )


def _figures(metric: metric_messages.MetricAggregate) -> tuple[object, ...]:
    """The columns of `FIGURES`; without a single measurement there are no figures."""
    values = (metric.sum, metric.mean, metric.min, metric.max, metric.p50, metric.p95)
    texts = (f"{value:.6g}" if metric.count else "-" for value in values)
    return (metric.metric_type, metric.count, *texts)
