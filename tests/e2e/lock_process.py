"""Holds a lock until it is lost, as a process that can be paused: `lock_process.py CLUSTER NAME`.

It prints its token, and in the end what the SDK told it.
"""

from __future__ import annotations

import asyncio
import sys

from gaia_grpc.client import Client
from gaia_grpc.errors import LockLostError


async def main(cluster: str, name: str) -> None:
    async with Client.connect(cluster) as client:
        try:
            async with client.locks.hold(name, owner="sleeper", lease=1.5) as lock:
                sys.stdout.write(f"{lock.token}\n")
                sys.stdout.flush()
                await lock.lost.wait()
                lock.check()
        except LockLostError as error:
            sys.stdout.write(f"lost: {error}\n")


asyncio.run(main(*sys.argv[1:]))
