"""A peer with a bug, to see that runs find it: `python -m tests.chaos.broken_peer BUG serve ...`.

stale-reads     linearizable reads are answered at once from the peer's own state (faults B9)
early-ack       writes are acknowledged up to a second before they reach the disk (faults B2)
double-apply    every forwarded command is proposed twice, the second time as another one (B19)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from gaia.command.v1 import command_pb2

from gaia_grpc.cli.main import main
from gaia_grpc.node.engine import Engine
from gaia_grpc.node.routing import Router
from gaia_grpc.raft.types import WriteBatch
from gaia_grpc.storage.sqlite_log import SqliteLog

UNWRITTEN_S = 1.0


def stale_reads() -> None:
    """No leader is asked."""

    async def confirm_read(self: Router, timeout_s: float) -> int:
        return int(self.engine.applier.machine.elapsed_ms)

    Router.confirm_read = confirm_read  # type: ignore[method-assign]  # that is the bug


def early_ack() -> None:
    """What is acknowledged stays in memory for a while."""
    unwritten: list[WriteBatch] = []
    written_at = time.monotonic()
    write = SqliteLog.write

    def flush(log: SqliteLog) -> None:
        nonlocal written_at
        batches = list(unwritten)
        unwritten.clear()
        written_at = time.monotonic()
        write(log, batches)

    def write_later(self: SqliteLog, batches: Sequence[WriteBatch]) -> None:
        unwritten.extend(batches)
        if time.monotonic() - written_at > UNWRITTEN_S:
            flush(self)

    def flushed_first(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: SqliteLog, *arguments: Any) -> Any:
            if unwritten:
                flush(self)
            return method(self, *arguments)

        return run

    patched: Any = SqliteLog
    patched.write = write_later
    patched.read_entries = flushed_first(SqliteLog.read_entries)
    patched.close = flushed_first(SqliteLog.close)


def double_apply() -> None:
    """A lost memory of request_ids, as after a snapshot that left them out."""
    propose = Engine.propose

    def propose_twice(self: Engine, command: bytes, *arguments: Any) -> Any:
        again = command_pb2.Command.FromString(command)
        if again.WhichOneof("body") == "enqueue_tasks" and again.request_id:
            again.request_id += "-again"
            for task in again.enqueue_tasks.tasks:
                task.idempotency_key = ""
            propose(self, again.SerializeToString(), *arguments)
        return propose(self, command, *arguments)

    Engine.propose = propose_twice  # type: ignore[method-assign]  # that is the bug


BUGS = {"stale-reads": stale_reads, "early-ack": early_ack, "double-apply": double_apply}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    sys.exit(main())
