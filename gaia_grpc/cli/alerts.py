"""`gaia alerts`: who needs help."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.alert_replay import replay_alerts
from gaia_grpc.cli.options import (
    DEFAULT_CLUSTER,
    ClusterOption,
    JsonOption,
    LimitOption,
    parse_cluster,
    run_async,
)
from gaia_grpc.cli.output import (
    LOG_TIME,
    ListByDefault,
    enum_word,
    moment_text,
    print_cut_off,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from gaia.alert.v1 import alert_pb2 as alert_messages

    from gaia_grpc.client import AlertListener

NOTICE_INTERVAL_S = 0.5
FIRST_INTERVAL_S = 0.05

app = typer.Typer(help="Alerts of students who need help.", cls=ListByDefault,
                  rich_markup_mode=None)  # fmt: skip
app.command("replay")(replay_alerts)

ClassroomOption = Annotated[str, typer.Option("--classroom", help="Only of this classroom.")]
StudentOption = Annotated[str, typer.Option("--student", help="Only of this student.")]
TimelineOption = Annotated[
    str, typer.Option("--timeline", help="Timeline of a demo or replay; empty is live.")
]
AlertArgument = Annotated[str, typer.Argument(metavar="ALERT_ID")]
TeacherOption = Annotated[str, typer.Option("--teacher", help="Who does it.")]
OfTeacherOption = Annotated[
    str, typer.Option("--teacher", help="Only of the classrooms of this teacher.")
]
OperationalOption = Annotated[
    bool,
    typer.Option("--operational", help="Of the cluster instead of students: failed sessions,"
                 " dead-lettered tasks, lost peers."),
]  # fmt: skip


@app.command("list")
def list_alerts(
    classroom: ClassroomOption = "",
    student: StudentOption = "",
    teacher: OfTeacherOption = "",
    timeline: TimelineOption = "",
    operational: OperationalOption = False,
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List alerts, newest first."""
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.cli.ask import ask_all

    request = alert_pb2.ListAlertsRequest(
        filter=alert_pb2.AlertFilter(
            classroom_id=classroom,
            student_id=student,
            teacher_id=teacher,
            timeline_id=timeline,
            kind=_kind(operational),
        )
    )
    found = ask_all(cluster, lambda peer: peer.alerts.ListAlerts, request, "alerts", limit)
    if json_output:
        print_json(found)
        return
    if operational:
        _print_operational(found)
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
    print_cut_off(found, len(found.alerts), " or --classroom, --student")


@app.command("watch")
def watch_alerts(
    classroom: ClassroomOption = "",
    student: StudentOption = "",
    teacher: OfTeacherOption = "",
    timeline: TimelineOption = "",
    operational: OperationalOption = False,
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
    from gaia_grpc.cli.rpc import require_peer
    from gaia_grpc.client import Client

    require_peer(parse_cluster(cluster))

    async def follow() -> None:
        async with Client.connect(cluster) as client:
            listener = client.alerts.listen(
                classroom_id=classroom,
                student_id=student,
                teacher_id=teacher,
                timeline_id=timeline,
                kind=_kind(operational),
                after_sequence=after,
            )
            clock = "" if json_output else "time of the timeline" if timeline else LOG_TIME
            seen = 0
            try:
                async for event in _with_notes(listener, clock):
                    if json_output:
                        print_json(event)
                    else:
                        _print_event(event)
                    seen += 1
                    if seen == count:
                        return
            finally:
                await listener.close()

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


@app.command("snooze")
def snooze_alert(
    alert_id: AlertArgument,
    teacher: TeacherOption,
    length: Annotated[str, typer.Option("--for", help="For how long, like 10m.")] = "10m",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Mute an alert for a time; if it is still open then, it is pushed again."""
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.cli.ask import ask
    from gaia_grpc.cli.durations import parse_duration

    request = alert_pb2.SnoozeAlertRequest(
        alert_id=alert_id, teacher_id=teacher, duration=parse_duration("--for", length)
    )
    alert = ask(cluster, lambda peer: peer.alerts.SnoozeAlert, request).alert
    _print_alert(alert, json_output)


@app.command("intervene")
def intervene(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="help, encouragement, feedback, reassign, referral, guidance or technical_help.",
        ),
    ],
    student: Annotated[str, typer.Option("--student", help="For whom.")],
    teacher: TeacherOption,
    alert_id: Annotated[str, typer.Option("--alert", help="The alert that it answers.")] = "",
    app_name: Annotated[
        str, typer.Option("--app", help="What it was about, where no alert says so.")
    ] = "",
    note: Annotated[str, typer.Option("--note", help="For people.")] = "",
    timeline: TimelineOption = "",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Record what a teacher did; one that answers an alert acknowledges it."""
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.cli.ask import ask

    request = alert_pb2.RecordInterventionRequest(
        kind=kind,
        student_id=student,
        teacher_id=teacher,
        alert_id=alert_id,
        app_name=app_name,
        note=note,
        timeline_id=timeline,
    )
    found = ask(cluster, lambda peer: peer.alerts.RecordIntervention, request).intervention
    if json_output:
        print_json(found)
    else:
        print(found.intervention_id)


@app.command("interventions")
def list_interventions(
    student: StudentOption = "",
    alert_id: Annotated[str, typer.Option("--alert", help="Only of this alert.")] = "",
    teacher: Annotated[str, typer.Option("--teacher", help="Only of this teacher.")] = "",
    classroom: ClassroomOption = "",
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List interventions, newest first, with the student 5 minutes before and after."""
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.cli.ask import ask_all

    request = alert_pb2.ListInterventionsRequest(
        student_id=student, alert_id=alert_id, teacher_id=teacher, classroom_id=classroom
    )
    found = ask_all(
        cluster, lambda peer: peer.alerts.ListInterventions, request, "interventions", limit
    )
    if json_output:
        print_json(found)
        return
    print_table(
        ("INTERVENTION", "STUDENT", "TEACHER", "KIND", "ALERT", "BEFORE", "AFTER", "NOTE"),
        (
            (
                each.intervention_id,
                each.student_id,
                each.teacher_id,
                each.kind,
                each.alert_id or "-",
                _window_text(each.before) if each.HasField("before") else "-",
                _window_text(each.after) if each.HasField("after") else "-",
                each.note,
            )
            for each in found.interventions
        ),
        "no interventions",
    )
    print_cut_off(found, len(found.interventions), " or --student, --alert")


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


def _print_operational(found: alert_messages.ListAlertsResponse) -> None:
    from gaia.alert.v1 import alert_pb2

    print_table(
        ("ALERT", "WHAT", "OF", "SEVERITY", "STATE", "TIMES", "WHY"),
        (
            (
                alert.alert_id,
                alert.pattern,
                alert.subject,
                enum_word(alert_pb2.Severity.Name, alert.severity, "SEVERITY"),
                enum_word(alert_pb2.AlertState.Name, alert.state, "ALERT_STATE"),
                alert.occurrences,
                alert.explanation,
            )
            for alert in found.alerts
        ),
        "no alerts",
    )
    print_cut_off(found, len(found.alerts), "")


def _kind(operational: bool) -> alert_messages.AlertKind.ValueType:
    from gaia.alert.v1 import alert_pb2

    if operational:
        return alert_pb2.ALERT_KIND_OPERATIONAL
    return alert_pb2.ALERT_KIND_UNSPECIFIED


def _window_text(window: alert_messages.InterventionWindow) -> str:
    return f"{window.errors:g} of {window.decisions:g} wrong, {window.confidence:.2f}"


def _tell(text: str) -> None:
    """A note beside the output: on stderr, so that a program reads nothing but events."""
    print(text, file=sys.stderr, flush=True)


async def _with_notes(
    listener: AlertListener, clock: str
) -> AsyncGenerator[alert_messages.AlertEvent, None]:
    """The events; notes tell when it begins and where the connection is lost for a while.

    `clock` labels the column of times; empty where there are no columns.
    """
    begun = lost = False
    while True:
        event = await listener.next(timeout=NOTICE_INTERVAL_S if begun else FIRST_INTERVAL_S)
        if not begun and listener.cursor is not None:
            begun = True
            _tell("waiting for alerts ... (Ctrl-C ends)")
            if clock:
                _tell(f"SEQUENCE  RAISED ({clock}, UTC)  CHANGE  SEVERITY  ALERT")
        if listener.interrupted != lost:
            lost = listener.interrupted
            _tell(
                "connection lost; asking every peer in turn ..."
                if lost
                else f"connected again, to {listener.address}; nothing was missed"
            )
        if event is not None:
            yield event


def _print_event(event: alert_messages.AlertEvent) -> None:
    from gaia.alert.v1 import alert_pb2

    alert = event.alert
    change = enum_word(alert_pb2.AlertChange.Name, event.change, "ALERT_CHANGE")
    severity = enum_word(alert_pb2.Severity.Name, alert.severity, "SEVERITY")
    print(
        f"{event.sequence}  {moment_text(alert.detected_at_ms)}  {change}  {severity}  "
        f"{alert.subject or f'{alert.student_id} in {alert.app_name}'}: "
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
