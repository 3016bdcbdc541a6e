"""One task as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaia_grpc.cli.output import (
    LOG_TIME,
    bytes_text,
    enum_word,
    print_json,
    print_table,
    time_text,
)

if TYPE_CHECKING:
    from gaia.task.v1 import task_pb2 as task_messages


def show_task(task: task_messages.Task, json_output: bool) -> None:
    """The task with what was set of it, and its history where the answer has one."""
    from gaia.task.v1 import task_pb2

    if json_output:
        print_json(task)
        return
    print_table(
        ("FIELD", "VALUE"),
        (
            ("task_id", task.task_id),
            ("type", task.task_type),
            ("state", enum_word(task_pb2.TaskState.Name, task.state, "TASK_STATE")),
            ("priority", task.priority),
            ("affinity", task.affinity),
            ("retries", retries_text(task, " of ")),
            ("claimed by", task.claimed_by or "-"),
            ("claim token", task.claim_token or "-"),
            *_optional_rows(task),
            *([("payload", bytes_text(task.payload))] if task.payload else []),
            ("result", bytes_text(task.result) or "-"),
            ("last error", _error_text(task.last_error_type, task.last_error)),
        ),
        "",
    )
    if task.history:
        print()
        print_table(
            (f"TIME ({LOG_TIME}, UTC)", "EVENT", "SESSION", "TOKEN", "ERROR"),
            (
                (
                    time_text(event.time),
                    enum_word(task_pb2.TaskEventKind.Name, event.kind, "TASK_EVENT_KIND"),
                    event.session_id or "-",
                    event.claim_token or "-",
                    _error_text(event.error_type, event.error),
                )
                for event in task.history
            ),
            "",
        )


def retries_text(task: task_messages.Task, between: str) -> str:
    """Retries made and allowed: the attempt after the last one allowed fails and is none."""
    return f"{min(task.retry_count, task.max_retries)}{between}{task.max_retries}"


def _optional_rows(task: task_messages.Task) -> list[tuple[str, object]]:
    """What few tasks have: these get no row elsewhere."""
    rows: list[tuple[str, object]] = []
    if task.HasField("deadline_time"):
        rows.append((f"deadline ({LOG_TIME}, UTC)", time_text(task.deadline_time)))
    if task.depends_on:
        open_ones = f" ({task.pending_dependencies} of {len(task.depends_on)} not completed)"
        rows.append(("depends on", " ".join(task.depends_on) + open_ones))
    if task.progress:
        rows.append(("progress", f"{task.progress:.0%}"))
    if task.checkpoint:
        rows.append(("checkpoint", bytes_text(task.checkpoint)))
    return rows


def _error_text(error_type: str, error: str) -> str:
    """The error with its kind in front, where it does not begin with that already."""
    if not error_type or error.startswith(error_type):
        return error or "-"
    return f"{error_type}: {error}" if error else error_type
