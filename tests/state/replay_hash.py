"""Builds one long mixed log from a seed and prints the chain hash: run in processes that differ."""

from __future__ import annotations

import random
import sys

from tests.state.harness import Log


def mixed_log(seed: int, steps: int) -> Log:
    """Sessions, batches, waits, ends of claims, lost sessions and settings, in a seeded order."""
    source = random.Random(seed)
    log = Log(("task.claim_timeout", "20s"), ("request.retention", "30s"))
    subjects = ["math", "art", "general", "physics", "история"]
    for step in range(steps):
        choice = source.randrange(12)
        pages = log.ask(list_tasks={"state": 3}).list_tasks.tasks
        held = source.choice(pages) if pages else None
        if choice == 0:
            body = {
                "name": f"w{source.randrange(9)}",
                "specialty": source.choice(subjects),
                "max_concurrent_tasks": source.randrange(1, 4),
                "labels": [{"key": key, "value": "x"} for key in ("a", "b")],
            }
            log.apply_fields(register_session=body, request_id=f"r{step % 40}")
        elif choice == 1:
            log.advance(source.randrange(20_000))
        elif choice in (2, 3, 4):
            tasks = [
                {
                    "task_type": source.choice(["grade", "tutor"]),
                    "affinity": source.choice(subjects),
                    "priority": source.randrange(3),
                    "idempotency_key": source.choice(["", f"k{source.randrange(50)}"]),
                    "delay_ms": source.choice([0, 0, 5_000]),
                    "payload": source.randbytes(20),
                }
                for _ in range(source.randrange(1, 6))
            ]
            log.apply_fields(enqueue_tasks={"tasks": tasks}, request_id=f"q{step % 50}")
        elif choice in (5, 6, 7):
            body = {
                "session_id": f"s-{source.randrange(1, 9):012d}",
                "max_tasks": source.randrange(1, 4),
                "wait_ms": source.choice([0, 9_000]),
                "include_unmatched": source.random() < 0.3,
                "task_types": source.choice([[], ["grade"], ["tutor", "grade"]]),
            }
            log.apply_fields(claim_tasks=body, request_id=f"c{step % 60}")
        elif choice == 8 and held is not None:
            log.complete(held, result=source.randbytes(5))
        elif choice == 9 and held is not None:
            log.fail(held)
        elif choice == 10:
            numbers = [source.randrange(1, 9) for _ in range(6)]
            log.beat(*(f"s-{number:012d}" for number in numbers))
        elif held is not None:
            log.do(release_task=log.held(held))
    return log


if __name__ == "__main__":
    final = mixed_log(int(sys.argv[1]), int(sys.argv[2]))
    index, value = final.machine.state_hash() or (0, b"")
    stats = final.stats()
    sys.stdout.write(f"{index} {value.hex()} {stats.claims_total} {stats.failed}\n")
