"""`gaia alerts`: who needs help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.options import (
    DEFAULT_CLUSTER,
    ClusterOption,
    JsonOption,
    LimitOption,
    run_async,
)
from gaia_grpc.cli.output import ListByDefault, enum_word, print_json, print_table

if TYPE_CHECKING:
    from gaia.alert.v1 import alert_pb2 as alert_messages

app = typer.Typer(help="Alerts of students who need help.", cls=ListByDefault,
                  rich_markup_mode=None)  # fmt: skip

ClassroomOption = Annotated[str, typer.Option("--classroom", help="Only of this classroom.")]
StudentOption = Annotated[str, typer.Option("--student", help="Only of this student.")]
TimelineOption = Annotated[
    str, typer.Option("--timeline", help="Timeline of a demo or replay; empty is live.")
]
AlertArgument = Annotated[str, typer.Argument(metavar="ALERT_ID")]
TeacherOption = Annotated[str, typer.Option("--teacher", help="Who does it.")]


@app.command("list")
def list_alerts(
    classroom: ClassroomOption = "",
    student: StudentOption = "",
    timeline: TimelineOption = "",
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List alerts, newest first."""
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.cli.ask import ask_all

    request = alert_pb2.ListAlertsRequest(
        filter=alert_pb2.AlertFilter(
            classroom_id=classroom, student_id=student, timeline_id=timeline
        )
    )
    found = ask_all(cluster, lambda peer: peer.alerts.ListAlerts, request, "alerts", limit)
    if json_output:
        print_json(found)
        return
    print_table(
        ("ALERT", "STUDENT", "APP", "PATTERN", "SEVERITY", "STATE", "CONFIDENCE", "WHY"),
        (
            (
                alert.alert_id,
                alert.student_id,
                alert.app_name,
                alert.pattern,
                enum_word(alert_pb2.Severity.Name, alert.severity, "SEVERITY"),
                enum_word(alert_pb2.AlertState.Name, alert.state, "ALERT_STATE"),
                f"{alert.confidence:.2f}",
                alert.explanation,
            )
            for alert in found.alerts
        ),
        "no alerts",
    )


@app.command("watch")
def watch_alerts(
    classroom: ClassroomOption = "",
    student: StudentOption = "",
    timeline: TimelineOption = "",
    after: Annotated[
        int | None,
        typer.Option("--after", min=0, help="Begin after this sequence; 0 is all retained."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="End after so many events.")
    ] = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Print alert events as they happen, until Ctrl-C; goes on at another peer by itself."""
    from gaia_grpc.client import Client

    async def follow() -> None:
        async with (
            Client.connect(cluster) as client,
            client.alerts.listen(
                classroom_id=classroom,
                student_id=student,
                timeline_id=timeline,
                after_sequence=after,
            ) as listener,
        ):
            seen = 0
            async for event in listener:
                if json_output:
                    print_json(event)
                else:
                    _print_event(event)
                seen += 1
                if seen == count:
                    return

    run_async(follow())


@app.command("acknowledge")
def acknowledge_alert(
    alert_id: AlertArgument,
    teacher: TeacherOption,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Say that a teacher saw an alert."""
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.cli.ask import ask

    request = alert_pb2.AcknowledgeAlertRequest(alert_id=alert_id, teacher_id=teacher)
    alert = ask(cluster, lambda peer: peer.alerts.AcknowledgeAlert, request).alert
    _print_alert(alert, json_output)


@app.command("resolve")
def resolve_alert(
    alert_id: AlertArgument,
    teacher: TeacherOption,
    note: Annotated[str, typer.Option("--note", help="Why, for people.")] = "",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Close an alert."""
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.cli.ask import ask

    request = alert_pb2.ResolveAlertRequest(alert_id=alert_id, teacher_id=teacher, note=note)
    alert = ask(cluster, lambda peer: peer.alerts.ResolveAlert, request).alert
    _print_alert(alert, json_output)


def _print_event(event: alert_messages.AlertEvent) -> None:
    from gaia.alert.v1 import alert_pb2

    alert = event.alert
    change = enum_word(alert_pb2.AlertChange.Name, event.change, "ALERT_CHANGE")
    severity = enum_word(alert_pb2.Severity.Name, alert.severity, "SEVERITY")
    print(
        f"{event.sequence}  {change}  {severity}  {alert.student_id} in {alert.app_name}: "
        f"{alert.pattern}  {alert.explanation}",
        flush=True,
    )


def _print_alert(alert: alert_messages.Alert, json_output: bool) -> None:
    from gaia.alert.v1 import alert_pb2

    if json_output:
        print_json(alert)
    else:
        state = enum_word(alert_pb2.AlertState.Name, alert.state, "ALERT_STATE")
        print(f"{alert.alert_id} {state}")
