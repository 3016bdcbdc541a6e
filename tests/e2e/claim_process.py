"""A claimer as its own process, for T3: `python -m tests.e2e.claim_process NAME FILE ADDRESSES`.

ADDRESSES is a JSON object, node id to address. It says `ready`, waits for a line, then claims one
task after the other and completes each, until there is none. Every call and what it knows of it is
in FILE then. It repeats what it does not know the outcome of, at another peer, as the same request.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from tests.chaos.caller import Caller, Channels
from tests.chaos.history import History


async def main(name: str, file: str, addresses: str) -> None:
    history = History()
    channels = Channels(json.loads(addresses))
    caller = Caller(name, channels, history, random.Random(name))
    register = session_pb2.RegisterSessionRequest(
        name=name, max_concurrent_tasks=50, request_id=caller.new_request_id()
    )
    session_id = (await caller.insist("register_session", name, register)).answer["session_id"]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    while True:
        claim = task_pb2.ClaimTasksRequest(
            session_id=session_id,
            max_tasks=1,
            task_types=["race"],
            request_id=caller.new_request_id(),
        )
        claimed = await caller.insist("claim_tasks", "race", claim)
        tasks = claimed.answer.get("tasks", [])
        if not tasks:
            break
        [[task_id, token]] = tasks
        complete = task_pb2.CompleteTaskRequest(
            task_id=task_id, claim_token=token, session_id=session_id, result=name.encode()
        )
        told = {"claim_token": token, "result": name}
        await caller.insist("complete_task", task_id, complete, told)
    await channels.close()
    history.save(Path(file))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
