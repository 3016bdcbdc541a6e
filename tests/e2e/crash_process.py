"""A worker that a task kills: `crash_process.py CLUSTER NAME` exits with 66 as it begins one."""

from __future__ import annotations

import asyncio
import os
import sys

from gaia_grpc.client import Client, Job, Worker


async def main(cluster: str, name: str) -> None:
    async with Client.connect(cluster) as client:
        worker = Worker(client, name=name)

        @worker.task("poison")
        async def poison(job: Job) -> bytes:
            os._exit(66)

        await worker.run()


asyncio.run(main(*sys.argv[1:]))
