"""`gaia tasks dead` and `gaia tasks requeue`: tasks that failed for good, and their second life."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
from gaia_grpc.cli.output import LOG_TIME, print_json, print_plain_json, print_table, time_text
from gaia_grpc.cli.task_view import show_task
from gaia_grpc.errors import ConfigError

if TYPE_CHECKING:
    from gaia.task.v1 import task_pb2 as task_messages

    from gaia_grpc.client import Client

TypeOption = Annotated[str, typer.Option("--type", help="Only tasks of this type.")]
ErrorTypeOption = Annotated[
    str, typer.Option("--error-type", help="Only where the last error was of this kind.")
]


def list_dead(
    task_type: TypeOption = "",
    error_type: ErrorTypeOption = "",
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List dead letters with the kind of their last error, in the order of their ids.

    `gaia tasks get ID` shows the history of one, `gaia tasks requeue --failed` tries them again.
    """
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.rpc import require_peer

    require_peer(parse_cluster(cluster))
    dead = run_async(_dead_letters(cluster, task_type, error_type, limit + 1))
    shown = dead[:limit]
    if json_output:
        print_json(task_pb2.ListTasksResponse(tasks=shown))
        return
    print_table(
        ("TASK", "TYPE", "ERROR TYPE", "FAILURES", f"SINCE ({LOG_TIME}, UTC)", "LAST ERROR"),
        (
            (
                task.task_id,
                task.task_type,
                task.last_error_type or "-",
                task.retry_count,
                time_text(task.update_time),
                task.last_error or "-",
            )
            for task in shown
        ),
        "no dead letters",
    )
    if len(dead) > limit:
        print(f"showing {limit:,}, more exist: --limit N or --type, --error-type", file=sys.stderr)


def requeue_tasks(
    task_ids: Annotated[list[str] | None, typer.Argument(metavar="TASK_ID")] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="All dead letters, or those of a kind.")
    ] = False,
    task_type: TypeOption = "",
    error_type: ErrorTypeOption = "",
    with_dependents: Annotated[
        bool, typer.Option("--with-dependents", help="Also tasks that failed because these did.")
    ] = False,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Make failed or cancelled tasks pending again: those named, or all dead letters of a kind.

    One that is refused (its dependency is not there, or it is no dead letter any more) is told,
    and the others go on; the exit code is 1 then.
    """
    if bool(task_ids) == failed:
        raise ConfigError("name the tasks, or all dead letters with --failed (not both)")
    if not failed and (task_type or error_type):
        raise ConfigError("--type and --error-type go with --failed")
    from gaia_grpc.cli.ask import ask
    from gaia_grpc.cli.rpc import require_peer

    named = task_ids or []
    if len(named) == 1:
        from gaia.task.v1 import task_pb2

        request = task_pb2.RequeueTaskRequest(task_id=named[0], include_dependents=with_dependents)
        answer = ask(cluster, lambda peer: peer.tasks.RequeueTask, request)
        show_task(answer.task, json_output)
        if answer.requeued_dependents and not json_output:
            print(f"\nand {answer.requeued_dependents:,} tasks that failed because it did")
        return
    require_peer(parse_cluster(cluster))
    refused = run_async(
        _requeue(cluster, named, task_type, error_type, with_dependents, json_output)
    )
    if refused:
        raise typer.Exit(1)


async def _dead_letters(
    cluster: str, task_type: str, error_type: str, most: int | None = None
) -> list[task_messages.Task]:
    """The dead letters of the kind, at most so many."""
    from gaia_grpc.client import Client

    async with Client.connect(cluster) as client:
        return await _dead(client, task_type, error_type, most)


async def _dead(
    client: Client, task_type: str, error_type: str, most: int | None = None
) -> list[task_messages.Task]:
    from gaia.task.v1 import task_pb2

    found: list[task_messages.Task] = []
    async for task in client.tasks.list(state=task_pb2.TASK_STATE_FAILED, task_type=task_type):
        if error_type in ("", task.last_error_type):
            found.append(task)
        if len(found) == most:
            break
    return found


async def _requeue(
    cluster: str,
    named: Sequence[str],
    task_type: str,
    error_type: str,
    with_dependents: bool,
    json_output: bool,
) -> int:
    """Requeues the named tasks, or all dead letters of the kind; how many were refused.

    One after the other: each goes through the log, and Ctrl-C leaves the rest as they are.
    """
    from gaia_grpc.client import Client
    from gaia_grpc.errors import DomainError

    done: list[str] = []
    refused: dict[str, str] = {}
    dependents = 0
    async with Client.connect(cluster) as client:
        task_ids = named or [one.task_id for one in await _dead(client, task_type, error_type)]
        for task_id in task_ids:
            try:
                answer = await client.tasks.requeue(task_id, include_dependents=with_dependents)
            except DomainError as error:
                refused[task_id] = error.message
                continue
            done.append(task_id)
            dependents += answer.requeued_dependents
    if json_output:
        print_plain_json({"requeued": done, "dependents": dependents, "refused": refused})
        return len(refused)
    for message in refused.values():
        print(f"refused: {message}", file=sys.stderr)
    with_them = f" and {dependents:,} dependents" if dependents else ""
    print(f"requeued {len(done):,} of {len(task_ids):,} tasks{with_them}")
    return len(refused)
