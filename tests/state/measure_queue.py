"""Measures the queue's apply by hand: `python -m tests.state.measure_queue`. No test."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

from gaia.command.v1 import command_pb2

from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.stamp import stamp
from tests.state.harness import Log, command

ROUNDS, ROUND = 4, 500
PAYLOAD = b"x" * 50


def encoded(log: Log, **fields: Any) -> bytes:
    """A command as it stands in the log."""
    return stamp(command(**fields).SerializeToString(), log.now_ms, log.now_ms)


def timed(log: Log, entries: Sequence[bytes]) -> tuple[float, list[command_pb2.CommandResult]]:
    """Microseconds of CPU an entry, and the results."""
    machine = log.machine
    first = machine.applied_index + 1
    start_s = time.process_time()
    results = [
        machine.apply(index, EntryKind.COMMAND, data)
        for index, data in enumerate(entries, start=first)
    ]
    machine.take_touched()
    spent_us = (time.process_time() - start_s) / len(entries) * 1e6
    return spent_us, [command_pb2.CommandResult.FromString(result) for result in results]


def filled(pending: int) -> Log:
    """A queue of mixed tasks."""
    log = Log()
    for start in range(0, pending, 1_000):
        tasks = [
            {
                "task_type": f"t{number % 7}",
                "affinity": ("math", "general", "art")[number % 3],
                "priority": number % 11,
                "payload": PAYLOAD,
            }
            for number in range(start, start + 1_000)
        ]
        log.machine.apply(
            log.machine.applied_index + 1, 2, encoded(log, enqueue_tasks={"tasks": tasks})
        )
    return log


def cycle(pending: int) -> dict[str, float]:
    """Microseconds an enqueue, claim and completion, each a command with a request_id."""
    log = filled(pending)
    session = log.register("worker", "math", 1_000)
    gc.collect()
    gc.freeze()  # as a peer does after load
    spent = dict.fromkeys(("enqueue", "claim", "complete"), 0.0)
    identity = {"client_id": "c", "request_digest": b"d" * 32}
    spec = {"task_type": "grade", "affinity": "math", "payload": PAYLOAD}
    for number in range(ROUNDS):
        names = [f"{number}-{place}" for place in range(ROUND)]
        enqueues = [
            encoded(log, request_id=f"e{name}", enqueue_tasks={"tasks": [spec]}, **identity)
            for name in names
        ]
        body = {"session_id": session, "max_tasks": 1}
        claims = [
            encoded(log, request_id=f"c{name}", claim_tasks=body, **identity) for name in names
        ]
        spent["enqueue"] += timed(log, enqueues)[0] / ROUNDS
        claim_us, results = timed(log, claims)
        spent["claim"] += claim_us / ROUNDS
        completions = [
            encoded(
                log,
                complete_tasks={
                    "session_id": session,
                    "completions": [{"task_id": task.task_id, "claim_token": task.claim_token}],
                },
            )
            for result in results
            for task in result.claim.tasks
        ]
        spent["complete"] += timed(log, completions)[0] / ROUNDS
    gc.unfreeze()
    return spent


def bytes_a_task(count: int = 50_000) -> float:
    """Traced memory a pending task, beside its payload."""
    gc.collect()
    tracemalloc.start()
    log = filled(count)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    kept = log.stats().pending
    return size / kept - sys.getsizeof(PAYLOAD)


if __name__ == "__main__":
    cycle(1_000)
    for pending in (1_000, 100_000):
        figures = ", ".join(f"{name} {us:.1f} us" for name, us in cycle(pending).items())
        sys.stdout.write(f"{pending} pending: {figures}\n")
    sys.stdout.write(f"{bytes_a_task():.0f} bytes a pending task beside its payload\n")
