"""`gaia tasks`: the task queue."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli import task_policies
from gaia_grpc.cli.dead_letters import list_dead, requeue_tasks
from gaia_grpc.cli.durations import parse_duration
from gaia_grpc.cli.options import (
    DEFAULT_CLUSTER,
    ClusterOption,
    CountOption,
    JsonOption,
    LimitOption,
    TimeoutOption,
    parse_cluster,
    run_async,
)
from gaia_grpc.cli.output import (
    ListByDefault,
    bytes_text,
    enum_word,
    print_cut_off,
    print_json,
    print_table,
)
from gaia_grpc.cli.task_view import retries_text, show_task
from gaia_grpc.errors import ConfigError

if TYPE_CHECKING:
    from gaia.task.v1 import task_pb2 as task_messages

app = typer.Typer(help="The task queue.", cls=ListByDefault, rich_markup_mode=None)
app.add_typer(task_policies.app, name="policy")

STATES = "pending, scheduled, blocked, claimed, completed, failed or cancelled"
TaskArgument = Annotated[str, typer.Argument(metavar="TASK_ID")]


@app.command("list")
def list_tasks(
    state: Annotated[
        str,
        typer.Option(
            "--state",
            help=f"{STATES}.",
        ),
    ] = "",
    task_type: Annotated[str, typer.Option("--type", help="Only of this type.")] = "",
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List tasks in the order of their ids."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask_all

    request = task_pb2.ListTasksRequest(task_type=task_type, state=_state(state))
    found = ask_all(cluster, lambda peer: peer.tasks.ListTasks, request, "tasks", limit)
    if json_output:
        print_json(found)
        return
    print_table(
        ("TASK", "TYPE", "STATE", "PRIORITY", "AFFINITY", "RETRIES", "TOKEN", "CLAIMED BY"),
        (
            (
                task.task_id,
                task.task_type,
                enum_word(task_pb2.TaskState.Name, task.state, "TASK_STATE"),
                task.priority,
                task.affinity,
                retries_text(task, "/"),
                task.claim_token or "-",
                task.claimed_by or "-",
            )
            for task in found.tasks
        ),
        "no tasks",
    )
    print_cut_off(found, len(found.tasks), " or --state, --type")


@app.command("watch")
def watch_tasks(
    task_id: Annotated[str, typer.Option("--task", help="Only this task.")] = "",
    task_type: Annotated[str, typer.Option("--type", help="Only of this type.")] = "",
    affinity: Annotated[str, typer.Option("--affinity", help="Only of this affinity.")] = "",
    state: Annotated[str, typer.Option("--state", help="Only in this state.")] = "",
    count: CountOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Print all tasks and then each change, until Ctrl-C; goes on at another peer by itself."""
    from gaia_grpc.cli.follow import follow

    chosen = _state(state)
    follow(
        cluster,
        lambda client: client.tasks.watch(
            task_id=task_id, task_type=task_type, affinity=affinity, state=chosen
        ),
        "task",
        (("TASK", 14), ("STATE", 9), ("TYPE", 12), ("RETRIES", 7), ("TOKEN", 6), ("CLAIMED BY", 14),
         ("LAST ERROR", 0)),
        _watched_cells,
        count,
        json_output,
    )  # fmt: skip


@app.command("explain")
def explain_assignment(
    task_id: TaskArgument,
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show why each session would or would not get a task, the nearest first."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask

    request = task_pb2.ExplainAssignmentRequest(task_id=task_id, page_size=min(limit, 1_000))
    found = ask(cluster, lambda peer: peer.tasks.ExplainAssignment, request)
    if json_output:
        print_json(found)
        return
    print(f"{found.task.task_id} is {found.explanation}\n")
    print_table(
        ("AFFINITY", "FREE", "ELIGIBLE", "SESSION", "NAME", "WHY"),
        (
            (
                f"{one.affinity_score:.1f}",
                one.free_capacity,
                "yes" if one.eligible else "no",
                one.session_id,
                one.session_name,
                one.explanation,
            )
            for one in found.explanations
        ),
        "no sessions",
    )
    if found.total_sessions > len(found.explanations):
        shown, total = len(found.explanations), found.total_sessions
        print(f"showing {shown:,} of {total:,} sessions: --limit N", file=sys.stderr)


@app.command("get")
def get_task(
    task_id: TaskArgument,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show one task with its history."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask

    request = task_pb2.GetTaskRequest(task_id=task_id)
    task = ask(cluster, lambda peer: peer.tasks.GetTask, request).task
    show_task(task, json_output)


@app.command("enqueue")
def enqueue_task(
    task_type: Annotated[str, typer.Argument(metavar="TYPE")],
    payload: Annotated[str, typer.Option("--payload", help="Input of the handler.")] = "",
    affinity: Annotated[str, typer.Option("--affinity", help="Specialty that fits best.")] = "",
    priority: Annotated[int, typer.Option("--priority", help="Higher goes first.")] = 0,
    key: Annotated[str, typer.Option("--key", help="Idempotency key.")] = "",
    delay: Annotated[
        str | None, typer.Option("--delay", help="Not to be claimed before, as 90s or 10m.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", help="Fails if it is not done so soon, as 10m.")
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option("--after", metavar="TASK_ID", help="Once this is completed; repeatable."),
    ] = None,
    max_retries: Annotated[
        int | None, typer.Option("--max-retries", help="Retries before it is failed for good.")
    ] = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Add one task."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask

    request = task_pb2.EnqueueTaskRequest(
        task_type=task_type,
        payload=payload.encode(),
        affinity=affinity,
        priority=priority,
        idempotency_key=key,
        delay=parse_duration("--delay", delay),
        deadline=parse_duration("--deadline", deadline),
        depends_on=after,
        max_retries=max_retries,
    )
    answer = ask(cluster, lambda peer: peer.tasks.EnqueueTask, request)
    if json_output:
        print_json(answer)
    else:
        print(f"{answer.task.task_id} {'existed already' if answer.existing else 'enqueued'}")


@app.command("cancel")
def cancel_task(
    task_id: TaskArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for people.")] = "",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Call a task off."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask

    request = task_pb2.CancelTaskRequest(task_id=task_id, reason=reason)
    show_task(ask(cluster, lambda peer: peer.tasks.CancelTask, request).task, json_output)


@app.command("wait")
def wait_for_task(
    task_id: TaskArgument,
    timeout: TimeoutOption = 60.0,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Wait for a task and print its result; exits with 1 where it failed or was cancelled.

    Ctrl-C and --timeout end the waiting and not the task.
    """
    from gaia_grpc.cli.rpc import require_peer
    from gaia_grpc.client import Client
    from gaia_grpc.client.task_results import result_of

    require_peer(parse_cluster(cluster))

    async def wait() -> task_messages.Task:
        async with Client.connect(cluster) as client:
            return await client.tasks.wait(task_id, timeout=timeout)

    task = run_async(wait())
    if json_output:
        print_json(task)
    result = result_of(task)
    if not json_output:
        print(bytes_text(result, len(result) * 2))


app.command("dead")(list_dead)
app.command("requeue")(requeue_tasks)


@app.command("stats")
def queue_stats(cluster: ClusterOption = DEFAULT_CLUSTER, json_output: JsonOption = False) -> None:
    """Count tasks by state."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask

    stats = ask(cluster, lambda peer: peer.tasks.GetQueueStats, task_pb2.GetQueueStatsRequest())
    if json_output:
        print_json(stats)
        return
    print_table(
        ("COUNT", "VALUE"),
        ((field.name, getattr(stats, field.name)) for field in stats.DESCRIPTOR.fields),
        "",
    )


def _state(word: str) -> task_messages.TaskState.ValueType:
    """The state that a word names; empty is any."""
    from gaia.task.v1 import task_pb2

    try:
        return task_pb2.TaskState.Value(f"TASK_STATE_{(word or 'unspecified').upper()}")
    except ValueError as error:
        raise ConfigError(f"--state: {word!r} is none of {STATES}") from error


def _watched_cells(task: task_messages.Task) -> tuple[object, ...]:
    from gaia.task.v1 import task_pb2

    retained = task.state != task_pb2.TASK_STATE_UNSPECIFIED
    return (
        task.task_id,
        enum_word(task_pb2.TaskState.Name, task.state, "TASK_STATE") if retained else "purged",
        task.task_type,
        retries_text(task, "/"),
        task.claim_token or "-",
        task.claimed_by or "-",
        task.last_error,
    )
