"""`gaia alerts replay`: what other settings would have made of a classroom's past."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.durations import parse_duration
from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, JsonOption
from gaia_grpc.cli.output import LOG_TIME, enum_word, moment_text, print_plain_json, print_table
from gaia_grpc.errors import ConfigError

if TYPE_CHECKING:
    from gaia.alert.v1 import alert_pb2 as alert_messages

    from gaia_grpc.what_if import Difference

MOST_WINDOWS = 1_000_000
NAMES = ("what", "time", "studentId", "appName", "before", "after")


def replay_alerts(
    classroom: Annotated[str, typer.Option("--classroom", help="The classroom.")],
    since: Annotated[str, typer.Option("--since", help="How far back, like 2h.")] = "8h",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting as it might be; repeatable."),
    ] = None,
    timeline: Annotated[
        str, typer.Option("--timeline", help="Timeline of a demo or replay; empty is live.")
    ] = "",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Compute a classroom's past alerts again with other settings, and show what differs.

    From what the detector saw in steps of 5 s; nothing in the cluster is changed.
    """
    from gaia.cluster.v1 import cluster_pb2
    from gaia.metrics.v1 import metrics_pb2

    from gaia_grpc.cli.ask import ask, ask_all
    from gaia_grpc.what_if import differences

    pairs = [_pair(change) for change in changes or ()]
    length = parse_duration("--since", since)
    settings = ask(
        cluster, lambda peer: peer.cluster.GetSettings, cluster_pb2.GetSettingsRequest()
    ).settings.settings
    request = metrics_pb2.ListDetectorInputsRequest(classroom_id=classroom, timeline_id=timeline)
    found = ask_all(
        cluster, lambda peer: peer.metrics.ListDetectorInputs, request, "windows", MOST_WINDOWS
    )
    windows = list(found.windows)
    if windows and length is not None:
        newest_ms = max(window.end_ms for window in windows)
        oldest_ms = newest_ms - length.ToMilliseconds()
        windows = [window for window in windows if window.end_ms > oldest_ms]
    before, after, differ = differences(
        windows, [(each.name, each.value) for each in settings], pairs
    )
    rows = [row for difference in differ if (row := _row(difference))]
    if json_output:
        print_plain_json(
            {
                "alertsBefore": before,
                "alertsAfter": after,
                "differences": [dict(zip(NAMES, row, strict=True)) for row in rows],
            }
        )
        return
    print(f"{before} alerts with the settings as they are, {after} with these")
    clock = "time of the timeline" if timeline else LOG_TIME
    print_table(
        ("WHAT", f"BEGAN ({clock}, UTC)", "STUDENT", "APP", "AS IT IS", "WITH THESE"),
        rows,
        "nothing differs",
    )


def _row(difference: Difference) -> tuple[str, ...]:
    alert = difference.before or difference.after
    if alert is None:
        return ()
    return (
        difference.what,
        moment_text(alert.detected_at_ms),
        alert.student_id,
        alert.app_name,
        _said(difference.before),
        _said(difference.after),
    )


def _said(alert: alert_messages.Alert | None) -> str:
    from gaia.alert.v1 import alert_pb2

    if alert is None:
        return "-"
    return f"{alert.pattern} {enum_word(alert_pb2.Severity.Name, alert.severity, 'SEVERITY')}"


def _pair(change: str) -> tuple[str, str]:
    name, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"--set: {change!r} is no setting; write it like detector.low_enter=0.2")
    return name, value
