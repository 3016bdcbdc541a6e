"""A worker as its own process, for test_workers.py: `python worker_process.py CLUSTER NAME`.

It works until SIGTERM; then it prints what it counted, as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys

from gaia_grpc.client import Client, Job, Worker


async def main(cluster: str, name: str) -> None:
    async with Client.connect(cluster) as client:
        worker = Worker(client, name=name, concurrency=4)

        @worker.task("grade")
        async def grade(job: Job) -> bytes:
            # Some end before a watch is opened, some after.
            await asyncio.sleep(int(job.payload) % 13 / 6)
            job.raise_if_lost()
            return f"{job.claim_token}".encode()

        await worker.run(signals=True)
    sys.stdout.write(json.dumps(dataclasses.asdict(worker.counters)))


asyncio.run(main(*sys.argv[1:]))
