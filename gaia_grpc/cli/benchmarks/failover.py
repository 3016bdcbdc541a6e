"""How long a client waits for its next acknowledgement when the leader goes away, three ways."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from gaia_grpc.cli.benchmarks.bed import Bed
from gaia_grpc.cli.benchmarks.figures import Figure, quantile

CALL_TIMEOUT_S = 30.0
ROUNDS = 100
TASK_TYPE = "bench.failover"


async def kill(bed: Bed) -> list[Figure]:
    """The leader's process is killed (SIGKILL): its connections break at once."""
    return [
        await _measure(
            bed,
            "a write acknowledged after kill -9 of the leader, p99",
            signal.SIGKILL,
            bed.cluster.aio.restart,
            guide=1_000.0,
            first=600.0,
        )
    ]


async def terminate(bed: Bed) -> list[Figure]:
    """The leader is told to stop (SIGTERM): it hands leadership over."""

    async def restart(leader: str) -> None:
        await bed.cluster.aio.terminate(leader)
        await bed.cluster.aio.restart(leader)

    return [
        await _measure(
            bed,
            "a write acknowledged after SIGTERM of the leader, p99",
            signal.SIGTERM,
            restart,
            first=600.0,
        )
    ]


async def pause(bed: Bed) -> list[Figure]:
    """The leader's process is stopped (SIGSTOP): its connections stand, and nobody answers."""

    async def resume(leader: str) -> None:
        bed.cluster.resume(leader)
        await asyncio.to_thread(bed.cluster.wait_ready)

    return [
        await _measure(
            bed,
            "a write acknowledged after SIGSTOP of the leader, p99",
            signal.SIGSTOP,
            resume,
        )
    ]


async def _measure(
    bed: Bed,
    name: str,
    number: signal.Signals,
    repair: Callable[[str], Awaitable[object]],
    *,
    guide: float | None = None,
    first: float | None = None,
) -> Figure:
    """From the signal to the acknowledgement of a write that began after it, `ROUNDS` times.

    The write before it went to the leader, so the client begins at the peer that is gone.
    """
    durations: list[float] = []
    for _ in range(2 if bed.quick else ROUNDS):
        leader = await bed.cluster.aio.leader()
        await bed.client.tasks.enqueue(TASK_TYPE)
        bed.cluster.peer(leader).send(number)
        begin_s = time.perf_counter()
        await bed.client.tasks.enqueue(TASK_TYPE, timeout=CALL_TIMEOUT_S)
        durations.append(time.perf_counter() - begin_s)
        await repair(leader)
        await bed.cluster.aio.wait_applied_equal(CALL_TIMEOUT_S)
    return Figure(
        name,
        quantile(durations, 99) * 1e3,
        "ms",
        "3 peers, fsync, 1 client of the SDK; from the signal to the acknowledgement; "
        f"worst {max(durations) * 1e3:,.0f} ms",
        guide=guide,
        first=first,
        samples=len(durations),
        p50=quantile(durations, 50) * 1e3,
    )
