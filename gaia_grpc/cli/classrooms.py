"""`gaia classrooms`: rosters, and one student's records out of everything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, JsonOption, LimitOption
from gaia_grpc.cli.output import (
    LOG_TIME,
    ListByDefault,
    print_cut_off,
    print_json,
    print_table,
    time_text,
)
from gaia_grpc.errors import ConfigError, UnavailableError

REACH_TIMEOUT_S = 2.0
COMPACT_TIMEOUT_S = 60.0
PAUSE_S = 0.1

app = typer.Typer(
    help="Teachers and students of a classroom.", cls=ListByDefault, rich_markup_mode=None
)


@app.command("list")
def list_classrooms(
    teacher: Annotated[str, typer.Option("--teacher", help="Only of this teacher.")] = "",
    limit: LimitOption = 1_000,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List the classrooms in the order of their ids."""
    from gaia.classroom.v1 import classroom_pb2

    from gaia_grpc.cli.ask import ask_all

    request = classroom_pb2.ListClassroomsRequest(teacher_id=teacher)
    found = ask_all(
        cluster, lambda peer: peer.classrooms.ListClassrooms, request, "classrooms", limit
    )
    if json_output:
        print_json(found)
        return
    print_table(
        ("CLASSROOM", "NAME", "TEACHERS", "STUDENTS", f"CHANGED ({LOG_TIME}, UTC)"),
        (
            (
                room.classroom_id,
                room.name or "-",
                len(room.teacher_ids),
                len(room.student_ids),
                time_text(room.update_time),
            )
            for room in found.classrooms
        ),
        "no classrooms",
    )
    print_cut_off(found, len(found.classrooms), " or --teacher")


@app.command("show")
def show_classroom(
    classroom: Annotated[str, typer.Argument(metavar="CLASSROOM")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show who belongs to one classroom."""
    from gaia.classroom.v1 import classroom_pb2

    from gaia_grpc.cli.ask import ask

    request = classroom_pb2.GetClassroomRequest(classroom_id=classroom)
    room = ask(cluster, lambda peer: peer.classrooms.GetClassroom, request).classroom
    if json_output:
        print_json(room)
        return
    print_table(
        ("FIELD", "VALUE"),
        (
            ("classroom", room.classroom_id),
            ("name", room.name or "-"),
            ("teachers", _names(room.teacher_ids)),
            ("students", _names(room.student_ids)),
            (f"changed ({LOG_TIME}, UTC)", time_text(room.update_time)),
        ),
        "",
    )


@app.command("put")
def put_classroom(
    classroom: Annotated[str, typer.Argument(metavar="CLASSROOM")],
    name: Annotated[str, typer.Option("--name", help="Name for people.")] = "",
    teachers: Annotated[
        str, typer.Option("--teachers", metavar="ID,...", help="All teachers.")
    ] = "",
    students: Annotated[
        str, typer.Option("--students", metavar="ID,...", help="All students.")
    ] = "",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Create a classroom, or replace the whole of it: who is not named here is not in it."""
    from gaia.classroom.v1 import classroom_pb2

    from gaia_grpc.cli.ask import ask

    request = classroom_pb2.PutClassroomRequest(
        classroom_id=classroom,
        name=name,
        teacher_ids=_split(teachers),
        student_ids=_split(students),
    )
    answer = ask(cluster, lambda peer: peer.classrooms.PutClassroom, request)
    if json_output:
        print_json(answer)
        return
    room = answer.classroom
    print(f"{classroom}: {len(room.teacher_ids)} teachers, {len(room.student_ids)} students")


@app.command("forget-student")
def forget_student(
    student: Annotated[str, typer.Argument(metavar="STUDENT")],
    yes: Annotated[bool, typer.Option("--yes", help="Really: it can't be undone.")] = False,
    compact: Annotated[
        bool, typer.Option(help="Have every peer take a snapshot, which cleans its disk.")
    ] = True,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Delete all that the cluster knows of a student: windows, history, alerts, memberships.

    Backups that were made before still hold the student, and so does whoever copied anything.
    """
    from gaia.classroom.v1 import classroom_pb2

    from gaia_grpc.cli.ask import ask

    if not yes:
        raise ConfigError(f"this deletes all records of {student} and can't be undone: say --yes")
    request = classroom_pb2.DeleteStudentDataRequest(student_id=student)
    answer = ask(cluster, lambda peer: peer.classrooms.DeleteStudentData, request)
    if json_output:
        print_json(answer)
    else:
        print(
            f"deleted {student}: {answer.removed_windows} windows, "
            f"{answer.removed_history} records of history, {answer.removed_alerts} alerts, "
            f"{answer.removed_memberships} memberships"
        )
    if not compact:
        return
    left = _compact(cluster, answer.compact_through_index)
    if left:
        raise UnavailableError(
            f"deleted, but not off every disk yet: {'; '.join(left)}. A peer cleans its disk with "
            f"its next snapshot after entry {answer.compact_through_index}; the same command again "
            "asks for one"
        )
    if not json_output:
        print("every peer has taken a snapshot and cleans its disk; backups are yours to delete")


def _compact(cluster: str, through_index: int) -> list[str]:
    """Has every member take a snapshot at or after an entry; returns what did not come about."""
    from gaia_grpc.cli.options import parse_cluster
    from gaia_grpc.cli.rpc import peer_statuses

    statuses = peer_statuses(parse_cluster(cluster), REACH_TIMEOUT_S).values()
    members: dict[str, str] = {}
    for status in statuses:
        for member in status.peers if status is not None else ():
            members[member.node_id] = member.client_address or members.get(member.node_id, "")
    deadline_s = time.monotonic() + COMPACT_TIMEOUT_S
    found = [
        (node_id, _snapshot(members[node_id], through_index, deadline_s))
        for node_id in sorted(members)
    ]
    return [f"{node_id}: {wrong}" for node_id, wrong in found if wrong]


def _snapshot(address: str, through_index: int, deadline_s: float) -> str:
    """Asks one peer, again while it lags behind; returns why it has none, or nothing."""
    import grpc
    from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc

    from gaia_grpc.cli.rpc import open_channel, to_command_error

    if not address:
        return "its client address is not known"
    request = cluster_pb2.TakeSnapshotRequest()
    with open_channel(address) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                if stub.TakeSnapshot(request, timeout=left_s).index >= through_index:
                    return ""
            except grpc.RpcError as error:
                return to_command_error(error).message
            time.sleep(PAUSE_S)
    return "it lags behind"


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _names(ids: Sequence[str]) -> str:
    return ", ".join(ids) or "-"
