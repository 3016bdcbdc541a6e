"""Far more metrics than the peers can take: raft, tasks and sessions go on as before."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster

FLOOD_SECONDS = 4.0
FLOOD_CALLS = 60
"""Of 10,000 metrics each: six times what a peer takes, and repeated at once when refused."""
LONGEST_WAIT_S = 1.0


async def flood(address: str) -> dict[str, int]:
    """Sends to one peer from a process of its own; returns its counts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.metric_flood",
        address, str(FLOOD_SECONDS), str(FLOOD_CALLS),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(FLOOD_SECONDS + 30.0):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    counts: dict[str, int] = json.loads(output)
    return counts


async def test_tasks_and_sessions_stay_responsive_at_five_times_the_load(
    cluster3: Cluster, client3: Client
) -> None:
    before = await client3.cluster.status(
        address=cluster3.peer(await cluster3.aio.leader()).address
    )
    session = (await client3.sessions.register("overload-worker", max_concurrent_tasks=1)).session
    flooding = asyncio.create_task(flood(before.leader_address))
    waits_s: list[float] = []
    while not flooding.done():
        begin_s = time.monotonic()
        await client3.tasks.enqueue("overload")
        middle_s = time.monotonic()
        await client3.sessions.heartbeat(session.session_id)
        waits_s += [middle_s - begin_s, time.monotonic() - middle_s]
        await asyncio.sleep(0.05)
    counts = await flooding
    assert counts["acknowledged"] > 0
    assert counts["failed"] == 0
    assert counts["offered"] >= 5 * counts["acknowledged"], counts
    assert max(waits_s) < LONGEST_WAIT_S, sorted(waits_s)[-5:]
    after = await client3.cluster.status(address=before.leader_address)
    assert (after.term, after.leader_id) == (before.term, before.leader_id)
    assert after.metrics.accepted_total - before.metrics.accepted_total == counts["acknowledged"]
    assert after.metrics.refused_total >= counts["refused"] > 0
