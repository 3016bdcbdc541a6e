"""What several end-to-end tests need."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gaia.session.v1 import session_pb2

from gaia_grpc.client import Client

HERE = Path(__file__).parent
SHORT_TIMES = {
    "session.degraded_after": "1s",
    "session.failed_after": "2s",
    "session.heartbeat_interval": "150ms",
    "task.claim_timeout": "2s",
    "task.retry_base": "100ms",
}
"""Timers of the guide, about a tenth as long."""


def report(line: str) -> None:
    """A figure that is told and not judged: `pytest -rP` shows it."""
    sys.stdout.write(f"{line}\n")


async def eventually(
    condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 10.0
) -> None:
    """Asks again and again until `condition` holds."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what}") from None


@asynccontextmanager
async def live_session(
    client: Client, name: str, *, specialty: str = "", capacity: int = 1, every: float = 0.15
) -> AsyncIterator[session_pb2.Session]:
    """A session that heartbeats while the block runs."""
    session = (
        await client.sessions.register(name, specialty=specialty, max_concurrent_tasks=capacity)
    ).session

    async def beat() -> None:
        while True:
            await asyncio.sleep(every)
            await client.sessions.heartbeat(session.session_id)

    beating = asyncio.create_task(beat())
    try:
        yield session
    finally:
        beating.cancel()
        await asyncio.wait({beating})
        if not beating.cancelled() and (error := beating.exception()) is not None:
            raise error


@asynccontextmanager
async def program(name: str, *arguments: str) -> AsyncIterator[Process]:
    """One of the programs beside this file; killed where it outlives the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(HERE / name), *arguments, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
