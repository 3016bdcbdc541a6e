"""`gaia tasks policy`: how tasks of a type are tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.durations import duration_text, parse_duration
from gaia_grpc.cli.options import (
    DEFAULT_CLUSTER,
    ClusterOption,
    JsonOption,
    LimitOption,
)
from gaia_grpc.cli.output import (
    ListByDefault,
    print_cut_off,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from gaia.task.v1 import task_pb2 as task_messages

app = typer.Typer(
    help="How tasks of a type are tried again.", cls=ListByDefault, rich_markup_mode=None
)

TypeArgument = Annotated[str, typer.Argument(metavar="TYPE")]
COLUMNS = (
    "TYPE", "RETRIES", "RETRY BASE", "LONGEST", "JITTER", "CLAIM TIMEOUT", "RETENTION",
    "FINAL ERRORS",
)  # fmt: skip


@app.command("list")
def list_policies(
    limit: LimitOption = 1_000,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List the policies in the order of their types; for `-` the settings hold."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask_all

    request = task_pb2.ListTaskPoliciesRequest()
    found = ask_all(cluster, lambda peer: peer.tasks.ListTaskPolicies, request, "policies", limit)
    if json_output:
        print_json(found)
        return
    print_table(COLUMNS, map(_cells, found.policies), "no policies: the task settings hold")
    print_cut_off(found, len(found.policies), "")


@app.command("put")
def put_policy(
    task_type: TypeArgument,
    max_retries: Annotated[
        int | None, typer.Option("--max-retries", help="Retries of a task that names no number.")
    ] = None,
    retry_base: Annotated[
        str | None, typer.Option("--retry-base", help="Wait before the first retry, as 2s.")
    ] = None,
    retry_max_delay: Annotated[
        str | None, typer.Option("--retry-max-delay", help="Longest wait before a retry.")
    ] = None,
    retry_jitter: Annotated[
        float | None, typer.Option("--retry-jitter", help="A wait may be shorter by this share.")
    ] = None,
    claim_timeout: Annotated[
        str | None, typer.Option("--claim-timeout", help="A claim not extended so long ends.")
    ] = None,
    retention: Annotated[
        str | None, typer.Option("--retention", help="How long finished tasks are kept.")
    ] = None,
    final_error: Annotated[
        list[str] | None,
        typer.Option("--final-error", metavar="ERROR_TYPE", help="Is not retried; repeatable."),
    ] = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Give a type its policy, in place of the one that it had.

    What is not named here is taken from the settings (task.max_retries, task.retry_base, ...).
    """
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask

    policy = task_pb2.TaskPolicy(
        task_type=task_type,
        max_retries=max_retries,
        retry_base=parse_duration("--retry-base", retry_base),
        retry_max_delay=parse_duration("--retry-max-delay", retry_max_delay),
        retry_jitter=retry_jitter,
        claim_timeout=parse_duration("--claim-timeout", claim_timeout),
        retention=parse_duration("--retention", retention),
        final_error_types=final_error,
    )
    request = task_pb2.PutTaskPolicyRequest(policy=policy)
    put = ask(cluster, lambda peer: peer.tasks.PutTaskPolicy, request).policy
    if json_output:
        print_json(put)
    else:
        print_table(COLUMNS, [_cells(put)], "")


@app.command("delete")
def delete_policy(
    task_type: TypeArgument,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Let the settings hold for a type again."""
    from gaia.task.v1 import task_pb2

    from gaia_grpc.cli.ask import ask

    request = task_pb2.DeleteTaskPolicyRequest(task_type=task_type)
    deleted = ask(cluster, lambda peer: peer.tasks.DeleteTaskPolicy, request).policy
    if json_output:
        print_json(deleted)
    else:
        print(f"the settings hold for {deleted.task_type} again")


def _cells(policy: task_messages.TaskPolicy) -> tuple[object, ...]:
    def shown(name: str) -> str:
        return duration_text(getattr(policy, name)) if policy.HasField(name) else "-"  # type: ignore[arg-type]  # the names of fields below

    return (
        policy.task_type,
        policy.max_retries if policy.HasField("max_retries") else "-",
        shown("retry_base"),
        shown("retry_max_delay"),
        f"{policy.retry_jitter:g}" if policy.HasField("retry_jitter") else "-",
        shown("claim_timeout"),
        shown("retention"),
        " ".join(policy.final_error_types) or "-",
    )
